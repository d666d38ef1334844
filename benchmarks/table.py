"""Write benchmarks/README.md and its picture from the figures in benchmarks/results/.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FUSED = ("gated_mlp", "rotary", "add_norm")
POINT = ("forgotten", "retained")
CALLS = ("plain", "hooks", "var_mean", "nnsight", "profiled")

INTRODUCTION = """# Benchmarks

Every figure is a median of interleaved rounds in one process, written by the command beside it, with machine, versions
and commit in its JSON under `results/`. `pytest benchmarks` runs a short form of all of them through pytest-benchmark;
`make bench` makes the figures again, and `python benchmarks/table.py` this page. GPU figures: not yet
measured; `python benchmarks/gpu.py --out DIR --minutes 8` proves and measures everything on a GPU in one call
(`--device cpu` rehearses it, as in `results/gpu-rehearsal-cpu.json`; the figures of a rehearsal say nothing of a GPU).

"""


def load(name: str) -> dict[str, Any] | None:
    """One result file, None if it was never made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table, the first column left-aligned."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]) + "\n"


def made_on(result: dict[str, Any]) -> str:
    """The machine behind a table."""
    machine = result["machine"]
    versions = machine["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gpus}; Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}; commit {machine['commit']}, {machine['date']}.\n"
    )


def overhead() -> str:
    """Whole forwards."""
    rows, source = [], None
    for name in ("tiny", "small", "medium"):
        result = load(f"overhead-{name}-cpu")
        if result:
            source = result
            rows += result.get("results", [result])
    if source is None:
        return ""
    draw(rows)
    columns = [
        "model, type, threads",
        *(f"{call}, ms" for call in CALLS),
        "profiled / plain",
        "/ body",
        "pair / 2 plain",
    ]
    body = [
        [
            f"{row['model']} {row['dtype']} x{row['threads']}",
            *(f"{1000 * row[f'{call}_s']:.1f}" if row.get(f"{call}_s") else "-" for call in CALLS),
            f"**{row['ratio']:.3f}**",
            f"{row['ratio_to_body']:.3f}",
            f"{row['pair_ratio']:.3f}",
        ]
        for row in rows
    ]
    return (
        "## What profiling costs\n\n`python benchmarks/overhead.py --model small --dtype bfloat16 float32 --threads 1 "
        "2 --json OUT`: a batch of 8 x 256 tokens, all six statistics of every site but the LM head. *plain* is the "
        "stock forward; *body* the stock forward without its LM head, which the profiled run does not need; *hooks* "
        "keep float32 sum and sum of squares of every linear, *nnsight* the same.\n\n"
        "![time of a forward](results/overhead.png)\n\n" + table(columns, body) + "\n" + made_on(source) + "\n"
    )


def draw(rows: list[dict[str, Any]]) -> None:
    """Bars: time of each way of running a batch, relative to the plain forward."""
    rows = [row for row in rows if row["model"] != "tiny"] or rows
    figure = Figure(figsize=(1.5 + 1.6 * len(rows), 3.6), layout="constrained")
    axes = figure.add_subplot()
    colors = {"hooks": "#c9a66b", "var_mean": "#b5654a", "nnsight": "#8a8fa3", "profiled": "#2f6f5e"}
    for number, (call, color) in enumerate(colors.items()):
        places = [index + 0.2 * (number - 1.5) for index, row in enumerate(rows) if row.get(f"{call}_s")]
        heights = [row[f"{call}_s"] / row["plain_s"] for row in rows if row.get(f"{call}_s")]
        bars = axes.bar(places, heights, 0.18, label=call, color=color)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [f"{row['model']}\n{row['dtype']}\n{row['threads']} thread(s)" for row in rows])
    axes.set_ylabel("time / plain forward")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.15))
    figure.savefig(RESULTS / "overhead.png", dpi=120)


def moments() -> str:
    """The ops against a copy of the same tensor."""
    rows, source = [], None
    for op in ("column_moments", "pair_moments", "blend_rows"):
        result = load(f"{op}-cpu")
        for row in (result or {}).get("results", []):
            source = result
            rows.append(
                [
                    f"{op} {row['dtype']} x{row['threads']}",
                    row["C"],
                    row["gbps"],
                    row["copy_gbps"],
                    row["ratio_to_copy"],
                    row["speedup_over_torch"],
                ]
            )
    if source is None:
        return ""
    columns = ["op, type, threads", "C", "GB/s", "copy GB/s", "time / copy", "x faster than PyTorch operators"]
    command = "`python benchmarks/ops.py --op column_moments --json OUT`, T = 2048; GB/s of bytes that must move.\n\n"
    return f"## Kernels beside a copy\n\n{command}{table(columns, rows)}\n{made_on(source)}\n"


