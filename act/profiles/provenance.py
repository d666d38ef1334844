"""The provenance of a profile: which models read which text with which settings.

Each class reads and writes JSON of schema ``act-profile/1``; no other code knows its keys.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter

from act.core.errors import ActError
from act.core.plain import Flag, Natural, Positive, Seconds, checked
from act.data.stream import Skipped


def _shard(given: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= given[0] < given[1]:
        raise ValueError("expected i and n with 0 <= i < n")
    return given


@dataclass(frozen=True)
class ModelRead:
    """A model that was measured.

    Attributes:
        name: the folder or hub id from which it was loaded, or the name of its class.
        fingerprint: of its weights (see :func:`act.models.fingerprint.fingerprint`).
        code: whose Python code it ran (see :func:`act.models.loading.code_of`); None if it brought none along.
        dtype: the type that it was loaded in, such as ``bfloat16``; None if that is not known. It makes no other model.
    """

    name: str
    fingerprint: str
    code: str | None = None
    dtype: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint}{f', code of {self.code}' if self.code else ''})"

    def to_json(self) -> dict[str, Any]:
        """Plain data for the header of a file."""
        code = {"code": self.code} if self.code else {}
        dtype = {"dtype": self.dtype} if self.dtype else {}
        return {"name": self.name, "fingerprint": self.fingerprint, **code, **dtype}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelRead:
        """The inverse of :meth:`to_json`; raises ValueError for other data."""
        return checked(_MODEL, data)


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a run besides its models and corpora; None for what a file does not record.

    Attributes:
        token_budget: tokens per batch, padding included.
        include: module kinds or patterns of the only sites that were measured, sorted; none: all.
        exclude: module kinds or patterns of sites that were not measured, sorted.
        fused: whether statistics were collected inside fused kernels.
        packing: whether several pieces shared a row.
        look_ahead: records sorted by length together.
        moe_all_experts: whether every expert was measured on every token, not only on those routed to it.
        shared_prefix: whether what sequences began with alike was computed once.
        swap: whether the donor's modules were applied to the target's inputs, too.
        backend: the kernels that ran, such as ``native``.
        extra: settings of observers, by name.
    """

    token_budget: Positive | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fused: Flag | None = None
    packing: Flag | None = None
    look_ahead: Positive | None = None
    moe_all_experts: Flag = False
    shared_prefix: Flag = False
    swap: Flag = False
    backend: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the header of a file."""
        known = {name: getattr(self, name) for name in _names(Settings)}
        known |= {name: list(known[name]) for name in ("include", "exclude")}
        for name in ("include", "moe_all_experts", "shared_prefix", "swap"):
            if not known[name]:
                del known[name]
        return {**known, **self.extra}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`to_json`; unknown keys become :attr:`extra`. Raises ValueError for other data."""
        known, extra = _known(Settings, data)
        return checked(_SETTINGS, {**known, "extra": extra})


@dataclass(frozen=True)
class CorpusIdentity:
    """A text, and how it became counted tokens; None for what is unknown, as for batches that a caller made.

    Attributes:
        name: what it was called: the file, folder or hub id, or a name that a caller gave it.
        fingerprint: of the content.
        tokenizer: fingerprint of the tokenizer and its chat template.
        vocabulary: fingerprint of the tokens and their ids only.
        count: which positions count: ``answer``, ``predict``, ``prompt`` or ``all``.
        answer_turns: which messages are answers: ``last`` or ``all``.
        max_length: longest sequence in tokens.
        overlap: tokens that a piece of a cut text repeats from the one before it.
        ability_column: the column that labels each record with its ability.
        ignore_columns: columns, and keys of messages, that were left out on purpose, sorted; None: none.
        tokenizer_code: whose Python code the tokenizer ran, if it brought any along.
        reader: how the model reads (see :data:`act.models.calls.Reader`); None: as a decoder alone.
        processor: fingerprint of the settings of the processor that made tokens of images; None: of text alone.
        place: the file, folder or hub id that it was read from, where that is not its name; it tells no text from
            another.
    """

    name: str
    fingerprint: str | None = None
    tokenizer: str | None = None
    vocabulary: str | None = None
    count: str | None = None
    answer_turns: str | None = None
    max_length: Positive | None = None
    overlap: Natural | None = None
    ability_column: str | None = None
    ignore_columns: list[str] | None = None
    tokenizer_code: str | None = None
    reader: str | None = None
    processor: str | None = None
    place: str | None = None

    def identity(self) -> dict[str, Any]:
        """These fields but the place as plain data; those of the encoding only if the corpus was encoded."""
        encoding = {name: getattr(self, name) for name in _ENCODING}
        known = any(value is not None for value in encoding.values())
        encoding = {name: value for name, value in encoding.items() if value is not None or name not in _RARE}
        return {"name": self.name, "fingerprint": self.fingerprint, **(encoding if known else {})}

    def identity_and_place(self) -> dict[str, Any]:
        """The same, and the place if there is one."""
        return {**self.identity(), **({"place": self.place} if self.place else {})}


