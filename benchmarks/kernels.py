"""How fast is an op against a copy of the same tensor, and against what PyTorch operators need for the same?

    python benchmarks/kernels.py --op column_moments --json OUT

``ratio_to_copy``: over a copy of one input, of that type and on as many threads; ``ratio_to_two_copies``: over copies
of both inputs of ``pair_moments``; ``swapped_over_pair``: its time with a swapped output, which adds two blocks to
three, over that without. ``speedup_over_torch``: against the same statistics by operators. Fused ops:
``ratio_to_stock`` is their time with statistics over that of the stock operators without any; ``ratio_to_plain`` over
the same op without statistics. ``pool_start_us`` is what an empty parallel region on those threads takes, which every
time of an op contains; ``isa`` is the instruction set that ran.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from cases import CASES
from measure import DTYPES, Call, interleaved, median, medians, options, record, spread

from act_kernels import native
from act_kernels.backends import choose

Row = dict[str, Any]


def measure(op: str, dtype: str, rows: int, channels: int, threads: int, seconds: float) -> Row:
    """One row of the result: medians of interleaved rounds, with their spread."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(rows, channels, generator=generator).to(DTYPES[dtype]) for _ in range(2))
    out, second = torch.empty_like(x), torch.empty_like(x)
    case = CASES[op](x, other)
    calls: dict[str, Call] = {"copy": lambda: out.copy_(x), "op": case.op}
    calls["pool"] = lambda: native._native.start_threads(threads)
    if op == "pair_moments":
        calls["two_copies"] = lambda: (out.copy_(x), second.copy_(other))
    if case.swapped:
        calls["swapped"] = case.swapped
    if case.plain:
        calls.update(plain=case.plain, stock=case.operators)
    times = interleaved(calls, seconds)
    middle = medians(times)
    row: Row = {
        "op": op,
        "dtype": dtype,
        "T": rows,
        "C": channels,
        "threads": threads,
        "backend": choose(x.device.type).backend.name,
        "isa": native.instruction_set(),
        "seconds": middle["op"],
        "spread": round(spread(times["op"]), 3),
        "bytes": case.moved,
        "gbps": round(case.moved / middle["op"] / 1e9, 2),
        "copy_gbps": round(x.nbytes / middle["copy"] / 1e9, 2),
        "pool_start_us": round(1e6 * middle["pool"], 2),
    }
    for name in ("copy", "two_copies", "stock", "plain"):
        if name in middle:
            row[f"ratio_to_{name}"] = round(middle["op"] / middle[name], 3)
    if case.swapped:
        row["swapped_over_pair"] = round(middle["swapped"] / middle["op"], 3)
    if case.plain:
        return row
    slow = median(interleaved({"operators": case.operators}, seconds / 4, rounds=3)["operators"])
    return {**row, "speedup_over_torch": round(slow / middle["op"], 1)}


def main() -> None:
    """Print one line per case, and write them all where asked."""
    parser = options(__doc__)
    parser.add_argument("--op", choices=CASES, default="column_moments")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[2048])
    parser.add_argument("--channels", type=int, nargs="+", default=[512, 4864, 18944])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="time per case")
    parser.add_argument("--isa", choices=native._native.instruction_sets(), help="instead of the best one")
    given = parser.parse_args()
    if given.isa:
        native._native.use_instruction_set(given.isa)
    results = []
    head = f"{'op':15}{'dtype':>9}{'T':>7}{'C':>7}{'thr':>4}{'GB/s':>8}"
    print(f"{head}{'copy':>8}{'x copy':>8}{'pool us':>8}{'spread':>8}")
    for threads, dtype, rows, channels in itertools.product(given.threads, given.dtype, given.rows, given.channels):
        row = measure(given.op, dtype, rows, channels, threads, given.seconds)
        results.append(row)
        names = ("ratio_to_two_copies", "swapped_over_pair", "speedup_over_torch", "ratio_to_stock", "ratio_to_plain")
        rest = {name: row[name] for name in names if name in row}
        print(
            f"{row['op']:15}{dtype:>9}{rows:>7}{channels:>7}{threads:>4}{row['gbps']:>8.1f}{row['copy_gbps']:>8.1f}"
            f"{row['ratio_to_copy']:>8.2f}{row['pool_start_us']:>8.1f}{row['spread']:>8.1%}  {rest}"
        )
    record(given.json, {"results": results})


if __name__ == "__main__":
    main()
