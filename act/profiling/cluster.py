"""The predicted time of a run on ``n`` GPUs that each hold the weights and read a share of the corpus.

::

    forward   = work / rate / n, or what reading the weights once for each batch takes, if that is longer
    tokenise  = tokens / (tokens per second and core · cores)        during the forward
    read      = tokens · bytes per token / bandwidth of the storage  during the forward
    load      = weights / bandwidth of the storage to one machine
    reduce    = ceil(log2 n) · (arena / network bandwidth + 2 · arena / memory bandwidth)
    wall time = load + max(forward, tokenise, read) + reduce
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TypedDict

from act.models.limits import GPU_BUDGET
from act.profiling.plan import Shape


class ClusterTimes(TypedDict):
    """Seconds by part; ``forward``, ``tokenise`` and ``read`` overlap, and the ``bottleneck`` is the longest part."""

    load: float
    forward: float
    tokenise: float
    read: float
    reduce: float
    wall: float
    gpu_hours: float
    bottleneck: str


@dataclass(frozen=True)
class Cluster:
    """The rates of a GPU, its machine and the network. These are assumptions, not measurements: replace them.

    Attributes:
        flops: floating-point operations per second of one GPU during a forward.
        storage: bytes per second that the storage of the corpus delivers to all machines together.
        load: bytes per second at which one machine loads weights.
        network: bytes per second between two machines.
        memory: bytes per second of the memory of a GPU.
        tokenise: tokens per second of one core.
        cores: cores per GPU.
        bytes_a_token: bytes per token of the corpus on disk.
    """

    flops: float = 400e12
    storage: float = 5e9
    load: float = 2e9
    network: float = 25e9
    memory: float = 2e12
    tokenise: float = 5e5
    cores: int = 8
    bytes_a_token: float = 4.0

    def seconds(
        self,
        shape: Shape,
        tokens: float,
        counted: float | None = None,
        *,
        gpus: int = 1,
        length: float = 1024,
        pair: bool = False,
        swap: bool = False,
        gpus_a_model: int = 1,
        token_budget: int = GPU_BUDGET,
    ) -> ClusterTimes:
        """Seconds by part, by the formulas in the docstring of this module.

        Args:
            shape: the figures of the model.
            tokens: number of tokens, without padding.
            counted: how many of them count; None: all.
            gpus: number of GPUs.
            length: tokens per row.
            pair: whether two such models run.
            swap: whether their outputs are swapped.
            gpus_a_model: GPUs over which one copy of the weights is spread; they work one after the other.
            token_budget: tokens per batch.
        """
        models, copies = (2 if pair else 1), max(1, gpus // gpus_a_model)
        work = shape.work(tokens, tokens if counted is None else counted, length, pair, swap)
        arena = shape.arena(pair, swap)
        steps = math.ceil(math.log2(copies)) if copies > 1 else 0
        weights = models * shape.parameters * shape.itemsize
        forward = max(work / self.flops, tokens / token_budget * weights / self.memory) / copies
        tokenise = tokens / (self.tokenise * self.cores * gpus)
        read = tokens * self.bytes_a_token / self.storage
        load = weights / self.load
        reduce = steps * (arena / self.network + 2 * arena / self.memory)
        parts = {"load": load, "forward": forward, "tokenise": tokenise, "read": read, "reduce": reduce}
        wall = load + max(forward, tokenise, read) + reduce
        return {
            "load": rounded(load),
            "forward": rounded(forward),
            "tokenise": rounded(tokenise),
            "read": rounded(read),
            "reduce": rounded(reduce),
            "wall": rounded(wall),
            "gpu_hours": rounded(wall * gpus / 3600),
            "bottleneck": max(parts, key=lambda name: parts[name]),
        }


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def assumptions(cluster: Cluster) -> dict[str, float]:
    """The rates of a cluster as plain data."""
    return asdict(cluster)
