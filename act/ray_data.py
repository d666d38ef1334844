"""A run over a Ray dataset: any of Ray Data's sources, one actor a GPU (or CPU), Ray's own fault tolerance.

Each block of rows comes back as moments of its own, and the driver merges them in the order of the blocks. An actor
keeps nothing between blocks, so a block that Ray runs again, because an actor or a machine died, counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from act.channels import ChannelSpace
from act.corpus import Corpus
from act.errors import ActError
from act.job import Job
from act.moments import Moments
from act.profile import PairProfile, Profile

BLOCK = 16384  # records whose moments come back as one arena


def profile_dataset(
    models: Mapping[str, str],
    dataset: Any,
    tokenizer: str,
    *,
    actors: int = 1,
    gpus_an_actor: float = 0,
    records_a_block: int = BLOCK,
    corpus: Mapping[str, Any] | None = None,
    loading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Profile:
    """Profile models over a Ray dataset.

    Args:
        models: ``{"model": name}`` or ``{"donor": name, "target": name}``: folders or hub ids that every machine reads.
        dataset: a ``ray.data.Dataset`` whose rows are records (see :class:`act.Corpus`).
        tokenizer: the name of the tokenizer, as for the models.
        actors: how many load the models and work at the same time.
        gpus_an_actor: GPUs that each holds; 0: a CPU core each.
        records_a_block: rows counted together, on whose batches the last bits depend; each sends back one arena.
        corpus, loading, options: options of :class:`act.Corpus`, :func:`act.loading.load_model` and
            :class:`act.job.Job`.

    Returns:
        The profile, of the same bits whatever the number of actors and whatever died on the way.

    Raises:
        ActError: Ray is not installed; a bad record; nothing counted; a block that Ray could not finish.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise ActError("a Ray dataset needs Ray: pip install 'act-profile[ray]'") from error
    if actors < 1 or records_a_block < 1:
        raise ActError(f"{actors} actors and {records_a_block} records a block; expected at least 1 of each")
    DataContext.get_current().execution_options.preserve_order = True  # so that equal datasets give equal bits
    made = {
        "models": dict(models),
        "tokenizer": tokenizer,
        "corpus": dict(corpus or {}),
        "loading": dict(loading or {}),
        "options": options,
    }
    blocks = dataset.map_batches(
        _Counted,
        fn_constructor_kwargs=made,
        batch_size=records_a_block,
        compute=ActorPoolStrategy(size=actors),
        **({"num_gpus": gpus_an_actor} if gpus_an_actor else {"num_cpus": 1}),
    )
    moments: Moments | None = None
    source: dict[str, Any] = {}
    try:
        for block in _blocks(blocks):
            if block["error"]:
                raise ActError(block["error"])
            part = block["source"]["corpora"][0]
            if moments is None:
                source = block["source"]
                space = ChannelSpace.from_json(block["space"])
                moments = Moments(space, pair=len(models) == 2)
                total = {**part, "name": "ray dataset", "fingerprint": None}
            else:
                for name in ("tokens", "counted", "padding", "sequences", "records", "seconds", "waited"):
                    total[name] += part[name]
            other = Moments(moments.space, pair=moments.pair)
            other.arena.copy_(torch.from_numpy(block["arena"]).view_as(other.arena))
            moments.merge(other)
    except ray.exceptions.RayError as error:
        short = " ".join(str(error).split())[-300:]
        raise ActError(f"Ray could not finish the run, and nothing was written; run it again ({short})") from error
    if moments is None or not total["counted"]:
        raise ActError("no token was counted; the dataset is empty or its records have no answer")
    total["nonfinite"] = moments.nonfinite()
    kind = PairProfile if moments.pair else Profile
    return kind(moments, {**source, "job": None, "corpora": [total]})


def _blocks(dataset: Any) -> Iterator[dict[str, Any]]:
    import pickle

    for row in dataset.iter_rows():
        yield pickle.loads(row["block"])


class _Counted:
    """An actor: loads the models once, turns a block of rows into one row that holds its moments."""

    def __init__(
        self,
        models: dict[str, str],
        tokenizer: str,
        corpus: dict[str, Any],
        loading: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        from act.loading import load_model, load_tokenizer

        self._models = {side: load_model(name, **loading) for side, name in models.items()}
        self._tokenizer = load_tokenizer(tokenizer)
        self._corpus, self._options = corpus, options

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import pickle

        columns = list(rows)
        records = [
            {name: _plain(value) for name, value in zip(columns, row, strict=True) if value is not None}
            for row in zip(*rows.values(), strict=True)
        ]
        try:
            job = Job(self._models, Corpus.from_records(records, self._tokenizer, **self._corpus), **self._options)
            ((_, moments, source),) = job.run()
        except ActError as error:  # a value, not a crash: Ray would run the block again
            block: dict[str, Any] = {"error": str(error)}
        else:
            arena = moments.arena.cpu().numpy().reshape(-1)
            block = {"error": None, "arena": arena, "source": source, "space": job.space.to_json()}
        # An object array would let Arrow guess at the types of the parts.
        return {"block": np.array([pickle.dumps(block)], dtype=object)}


def _plain(value: Any) -> Any:
    """Lists and numbers of Python for those of numpy, at any depth."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
