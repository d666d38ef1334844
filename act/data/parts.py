"""Parts of a source: a range of its records, of these some in turn, such as every second, or those of given numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from act.core.errors import ActError
from act.data.records import Entry, Shard, Source, Wanted, every


class Part:
    """Some records of a source, numbered from 0.

    Args:
        source: the whole.
        first, stop: the half-open range of its records; ``stop`` None: to the end.
        residues, of: of that range, the records whose place in it leaves one of these remainders when divided by
            ``of``.

    Attributes:
        source: the whole.

    Raises:
        ActError: an empty range; remainders that the division does not leave.

    >>> from act.data.parts import Part
    >>> from act.data.records import Memory
    >>> letters = Memory([{"text": letter} for letter in "abcdefg"])
    >>> [entry.record["text"] for entry in Part(letters, 2, 6).read()]
    ['c', 'd', 'e', 'f']
    >>> odd = Part(letters, residues=(1,), of=2)
    >>> [(entry.number, entry.record["text"]) for entry in odd.read(start=1)], odd.count()
    ([(1, 'd'), (2, 'f')], 3)
    """

    def __init__(
        self, source: Source, first: int = 0, stop: int | None = None, *, residues: Sequence[int] = (0,), of: int = 1
    ) -> None:
        if not residues or not all(0 <= residue < of for residue in residues):
            raise ActError(f"the remainders are {residues}, of a division by {of}; expected a list of 0 to {of - 1}")
        if first < 0 or (stop is not None and stop <= first):
            raise ActError(f"the rows of {source.name} are [{first}, {stop}]; expected a first and a later last")
        self.source, self._first, self._stop = source, first, stop
        self._residues, self._of = sorted(residues), of
        self.name, self.place = source.name, source.place
        decided = f"{source.fingerprint} {first} {stop} {self._residues} {of}"
        self.fingerprint = source.fingerprint and hashlib.sha256(decided.encode()).hexdigest()[:16]
        self.size: int | None = self._within(source.size)

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """See :class:`act.data.records.Source`; nothing is read behind the last record."""

        def here(number: int) -> bool:
            if self._stop is not None and number >= self._stop:
                return True  # of which the first ends the reading
            place = self._place(number)
            return place is not None and place >= start and place % shard[1] == shard[0] and wanted(place)

        rounds, more = divmod(start, len(self._residues))
        begin = self._first + rounds * self._of + (self._residues[more] if more else 0)
        for entry in self.source.read(begin, wanted=here):
            place = self._place(entry.number)
            if place is None:
                break
            yield entry._replace(number=place)

    def count(self) -> int | None:
        """See :class:`act.data.records.Source`."""
        return self._within(self.source.count())

    def _place(self, number: int) -> int | None:
        """The number in this part of a record of the whole; None if it does not belong to it."""
        rounds, residue = divmod(number - self._first, self._of)
        if rounds < 0 or residue not in self._residues or (self._stop is not None and number >= self._stop):
            return None
        return rounds * len(self._residues) + self._residues.index(residue)

    def _within(self, size: int | None) -> int | None:
        if size is None and self._stop is None:
            return None
        end = min(each for each in (size, self._stop) if each is not None)
        rounds, more = divmod(max(0, end - self._first), self._of)
        return rounds * len(self._residues) + sum(residue < more for residue in self._residues)


class Picked:
    """The records of a source that have these numbers, numbered from 0 in their order.

    >>> from act.data.parts import Picked
    >>> from act.data.records import Memory
    >>> letters = Memory([{"text": letter} for letter in "abcd"])
    >>> [(entry.number, entry.record["text"]) for entry in Picked(letters, [3, 1]).read()]
    [(0, 'b'), (1, 'd')]
    """

    def __init__(self, source: Source, numbers: Iterable[int]) -> None:
        self.source = source
        self._places = {number: place for place, number in enumerate(sorted(numbers))}
        self.name, self.place = source.name, source.place
        decided = f"{source.fingerprint} {[*self._places]}"
        self.fingerprint = source.fingerprint and hashlib.sha256(decided.encode()).hexdigest()[:16]
        self.size: int | None = len(self._places)

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """See :class:`act.data.records.Source`."""

        def here(number: int) -> bool:
            place = self._places.get(number)
            return place is not None and place >= start and place % shard[1] == shard[0] and wanted(place)

        for entry in self.source.read(wanted=here):
            yield entry._replace(number=self._places.get(entry.number, len(self._places)))

    def count(self) -> int | None:
        """See :class:`act.data.records.Source`."""
        return self.size


def whole_of(source: Source) -> Source:
    """What a source is a part of, directly or not; itself if it is none.

    >>> from act.data.parts import whole_of
    >>> from act.data.records import Memory
    >>> letters = Memory([{"text": letter} for letter in "abcd"])
    >>> whole_of(Part(Part(letters, 1), 0, 2)) is letters is whole_of(letters)
    True
    """
    while isinstance(source, (Part, Picked)):
        source = source.source
    return source
