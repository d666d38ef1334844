"""Records that a ranking was not measured on, as far as its profile or channel set tells.

Texts are told apart by their content, or, of a channel set, by their place. Where what was ranked on still lies where
it was read, records are compared one by one, so that a copy, a part or another packing of it is found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from act.core.counted import counted
from act.core.errors import ActError
from act.data.corpus import Corpus
from act.data.digests import digest
from act.data.parts import Part
from act.data.records import Source, lies_here, open_source
from act.data.remote import is_remote
from act.profiles.attribution import AttributionProfile
from act.profiles.provenance import CorpusRead
from act.ranking.activations import Ability, sides
from act.ranking.channel_set import ChannelSet


class Seen(ActError):
    """All records of a text were ranked on."""


HALVES = ", or leave the profile out, so that half of these rank and the other half choose"
"""Advice for whoever chooses by a profile; in a recipe, profiles are its own."""


def held_out(
    corpora: Sequence[Corpus], rankings: Sequence[Ability | ChannelSet], ranked_on: Iterable[Source] = ()
) -> tuple[list[Corpus], tuple[str, ...]]:
    """The records of corpora that none of these rankings was measured on.

    Args:
        ranked_on: sources that the rankings were measured on, as far as they are at hand; others are looked for where
            their names say.

    Returns:
        Each corpus without what was read, and the names of ranked texts whose records could not be compared, because
        they are no local files or were changed since.

    Raises:
        ActError: all records of a corpus were read.
    """
    ranked = list(dict.fromkeys(text for ranking in rankings for text in _texts(ranking)))
    left = [_unread_shards(corpus, ranked) for corpus in corpora]
    found = [{entry.number: digest(entry) for entry in corpus.source.read()} for corpus in left]
    wanted = {digest for each in found for digest in each.values() if digest}
    known = {source.fingerprint: source for source in ranked_on}
    seen, unknown = set[bytes](), []
    for text in ranked:
        if (source := known.get(text.fingerprint or "") or text.source()) is None:
            unknown.append(text.name)
            continue
        for shard in text.shards:
            read = map(digest, source.read(shard=(shard, text.of)))
            seen.update(digest for digest in read if digest in wanted)
    kept = [
        corpus if seen.isdisjoint(each.values()) else _only(corpus, [n for n, one in each.items() if one not in seen])
        for corpus, each in zip(left, found, strict=True)
    ]
    return kept, tuple(dict.fromkeys(unknown))


def doubts(corpora: Sequence[Corpus], rankings: Sequence[Ability | ChannelSet], fewest: int) -> list[str]:
    """Why figures on corpora are no ground to choose by: one sentence for each that was ranked on, or has few records.

    Where a choice would be refused, or made on the rest of the records, a picture of them may still be wanted.
    """
    said = []
    for corpus in corpora:
        records = corpus.source.count()
        try:
            (left,), _ = held_out([corpus], rankings)
        except Seen:
            said.append(
                f"{corpus.name} is the text that the channels were ranked on, so its figures say nothing of other "
                "text; give other records to choose by"
            )
            continue
        rest = records if left is corpus else left.source.count()
        if records is not None and rest is not None and rest < records:
            said.append(
                f"{records - rest:,} of the {records:,} records of {corpus.name} are among those that the channels "
                "were ranked on, so its figures flatter the result; give other records to choose by"
            )
        if rest is not None and rest < fewest:
            said.append(
                f"{corpus.name} has {counted(rest, 'record')} to choose by, and it takes {fewest} to tell anything; "
                "give more"
            )
    return said


@dataclass(frozen=True)
class _Text:
    """A text that was ranked on: its fingerprint, None if only its place is known, and which of its shards was read."""

    name: str
    place: str
    fingerprint: str | None
    shards: tuple[int, ...] = (0,)
    of: int = 1

    def source(self) -> Source | None:
        """Its records, or one half of them, as they were ranked on; None if these cannot be had here."""
        if not (lies_here(self.place) or is_remote(self.place)):
            return None
        with contextlib.suppress(ActError):
            whole = open_source(self.place)
            for source in (whole, *(Part(whole, residues=(half,), of=2) for half in (0, 1))):
                if self.fingerprint in (None, source.fingerprint):
                    return source
        return None


def _texts(ranking: Ability | ChannelSet) -> Iterator[_Text]:
    """What was read to rank by it, texts to keep included, which a contrast or a cost is measured on."""
    if isinstance(ranking, ChannelSet):
        for name in (*ranking.rule.corpora, *(name for kept in ranking.rule.keep for name in kept)):
            for place in ranking.rule.places.get(name, (name,)):
                yield _Text(name, place, None)
        return
    for side in sides(ranking):
        for one in (side, *(side.kept if isinstance(side, AttributionProfile) else ())):
            for read in one.provenance.corpora:
                for identity in read.read or (read,):
                    place = identity.place or identity.name
                    yield _Text(identity.name, place, identity.fingerprint or "", *_shards(read))


def _shards(read: CorpusRead) -> tuple[tuple[int, ...], int]:
    """The shards that were read, and of how many."""
    if read.shard:
        return (read.shard[0],), read.shard[1]
    return (read.shards, read.of or 1) if isinstance(read.shards, tuple) else ((0,), 1)


def _unread_shards(corpus: Corpus, ranked: Iterable[_Text]) -> Corpus:
    """The shards of a corpus that were not read, if it is itself one of these texts."""
    for text in ranked:
        if text.fingerprint is None:
            if _same_place(corpus.source.place or corpus.name, text.place):
                raise _seen(corpus)
        elif text.fingerprint and text.fingerprint == corpus.source.fingerprint:
            left = [number for number in range(text.of) if number not in text.shards]
            if not left:
                raise _seen(corpus)
            corpus = corpus.part(left, text.of)
    return corpus


def _only(corpus: Corpus, numbers: Sequence[int]) -> Corpus:
    if not numbers:
        raise _seen(corpus)
    return corpus.only(numbers)


def _seen(corpus: Corpus) -> Seen:
    return Seen(
        f"{corpus.name} is the text that the channels were ranked on, which says nothing of other text; give other "
        f"records{HALVES}"
    )


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
