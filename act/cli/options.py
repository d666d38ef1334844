"""Options shared by several commands, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def names(given: list[str] | None) -> list[str]:
    """The names in an option that is repeatable, or separated by commas."""
    return [name.strip() for each in given or () for name in each.split(",") if name.strip()]


LOOK: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
"""Of every :class:`typer.Typer`: plain help, and errors that :func:`act.cli.main` prints."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option(help="Replace the output if it exists.")]
HardLink = Annotated[
    bool, typer.Option(help="Link files that do not change, instead of copying them; writing to one changes both.")
]
Output = Annotated[Path, typer.Option(help="Where to write the result.")]
Device = Annotated[str, typer.Option(help="Torch device; auto: the first GPU, else the CPU.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="Spread the model over GPUs, memory and disk: auto, balanced, balanced_low_0 or sequential."),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        help="With --device-map, memory that the model may take on a GPU or cpu, such as 0=20GiB (repeatable)."
    ),
]
Dtype = Annotated[str, typer.Option(help="auto (as in the checkpoint), float32, bfloat16 or float16.")]
CorpusNames = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        help="JSONL, text (also .gz, .zst), Parquet or Arrow file, a folder or glob of them, or a hub id; repeat it as "
        "NAME=PLACE for several abilities in one pass, each with a separate profile in the folder --output.",
    ),
]
KeepTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="Text of what the target should keep, measured in the same run (repeatable, also as NAME=PLACE).",
    ),
]
DonorDevice = Annotated[
    str, typer.Option(help="Where the donor's parameters wait, of which one at a time is needed beside the target.")
]
Recompute = Annotated[
    bool,
    typer.Option(help="Compute the activations of each layer again on the way back, instead of keeping those of all."),
]
CorpusPlace = Annotated[
    str,
    typer.Option(
        "--corpus", help="JSONL, text (also .gz, .zst), Parquet or Arrow file, a folder or glob of them, or a hub id."
    ),
]
Count = Annotated[
    str,
    typer.Option(
        help="Which tokens count: answer, predict (those that predict the answer), prompt or all. For an encoder with "
        "a decoder, that is said of the decoder's tokens; those of the source all count, and prompt counts them alone."
    ),
]
AnswerTurns = Annotated[str, typer.Option(help="Which messages of the assistant are answers: last or all.")]
AbilityColumn = Annotated[str | None, typer.Option(help="Column that labels each record with its ability.")]
IgnoreColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="Columns, or keys of messages, to leave out of the prompt on purpose (repeatable, or NAME,NAME)."
    ),
]
MergeAdapters = Annotated[
    bool, typer.Option("--merge", help="Merge adapters into their base models as these are loaded.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that a model brings along; without it, that is refused."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Longest sequence in tokens: longer texts are cut; longer records with an answer are errors. "
        "Default: the positions in the model's configuration, at most 2048."
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="Tokens that a piece of a cut text repeats as context. Default: a sixteenth of the length."),
]
TokenBudget = Annotated[
    str | None,
    typer.Option(help="Tokens per batch, or auto: as GPU memory allows. Default: 2048 on a CPU, 8192 on a GPU."),
]
AttributionBudget = Annotated[
    str | None,
    typer.Option(help="Tokens per batch, or auto: as GPU memory allows. Default: 2048 on a CPU, 4096 on a GPU."),
]
Packing = Annotated[
    str, typer.Option(help="Put several texts in one row without padding: on, off, or auto (with flash attention).")
]
SharedPrefix = Annotated[
    str,
    typer.Option(help="Compute once what several texts begin with (auto: if the model allows it), or never (off)."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that tokenise; 0: a thread of this process.")]
TokenCacheFolder = Annotated[
    Path | None,
    typer.Option("--token-cache", help="Folder for the tokens of corpora, so that later runs need not tokenise them."),
]
SkipBadRecords = Annotated[int, typer.Option(min=0, help="How many bad records to skip (and list) before giving up.")]
LookAhead = Annotated[
    int | None,
    typer.Option(
        min=1, help="Records sorted by length together, on one rank. Default: 2048; with --until-stable, 128 or more."
    ),
]
ShardOption = Annotated[
    str, typer.Option("--shard", help="i/n: read every n-th record, starting with the i-th; see combine.")
]
UntilStable = Annotated[
    bool, typer.Option(help="Stop when the top channels are certain; records must be in random order.")
]
StableScore = Annotated[str, typer.Option(help="Score for --until-stable: paired, mean-abs or mean-shift.")]
StableTop = Annotated[str, typer.Option(help="Size of the top set, as a share of the channels.")]
StableOverlap = Annotated[
    float, typer.Option(help="Share of the top set that must also be in that of the whole corpus.")
]
StableConfidence = Annotated[float, typer.Option(help="Probability with which that overlap must hold.")]
CheckpointEvery = Annotated[
    float, typer.Option(min=0, help="Seconds between checkpoints, written beside the output; 0: none.")
]
LogFile = Annotated[Path | None, typer.Option("--log", help="Append a log of the run to this file, as JSON lines.")]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Measure only these module kinds, or patterns of site names (repeatable); the model runs no further."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Do not measure these module kinds, or patterns of site names (repeatable); head skips the LM head."
    ),
]
Swap = Annotated[
    bool,
    typer.Option(
        help="Also apply the donor's modules to the target's inputs (for score match): a third forward's worth of "
        "products more."
    ),
]
MoeAllExperts = Annotated[
    bool, typer.Option(help="Measure every expert on every token, not only on those routed to it; takes longer.")
]
Strict = Annotated[
    bool, typer.Option(help="Refuse a model of which a part cannot be measured, and fail if a part was not reached.")
]
MatchExperts = Annotated[
    bool,
    typer.Option(help="Put the donor's experts, in memory, in the order of the target's that their routers are like."),
]
MinExpertTokens = Annotated[
    int,
    typer.Option(
        min=0, help="Counted tokens that an expert needs to be ranked by activations, for fewer tell little; 0: any."
    ),
]
Fused = Annotated[
    bool, typer.Option(help="Collect statistics inside fused kernels; otherwise, read every site separately.")
]
ShowSpans = Annotated[
    int,
    typer.Option(min=0, help="Print the first N records with counted tokens in green ([[so]] in a file), and stop."),
]
