"""``act-profile plan``: what a run will cover and cost, before it starts; the weights are not loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from act.cli import console, options
from act.cli.grouped import with_options
from act.cli.plan_output import print_costs, print_fit, print_sites
from act.cli.progress import step
from act.cli.reading import Reading
from act.core.errors import ActError, require_choice
from act.core.machine import free_memory
from act.core.units import count_of

if TYPE_CHECKING:
    import torch

    from act.models.channels import ChannelSpace
    from act.models.sites import Site
    from act.profiling.accelerators import Accelerator
    from act.profiling.cluster import Cluster
    from act.profiling.forward_speed import Measurement
    from act.profiling.plan import Shape


GPUS = "GPUs to plan for"
MANY = 1e9
"""Tokens after which the rate of a run is that of its forwards."""
EXAMPLES = """
act-profile plan --model specialist/ --pair --corpus german.jsonl
act-profile plan --model org/name --pair --tokens 1B --gpu h100 --gpus 8
"""


@with_options
def command(
    reading: Reading,
    model: Annotated[
        str,
        typer.Option(
            rich_help_panel=options.MODELS,
            help="Folder in Hugging Face format (config.json is enough), or hub id (org/name, or org/name@revision).",
        ),
    ],
    revision: options.Revision = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=options.TEXT, help="Corpus whose tokens to count (repeatable, also as NAME=PLACE)."
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, rich_help_panel=options.TEXT, help="Records of each corpus to read; 0: all.")
    ] = 2000,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            rich_help_panel=options.TEXT,
            help="Tokens to plan for, such as 1e9, 500M or 2.5k, instead of a corpus.",
        ),
    ] = None,
    count: options.Count = "answer",
    answer_turns: options.AnswerTurns = "last",
    stride: options.Stride = None,
    pair: Annotated[bool, typer.Option("--pair", help="Plan a pair run of two such models.")] = False,
    attribute: Annotated[
        bool, typer.Option("--attribute", help="Plan act-profile attribute into such a model.")
    ] = False,
    recompute: options.Recompute = True,
    swap: options.Swap = False,
    gpu: Annotated[str | None, options.gpu(GPUS)] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=GPUS, help="How many of them, in a cluster. Default: 1."),
    ] = None,
    gpus_a_model: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=GPUS, help="GPUs over which one copy of the weights is spread."),
    ] = 1,
    gpu_tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            rich_help_panel=GPUS,
            help="TFLOP/s of one GPU during a forward. Default: 40 % of what is published of --gpu, or as measured on "
            "the GPU here.",
        ),
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=options.SPEED,
            help="Tokens per batch. Default: 2048 on a CPU, 8192 on a GPU (to attribute: 4096).",
        ),
    ] = None,
    shared_prefix: options.SharedPrefix = "auto",
    seconds: Annotated[
        float,
        typer.Option(
            min=0,
            rich_help_panel=options.SPEED,
            help="Length of the measurement on this device; 0: no measurement.",
        ),
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
    import torch

    from act.models.channels import ChannelSpace
    from act.models.hub import at_revision
    from act.models.limits import default_token_budget
    from act.models.loading import device_named, empty_model, load_config
    from act.profiling.accelerators import ACCELERATORS, accelerator_named
    from act.profiling.attribution import default_budget
    from act.profiling.forward_speed import WHOLE_BYTES, measure
    from act.profiling.job import SharedPrefix
    from act.profiling.plan import Fit, Shape, attribution_forwards, unmoved
    from act.profiling.strict import require_covered, require_read
    from act.profiling.text_plan import in_all, tokens_of_one

    console.quiet_transformers()
    require_choice("shared prefix", shared_prefix, get_args(SharedPrefix))
    if pair and attribute:
        raise ActError("--pair and --attribute are two kinds of runs; plan one at a time")
    if swap and not pair:
        raise ActError("--swap is about a pair run; give --pair, too")
    if not (recompute or attribute):
        raise ActError("--no-recompute is about an attribution; give --attribute, too")
    asked_tokens = None if tokens is None else _tokens(tokens)
    reading.require_text(bool(corpus))
    if corpus and tokens is not None:
        raise ActError("give a corpus or a number of tokens, not both")
    if gpus is not None and gpus < gpus_a_model:
        raise ActError(f"--gpus is {gpus}, fewer than the {gpus_a_model} of one model (--gpus-a-model); give as many")
    planned = accelerator_named(gpu) if gpu else None
    place = device_named(device)
    asked = planned is not None or gpu_tflops is not None or gpus is not None or gpus_a_model > 1
    if asked and not (planned or gpu_tflops or (place.type == "cuda" and seconds)):
        raise ActError(
            "a GPU's rate cannot be measured here, and that of a CPU tells nothing of it; name the GPU (--gpu "
            f"{', '.join(list(ACCELERATORS)[:5])}, …), or give its rate (--gpu-tflops)"
        )
    model = at_revision(model, revision)
    config = load_config(model, dtype, trust_remote_code=trust_remote_code)
    empty = empty_model(config, trust_remote_code=trust_remote_code)
    space = ChannelSpace.from_model(empty)
    left_out = space.left_out(include or (), exclude or ())
    if strict:
        require_covered(space)
    shape = Shape.of(empty, space)
    vision = None
    on = torch.device("cuda") if planned else place  # whose batches are planned
    budget = token_budget or (default_budget if attribute else default_token_budget)(on)
    text: dict[str, Any] = dict.fromkeys(("tokens", "computed", "counted"), asked_tokens)
    if corpus:
        tokenizer = reading.tokenizer_of(model, trust_remote_code=trust_remote_code)
        places = console.named(corpus)
        columns = reading.columns_of(places)
        how: dict[str, Any] = {"count": count, "answer_turns": answer_turns, "overlap": stride}
        opened = {
            name: reading.open(where, tokenizer, columns=columns.get(name), **how) for name, where in places.items()
        }
        reading.look(opened)
        opened = {name: each.for_models(empty).seen_by(empty) for name, each in opened.items()}
        vision = next((each.vision for each in opened.values() if each.vision), None)
        plans = {name: tokens_of_one(each, sample, budget) for name, each in opened.items()}
        text |= {**in_all(plans.values()), "texts": plans}
    elsewhere = planned is not None and place.type == "cpu"  # whose rate tells nothing of a GPU
    if seconds and not elsewhere and shape.parameters * shape.itemsize > WHOLE_BYTES:
        step(f"measuring one and two layers with random weights on {place}; --seconds 0 leaves that out")
    measured = (
        measure(
            config,
            place,
            0 if elsewhere else seconds,
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
    memory = (
        shape.attributing(budget, text.get("mean_length", 256), recompute)
        if attribute
        else shape.memory(budget, pair, swap)
    )
    device_title, has = (planned.title, planned.usable) if planned else _memory_of(place)
    on_cpu = planned is None and place.type == "cpu"
    fit = Fit.of(memory, has, budget, shape.itemsize, gpus_a_model, on_cpu)
    result: dict[str, Any] = {
        "channels": len(space),
        "parameters": shape.parameters,
        "active_parameters": shape.active,
        "sites": _sites(space, measured, left_out),
        "uncovered": list(space.uncovered),
        **_coverage(space),
        "reasons": unmoved(space),
        "memory": memory,
        "fit": {"device": device_title, "needs": fit.needs, "has": fit.has, "fits": fit.fits, "ways": list(fit.ways)},
        "afterwards": shape.afterwards(space, pair, swap),
        "corpus": text,
        "attention_counted": shape.attention is not None,
        "tried": measured is not None,
        "measured": {name: value for name, value in measured.items() if name != "paths"}
        if measured and not elsewhere
        else None,
    }
    dtype_name = str(config.dtype or "float32").removeprefix("torch.")
    result |= _costs(
        shape.until_last(space, left_out),
        text,
        None if elsewhere else measured,
        pair=pair,
        forwards=attribution_forwards(recompute) if attribute else 1,
        swap=swap,
        cluster=_cluster(planned, gpu_tflops, dtype_name, place, measured) if asked else None,
        gpus=gpus or 1,
        gpus_a_model=gpus_a_model,
        token_budget=budget,
    )
    if as_json:
        return console.print_json(result)
    print_fit(result["fit"])
    print_sites(model, result)
    print_costs(result, planned)


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


def _memory_of(place: torch.device) -> tuple[str, int]:
    """What a device of this machine is called, and the bytes that it has free."""
    import torch

    if place.type == "cuda":
        return torch.cuda.get_device_name(place), torch.cuda.mem_get_info(place)[0]
    if place.type == "cpu":
        return "this machine", free_memory()
    return f"{place}, taken to have the memory of this machine", free_memory()


def _cluster(
    planned: Accelerator | None, tflops: float | None, dtype: str, place: torch.device, measured: Measurement | None
) -> Callable[[Shape], Cluster]:
    """The cluster of GPUs of a kind, or of that of this machine, whose rate is that of a forward of some shape."""

    def made(shape: Shape) -> Cluster:
        bandwidth = planned.bandwidth * 1e9 if planned else Cluster.memory
        if tflops:
            return Cluster(flops=tflops * 1e12, memory=bandwidth)
        if planned:
            return Cluster(flops=planned.flops(dtype), memory=bandwidth)
        assert measured and place.type == "cuda"
        return Cluster(flops=shape.flops(1, 1, 256) / measured["seconds_a_token"])

    from act.profiling.cluster import Cluster

    return made


def _costs(
    shape: Shape,
    text: dict[str, Any],
    measured: Measurement | None,
    *,
    pair: bool,
    forwards: int,
    swap: bool,
    cluster: Callable[[Shape], Cluster] | None,
    gpus: int,
    gpus_a_model: int,
    token_budget: int,
) -> dict[str, Any]:
    """The work of a run, of so many ``forwards``, its time on this device, if measured, and on a cluster, if asked.

    Where no number of tokens is known, there are rates alone.
    """
    from act.profiling.cluster import assumptions, rounded

    tokens, counted, length = text["computed"], text["counted"], text.get("attended_length", 1024)
    costs: dict[str, Any] = {}
    if tokens:
        work = shape.work(tokens, counted, length, pair, swap) * forwards
        costs["flops"] = work
        if measured:
            costs["seconds_here"] = work / shape.flops(tokens, counted, length) * tokens * measured["seconds_a_token"]
    if cluster:
        rates = cluster(shape)
        many = tokens or MANY
        times = replace(rates, flops=rates.flops / forwards).seconds(
            shape,
            many,
            counted,
            gpus=gpus,
            gpus_a_model=gpus_a_model,
            length=length,
            pair=pair,
            swap=swap,
            token_budget=token_budget,
        )
        meanwhile = {"forward": times["forward"], "tokenise": times["tokenise"], "read": times["read"]}
        slowest = max(meanwhile, key=lambda part: meanwhile[part])
        costs["cluster"] = {
            "gpus": gpus,
            "tokens_per_second": rounded(many / meanwhile[slowest]),
            "limited_by": slowest,
            **(times if tokens else {}),
            "assumptions": assumptions(rates),
        }
    return costs


def _tokens(given: str) -> float:
    """The number of ``--tokens``."""
    try:
        tokens = count_of(given)
    except ValueError:
        raise ActError(f"--tokens is {given!r}; expected a number of tokens, such as 1e9, 500M or 2.5k") from None
    if tokens < 1:
        raise ActError(f"--tokens is {given}; expected at least 1")
    return tokens
