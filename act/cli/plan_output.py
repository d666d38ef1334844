"""What ``act-profile plan`` prints: first what does not fit, then the sites, memory, work and time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from act.cli import console
from act.core.counted import counted
from act.core.units import amount, duration, rate, size

if TYPE_CHECKING:
    from act.profiling.accelerators import Accelerator
    from act.profiling.text_plan import TextPlan

_AFTERWARDS = {
    "profile": "profile file",
    "rank": "memory of rank or report",
    "until-stable": "memory of --until-stable, in addition",
}
_TIMES = {
    "load": "loading the weights",
    "forward": "forwards",
    "tokenise": "tokenising, meanwhile",
    "read": "reading the corpus, meanwhile",
    "reduce": "joining the statistics",
    "wall": "in all",
}


def print_sites(model: str, result: dict[str, Any]) -> None:
    """Print the sites by module kind, and what no site covers."""
    from act.models.coverage import grouped
    from act.profiles.coverage import percent

    sites: Counter[tuple[str, str]] = Counter()
    channels: Counter[tuple[str, str]] = Counter()
    values: Counter[tuple[str, str]] = Counter()
    for site in result["sites"]:
        group = site["kind"], site["path"]
        sites[group] += 1
        channels[group] += site["channels"]
        values[group] += site["values"]
    rows = [
        [*group, f"{count:,}", f"{channels[group]:,}", percent(values[group] / result["parameters"])]
        for group, count in sites.items()
    ]
    columns = ["module kind", "read by", "sites", "channels", "of parameters"]
    if all(path == "unknown" for _, path in sites):  # which only a measurement tells
        columns, rows = [columns[0], *columns[2:]], [[row[0], *row[2:]] for row in rows]
    console.print_table(
        f"{model}: {result['channels']:,} channels, behind which lie {percent(result['coverage'])} of the parameters",
        columns,
        rows,
    )
    reasons = {next(iter(grouped({name: 0}))): reason for name, reason in result["reasons"].items()}
    for name, values_of in result["uncovered_values"].items():
        why = f" ({reasons[name]})" if name in reasons else ""
        print(
            f"no site covers {name}, {counted(values_of, 'value')}, so they are neither measured nor transferred{why}"
        )
    for site in result["sites"]:
        if site["tied_to"]:
            print(
                f"{site['name']} shares its tensor with {site['tied_to']}: it is measured, but transferred only there"
            )


def print_fit(fit: dict[str, Any]) -> None:
    """Print whether a run fits in the memory of a device, and if not, the ways out."""
    needs, has = size(fit["needs"]), size(fit["has"])
    if fit["fits"]:
        return print(f"it fits: {needs} of the {has} that {fit['device']} has free")
    print(f"does not fit: {needs} are needed, and {fit['device']} has {has}; it fits, or may:")
    for way in fit["ways"]:
        print(f"  {way}")


def print_costs(result: dict[str, Any], planned: Accelerator | None) -> None:
    """Print memory, disk, work and time."""
    from act.profiling.dtype_speed import MATTERS

    memory = [[name, size(count)] for name, count in result["memory"].items()]
    memory.append(["all of it", size(sum(result["memory"].values()))])
    console.print_table("Memory on a device", ["part", "size"], memory)
    rows = [[_AFTERWARDS[name], size(count)] for name, count in result["afterwards"].items()]
    console.print_table("Disk, and memory afterwards, of one ability", ["part", "size"], rows)
    if result["measured"]:
        more = "" if "flops" in result else "; give --tokens or --corpus for the time of a run"
        speed = result["measured"]["tokens_per_second"]
        print(f"measured here: {speed:,.0f} tokens/s of one model with random weights{more}")
        if (times := result["measured"]["float32_speed"] or 1) > MATTERS:
            print(f"products of matrices are {times:.1f} times as fast in float32 on this processor: --dtype float32")
    if "flops" in result:
        _print_work(result)
        if not ("cluster" in result or "seconds_here" in result):
            print("in what time was not measured: give --seconds for this device, or --gpu for another")
    if "seconds_here" in result:
        print(f"on this device: {duration(result['seconds_here'])}")
    if "cluster" in result:
        _print_cluster(result["cluster"], planned, result["fit"]["fits"])


def _print_cluster(cluster: dict[str, Any], planned: Accelerator | None, fits: bool) -> None:
    from act.profiling.accelerators import EFFICIENCY

    assumed = cluster["assumptions"]
    title = f"{cluster['gpus']} x {planned.title if planned else 'GPU'}{'' if fits else ', if it fitted'}"
    if "wall" in cluster:
        rows = [[title, duration(cluster[name])] for name, title in _TIMES.items()]
        hours = cluster["gpu_hours"]
        rows.append(["GPU hours", f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"])
        rows.append(["what takes longest", _TIMES[cluster["bottleneck"]].removesuffix(", meanwhile")])
        console.print_table(title, ["part", "time"], rows)
    else:
        limit = _TIMES[cluster["limited_by"]].removesuffix(", meanwhile")
        print(
            f"{title}: {amount(cluster['tokens_per_second'])} tokens/s, limited by {limit}; give --tokens or --corpus "
            "for the time of a run"
        )
    print(f"assumed: {rate(assumed['flops'])} of each GPU", end="")
    if planned:
        print(f" ({EFFICIENCY:.0%} of the dense rate in {planned.source}, unless --gpu-tflops says otherwise)", end="")
    print(
        f", {size(assumed['load'])}/s to load weights, {size(assumed['network'])}/s between machines, "
        f"{amount(assumed['tokenise'])} tokens/s of each core, {assumed['cores']} cores a GPU"
    )


def _print_work(result: dict[str, Any]) -> None:
    text = result["corpus"]
    if len(text.get("texts", ())) > 1:
        _print_texts(text["texts"])
    about = "about " if text.get("sampled") else ""
    flops = rate(result["flops"]).removesuffix("/s")
    print(f"{about}{amount(text['tokens'])} tokens, {amount(text['counted'])} of them counted: {flops} of work")
    if text.get("images"):
        images = counted(text["images"], "image")
        print(f"{images}, whose tokens are counted; what the parts that read them compute is not")
    if text["computed"] != text["tokens"]:
        provided = "" if result["tried"] else ", if the model can share that (--seconds tries it)"
        print(
            f"{about}{amount(text['computed'])} of them are computed; the others begin texts as a text before them did"
            f"{provided}"
        )
    if text.get("bad_records"):
        print(f"bad: {text['bad_records']:,} of {counted(text['records'], 'record')}: see --skip-bad-records of run")
    if not result["attention_counted"]:
        print("without attention, because the configuration does not describe it")


def _print_texts(texts: dict[str, TextPlan]) -> None:
    rows = [
        [name, *(amount(one[key]) for key in ("records", "tokens", "counted")), f"{one['longest']:,}"]
        for name, one in texts.items()
    ]
    about = ", about, by a sample" if any(one["sampled"] for one in texts.values()) else ""
    console.print_table(f"Texts{about}", ["text", "records", "tokens", "counted", "longest"], rows)