_IDENTITY = tuple(each.name for each in fields(CorpusIdentity))
_ENCODING = tuple(name for name in _IDENTITY[2:] if name != "place")
_NAMED = 5  # missing shards that a phrase names
_RARE = (
    "tokenizer_code",
    "ignore_columns",
    "reader",
    "processor",
)  # left out of a file unless there is something to say
_SUMMED = ("tokens", "counted", "padding", "sequences", "records", "seconds", "waited")
_SUMMED_IF_ANY = ("images", "shared")  # left out of a file where they are 0
_PER_SHARD = (*_SUMMED, *_SUMMED_IF_ANY, "place", "shard", "paths", "nonfinite", "irregular", "unswapped", "skipped")


@dataclass(frozen=True)
class CorpusRead(CorpusIdentity):
    """What a run read of a corpus, and what it found there.

    Attributes:
        read: the corpora, if several were read as one; the other fields then hold what they have in common.
        ability: the ability that the text exercises; empty if it has no name.
        shard: ``(i, n)`` if only every n-th record was read, starting with the i-th.
        tokens: number of tokens read, without padding.
        counted: how many of them count.
        padding: number of padding tokens.
        sequences: number of rows, or of pieces in packed rows.
        records: number of records read.
        images: number of images in them.
        shared: tokens that were not computed, because a sequence before them began with the same.
        seconds: duration of the run.
        waited: seconds of it in which the model waited for a batch.
        paths: number of sites by the kernel that read them.
        nonfinite: NaN and infinite values left out, by site.
        irregular: rows seen by the sites that did not see every counted token a whole number of times.
        unswapped: why sites have no swapped output, by their names with ``*`` for numbers.
        skipped: bad records that were left out.
        extra: what observers add, by name, such as ``stable``: the certificate of ``--until-stable``, or None.
        shards: the number of shards merged into this, or, if some are missing, the numbers of the others.
        of: if shards are missing, how many there should be.
    """

    read: tuple[CorpusIdentity, ...] = ()
    ability: str = ""
    shard: Annotated[tuple[Natural, Positive], AfterValidator(_shard)] | None = None
    tokens: Natural = 0
    counted: Natural = 0
    padding: Natural = 0
    sequences: Natural = 0
    records: Natural = 0
    images: Natural = 0
    shared: Natural = 0
    seconds: Seconds = 0.0
    waited: Seconds = 0.0
    paths: Mapping[str, Natural] = field(default_factory=dict)
    nonfinite: Mapping[str, Natural] = field(default_factory=dict)
    irregular: Mapping[str, Natural] = field(default_factory=dict)
    unswapped: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    shards: Positive | tuple[Natural, ...] | None = None
    of: Positive | None = None

    @property
    def part(self) -> str:
        """Which part of the corpus was read, as a phrase; empty for all of it.

        >>> from act.profiles.provenance import CorpusRead
        >>> CorpusRead("german", shards=(0, 2), of=4).part
        '2 of 4 shards, without 1/4, 3/4'
        """
        if self.shard:
            return f"shard {self.shard[0]}/{self.shard[1]} alone"
        if not (self.of and isinstance(self.shards, tuple)):
            return ""
        there = {number for number in self.shards if number < self.of}
        missing = (f"{number}/{self.of}" for number in range(self.of) if number not in there)
        more = self.of - len(there) - _NAMED
        named = ", ".join(itertools.islice(missing, _NAMED)) + (f" and {more:,} more" if more > 0 else "")
        return f"{len(there):,} of {self.of:,} shards, without {named}"

    @classmethod
    def joined(cls, corpora: Sequence[CorpusIdentity]) -> CorpusRead:
        """Several corpora read as one, before anything is counted; if there are none: batches that a caller made."""
        if not corpora:
            return cls("batches")
        first, *others = each = [corpus.identity() for corpus in corpora]
        if not others:
            return cls(**first, place=corpora[0].place)
        shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
        name = ", ".join(corpus.name for corpus in corpora)
        return cls(**{**shared, "name": name, "fingerprint": short_hash({"read": each})}, read=tuple(corpora))

    @classmethod
    def merged(cls, parts: Sequence[CorpusRead], nonfinite: Mapping[str, int]) -> CorpusRead:
        """What was read of a corpus, merged from its parts; ``nonfinite`` comes from their merged moments."""
        totals = {name: sum(getattr(each, name) for each in parts) for name in (*_SUMMED, *_SUMMED_IF_ANY)}
        for name in ("seconds", "waited"):
            totals[name] = round(totals[name], 3)
        irregular: dict[str, int] = {}
        for part in parts:
            for site, rows in part.irregular.items():
                irregular[site] = irregular.get(site, 0) + rows  # a site that no part reached stays at 0
        return replace(
            parts[0],
            **totals,
            shard=None,
            paths=next((each.paths for each in parts if each.paths), {}),
            nonfinite=nonfinite,
            irregular=irregular,
            unswapped={name: reason for part in parts for name, reason in part.unswapped.items()},
            skipped=tuple(skipped for each in parts for skipped in each.skipped),
        )

    def overlaps(self, other: CorpusRead) -> bool:
        """Whether some records of one text were read both times, as far as fingerprints tell."""
        if not self.fingerprint or (self.fingerprint, self.ability) != (other.fingerprint, other.ability):
            return False
        pairs = itertools.product(self._parts(), other._parts())
        return any((first - second) % math.gcd(every, each) == 0 for (first, every), (second, each) in pairs)

    def _parts(self) -> list[tuple[int, int]]:
        """The shards ``(i, n)`` that were read; of a whole text, ``(0, 1)``."""
        if isinstance(self.shards, tuple) and self.of:
            return [(number, self.of) for number in self.shards]
        return [self.shard or (0, 1)]

    def shared_by_shards(self) -> dict[str, Any]:
        """What the shards of one run have in common, as plain data."""
        whole = {**self.to_json(), **({"read": [each.identity() for each in self.read]} if self.read else {})}
        return {name: value for name, value in whole.items() if name not in _PER_SHARD}

    def to_json(self) -> dict[str, Any]:
        """Plain data for the header of a file."""
        return {
            **self.identity_and_place(),
            **({"read": [corpus.identity_and_place() for corpus in self.read]} if self.read else {}),
            **({"ability": self.ability} if self.ability else {}),
            **({"shard": list(self.shard)} if self.shard else {}),
            **{name: getattr(self, name) for name in _SUMMED},
            **{name: number for name in _SUMMED_IF_ANY if (number := getattr(self, name))},
            "paths": dict(self.paths),
            "nonfinite": dict(self.nonfinite),
            "irregular": dict(self.irregular),
            **({"unswapped": dict(self.unswapped)} if self.unswapped else {}),
            "skipped": [skipped._asdict() for skipped in self.skipped],
            **self.extra,
            **({"shards": list(self.shards) if isinstance(self.shards, tuple) else self.shards} if self.shards else {}),
            **({"of": self.of} if self.of else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CorpusRead:
        """The inverse of :meth:`to_json`; unknown keys become :attr:`extra`. Raises ValueError for other data."""
        known, extra = _known(CorpusRead, data)
        return checked(_CORPUS, {**known, "extra": extra})


@dataclass(frozen=True)
class Provenance:
    """Where a profile comes from.

    Attributes:
        models: ``{"model": …}``, or ``{"donor": …, "target": …}`` for a pair run.
        settings: what else decides the bits.
        versions: of Python and of packages that can change a result, by name.
        job: hash of everything that decides what the run counted; None if this is unknown, or after parts were merged.
        corpora: what was read: one corpus, or several if profiles were added.
    """

    models: Mapping[str, ModelRead] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    versions: Mapping[str, str] = field(default_factory=dict)
    job: str | None = None
    corpora: tuple[CorpusRead, ...] = ()

    def merged(self, other: Provenance) -> Provenance:
        """The provenance of a sum of profiles: the settings and versions of this one, and the texts of both.

        Raises:
            ActError: both are of one text, and of no different shards of it.
        """
        for mine, theirs in itertools.product(self.corpora, other.corpora):
            if mine.overlaps(theirs):
                raise ActError(
                    f"both profiles are of {mine.name}, so its tokens would count twice; add profiles of different "
                    "texts, or of different shards of one"
                )
        return replace(self, corpora=(*self.corpora, *other.corpora))

    def over(self, corpus: CorpusRead) -> Provenance:
        """The same run, over a corpus merged from its parts."""
        return replace(self, job=None, corpora=(corpus,))

    def to_json(self) -> dict[str, Any]:
        """Plain data for the header of a file."""
        return {
            "models": {side: model.to_json() for side, model in self.models.items()},
            "settings": self.settings.to_json(),
            "versions": dict(self.versions),
            "job": self.job,
            "corpora": [corpus.to_json() for corpus in self.corpora],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """The inverse of :meth:`to_json`; raises ValueError, KeyError or TypeError for other data."""
        corpora = tuple(CorpusRead.from_json(corpus) for corpus in data["corpora"])
        found = checked(_PROVENANCE, {**data, "models": data["models"], "settings": {}, "corpora": ()})
        return replace(found, settings=Settings.from_json(data["settings"]), corpora=corpora)


def short_hash(data: Any) -> str:
    """A hash of plain data: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _names(kind: Any) -> list[str]:
    """The fields of a class above that its JSON stores under the same names."""
    return [each.name for each in fields(kind) if each.name != "extra"]


_MODEL, _SETTINGS, _CORPUS = TypeAdapter(ModelRead), TypeAdapter(Settings), TypeAdapter(CorpusRead)
_PROVENANCE = TypeAdapter(Provenance)


def _known(kind: Any, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The items of ``data`` that are fields of a class above, and all other items."""
    names = set(_names(kind))
    known = {name: value for name, value in data.items() if name in names}
    return known, {name: value for name, value in data.items() if name not in names}
