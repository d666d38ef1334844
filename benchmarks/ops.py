"""How fast is an op against a copy of the same tensor, and against what PyTorch operators need for the same?

``speedup_over_torch``: against the same statistics by operators. Fused ops: ``ratio_to_stock`` is their time with
statistics over that of the stock operators without any; ``ratio_to_plain`` over the same op without statistics.

python benchmarks/ops.py --op column_moments --json OUT
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, median, spread, write_json

from act_kernels import add_norm, blend_rows, column_moments, empty_moments, gated_mlp, pair_moments, rotary
from act_kernels.backends import choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def by_operators(x: torch.Tensor, moments: torch.Tensor) -> None:
    """The same six statistics as one would write them with PyTorch operators, in float32."""
    x = x.float()
    mean = x.mean(0)
    moments[0] += len(x)
    moments[1] = mean
    moments[2] += (x - mean).square().sum(0)
    moments[3] += x.abs().sum(0)
    moments[4] = torch.maximum(moments[4], x.abs().amax(0))
    moments[5] += (x > 0).sum(0)


def column_case(x: torch.Tensor, other: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """The op, the same by operators, and the bytes it must read or write."""
    moments, slow = (empty_moments(x.shape[1], device=x.device) for _ in range(2))
    return lambda: column_moments(x, moments), lambda: by_operators(x, slow), x.nbytes


def pair_case(x: torch.Tensor, other: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Likewise."""
    moments, slow = (empty_moments(x.shape[1], 3, device=x.device) for _ in range(2))

    def operators() -> None:
        for block, values in zip(slow, (x, other, x.float() - other.float()), strict=True):
            by_operators(values, block)

    return lambda: pair_moments(x, other, moments), operators, 2 * x.nbytes


