"""What commands share: their common options, the progress bar on stderr, tables and JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from act.channel_set import ChannelSet
from act.corpus import Corpus
from act.profile import Profile, Seen

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option(help="Replace the output if it exists.")]
Output = Annotated[Path, typer.Option(help="Where to write the result.")]
Device = Annotated[str, typer.Option(help="Torch device; auto is the first GPU, else the CPU.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
CorpusFile = Annotated[Path, typer.Option("--corpus", help="A .jsonl file of records, or a .txt file of texts.")]
Count = Annotated[str, typer.Option(help="Which tokens count: answer, predict (those before them) or all.")]
MaxLength = Annotated[int, typer.Option(help="Longest sequence in tokens; longer texts are cut.")]
TokenBudget = Annotated[int, typer.Option(help="Tokens a batch, padding included.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Module kinds not to measure (repeatable); without head, the LM head never runs."),
]
Fused = Annotated[bool, typer.Option(help="Let statistics ride inside fused kernels; else read every site by itself.")]
ShowSpans = Annotated[int, typer.Option(help="Print what the first N records would count, and stop.")]

DEFAULT_MAX_LENGTH = 2048


def quiet_transformers() -> None:
    """Leave stderr to our own progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(result, ensure_ascii=False))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout; all columns but the first are right-aligned."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    Console().print(table)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def print_spans(corpus: Corpus, limit: int) -> None:
    """The context (dim) and the counted tokens (bold) of the first records."""
    console = Console(highlight=False)
    for before, counted in corpus.spans(limit):
        console.print(before, style="dim", end="", markup=False)
        console.print(counted, style="bold green", markup=False)


@contextlib.contextmanager
def progress_bar(corpus: Corpus) -> Iterator[Any]:
    """A progress callback that draws a bar with tokens/s on stderr, if that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.fields[counted]:,} counted of {task.fields[tokens]:,} tokens, {task.fields[rate]:,.0f} tokens/s"
        ),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("profiling", total=corpus.size, counted=0, tokens=0, rate=0.0)

        def show(seen: Seen) -> None:
            rate = seen.tokens / max(progress.tasks[0].elapsed or 0, 1e-9)
            progress.update(task, completed=seen.sequences, counted=seen.counted, tokens=seen.tokens, rate=rate)

        yield show


@contextlib.contextmanager
def counter(what: str) -> Iterator[Any]:
    """A progress callback ``(doing, done, total)`` that draws a bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what)

        def show(doing: str, done: int, total: int) -> None:
            progress.update(task, description=f"{what}: {doing}", completed=done, total=total)

        yield show


def report_profile(profile: Profile, output: Path, as_json: bool) -> None:
    """Say what a run measured and where it is, with everything odd about it."""
    measured = profile.source["corpora"][-1]
    result = {
        "output": str(output),
        "channels": len(profile.space),
        "sites": len(profile.space.sites),
        **{key: measured[key] for key in ("sequences", "tokens", "counted", "padding", "seconds")},
        "tokens_per_second": round(measured["tokens"] / max(measured["seconds"], 1e-9), 1),
        "backend": profile.source["settings"]["backend"],
        "paths": measured["paths"],
        "nonfinite": measured["nonfinite"],
        "irregular": measured["irregular"],
        "uncovered": list(profile.space.uncovered),
    }
    if as_json:
        print_json(result)
    else:
        names = ("channels", "sites", "sequences", "tokens", "counted", "padding", "seconds", "tokens_per_second")
        rows = [[name.replace("_", " "), f"{result[name]:,}"] for name in names]
        paths = ", ".join(f"{path} {sites}" for path, sites in result["paths"].items())
        print_table(str(output), ["", ""], [*rows, ["backend", result["backend"]], ["sites by path", paths]])
    if measured["nonfinite"]:
        warn(f"NaN or infinite values were left out of the statistics of {_some(measured['nonfinite'])}")
    if measured["irregular"]:
        warn(f"sites that did not see every counted token (rows seen): {_some(measured['irregular'])}")
    if profile.space.uncovered:
        warn(f"parameters that no site covers, and no transfer moves: {', '.join(profile.space.uncovered[:5])}")


def report_channels(channels: ChannelSet, output: Path, as_json: bool) -> None:
    """Say what was chosen, by module kind."""
    kinds = channels.by_kind()
    if as_json:
        shares = {kind: {"chosen": chosen, "channels": total} for kind, (chosen, total) in kinds.items()}
        print_json({"output": str(output), "chosen": len(channels), "rule": channels.rule, "kinds": shares})
        return
    rows = [[kind, f"{chosen:,}", f"{total:,}", f"{chosen / total:.1%}"] for kind, (chosen, total) in kinds.items()]
    title = f"{output}: {len(channels):,} of {channels.rule['ranked']:,} ranked channels"
    print_table(title, ["module kind", "chosen", "channels", "share"], rows)
    for site, owner in channels.rule["tied"].items():
        print(f"{site} shares its tensor with {owner} and is transferred there only")


def _some(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:5])
    return shown + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")
