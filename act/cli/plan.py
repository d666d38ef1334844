"""``act-profile plan``: what a run will cover and cost, before it; the weights are not loaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from act.cli import console, options
from act.core.errors import ActError

if TYPE_CHECKING:
    from act.data.encode import AnswerTurns, Count
    from act.models.channels import ChannelSpace


def command(
    model: Annotated[str, typer.Option(help="Folder in Hugging Face format (config.json is enough), or hub id.")],
    corpus: Annotated[
        list[str] | None, typer.Option(help="Corpus whose tokens to count; repeat it as NAME=PLACE for several.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Records of each corpus to look at; 0: all.")] = 2000,
    tokens: Annotated[float | None, typer.Option(min=1, help="Tokens to plan for, instead of a corpus.")] = None,
    count: options.Count = "answer",
    answer_turns: options.AnswerTurns = "last",
    max_length: options.MaxLength = None,
    overlap: options.Overlap = None,
    pair: Annotated[bool, typer.Option(help="Plan a pair run: two such models.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a cluster to plan for.")] = 1,
    gpus_a_model: Annotated[int, typer.Option(min=1, help="GPUs that one copy of the weights is spread over.")] = 1,
    gpu_tflops: Annotated[
        float | None, typer.Option(min=1e-6, help="TFLOP/s that one GPU gives a forward. Default: as measured here.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Tokens per batch. Default: 2048 on a CPU, 8192 on a GPU.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Length of the measurement on this device; 0: none.")] = 3.0,
    exclude: options.Exclude = None,
    fused: options.Fused = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Show sites and channels, what no site covers, tokens, work, memory and time of a run."""
    from act.data.corpus import Corpus
    from act.models.channels import ChannelSpace
    from act.models.limits import default_token_budget
    from act.models.loading import device_named, empty_model, load_config, load_tokenizer
    from act.profiling.plan import Cluster, Shape, assumptions, measure, path_of, tokens_of, unmoved

    console.quiet_transformers()
    if corpus and tokens is not None:
        raise ActError("give a corpus or a number of tokens, not both")
    config = load_config(model, dtype)
    empty = empty_model(config)
    space = ChannelSpace.from_model(empty)
    space.without(exclude or ())  # refuses unknown kinds
    shape = Shape.of(empty, space)
    text: dict[str, Any] = {"tokens": tokens, "counted": tokens}
    if corpus:
        tokenizer = load_tokenizer(model)
        text |= tokens_of(
            {
                name: Corpus.from_file(
                    place,
                    tokenizer,
                    count=cast("Count", count),
                    answer_turns=cast("AnswerTurns", answer_turns),
                    max_length=max_length,
                    overlap=overlap,
                ).for_models(empty)
                for name, place in console.places_of(corpus).items()
            },
            sample,
        )
    place = device_named(device)
    measured = measure(config, place, seconds, tuple(exclude or ()), fused) if seconds else None
    paths = measured["paths"] if measured else {}
    reasons = unmoved(empty, space)
    result: dict[str, Any] = {
        "channels": len(space),
        "parameters": shape.parameters,
        "active_parameters": shape.active,
        "sites": [
            {
                "name": site.name,
                "kind": site.kind,
                "channels": site.width,
                "path": path_of(site.name, paths),
                "tied_to": site.tied_to,
            }
            for site in space
        ],
        "uncovered": list(space.uncovered),
        "reasons": reasons,
        "memory": shape.memory(token_budget or default_token_budget(place), pair),
        "corpus": text,
        "attention_counted": shape.attention is not None,
        "measured": {name: value for name, value in measured.items() if name != "paths"} if measured else None,
    }
    if text["tokens"]:
        length = text.get("attended_length", 1024)
        head = "head" not in (exclude or ())
        work = (2 if pair else 1) * shape.flops(text["tokens"], text["counted"], length, head)
        result["flops"] = work
        if measured:
            result["seconds_here"] = (2 if pair else 1) * text["tokens"] * measured["seconds_a_token"]
            rate = shape.flops(1, 1, 256, head) / measured["seconds_a_token"]
        if measured or gpu_tflops:
            cluster = Cluster(flops=gpu_tflops * 1e12 if gpu_tflops else rate)
            options = {"gpus": gpus, "gpus_a_model": gpus_a_model, "length": length, "pair": pair}
            times = cluster.seconds(shape, text["tokens"], text["counted"], **options)
            result["cluster"] = {"gpus": gpus, **times, "assumptions": assumptions(cluster)}
    if as_json:
        return console.print_json(result)
    _print(model, space, result, paths)


def _print(model: str, space: ChannelSpace, result: dict[str, Any], paths: dict[str, str]) -> None:
    from act.profiling.plan import path_of

    groups: Counter[tuple[str, str]] = Counter()
    channels: Counter[tuple[str, str]] = Counter()
    for site in space:
        group = site.kind, path_of(site.name, paths)
        groups[group] += 1
        channels[group] += site.width
    rows = [[kind, path, f"{sites:,}", f"{channels[kind, path]:,}"] for (kind, path), sites in groups.items()]
    console.print_table(f"{model}: {len(space):,} channels", ["module kind", "read by", "sites", "channels"], rows)
    for name, reason in result["reasons"].items():
        print(f"no site covers {name}: it is neither measured nor transferred ({reason})")
    for site in space:
        if site.tied_to:
            print(f"{site.name} shares its tensor with {site.tied_to}: it is measured, and transferred there only")
    memory = [[name, f"{size / 2**20:,.1f} MiB"] for name, size in result["memory"].items()]
    console.print_table("memory on a device", ["part", ""], memory)
    if result["measured"]:
        print(f"measured here: {result['measured']['tokens_per_second']:,.0f} tokens/s with random weights")
    if "flops" in result:
        text = result["corpus"]
        about = "about " if text.get("sampled") else ""
        print(
            f"{about}{text['tokens']:,.0f} tokens, {text['counted']:,.0f} of them counted: {result['flops']:.3g} FLOPs"
        )
        if text.get("bad_records"):
            print(f"{text['bad_records']:,} of {text['records']:,} records are bad: see --skip-bad-records of run")
        if not result["attention_counted"]:
            print("without attention, of which the configuration says nothing")
    if "seconds_here" in result:
        print(f"on this device: {result['seconds_here']:,.0f} s")
    if "cluster" in result:
        cluster = {name: value for name, value in result["cluster"].items() if name != "assumptions"}
        console.print_table("cluster (its rates are assumptions)", ["", ""], [[k, v] for k, v in cluster.items()])