def fused() -> str:
    """The fused ops against the stock operators that measure nothing."""
    rows, source = [], None
    for op in FUSED:
        result = load(f"{op}-cpu")
        for row in (result or {}).get("results", []):
            source = result
            name = f"{op} {row['dtype']} x{row['threads']}"
            rows.append([name, row["C"], row["gbps"], row["ratio_to_stock"], row["ratio_to_plain"]])
    if source is None:
        return ""
    columns = ["op, type, threads", "C", "GB/s", "time / stock operators", "time / same op without statistics"]
    command = (
        "`python benchmarks/ops.py --op gated_mlp --json OUT`, with statistics; the stock operators have none.\n\n"
    )
    return f"## Fused ops\n\n{command}{table(columns, rows)}\n{made_on(source)}\n"


def registers() -> str:
    """What the assembler says of the CUDA kernels."""
    result = load("registers")
    if result is None:
        return ""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in result["results"]:
        counts.setdefault((row["kernel"], row["dtype"]), {})[row["architecture"]] = row["registers"]
    architectures = list(dict.fromkeys(row["architecture"] for row in result["results"]))
    rows = [[" ".join(name), *(counts[name].get(a, "-") for a in architectures)] for name in sorted(counts)]
    spilled = sum(row["spilled_bytes"] for row in result["results"])
    return (
        "## Registers of the CUDA kernels\n\n`python benchmarks/registers.py --json OUT`, by `ptxas -v`; a thread of "
        f"three blocks of 128 a multiprocessor has 168. Bytes spilled, all together: {spilled}.\n\n"
        f"{table(['kernel', *architectures], rows)}\n{made_on(result)}\n"
    )


def exactness() -> str:
    """Accuracy and memory."""
    text = ""
    if accuracy := load("accuracy-cpu"):
        rows = [
            [row["dtype"], f"{row['rows']:,}", f"{row['max_rel_error_mean']:.1e}", f"{row['max_rel_error_var']:.1e}"]
            for row in accuracy["results"]
        ]
        columns = ["type", "rows", "error of the mean / root mean square", "relative error of the variance"]
        text += (
            "## How exact\n\n`python benchmarks/accuracy.py --json OUT`: uneven batches, mean up to 1e4 deviations.\n\n"
        )
        text += table(columns, rows) + f"\nTwo runs bit-equal: {accuracy['bit_equal']}. {made_on(accuracy)}\n"
    if memory := load("memory-cpu"):
        rows = [
            [row["command"], row["tokens"], row["peak_mb"], row["peak_mb_at_10x"], row["ratio"]]
            for row in memory["results"]
        ]
        columns = ["command", "tokens", "peak MB", "peak MB at ten times the tokens", "ratio"]
        text += (
            "## Memory\n\n`python benchmarks/memory.py --json OUT`\n\n"
            + table(columns, rows)
            + f"\n{made_on(memory)}\n"
        )
    return text


def ranking() -> str:
    """Time and memory of ranking."""
    found = load("rank-cpu")
    if not found:
        return ""
    rows = [
        [f"{row[k]:,}" for k in ("channels", "sites", "threads", "seconds", "cpu_seconds", "machine_load", "peak_mb")]
        for row in found["results"]
    ]
    columns = ["channels", "sites", "threads", "seconds", "CPU seconds", "machine's load", "peak MB beside profiles"]
    return (
        "## Ranking\n\n`python benchmarks/rank.py --json OUT`: paired score by module's standard deviation, contrast, "
        "top 5 %.\n\n" + table(columns, rows) + f"\n{made_on(found)}\n"
    )


def transfer() -> str:
    """Speed and memory of a transfer on disk."""
    found = load("transfer-cpu")
    if not found:
        return ""
    row = found["results"]
    cells = [row[k] for k in ("gigabytes", "copy_seconds", "transfer_seconds", "speed_of_copy", "peak_mb")]
    return (
        "## Transfer on disk\n\n`python benchmarks/transfer.py --json OUT`: 5 % of the channels, whole processes that "
        "take turns with `cp -r` of the target, `sync` included; fingerprints of both models are checked.\n\n"
        + table(["GB a model", "copy, s", "transfer, s", "speed / copy", "peak MB resident"], [[str(c) for c in cells]])
        + f"\n{made_on(found)}\n"
    )


