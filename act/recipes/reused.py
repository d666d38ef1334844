"""What the records of a recipe's corpora are used for besides: to rank, to choose, to train, and only then to judge."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from act.core.counted import counted
from act.core.errors import ActError
from act.data.digests import digest
from act.data.records import lies_here
from act.evaluation.choice import FEWEST
from act.ranking.scores import SCORES
from act.recipes.corpora import opened
from act.recipes.schema import Recipe

LARGEST = 100_000
"""Records of a corpus that others are looked for in."""


class Reused:
    """Which records several sections of a recipe read; texts of files are compared record by record, once.

    Args:
        contents: what tells the whole content of each corpus from any other, by its name, where that is known.
    """

    def __init__(self, recipe: Recipe, contents: Mapping[str, str]) -> None:
        self._recipe, self._contents = recipe, contents
        self._read: dict[str, list[bytes]] = {}

    def require_unseen(self) -> None:
        """Raise :class:`ActError` if a sweep would choose on too few records that the channels are not ranked on."""
        if not (sweep := self._recipe.sweep):
            return
        for name in (sweep.corpus, *sweep.kept):
            seen, records = self._seen(name, self._ranked)
            if seen and seen == records:
                raise ActError(
                    f"sweep chooses on {name}, and all its records are among those that the channels are ranked on "
                    f"({', '.join(self._ranked)}), which says nothing of other text; give sweep other records, such as "
                    "other rows"
                )
            if 0 < records - seen < FEWEST:
                left = f", without those that the channels are ranked on, {records - seen}" if seen else ""
                raise ActError(
                    f"sweep chooses on {name}, which has {counted(records, 'record')}{left}, but it takes {FEWEST} "
                    "to tell anything; give more"
                )

    def warnings(self) -> list[str]:
        """A sentence on each corpus to evaluate on that other sections have used."""
        return [*self._warnings()] if self._recipe.evaluate else []

    def _warnings(self) -> Iterator[str]:
        recipe = self._recipe
        assert recipe.evaluate
        uses: dict[str, list[str]] = {"the channels are ranked on": self._ranked}
        if recipe.sweep:
            uses["share and strength are chosen on"] = [recipe.sweep.corpus, *recipe.sweep.kept]
        if recipe.tune:
            uses["the result is tuned on"] = [one for one in (recipe.tune.corpus, recipe.tune.replay) if one]
        for called, name in recipe.evaluate.corpora.items():
            found = {use: self._seen(name, others) for use, others in uses.items()}
            said = [
                f"{'' if seen == records else 'some of '}those that {use}"
                for use, (seen, records) in found.items()
                if seen
            ]
            if said:
                yield (
                    f"the records of {called}, which is evaluated on, are {' and '.join(said)}, so its figures flatter "
                    "the result: evaluate on records that are used for nothing else"
                )

    @property
    def _ranked(self) -> list[str]:
        """What the channels are ranked on."""
        looks = SCORES[self._recipe.score].looks_at_activations
        return [name for one in self._recipe.donor for name in (one.corpus, *(one.kept if looks else ()))]

    def _seen(self, name: str, others: Iterable[str]) -> tuple[int, int]:
        """How many of how many records of a corpus others have, too, as far as can be told on this machine."""
        known, distinct = self._contents.get(name), dict.fromkeys(others)
        mine = self._records(name)
        if name in distinct or (known and known in {self._contents.get(one) for one in distinct}):
            return (len(mine), len(mine)) if mine else (1, 1)
        theirs = {record for one in distinct for record in self._records(one)}
        return sum(record in theirs for record in mine), len(mine)

    def _records(self, name: str) -> list[bytes]:
        """What records say, of files on this machine; those of the hub are known by place and number."""
        if name not in self._read:
            records = self._recipe.records(name)
            place = self._recipe.at(records.place)
            found: list[bytes] = []
            if lies_here(place):
                with contextlib.suppress(ActError):  # a file that cannot be read is reported by what reads it
                    found = [digest(one) for one in islice(opened(self._recipe, name).read(), LARGEST)]
            else:
                what, rows = f"{place} {sorted(records.columns.items())}", range(*(records.rows or (0, LARGEST)))
                found = [f"{what} {row}".encode() for row in rows]
            self._read[name] = [one for one in found if one]
        return self._read[name]
