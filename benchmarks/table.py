"""Fill the tables of benchmarks/README.md and of pages in docs/ from benchmarks/results/, and draw their picture.

    python benchmarks/table.py

A page itself says what a table holds: its marker names result files, then the heads of the columns, how they are
aligned if not to the right, the format of their cells, and optionally a sentence below the table. What is between a
marker and ``<!-- end -->`` is replaced. ``FILE:KEY`` names one of several lists of rows in a file.
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
PAGES = (HERE / "README.md", *(HERE.parent / "docs" / f"{name}.md" for name in ("families", "reliability", "scale")))
BLOCK = re.compile(r"(<!-- table: (.+?)-->\n).*?(<!-- end -->)", re.DOTALL)
CALLS = ("plain", "hooks", "var_mean", "nnsight", "profiled")

Result = dict[str, Any]


def filled(page: str, table_of: Callable[[str], str]) -> str:
    """The page with what ``table_of`` makes of each marker after it."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table_of(found[2].strip()).strip()}\n\n{found[3]}", page)


def table(rows: Iterable[Mapping[str, Any]], head: str, cells: str, rule: str | None = None) -> str:
    """A Markdown table: the line of its head, and the format of a line, filled from each row."""
    rule = rule or "|---" + "|---:" * (head.count("|") - 2) + "|"
    return "\n".join([head, rule, *(cells.format_map(row) for row in rows)]) + "\n"


def made_on(result: Result) -> str:
    """The machine, versions and commit behind a table."""
    machine = result["machine"]
    if "rates" in result:
        return f"Computed, not measured; commit {machine['commit']}, {machine['date']}."
    versions = machine["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    isa = f" ({machine['isa']})" if "isa" in machine else ""  # which the first files did not keep
    return (
        f"{machine['cpu']}{isa}, {machine['cores']} cores, {gpus}; Python {versions['python']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}; "
        f"commit {machine['commit']}, {machine['date']}."
    )


def load(name: str) -> Result:
    """One result file, with its rows under ``rows`` and the fields that the page words differently."""
    name, _, key = name.partition(":")
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    held = (key,) if key else ("results", "runs", "corpora", "families", "kinds")
    rows = next((result[key] for key in held if result.get(key)), [result])
    result["rows"] = rows if isinstance(rows, list) else [rows]
    for start, worded in WORDED.items():
        if name.startswith(start):
            worded(result)
    return result


def overhead(result: Result) -> None:
    """Milliseconds instead of seconds."""
    for row in result["rows"]:
        row.update({call: f"{1000 * row[f'{call}_s']:.1f}" if row[f"{call}_s"] else "-" for call in CALLS})


def copies(result: Result) -> None:
    """A dash for what was not measured."""
    for row in result["rows"]:
        for name in ("isa", "pool_start_us", "ratio_to_two_copies"):
            row.setdefault(name, "-")


def registers(result: Result) -> None:
    """A row per kernel instead of one per kernel and architecture."""
    result["spilled"] = sum(row["spilled_bytes"] for row in result["rows"])
    kernels: dict[str, Result] = {}
    for row in result["rows"]:
        name = f"{row['kernel']} {row['dtype']}".strip()
        kernels.setdefault(name, {"name": name})[row["architecture"]] = row["registers"]
    result["rows"] = [kernels[name] for name in sorted(kernels)]


def corpus(result: Result) -> None:
    """Ratios of each batch in one cell; a dash where nnsight was not installed."""
    for row in result["corpora"]:
        ratios = row["ratio_over_hook_script_by_batch"]
        row["by_batch"] = ", ".join(f"{batch}: **{ratios[batch]:.2f}**" for batch in sorted(ratios, key=int))
        row["over_nnsight"] = f"{row['ratio_over_nnsight']:.2f}" if row["ratio_over_nnsight"] else "-"
        row.update({"nnsight": "-", **row["tokens_per_second"]})
    peaks = ", ".join(f"{peak:,.0f} at {tokens} tokens" for tokens, peak in result.get("peak_megabytes", {}).items())
    result["peaks"] = f"Peak MB of a run: {peaks}." if peaks else ""


def distributed(result: Result) -> None:
    """Seconds of each round as text."""
    result["one"], result["two"] = (", ".join(f"{each:.1f}" for each in times) for times in result["seconds"].values())


def cluster(result: Result) -> None:
    """Billions of parameters, and millions of channels."""
    for row in result["models"]:
        row["billions"], row["met"] = (f"{row[name] / 1e9:.1f}" for name in ("parameters", "a_token_meets"))
        row["millions"] = f"{row['channels'] / 1e6:.2f} M"


def families(result: Result) -> None:
    """What is read how, and what is not, as text; how many are without a miss."""
    for row in result["rows"]:
        paths = {op: number for op, number in row["paths"].items() if op != "not read"}
        row["ops"] = ", ".join(f"{op} {number}" for op, number in paths.items())
        left = [f"`{name}`: {why}" for name, why in row.get("uncovered", {}).items()]
        left += [f"`{name}` is not read: {why}" for name, why in row.get("not_read", {}).items()]
        row["left"] = "; ".join(left)
    result["number"] = len(result["rows"])
    result["worst"] = max(row["max_rel_error"] for row in result["rows"])
    for count, key in (("equal", "logits_bit_equal"), ("exact", "transfer_exact")):
        result[count] = sum(row[key] for row in result["rows"])
    result["whole"] = sum(row["coverage"] == 1 for row in result["rows"])
    result["unbuilt"] = ", ".join(f"`{name}`" for name in result["not_built"]) or "none"


WORDED = {
    **dict.fromkeys(("column_moments", "pair_moments", "blend_rows"), copies),
    "overhead": overhead,
    "registers": registers,
    "corpus": corpus,
    "cluster": cluster,
    "distributed": distributed,
    "families": families,
}


def table_of(marker: str) -> str:
    """What a marker asks for, and the machine behind it; result files that do not exist are skipped."""
    names, *lines = marker.splitlines()
    results = [load(name) for name in names.split() if (RESULTS / f"{name.partition(':')[0]}.json").exists()]
    if not results:
        return "Not measured yet."
    text = ""
    if lines[0].startswith("|"):
        head, *lines = lines
        rule = lines.pop(0) if lines[0].startswith("|--") else None
        text = table((row for result in results for row in result["rows"]), head, lines.pop(0), rule) + "\n"
    return text + " ".join([*(line.format_map(results[-1]) for line in lines), made_on(results[-1])])


def page(text: str) -> str:
    """The page with its tables filled."""
    return filled(text, table_of)


def draw(path: Path) -> None:
    """Bars: time of each way of running a batch, relative to the plain forward."""
    rows = [row for name in ("small", "medium") for row in load(f"overhead-{name}-cpu")["rows"]]
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
    """Write the pages and their picture."""
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw(RESULTS / "overhead.png")


if __name__ == "__main__":
    main()