def corpora() -> str:
    """Whole runs, from a file to a profile."""
    found = load("corpus-cpu")
    if not found:
        return ""
    rows = []
    for row in found["corpora"]:
        ratios = row["ratio_over_hook_script_by_batch"]
        rows.append(
            [
                f"{row['corpus']} x{row['threads']}",
                *(row["tokens_per_second"][way] for way in ("all", "answer", "packed", "nnsight")),
                ", ".join(f"{batch}: **{ratios[batch]:.2f}**" for batch in sorted(ratios, key=int)),
                f"{row['ratio_over_hook_script_answers']:.2f}",
                f"{row['ratio_over_nnsight']:.2f}",
                f"{row['padding_share']:.1%}",
                f"{row['busy_share']:.1%}",
            ]
        )
    columns = [
        "corpus, threads",
        *(f"{way}, tokens/s" for way in ("all", "answers", "packed", "nnsight")),
        "all / script, by its batch",
        "answers / script",
        "all / nnsight",
        f"padding at {found['padding_budget']:,}",
        "busy",
    ]
    feeding = found["feeding"]["tokens_per_second"]
    peaks = ", ".join(f"{peak:,.0f} at {tokens}" for tokens, peak in found.get("peak_megabytes", {}).items())
    return (
        "## From a file to a profile\n\n`python benchmarks/corpus.py --json OUT`: the small model in bfloat16, its LM "
        "head measured too. *script*: rows in their order, so many a batch (16 in the columns with one figure), padded "
        "to the longest, with logits and hooks on every linear that keep float32 sums; *nnsight* the same. *packed*: "
        "texts in one row without padding, which the attention of a CPU computes and masks. *busy*: the model did not "
        "wait.\n\n"
        + table(columns, rows)
        + f"\nReading, tokenising and batching alone, in one process: {feeding:,.0f} tokens/s. "
        + (f"Peak MB of a run, by tokens: {peaks}. " if peaks else "")
        + f"{made_on(found)}\n"
    )


def foretold() -> str:
    """What ``plan`` says against what a run takes."""
    found = load("plan-cpu")
    if not found:
        return ""
    names = ("model", "run", "count", "tokens", "mean_length", "foretold_seconds", "measured_seconds")
    rows = [[*(row[name] for name in names), f"**{row['measured_over_foretold']:.2f}**"] for row in found["runs"]]
    return (
        "## Foretold and measured\n\n`python benchmarks/plan.py --json OUT`: `act-profile plan` before, and the run "
        f"after, {found['threads']} thread.\n\n"
        + table([*(name.replace("_", " ") for name in names), "measured / foretold"], rows)
        + f"\n{made_on(found)}\n"
    )


def ranks() -> str:
    """Two ranks beside one."""
    found = load("distributed-cpu")
    if not found:
        return ""
    one, two = (", ".join(f"{each:.1f}" for each in found["seconds"][count]) for count in ("1", "2"))
    return (
        "## Ranks\n\n`python benchmarks/distributed.py --json OUT`: one rank on one core took "
        f"{one} s, two gloo ranks on two cores {two} s: **{found['speedup_of_two_ranks']:.2f}** times the speed. "
        f"{made_on(found)}\n"
    )


def stable() -> str:
    """How early a run may stop."""
    found = load("stability-cpu")
    if not found:
        return ""
    rows = [
        [
            row["corpus"],
            f"{row['records']:,}",
            f"{row['score']}, {row['channels']:,}",
            f"{row['promised']['overlap']:.0%} at {row['promised']['confidence']:.0%}",
            f"{row['mean_share']:.1%}",
            f"{row['largest_share']:.1%}",
            f"{row['least_overlap']:.4f}",
            f"{row['kept']:.0%}",
        ]
        for row in found["corpora"]
    ]
    columns = [
        "corpus",
        "records",
        "score, channels",
        "promised",
        "read, mean",
        "most",
        "least overlap",
        "promises kept",
    ]
    return (
        "## Until stable\n\n`python benchmarks/stability.py --json OUT`: runs over the same records in other orders, "
        "each stopped by its certificate, against the top set of the whole corpus.\n\n"
        + table(columns, rows)
        + f"\n{made_on(found)}\n"
    )


