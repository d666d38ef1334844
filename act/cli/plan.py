"""``act-profile plan``: what a run will cover and cost, before it starts; the weights are not loaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from act.cli import console, options
from act.core.errors import ActError, require_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from act.data.corpus import Corpus
    from act.data.encode import AnswerTurns, Count
    from act.models.channels import ChannelSpace
    from act.models.sites import Site
    from act.profiling.forward_speed import Measurement
    from act.profiling.plan import Shape


def command(
    model: Annotated[str, typer.Option(help="Folder in Hugging Face format (config.json is enough), or hub id.")],
    corpus: Annotated[
        list[str] | None, typer.Option(help="Corpus whose tokens to count; repeat it as NAME=PLACE for several.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Records of each corpus to read; 0: all.")] = 2000,
    tokens: Annotated[float | None, typer.Option(min=1, help="Tokens to plan for, instead of a corpus.")] = None,
    count: options.Count = "answer",
    answer_turns: options.AnswerTurns = "last",
    ignore_columns: options.IgnoreColumns = None,
    max_length: options.MaxLength = None,
    overlap: options.Overlap = None,
    pair: Annotated[bool, typer.Option(help="Plan a pair run of two such models.")] = False,
    attribute: Annotated[bool, typer.Option(help="Plan act-profile attribute into such a model.")] = False,
    recompute: options.Recompute = True,
    swap: options.Swap = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a cluster to plan for.")] = 1,
    gpus_a_model: Annotated[int, typer.Option(min=1, help="GPUs over which one copy of the weights is spread.")] = 1,
    gpu_tflops: Annotated[
        float | None, typer.Option(min=1e-6, help="TFLOP/s of one GPU during a forward. Default: as measured here.")
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per batch. Default: 2048 on a CPU, 8192 on a GPU (to attribute: 4096)."),
    ] = None,
    shared_prefix: options.SharedPrefix = "auto",
    seconds: Annotated[
        float, typer.Option(min=0, help="Length of the measurement on this device; 0: no measurement.")
    ] = 3.0,
    include: options.Include = None,
    exclude: options.Exclude = None,
    fused: options.Fused = True,
    strict: options.Strict = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Show the sites and channels of a model, the parameters outside any site, and the cost of a run."""
    from act.models.channels import ChannelSpace
    from act.models.limits import default_token_budget
    from act.models.loading import device_named, empty_model, load_config, load_tokenizer
    from act.profiling.attribution import default_budget
    from act.profiling.forward_speed import measure
    from act.profiling.job import SharedPrefix
    from act.profiling.plan import Shape, attribution_forwards, unmoved
    from act.profiling.strict import require_covered, require_read
    from act.profiling.text_plan import tokens_of

    console.quiet_transformers()
    require_choice("shared prefix", shared_prefix, get_args(SharedPrefix))
    if pair and attribute:
        raise ActError("--pair and --attribute are two kinds of runs; plan one at a time")
    if swap and not pair:
        raise ActError("--swap is about a pair run; give --pair, too")
    if not (recompute or attribute):
        raise ActError("--no-recompute is about an attribution; give --attribute, too")
    if corpus and tokens is not None:
        raise ActError("give a corpus or a number of tokens, not both")
    config = load_config(model, dtype, trust_remote_code=trust_remote_code)
    empty = empty_model(config, trust_remote_code=trust_remote_code)
    space = ChannelSpace.from_model(empty)
    left_out = space.left_out(include or (), exclude or ())
    if strict:
        require_covered(space)
    shape = Shape.of(empty, space)
    vision = None
    place = device_named(device)
    budget = token_budget or (default_budget if attribute else default_token_budget)(place)
    text: dict[str, Any] = {"tokens": tokens, "computed": tokens, "counted": tokens}
    if corpus:
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        opened = _corpora(
            corpus,
            tokenizer,
            count=count,
            answer_turns=answer_turns,
            ignore_columns=options.names(ignore_columns),
            max_length=max_length,
            overlap=overlap,
        )
        opened = {name: each.for_models(empty).seen_by(empty) for name, each in opened.items()}
        vision = next((each.vision for each in opened.values() if each.vision), None)
        text |= tokens_of(opened, sample, budget)
    measured = (
        measure(
            config,
            place,
            seconds,
            tuple(exclude or ()),
            fused,
            include=tuple(include or ()),
            images=vision.samples() if vision else (),
            trust_remote_code=trust_remote_code,
        )
        if seconds
        else None
    )
    if shared_prefix == "off" or (measured and measured["unshared"]):
        text["computed"] = text["tokens"]
    if strict and measured:
        wanted = (site.name for site in space if site.name not in left_out and site.scales is None)
        paths = measured["paths"]
        require_read({name: "nothing reads its output" for name in wanted if paths.get(name) == "not measured"})
    result: dict[str, Any] = {
        "channels": len(space),
        "parameters": shape.parameters,
        "active_parameters": shape.active,
        "sites": _sites(space, measured, left_out),
        "uncovered": list(space.uncovered),
        **_coverage(space),
        "reasons": unmoved(space),
        "memory": (
            shape.attributing(budget, text.get("mean_length", 256), recompute)
            if attribute
            else shape.memory(budget, pair, swap)
        ),
        "afterwards": shape.afterwards(space, pair, swap),
        "corpus": text,
        "attention_counted": shape.attention is not None,
        "measured": {name: value for name, value in measured.items() if name != "paths"} if measured else None,
    }
    if text["tokens"]:
        result |= _costs(
            shape.until_last(space, left_out),
            text,
            measured,
            pair=pair,
            forwards=attribution_forwards(recompute) if attribute else 1,
            swap=swap,
            gpu_tflops=gpu_tflops,
            gpus=gpus,
            gpus_a_model=gpus_a_model,
        )
    if as_json:
        return console.print_json(result)
    _print_sites(model, result)
    _print_costs(result)


