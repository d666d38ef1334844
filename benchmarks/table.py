"""Fill the tables of benchmarks/README.md from benchmarks/results/, between their markers, and draw its picture.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Result = dict[str, Any]
Blocks = Mapping[str, Callable[[], str]]


def load(name: str) -> Result:
    """One result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def filled(page: str, blocks: Blocks) -> str:
    """The page with what each block gives between its markers ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]]().strip()}\n\n{found[3]}", page)


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table: for each column its title and the format of its cells, filled from each row."""
    head = f"| {' | '.join(columns)} |\n|---{'|---:' * (len(columns) - 1)}|\n"
    return head + "".join(f"| {' | '.join(columns.values())} |\n".format_map(row) for row in rows) + "\n"


def made_on(result: Result) -> str:
    """The machine, versions and commit behind a table."""
    machine = result["machine"]
    versions = machine["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gpus}; Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}; commit {machine['commit']}, {machine['date']}."
    )


def forwards() -> list[Result]:
    """The rows of the overhead benchmark, with milliseconds as text."""
    found = [load(f"overhead-{name}-cpu") for name in ("tiny", "small", "medium")]
    rows = [row for result in found for row in result.get("results", [result])]
    calls = ("plain", "hooks", "var_mean", "nnsight", "profiled")
    return [
        {**row, **{call: f"{1000 * row[f'{call}_s']:.1f}" if row[f"{call}_s"] else "-" for call in calls}}
        for row in rows
    ]


def overhead() -> str:
    """Whole forwards."""
    columns = {
        "model, type, threads": "{model} {dtype} x{threads}",
        "plain, ms": "{plain}",
        "hooks, ms": "{hooks}",
        "var_mean, ms": "{var_mean}",
        "nnsight, ms": "{nnsight}",
        "profiled, ms": "{profiled}",
        "profiled / plain": "**{ratio:.3f}**",
        "/ body": "{ratio_to_body:.3f}",
        "pair / 2 plain": "{pair_ratio:.3f}",
    }
    return table(forwards(), columns) + made_on(load("overhead-medium-cpu"))


def ops(names: Iterable[str], columns: Mapping[str, str]) -> str:
    """The figures of ``kernels.py`` for some ops, where they were taken."""
    found = [load(f"{name}-cpu") for name in names if (RESULTS / f"{name}-cpu.json").exists()]
    shared = {"op, type, threads": "{op} {dtype} x{threads}", "C": "{C}", "GB/s": "{gbps}"}
    return table((row for each in found for row in each["results"]), {**shared, **columns}) + made_on(found[-1])


def fused() -> str:
    """The fused ops against the stock operators that measure nothing."""
    columns = {
        "time / stock operators": "{ratio_to_stock}",
        "time / same op without statistics": "{ratio_to_plain}",
    }
    return ops(("gated_mlp", "rotary", "add_norm"), columns)


def moments() -> str:
    """The other ops against a copy of the same tensor."""
    columns = {
        "copy GB/s": "{copy_gbps}",
        "time / copy": "{ratio_to_copy}",
        "x faster than PyTorch operators": "{speedup_over_torch}",
    }
    return ops(("column_moments", "pair_moments", "blend_rows"), columns)


def registers() -> str:
    """What the assembler says about the CUDA kernels."""
    result = load("registers")
    rows: dict[str, Result] = {}
    for row in result["results"]:
        name = f"{row['kernel']} {row['dtype']}".strip()
        rows.setdefault(name, {"name": name})[row["architecture"]] = row["registers"]
    spilled = sum(row["spilled_bytes"] for row in result["results"])
    architectures = dict.fromkeys(row["architecture"] for row in result["results"])
    columns = {"kernel": "{name}", **{name: f"{{{name}}}" for name in architectures}}
    grid = table((rows[name] for name in sorted(rows)), columns)
    return f"{grid}Bytes spilled in total: {spilled}. {made_on(result)}"


def accuracy() -> str:
    """Errors of the streamed statistics."""
    result = load("accuracy-cpu")
    columns = {
        "type": "{dtype}",
        "rows": "{rows:,}",
        "error of the mean / root mean square": "{max_rel_error_mean:.1e}",
        "relative error of the variance": "{max_rel_error_var:.1e}",
    }
    return table(result["results"], columns) + f"Two runs bit-equal: {result['bit_equal']}. {made_on(result)}"


def memory() -> str:
    """Peak memory of runs."""
    result = load("memory-cpu")
    columns = {
        "command": "{command}",
        "tokens": "{tokens:,}",
        "peak MB": "{peak_mb:.1f}",
        "peak MB at ten times the tokens": "{peak_mb_at_10x:.1f}",
        "ratio": "{ratio}",
    }
    return table(result["results"], columns) + made_on(result)