def ability() -> str:
    """The laboratory's experiment: abilities moved, merged and tuned, each method beside its controls."""
    result = load("ability")
    if result is None:
        return ""

    def cell(figures: dict[str, float] | None) -> str:
        if figures is None:
            return "-"
        values = list(figures.values())
        return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"

    draw_ability(result)
    areas = result["recovery"]
    names = sorted(areas, key=lambda name: -statistics.mean(areas[name].values()))
    names += [name for name in result["merging"] if name not in areas]
    controls = {*result["controls"], *result["merge_controls"]}
    parts = ("recovery", "gain_at_95", "retained_at_95", "merging")
    rows = [
        [f"*{name}*" if name in controls else name, *(cell(result[part].get(name)) for part in parts)] for name in names
    ]
    tuned = [
        [f"{count} records, {start}", *(cell({seed: one[key] for seed, one in seeds.items()}) for key in POINT)]
        for count, starts in result["tuned"].items()
        for start, seeds in starts.items()
    ]
    verdict = [
        [figure, *(f"{ours:.2f} / {control:.2f}" for ours, control in by_seed.values())]
        for figure, by_seed in result["verdict"].items()
    ]
    seeds = list(result["target"])
    return (
        f"## Abilities moved\n\n`{result['command']}`: a specialist forgot German, its base is the donor. Settings are "
        "chosen on validation records, figures are of test records, ± is the deviation over seeds, *controls in "
        "italics*. *Area*: under the frontier of recovered German against retained new skills. *Gain*: of German, with "
        "the setting that keeps 95 % of the new skills on validation records; *kept* is what it keeps on test records. "
        "*Merged*: the worst of four abilities after merging three siblings. Attribution takes gradients; the scores "
        "from activations alone (paired, contrast) do not. Seeds 10 to 12 served to find the rules.\n\n"
        "![recovered against retained](results/ability.png)\n\n"
        + table(["method", "area", "gain", "kept", "merged, worst"], rows)
        + "\n"
        + table(["attribution / cost against the best control", *(f"seed {seed}" for seed in seeds)], verdict)
        + "\nA light tune from each start (half German, half replay; starts, steps and rate chosen on validation):\n\n"
        + table(["tune on, after", "forgotten", "retained"], tuned)
        + "\nWhat this does not show: attribution needs gradients, and whoever has them can also tune: 16 records "
        "tuned without a transfer come near its untuned transfer, and interpolation followed by the same tune is as "
        "good as any transfer. The scores from activations alone are not ability-specific at this size: paired does "
        "no better than its own rows shuffled, or than the text of another language.\n" + f"\n{made_on(result)}\n"
    )


def draw_ability(result: dict[str, Any]) -> None:
    """Frontiers of one seed a panel, ours and the paper's beside the controls; colours after Okabe and Ito."""
    styles = {
        "attribution / cost": ("#D55E00", "-", "o"),
        "attribution": ("#E69F00", "-", "s"),
        "paired": ("#0072B2", "-", "^"),
        "contrast, half": ("#009E73", "-", "v"),
        "weight-diff": ("#000000", "--", "x"),
        "wrong ability: attribution / cost": ("#CC79A7", "--", "+"),
        "interpolation": ("#56B4E9", "--", "d"),
        "random": ("#999999", ":", "."),
    }
    seeds = list(result["target"])
    figure = Figure(figsize=(1 + 2.6 * len(seeds), 3.6), layout="constrained")
    for number, (seed, axes) in enumerate(zip(seeds, figure.subplots(1, len(seeds), squeeze=False)[0], strict=True)):
        forgotten, retained = result["target"][seed]
        for method, (color, line, marker) in styles.items():
            points = [(retained, forgotten), *((kept, back) for _, back, kept in result["frontiers"][method][seed])]
            points.sort(reverse=True)
            axes.plot(*zip(*points, strict=True), line, marker=marker, color=color, markersize=3, label=method)
        axes.axvline(0.95 * retained, color="#bbbbbb", linewidth=0.8)
        axes.set(title=f"seed {seed}", xlabel="retained: new skills", xlim=(0, 1.02), ylim=(-0.02, 1.02))
        if number == 0:
            axes.set_ylabel("recovered: German")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside lower center", fontsize=7)
    figure.savefig(RESULTS / "ability.png", dpi=90)


def main() -> None:
    """Write the page."""
    sections = (
        *(overhead, fused, moments, registers, exactness),
        *(corpora, foretold, ranks, stable),
        *(ranking, transfer, ability),
    )
    page = INTRODUCTION + "".join(section() for section in sections)
    (HERE / "README.md").write_text(page.rstrip() + "\n")


if __name__ == "__main__":
    main()