def blend_case(x: torch.Tensor, other: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Likewise, for one row in twenty of four matrices."""
    targets, donors = x.chunk(4), other.chunk(4)
    rows = [torch.arange(0, len(target), 20) for target in targets]

    def operators() -> None:
        for target, donor, chosen in zip(targets, donors, rows, strict=True):
            target[chosen] = torch.lerp(target[chosen], donor[chosen], 0.4)

    moved = 3 * sum(map(len, rows)) * x.shape[1] * x.element_size()
    return lambda: blend_rows(targets, donors, rows, 0.4), operators, moved


@dataclass(frozen=True)
class FusedCase:
    """A fused op with and without statistics, the stock operators for the same, and the bytes that must move."""

    measured: Callable[[], Any]
    plain: Callable[[], Any]
    stock: Callable[[], Any]
    moved: int


def gated_case(x: torch.Tensor, other: torch.Tensor) -> FusedCase:
    """``silu(gate) * up`` with the statistics of both."""
    blocks = [empty_moments(x.shape[1], device=x.device) for _ in range(2)]
    return FusedCase(
        lambda: gated_mlp(x, other, gate_moments=blocks[0], up_moments=blocks[1]),
        lambda: gated_mlp(x, other),
        lambda: torch.nn.functional.silu(x) * other,
        3 * x.nbytes,
    )


def add_norm_case(x: torch.Tensor, other: torch.Tensor) -> FusedCase:
    """Residual sum and RMS norm as Llama writes them, with the statistics of what is added and of the norm."""
    blocks = [empty_moments(x.shape[1], device=x.device) for _ in range(2)]
    weight = torch.ones_like(x[0])

    def stock() -> torch.Tensor:
        wide = (other + x).to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * wide.to(x.dtype)

    return FusedCase(
        lambda: add_norm(x, other, weight, eps=1e-6, x_moments=blocks[0], norm_moments=blocks[1]),
        lambda: add_norm(x, other, weight, eps=1e-6),
        stock,
        4 * x.nbytes,
    )


def rotary_case(x: torch.Tensor, other: torch.Tensor) -> FusedCase:
    """Heads of 64 channels; q as wide as asked for, k and v a quarter of that, with the statistics of all three."""
    width = 64
    q, k, v = (
        z.view(8, len(z) // 8, -1, width).transpose(1, 2)
        for z in (x, other[:, : x.shape[1] // 4].contiguous(), other[:, : x.shape[1] // 4].contiguous())
    )
    angle = torch.rand(1, len(x) // 8, width // 2, device=x.device).repeat(1, 1, 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    blocks = {
        f"{name}_moments": empty_moments(z.shape[1] * width, device=z.device)
        for name, z in (("q", q), ("k", k), ("v", v))
    }

    def half(z: torch.Tensor) -> torch.Tensor:
        return torch.cat((-z[..., width // 2 :], z[..., : width // 2]), dim=-1)

    def stock() -> tuple[torch.Tensor, torch.Tensor]:
        c, s = cos[:, None], sin[:, None]
        return (q * c) + (half(q) * s), (k * c) + (half(k) * s)

    return FusedCase(
        lambda: rotary(q, k, cos, sin, v=v, **blocks),
        lambda: rotary(q, k, cos, sin),
        stock,
        2 * (q.numel() + k.numel()) * x.element_size() + v.numel() * x.element_size(),
    )


CASES = {"column_moments": column_case, "pair_moments": pair_case, "blend_rows": blend_case}
FUSED_CASES = {"gated_mlp": gated_case, "rotary": rotary_case, "add_norm": add_norm_case}


def measure(op: str, dtype: str, rows: int, channels: int, threads: int, seconds: float) -> dict[str, Any]:
    """One row of the result: medians of interleaved rounds, the spread beside them."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(rows, channels, generator=generator).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(x)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: out.copy_(x)}
    operators: Callable[[], Any] | None = None
    if op in CASES:
        calls["op"], operators, moved = CASES[op](x, other)
    else:
        case = FUSED_CASES[op](x, other)
        calls.update(op=case.measured, plain=case.plain, stock=case.stock)
        moved = case.moved
    times = interleaved(calls, seconds)
    middle = {name: median(values) for name, values in times.items()}
    row = {
        "op": op,
        "dtype": dtype,
        "T": rows,
        "C": channels,
        "threads": threads,
        "backend": choose(x.device.type).backend.name,
        "seconds": middle["op"],
        "spread": round(spread(times["op"]), 3),
        "bytes": moved,
        "gbps": round(moved / middle["op"] / 1e9, 2),
        "copy_gbps": round(x.nbytes / middle["copy"] / 1e9, 2),
        "ratio_to_copy": round(middle["op"] / middle["copy"], 3),
    }
    if operators:
        slow = interleaved({"operators": operators}, seconds / 4, rounds=3)
        return {**row, "speedup_over_torch": round(median(slow["operators"]) / middle["op"], 1)}
    return {
        **row,
        "ratio_to_stock": round(middle["op"] / middle["stock"], 3),
        "ratio_to_plain": round(middle["op"] / middle["plain"], 3),
    }


def main() -> None:
    """Print one line a case, and write them all where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=[*CASES, *FUSED_CASES], default="column_moments")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[2048])
    parser.add_argument("--channels", type=int, nargs="+", default=[512, 4864, 18944])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="time a case")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "results": []}
    print(f"{'op':15}{'dtype':>9}{'T':>7}{'C':>7}{'thr':>4}{'GB/s':>8}{'copy':>8}{'x copy':>8}{'spread':>8}")
    for threads, dtype, rows, channels in itertools.product(
        options.threads, options.dtype, options.rows, options.channels
    ):
        row = measure(options.op, dtype, rows, channels, threads, options.seconds)
        result["results"].append(row)
        rest = {
            key: value for key, value in row.items() if key.startswith(("speedup", "ratio_to_stock", "ratio_to_plain"))
        }
        print(
            f"{row['op']:15}{dtype:>9}{rows:>7}{channels:>7}{threads:>4}{row['gbps']:>8.1f}{row['copy_gbps']:>8.1f}"
            f"{row['ratio_to_copy']:>8.2f}{row['spread']:>8.1%}  {rest}"
        )
    write_json(options.json, result)


if __name__ == "__main__":
    main()
