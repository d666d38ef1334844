"""Records that a ranking was not measured on, as far as the profile or channel set tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from act.core.errors import ActError
from act.data.corpus import Corpus
from act.profiles.attribution import AttributionProfile
from act.profiles.provenance import CorpusRead
from act.ranking.activations import Ability, sides
from act.ranking.channel_set import ChannelSet


def held_out(corpus: Corpus, rankings: Sequence[Ability | ChannelSet]) -> Corpus:
    """The records of a corpus that none of these was measured on: all of them, or the shards that were not read.

    Raises:
        ActError: all of its records were read.
    """
    for ranking in rankings:
        if isinstance(ranking, ChannelSet):
            names = {*ranking.rule.corpora, *(name for kept in ranking.rule.keep for name in kept)}
            if any(_same_place(corpus.name, name) for name in names):
                raise _seen(corpus)
            continue
        for read in _texts(ranking):
            if read.fingerprint and read.fingerprint == corpus.source.fingerprint:
                corpus = corpus.part(_unread(corpus, read), _parts(read))
    return corpus


def _texts(ability: Ability) -> Iterator[CorpusRead]:
    """What was read to rank by it, texts to keep included, which a cost is measured on."""
    for side in sides(ability):
        for one in (side, *(side.kept if isinstance(side, AttributionProfile) else ())):
            for read in one.provenance.corpora:
                yield read
                yield from (CorpusRead(**identity.identity(), shard=read.shard) for identity in read.read)


def _parts(read: CorpusRead) -> int:
    return read.shard[1] if read.shard else read.of or 1


def _unread(corpus: Corpus, read: CorpusRead) -> list[int]:
    """The shards that were not read."""
    seen = {read.shard[0]} if read.shard else set(read.shards) if isinstance(read.shards, tuple) else None
    left = [] if seen is None else [number for number in range(_parts(read)) if number not in seen]
    if not left:
        raise _seen(corpus)
    return left


def _seen(corpus: Corpus) -> ActError:
    return ActError(
        f"{corpus.name} is the text that the channels were ranked on, which says nothing of other text; give other "
        "records, or leave the profile out, so that half of these rank and the other half choose"
    )


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
