"""Types of the C++ extension. Where it was built with CUDA, a submodule ``cuda`` has the same ops for a GPU."""

from torch import Tensor

without_cuda: str | None
"""Why the CUDA kernels were not built; None if they were."""

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def start_threads(threads: int) -> None: ...
def column_moments(x: Tensor, moments: Tensor, mask: Tensor | None, threads: int) -> None: ...
def segment_moments(x: Tensor, moments: Tensor, offsets: Tensor, mask: Tensor | None, threads: int) -> None: ...
def pair_moments(
    donor: Tensor, target: Tensor, swapped: Tensor | None, moments: Tensor, mask: Tensor | None, threads: int
) -> None: ...
def blend_rows(target: Tensor, donor: Tensor, rows: Tensor, gathered: bool, strength: float, threads: int) -> None: ...
def gated_mlp(
    gate: Tensor,
    up: Tensor,
    product: Tensor,
    activation: str,
    gate_moments: Tensor | None,
    up_moments: Tensor | None,
    product_moments: Tensor | None,
    mask: Tensor | None,
    threads: int,
) -> None: ...
def rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    q_out: Tensor,
    k_out: Tensor,
    q_moments: Tensor | None,
    k_moments: Tensor | None,
    v_moments: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    round_once: bool,
    mask: Tensor | None,
    threads: int,
) -> None: ...
def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    style: str,
    total: Tensor,
    norm: Tensor,
    x_moments: Tensor | None,
    norm_moments: Tensor | None,
    mask: Tensor | None,
    threads: int,
) -> None: ...
