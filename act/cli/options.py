"""The options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option(help="Replace the output if it exists.")]
Output = Annotated[Path, typer.Option(help="Where to write the result.")]
Device = Annotated[str, typer.Option(help="Torch device; auto is the first GPU, else the CPU.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="auto, balanced, balanced_low_0 or sequential: spread the model over GPUs, memory and disk."),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(help="With --device-map, what a GPU or the cpu may hold of the model: 0=20GiB (repeatable)."),
]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
CorpusNames = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        help="JSONL, text (also .gz, .zst), Parquet or Arrow file, a folder or glob of them, or a hub id; repeat it as "
        "NAME=PLACE for several abilities in one pass, each with a profile of its own in the folder --output.",
    ),
]
CorpusPlace = Annotated[
    str,
    typer.Option(
        "--corpus", help="JSONL, text (also .gz, .zst), Parquet or Arrow file, a folder or glob of them, or a hub id."
    ),
]
Count = Annotated[str, typer.Option(help="Which tokens count: answer, predict (those before them), prompt or all.")]
AnswerTurns = Annotated[str, typer.Option(help="Which messages by the assistant are answers: last or all.")]
AbilityColumn = Annotated[str | None, typer.Option(help="Column that labels each record with its ability.")]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Longest sequence in tokens: longer texts are cut, longer records with an answer are bad. "
        "Default: the positions in the model's configuration, at most 2048."
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="Tokens that a piece of a cut text repeats as context. Default: a sixteenth."),
]
TokenBudget = Annotated[
    str | None,
    typer.Option(help="Tokens a batch, or auto: what a GPU's memory allows. Default: 2048 on a CPU, 8192 on a GPU."),
]
Packing = Annotated[str, typer.Option(help="Texts in one row, unpadded: on, off, or auto (flash attention).")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that tokenise; 0: a thread of this one.")]
TokenCacheFolder = Annotated[
    Path | None,
    typer.Option("--token-cache", help="Folder that keeps the tokens of a corpus, so that no later run tokenises it."),
]
SkipBadRecords = Annotated[
    int, typer.Option(min=0, help="How many bad records to leave out, and list, before giving up.")
]
LookAhead = Annotated[
    int | None,
    typer.Option(
        min=1, help="Records sorted by length together, and read by one rank. Default: 2048; 128 and more until stable."
    ),
]
ShardOption = Annotated[str, typer.Option("--shard", help="i/n: every n-th record from the i-th on; see combine.")]
UntilStable = Annotated[
    bool, typer.Option(help="Stop when the top channels are certain; the records must be in random order.")
]
StableScore = Annotated[str, typer.Option(help="The score that ranks them: paired, mean-abs or mean-shift.")]
StableTop = Annotated[str, typer.Option(help="Share of the channels that is the top set.")]
StableOverlap = Annotated[float, typer.Option(help="Share of it that the whole corpus would give too.")]
StableConfidence = Annotated[float, typer.Option(help="How certain that must be.")]
CheckpointEvery = Annotated[float, typer.Option(min=0, help="Seconds between checkpoints, beside the output; 0: none.")]
LogFile = Annotated[Path | None, typer.Option("--log", help="Append what happens to this file, as JSON lines.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Module kinds not to measure (repeatable); without head, the LM head never runs."),
]
Fused = Annotated[bool, typer.Option(help="Let statistics ride inside fused kernels; else read every site by itself.")]
ShowSpans = Annotated[
    int,
    typer.Option(min=0, help="Print what the first N records would count (green; [[so]] in a file), and stop."),
]