def corpus() -> str:
    """Whole runs, from a file to a profile."""
    found = load("corpus-cpu")
    rows = []
    for row in found["corpora"]:
        ratios = row["ratio_over_hook_script_by_batch"]
        by_batch = ", ".join(f"{batch}: **{ratios[batch]:.2f}**" for batch in sorted(ratios, key=int))
        nnsight = f"{row['ratio_over_nnsight']:.2f}" if row["ratio_over_nnsight"] else "-"
        rows.append({"nnsight": "-", **row, **row["tokens_per_second"], "by_batch": by_batch, "to_nnsight": nnsight})
    columns = {
        "corpus, threads": "{corpus} x{threads}",
        "all, tokens/s": "{all}",
        "answers, tokens/s": "{answer}",
        "packed, tokens/s": "{packed}",
        "nnsight, tokens/s": "{nnsight}",
        "all / script, by its batch": "{by_batch}",
        "answers / script": "{ratio_over_hook_script_answers:.2f}",
        "all / nnsight": "{to_nnsight}",
        f"padding at {found['padding_budget']:,}": "{padding_share:.1%}",
        "busy": "{busy_share:.1%}",
    }
    notes = [f"Reading, tokenising and batching alone: {found['feeding']['tokens_per_second']:,.0f} tokens/s."]
    peaks = [f"{peak:,.0f} at {tokens} tokens" for tokens, peak in found.get("peak_megabytes", {}).items()]
    notes += [f"Peak MB of a run: {', '.join(peaks)}."] if peaks else []
    return table(rows, columns) + " ".join([*notes, made_on(found)])


def plan() -> str:
    """What ``plan`` predicts against what a run takes."""
    found = load("plan-cpu")
    columns = {
        "model": "{model}",
        "run": "{run}",
        "count": "{count}",
        "tokens": "{tokens:,}",
        "mean length": "{mean_length}",
        "predicted seconds": "{foretold_seconds}",
        "measured seconds": "{measured_seconds}",
        "measured / predicted": "**{measured_over_foretold:.2f}**",
    }
    return table(found["runs"], columns) + f"Threads: {found['threads']}. {made_on(found)}"


def distributed() -> str:
    """Two ranks beside one."""
    found = load("distributed-cpu")
    one, two = (", ".join(f"{each:.1f}" for each in found["seconds"][ranks]) for ranks in ("1", "2"))
    speedup = f"**{found['speedup_of_two_ranks']:.2f}** times the speed"
    return f"One rank took {one} s, two ranks {two} s: {speedup}. {made_on(found)}"


def stability() -> str:
    """How early a run may stop."""
    found = load("stability-cpu")
    columns = {
        "corpus": "{corpus}",
        "records": "{records:,}",
        "score, channels": "{score}, {channels:,}",
        "promised": "{promised[overlap]:.0%} at {promised[confidence]:.0%}",
        "read, mean": "{mean_share:.1%}",
        "most": "{largest_share:.1%}",
        "least overlap": "{least_overlap:.4f}",
        "promises kept": "{kept:.0%}",
    }
    return table(found["corpora"], columns) + made_on(found)


def rank() -> str:
    """Time and memory of ranking."""
    found = load("rank-cpu")
    columns = {
        "channels": "{channels:,}",
        "sites": "{sites:,}",
        "threads": "{threads}",
        "seconds": "{seconds}",
        "CPU seconds": "{cpu_seconds}",
        "load of the machine": "{machine_load}",
        "peak MB beside the profiles": "{peak_mb:,}",
    }
    return table(found["results"], columns) + made_on(found)


def transfer() -> str:
    """Speed and memory of a transfer on disk."""
    found = load("transfer-cpu")
    columns = {
        "GB per model": "{gigabytes}",
        "copy, s": "{copy_seconds}",
        "transfer, s": "{transfer_seconds}",
        "speed / copy": "{speed_of_copy}",
        "peak MB resident": "{peak_mb}",
    }
    return table([found["results"]], columns) + made_on(found)


SECTIONS = (overhead, fused, moments, registers, accuracy, memory, corpus, plan, distributed, stability, rank, transfer)
BLOCKS = {section.__name__: section for section in SECTIONS}


def page(text: str) -> str:
    """The page with its tables filled."""
    return filled(text, BLOCKS)


def draw(rows: list[Result], path: Path) -> None:
    """Bars: time of each way of running a batch, relative to the plain forward."""
    rows = [row for row in rows if row["model"] != "tiny"]
    figure = Figure(figsize=(1.5 + 1.6 * len(rows), 3.6), layout="constrained")
    axes = figure.add_subplot()
    colors = {"hooks": "#c9a66b", "var_mean": "#b5654a", "nnsight": "#8a8fa3", "profiled": "#2f6f5e"}
    for number, (call, color) in enumerate(colors.items()):
        bars = {
            index + 0.2 * (number - 1.5): row[f"{call}_s"] / row["plain_s"]
            for index, row in enumerate(rows)
            if row[f"{call}_s"]
        }
        drawn = axes.bar(list(bars), list(bars.values()), 0.18, label=call, color=color)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [f"{row['model']}\n{row['dtype']}\n{row['threads']} thread(s)" for row in rows])
    axes.set_ylabel("time / plain forward")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.15))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Write the page and its picture."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(forwards(), RESULTS / "overhead.png")


if __name__ == "__main__":
    main()
