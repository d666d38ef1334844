"""A run over a Ray dataset: any source of Ray Data, one actor per GPU (or CPU core), with Ray's fault tolerance.

Each block of rows comes back as separate moments, and the driver merges them in the order of the blocks. An actor keeps
nothing between blocks, so a block that Ray runs again, because an actor or a machine died, counts once.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import torch

from act.core.errors import ActError
from act.core.names import names_in
from act.data.corpus import Corpus
from act.data.encode import AnswerTurns
from act.data.encoded import Count
from act.data.stream import Skipped, nothing_counted, require_few
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.models.loading import load_config, load_model, load_tokenizer
from act.profiles.moments import Moments
from act.profiles.profile import PairProfile, Profile
from act.profiles.provenance import CorpusRead, Provenance
from act.profiling.job import Job, JobOptions, Packing, TokenBudget

if TYPE_CHECKING:
    import ray.data

BLOCK = 16384  # records whose moments come back as one arena


class CorpusOptions(TypedDict, total=False):
    """The keywords of :class:`act.Corpus`."""

    count: Count
    answer_turns: AnswerTurns
    max_length: int | None
    overlap: int | None
    ability_column: str | None
    ignore_columns: Iterable[str]
    name: str | None


class LoadingOptions(TypedDict, total=False):
    """The keywords of :func:`act.models.loading.load_model`."""

    dtype: str
    device: str
    device_map: str | None
    max_memory: Mapping[str, str] | None
    trust_remote_code: bool


def profile_dataset(
    models: Mapping[str, str],
    dataset: ray.data.Dataset,
    tokenizer: str,
    *,
    actors: int = 1,
    gpus_an_actor: float = 0,
    records_a_block: int = BLOCK,
    corpus: CorpusOptions | None = None,
    loading: LoadingOptions | None = None,
    skip_bad_records: int = 0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    fused: bool = True,
    token_budget: TokenBudget = None,
    packing: Packing = "auto",
    look_ahead: int | None = None,
) -> Profile | dict[str, Profile]:
    """Profile models over a Ray dataset.

    Args:
        models: ``{"model": name}`` or ``{"donor": name, "target": name}``: folders that every machine can read, or hub
            ids.
        dataset: rows that are records (see :class:`act.Corpus`).
        tokenizer: folder or hub id of the tokenizer.
        actors: how many actors load the models and work at the same time.
        gpus_an_actor: GPUs per actor; 0: one CPU core each.
        records_a_block: rows per block. Each block sends back one arena, so this number decides the last bits.
        corpus, loading: keywords of :class:`act.Corpus` and :func:`act.models.loading.load_model`.
        skip_bad_records: how many bad records of the whole dataset to skip before giving up.
        include, exclude, fused, token_budget, packing, look_ahead: as for :func:`act.profile`.

    Returns:
        The profile, with the same bits for any number of actors and after any recovered failure; for rows labelled by
        ability, a dict of profiles by ability.

    Raises:
        ActError: Ray is not installed; no such model; a bad record; nothing counted; a block that Ray could not finish.

    >>> import ray
    >>> model.save_pretrained("model")
    >>> _ = tokenizer.save_pretrained("model")
    >>> rows = ray.data.from_items([{"prompt": "2 + 3 =", "completion": " 5"}] * 4)
    >>> profile = act.ray_data.profile_dataset({"model": "model"}, rows, "model")
    >>> profile.provenance.corpora[0].records
    4
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise ActError("a Ray dataset needs Ray: pip install 'act-profile[ray]'") from error
    if actors < 1 or records_a_block < 1:
        raise ActError(f"{actors} actors and {records_a_block} records per block; expected at least 1 of each")
    trusted = (loading or {}).get("trust_remote_code", False)
    for name in models.values():  # errors in names and options are better raised here than by every actor
        load_config(name, trust_remote_code=trusted)
    Corpus.from_records([], load_tokenizer(tokenizer, trust_remote_code=trusted), **(corpus or {}))
    DataContext.get_current().execution_options.preserve_order = True  # so that equal datasets give equal bits
    made = {
        "models": dict(models),
        "tokenizer": tokenizer,
        "corpus": corpus or CorpusOptions(),
        "loading": loading or LoadingOptions(),
        "options": JobOptions(
            include=names_in(include),
            exclude=names_in(exclude),
            fused=fused,
            token_budget=token_budget,
            packing=packing,
            look_ahead=look_ahead,
        ),
    }
    blocks = dataset.map_batches(
        _Counted,
        fn_constructor_kwargs=made,
        batch_size=records_a_block,
        compute=ActorPoolStrategy(size=actors),
        **({"num_gpus": gpus_an_actor} if gpus_an_actor else {"num_cpus": 1}),
    )
    moments: dict[str, Moments] = {}
    parts: dict[str, list[CorpusRead]] = {}
    provenance = Provenance()
    skipped: list[Skipped] = []
    before = 0  # records of the blocks so far
    try:
        for block in _blocks(blocks):
            if isinstance(block, str):
                raise ActError(block)
            for each in block.skipped:
                number = before + each.record
                skipped.append(each._replace(record=number, place=f"ray dataset, record {number}"))
                require_few(skipped, skip_bad_records)
            before += block.records
            for ability, arena, provenance in block.results:
                if ability not in moments:
                    moments[ability] = Moments(ChannelSpace.from_json(block.space), pair=len(models) == 2)
                    parts[ability] = []
                other = Moments(moments[ability].space, pair=moments[ability].pair)
                other.arena.copy_(torch.from_numpy(arena).view_as(other.arena))
                moments[ability].merge(other)
                parts[ability].append(provenance.corpora[0])
    except ray.exceptions.RayError as error:
        short = " ".join(str(error).split())[-300:]
        raise ActError(f"Ray could not finish the run, and nothing was written; run it again ({short})") from error
    kind = PairProfile if len(models) == 2 else Profile
    profiles = {}
    for ability, total in moments.items():
        read = CorpusRead.merged(parts[ability], total.nonfinite())
        read = replace(read, name="ray dataset", fingerprint=None, skipped=tuple(skipped))
        profiles[ability] = kind(total, provenance.over(read))
    if not any(profile.provenance.corpora[0].counted for profile in profiles.values()):
        raise ActError(nothing_counted("ray dataset"))
    return profiles[""] if set(profiles) == {""} else profiles