def _corpora(
    given: list[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: str,
    answer_turns: str,
    ignore_columns: list[str],
    max_length: int | None,
    overlap: int | None,
) -> dict[str, Corpus]:
    """The corpora by name, as ``--corpus`` gives them."""
    from act.data.corpus import Corpus

    return {
        name: Corpus.from_file(
            place,
            tokenizer,
            count=cast("Count", count),
            answer_turns=cast("AnswerTurns", answer_turns),
            ignore_columns=ignore_columns,
            max_length=max_length,
            overlap=overlap,
        )
        for name, place in console.places_of(given).items()
    }


def _sites(space: ChannelSpace, measured: Measurement | None, left_out: frozenset[str]) -> list[dict[str, Any]]:
    """The sites as plain data, each with the path that reads it."""
    from act.profiling.forward_speed import path_of

    paths = measured["paths"] if measured else {}

    def path(site: Site) -> str:
        if site.name in left_out:
            return "not measured"
        return f"scales {space.site(site.scales).kind}" if site.scales else path_of(site.name, paths)

    return [
        {
            "name": site.name,
            "kind": site.kind,
            "channels": site.width,
            "path": path(site),
            "tied_to": site.tied_to,
            "scales": site.scales,
            "values": site.values,
        }
        for site in space
    ]


def _coverage(space: ChannelSpace) -> dict[str, Any]:
    """How much of the parameters lies behind channels, in all and by kind, and what does not."""
    from act.models.coverage import grouped

    coverage = space.coverage
    assert coverage is not None  # the space is of a model
    return {
        "coverage": coverage.share,
        "coverage_by_kind": {kind: values / coverage.total for kind, values in coverage.covered.items()},
        "uncovered_values": grouped(coverage.uncovered),
    }


def _costs(
    shape: Shape,
    text: dict[str, Any],
    measured: Measurement | None,
    *,
    pair: bool,
    forwards: int,
    swap: bool,
    gpu_tflops: float | None,
    gpus: int,
    gpus_a_model: int,
) -> dict[str, Any]:
    """The work of a run, of so many ``forwards``, and, at a known rate, its time on this device and on a cluster."""
    from act.profiling.plan import Cluster, assumptions

    tokens, counted, length = text["computed"], text["counted"], text.get("attended_length", 1024)
    work = shape.work(tokens, counted, length, pair, swap) * forwards
    costs: dict[str, Any] = {"flops": work}
    rate = gpu_tflops * 1e12 if gpu_tflops else None
    if measured:
        costs["seconds_here"] = work / shape.flops(tokens, counted, length) * tokens * measured["seconds_a_token"]
        rate = rate or shape.flops(1, 1, 256) / measured["seconds_a_token"]
    if rate:
        cluster = Cluster(flops=rate / forwards)
        times = cluster.seconds(
            shape, tokens, counted, gpus=gpus, gpus_a_model=gpus_a_model, length=length, pair=pair, swap=swap
        )
        costs["cluster"] = {"gpus": gpus, **times, "assumptions": assumptions(cluster)}
    return costs


def _print_sites(model: str, result: dict[str, Any]) -> None:
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
    console.print_table(
        f"{model}: {result['channels']:,} channels, behind which lie {percent(result['coverage'])} of the parameters",
        ["module kind", "read by", "sites", "channels", "of parameters"],
        rows,
    )
    reasons = {next(iter(grouped({name: 0}))): reason for name, reason in result["reasons"].items()}
    for name, size in result["uncovered_values"].items():
        why = f" ({reasons[name]})" if name in reasons else ""
        print(f"no site covers {name}, {size:,} values: they are neither measured nor transferred{why}")
    for site in result["sites"]:
        if site["tied_to"]:
            print(
                f"{site['name']} shares its tensor with {site['tied_to']}: it is measured, but transferred only there"
            )


def _print_costs(result: dict[str, Any]) -> None:
    from act.profiling.dtype_speed import MATTERS

    memory = [[name, f"{size / 2**20:,.1f} MiB"] for name, size in result["memory"].items()]
    memory.append(["peak", f"{sum(result['memory'].values()) / 2**20:,.1f} MiB"])
    console.print_table("memory on a device", ["part", ""], memory)
    about = {"profile": "profile file", "rank": "rank or report", "until-stable": "with --until-stable, in addition"}
    rows = [[about[name], f"{size / 2**20:,.1f} MiB"] for name, size in result["afterwards"].items()]
    console.print_table("disk, and memory afterwards, of one ability", ["part", ""], rows)
    if result["measured"]:
        print(f"measured here: {result['measured']['tokens_per_second']:,.0f} tokens/s with random weights")
        if (times := result["measured"]["float32_speed"] or 1) > MATTERS:
            print(f"products of matrices are {times:.1f} times as fast in float32 on this processor: --dtype float32")
    if "flops" in result:
        _print_work(result)
    if "seconds_here" in result:
        print(f"on this device: {result['seconds_here']:,.0f} s")
    if "cluster" in result:
        cluster = {name: value for name, value in result["cluster"].items() if name != "assumptions"}
        console.print_table("cluster (its rates are assumptions)", ["", ""], [[k, v] for k, v in cluster.items()])


def _print_work(result: dict[str, Any]) -> None:
    text = result["corpus"]
    about = "about " if text.get("sampled") else ""
    print(f"{about}{text['tokens']:,.0f} tokens, {text['counted']:,.0f} of them counted: {result['flops']:.3g} FLOPs")
    if text.get("images"):
        print(f"{text['images']:,} images, whose tokens are counted; what the parts that read them compute is not")
    if text["computed"] != text["tokens"]:
        provided = "" if result["measured"] else ", if the model can share that (--seconds tries it)"
        print(
            f"{about}{text['computed']:,.0f} of them are computed; the others begin texts as a text before them did"
            f"{provided}"
        )
    if text.get("bad_records"):
        print(f"{text['bad_records']:,} of {text['records']:,} records are bad: see --skip-bad-records of run")
    if not result["attention_counted"]:
        print("without attention, because the configuration does not describe it")