@dataclass(frozen=True)
class _Block:
    """What an actor sends back for a block of rows.

    Attributes:
        records: rows in the block.
        skipped: the bad records among them, numbered from the start of the block.
        results: moments (float64, flat) and provenance of each ability.
        space: the channel space, as plain data.
    """

    records: int
    skipped: list[Skipped]
    results: list[tuple[str, np.ndarray, Provenance]]
    space: dict[str, Any]


def _blocks(dataset: ray.data.Dataset) -> Iterator[_Block | str]:
    """The blocks in order; for one that failed, the message of its error."""
    for row in dataset.iter_rows():
        yield cast("_Block | str", pickle.loads(row["block"]))


class _Counted:
    """An actor: loads the models once, and turns each block of rows into one row with its pickled :class:`_Block`."""

    def __init__(
        self,
        models: dict[str, str],
        tokenizer: str,
        corpus: CorpusOptions,
        loading: LoadingOptions,
        options: JobOptions,
    ) -> None:
        self._corpus, self._options = corpus, options
        self._error: str | None = None
        try:
            self._models = {side: load_model(name, **loading) for side, name in models.items()}
            self._fingerprints = {side: fingerprint(model) for side, model in self._models.items()}  # reads all weights
            trusted = loading.get("trust_remote_code", False)
            self._tokenizer = load_tokenizer(tokenizer, trust_remote_code=trusted)
        except ActError as error:  # kept for the driver: if it were raised, Ray would start the actor again
            self._error = str(error)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = list(rows)
        records = [
            {name: _plain(value) for name, value in zip(columns, row, strict=True) if value is not None}
            for row in zip(*rows.values(), strict=True)
        ]
        try:
            block = self._error or self._block(records)
        except ActError as error:  # sent as a value: if it were raised, Ray would run the block again
            block = str(error)
        # Pickled, because Arrow would guess at the types of the parts.
        return {"block": np.array([pickle.dumps(block)], dtype=object)}

    def _block(self, records: list[dict[str, Any]]) -> _Block:
        corpus = Corpus.from_records(records, self._tokenizer, **self._corpus)
        # The driver decides how many bad records are too many.
        options: JobOptions = {**self._options, "skip_bad_records": len(records)}
        job = Job(self._models, corpus, part=True, fingerprints=self._fingerprints, **options)
        results = [(ability, moments.arena.cpu().numpy().reshape(-1), found) for ability, moments, found in job.run()]
        return _Block(len(records), job.skipped, results, job.space.to_json())


def _plain(value: Any) -> Any:
    """NumPy arrays and numbers as lists and numbers of Python, at any depth."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
