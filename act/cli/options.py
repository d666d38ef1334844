"""Options shared by several commands, each declared once, with the group under which ``--help`` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from act.data.formats import EVERY_FORMAT
from act.profiling.accelerators import ACCELERATORS
from act.profiling.defaults import STABLE_CONFIDENCE, STABLE_OVERLAP, STABLE_TOP

MODELS, TEXT, CHANNELS = "Models", "Text, and what counts of it", "Channels"
SPEED, RUN, OUTPUT = "Batches and speed", "Long runs", "Output"
GROUPS = (MODELS, TEXT, CHANNELS, SPEED, RUN, OUTPUT)
"""The groups of ``--help``, in this order, after the options that only one command has."""

COUNTS = ("answer", "predict", "all", "prompt")
TURNS = ("last", "all")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
METRICS = ("auto", "exact", "number", "choice", "nll")
NORMALIZE = ("none", "mean", "std", "kind-mean", "kind-std", "channel")
SCOPES = ("global", "kind", "layer", "site")
UNITS = ("channel", "rotary-pair", "neuron", "head", "expert", "routed-expert")
COSTS = ("auto", "keep", "distance", "none")
OVERLAPS = ("sum", "mean", "first", "stronger")
MODES = ("full", "rows", "lora")
STAGES = ("profile", "sweep", "rank", "transfer", "tune", "evaluate")
LEVELS = ("debug", "info", "warning", "error")


def names(given: list[str] | None) -> list[str]:
    """The names in an option that is repeatable, or separated by commas."""
    return [name.strip() for each in given or () for name in each.split(",") if name.strip()]


def choice(group: str | None, choices: Sequence[str], help: str, *declared: str) -> Any:
    """An option that takes one of some words, which ``--help`` shows and the shell completes.

    The library checks what is given, so that Python and the command line give one message.
    """
    return typer.Option(
        *declared,
        metavar="|".join(choices),
        autocompletion=lambda incomplete="": [each for each in choices if each.startswith(incomplete)],
        rich_help_panel=group,
        help=help,
    )


LOOK: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
"""Of every :class:`typer.Typer`: plain help, and errors that :func:`act.cli.main` prints."""

_MODEL = "a folder in Hugging Face format, or a hub id (org/name, or org/name@revision)"
_CORPUS = f"{EVERY_FORMAT}, a folder or glob of them (also at s3://, gs:// or hf://), or a hub id"

Model = Annotated[str, typer.Option(rich_help_panel=MODELS, help=f"The model: {_MODEL}.")]
Donor = Annotated[str, typer.Option(rich_help_panel=MODELS, help=f"The model that has the ability: {_MODEL}.")]
Target = Annotated[
    str, typer.Option(rich_help_panel=MODELS, help="The model that lacks it, given as the donor is; it is only read.")
]
Revision = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODELS, help="Branch, tag or commit of a model of the hub. Default: main."),
]
Json = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object instead of tables; errors are one too."),
]
LogLevel = Annotated[
    str,
    choice(OUTPUT, LEVELS, "What stderr shows: info (warnings, lines of progress), less, or more."),
]
Force = Annotated[bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace the output if it exists.")]
HardLink = Annotated[
    bool,
    typer.Option(
        "--hard-link",
        rich_help_panel=OUTPUT,
        help="Link weight files in which nothing changes, instead of copying them; writing to one changes both.",
    ),
]
Output = Annotated[
    Path, typer.Option(rich_help_panel=OUTPUT, help="Where to write the result; folders on the way are made.")
]


def profiles(file: str, folder: str) -> Any:
    """The option ``--output`` of what measures texts: a file, or a folder with one for each of several."""
    return typer.Option(
        rich_help_panel=OUTPUT,
        help="File to write the profile to, or, for several abilities, folder for one each; folders on the way are "
        f"made. Default: {file}; of several, {folder}.",
    )


ProfileOutput = Annotated[Path | None, profiles("profile.safetensors", "profiles")]
PairOutput = Annotated[Path | None, profiles("pair.safetensors", "pairs")]
AttributionOutput = Annotated[Path | None, profiles("attribution.safetensors", "attributions")]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="ORG/NAME",
        rich_help_panel=OUTPUT,
        help="Upload the model folder to this repository of the hub, too; a new one is private.",
    ),
]
Csv = Annotated[
    Path | None,
    typer.Option(
        "--csv",
        rich_help_panel=OUTPUT,
        help="Write a row for each channel to this file, too, which ends with .csv or .parquet: its place, its score "
        "and, of an attribution, the "
        "documents and by how much the mean loss of a token would fall, with its standard error.",
    ),
]
Device = Annotated[
    str, typer.Option(rich_help_panel=MODELS, help="Torch device, such as cpu or cuda:1; auto: the first GPU, or CPU.")
]
DeviceMap = Annotated[
    str | None, choice(MODELS, DEVICE_MAPS, "Spread the model over GPUs, memory and disk, instead of one device.")
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=MODELS,
        help="With --device-map, memory that the model may take on a GPU or cpu, such as 0=20GiB (repeatable).",
    ),
]
Dtype = Annotated[str, choice(MODELS, DTYPES, "Type of the weights in memory; auto: as in the checkpoint.")]
CorpusNames = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        rich_help_panel=TEXT,
        help=f"{_CORPUS}; repeat it as NAME=PLACE for several abilities in one pass, each with a profile of its own "
        "in the folder --output.",
    ),
]
KeepTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        rich_help_panel=TEXT,
        help="Text of what the target should keep, measured in the same run (repeatable, also as NAME=PLACE).",
    ),
]
KeepProfiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--keep-profile",
        "--keep",  # which takes texts in every other command
        help="Profile of an ability to retain, whose channels are spared (repeatable; beside the profiles of donor "
        "and target: both of each, in this order).",
    ),
]
Records = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        rich_help_panel=TEXT,
        help=f"Records of the ability, to evaluate on: {_CORPUS} (repeatable, also as NAME=PLACE).",
    ),
]
RecordsToKeep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        rich_help_panel=TEXT,
        help="Records of abilities to keep, to evaluate on (repeatable, also as NAME=PLACE).",
    ),
]


def gpu(group: str) -> Any:
    """The option ``--gpu`` of what plans a run, in the group of those that belong to it."""
    return typer.Option(
        rich_help_panel=group,
        metavar="NAME",
        autocompletion=lambda incomplete="": [name for name in ACCELERATORS if name.startswith(incomplete)],
        help=f"GPU to plan for, by the figures that its maker publishes: {', '.join(ACCELERATORS)}.",
    )


DonorDevice = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODELS,
        help="Where the donor's parameters wait, of which one at a time is needed beside the target.",
    ),
]
Recompute = Annotated[
    bool,
    typer.Option(
        rich_help_panel=SPEED,
        help="Compute the activations of each layer again on the way back, instead of keeping those of all.",
    ),
]
Count = Annotated[
    str,
    choice(
        TEXT,
        COUNTS,
        "Which tokens count; predict: those that predict the answer. For an encoder with a decoder, that is said of "
        "the decoder's tokens; those of the source all count, and prompt counts them alone.",
    ),
]
AnswerTurns = Annotated[str, choice(TEXT, TURNS, "Which messages of the assistant are answers.")]
AbilityColumn = Annotated[
    str | None, typer.Option(rich_help_panel=TEXT, help="Column that labels each record with its ability.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME:]NEW=OLD,…",
        rich_help_panel=TEXT,
        help="Which columns to read as prompt and completion (question, answer, text, messages, …): "
        "question=instruction,answer=response, or templates, prompt='{context} {question}',completion=' {reply}'; of "
        "the text NAME alone: NAME:question=instruction (repeatable).",
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(rich_help_panel=TEXT, help="File with the chat template to use instead of the tokenizer's (Jinja)."),
]
IgnoreColumns = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=TEXT,
        help="Columns, or keys of messages, to leave out of the prompt on purpose (repeatable, or NAME,NAME).",
    ),
]
MergeAdapters = Annotated[
    bool,
    typer.Option("--merge", rich_help_panel=MODELS, help="Merge adapters into their base models as these are loaded."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        rich_help_panel=MODELS,
        help="Run Python code that a model brings along; without it, that is refused.",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=TEXT,
        help="Longest sequence in tokens: longer texts are cut into pieces; longer records with an answer are errors. "
        "Default: the positions in the model's configuration, at most 2048.",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        "--overlap",  # its earlier name, which is what transfer calls rows of several donors
        rich_help_panel=TEXT,
        help="Tokens that a piece of a cut text repeats of the piece before it, as context, as stride is called in "
        "Hugging Face's tokenizers. Default: a sixteenth of the length.",
    ),
]
TokenBudget = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SPEED,
        help="Tokens per batch, or auto: as GPU memory allows. Default: 2048 on a CPU, 8192 on a GPU.",
    ),
]
AttributionBudget = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SPEED,
        help="Tokens per batch, or auto: as GPU memory allows. Default: 2048 on a CPU, 4096 on a GPU.",
    ),
]
Packing = Annotated[
    str,
    choice(SPEED, ("auto", "on", "off"), "Put several texts in one row without padding; auto: with flash attention."),
]
SharedPrefix = Annotated[
    str,
    choice(
        SPEED, ("auto", "off"), "Compute once what several texts begin with (auto: if the model allows it), or never."
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, rich_help_panel=SPEED, help="Processes that tokenise; 0: a thread of this process.")
]
TokenCacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--token-cache",
        rich_help_panel=SPEED,
        help="Folder for the tokens of corpora, so that later runs need not tokenise them.",
    ),
]
SkipBadRecords = Annotated[
    int,
    typer.Option(min=0, rich_help_panel=TEXT, help="How many bad records to skip (and list) before giving up."),
]
LookAhead = Annotated[
    int | None,
    typer.Option(
        min=1,
        rich_help_panel=SPEED,
        help="Records sorted by length together, on one rank. Default: 2048; with --until-stable, 128 or more.",
    ),
]
ShardOption = Annotated[
    str,
    typer.Option(
        "--shard", rich_help_panel=RUN, help="i/n: read every n-th record, starting with the i-th; see combine."
    ),
]
UntilStable = Annotated[
    bool,
    typer.Option(
        "--until-stable",
        rich_help_panel=RUN,
        help="Stop when the top channels are certain; records must be in random order.",
    ),
]
STABLE_OF_ONE = ("mean-abs",)
STABLE_OF_PAIR = ("paired", "mean-abs", "mean-shift")
STABLE_OF_SWAPPED = (*STABLE_OF_PAIR, "match")
StableScore = Annotated[
    str | None, choice(RUN, STABLE_OF_ONE, "With --until-stable: the score that ranks; of one model there is one.")
]
StablePairScore = Annotated[
    str | None,
    choice(
        RUN,
        STABLE_OF_SWAPPED,
        "With --until-stable: the score that ranks, of which alone the certificate is. match needs --swap, and is that "
        "of rank without --keep. Default: paired.",
    ),
]
StableTop = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=RUN,
        help=f"With --until-stable: size of the top set, a share of the channels. Default: {STABLE_TOP:.0%}.",
    ),
]
StableOverlap = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=RUN,
        help=f"With --until-stable: share of it that must also be in the whole corpus's. Default: {STABLE_OVERLAP:g}.",
    ),
]
StableConfidence = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=RUN,
        help=f"With --until-stable: probability with which that overlap must hold. Default: {STABLE_CONFIDENCE:g}.",
    ),
]
CheckpointEvery = Annotated[
    float,
    typer.Option(min=0, rich_help_panel=RUN, help="Seconds between checkpoints, written beside the output; 0: none."),
]
LogFile = Annotated[
    Path | None,
    typer.Option("--log", rich_help_panel=OUTPUT, help="Append a log of the run to this file, as JSON lines."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=CHANNELS,
        help="Measure only these module kinds, or patterns of site names (repeatable); the model runs no further.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=CHANNELS,
        help="Do not measure these module kinds, or patterns of site names (repeatable); head skips the LM head.",
    ),
]
Swap = Annotated[
    bool,
    typer.Option(
        "--swap",
        rich_help_panel=CHANNELS,
        help="Also apply the donor's modules to the target's inputs (for score match): a third forward's worth of "
        "products more.",
    ),
]
MoeAllExperts = Annotated[
    bool,
    typer.Option(
        "--moe-all-experts",
        rich_help_panel=CHANNELS,
        help="Measure every expert on every token, not only on those routed to it; takes longer.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        rich_help_panel=CHANNELS,
        help="Refuse a model of which a part cannot be measured, and fail if a part was not reached.",
    ),
]
MatchExperts = Annotated[
    bool,
    typer.Option(
        "--match-experts",
        rich_help_panel=MODELS,
        help="Put the donor's experts, in memory, in the order of the target's that their routers are like.",
    ),
]
MinExpertTokens = Annotated[
    int,
    typer.Option(
        min=0,
        rich_help_panel=CHANNELS,
        help="Counted tokens that an expert needs to be ranked by activations, for fewer tell little; 0: any.",
    ),
]
Fused = Annotated[
    bool,
    typer.Option(
        rich_help_panel=SPEED, help="Collect statistics inside fused kernels; otherwise, read every site separately."
    ),
]
ShowSpans = Annotated[
    int,
    typer.Option(
        min=0,
        rich_help_panel=TEXT,
        help="Print the first N records with counted tokens in green ([[so]] in a file), and stop.",
    ),
]
Metric = Annotated[
    str,
    choice(
        TEXT,
        METRICS,
        "What makes an answer right: the same text, the same final number, the likeliest letter; nll judges none; "
        "auto: the one that all records fit.",
    ),
]
RecordBudget = Annotated[
    int | None,
    typer.Option(
        "--token-budget",
        rich_help_panel=SPEED,
        help="Tokens per batch, padding included. Default: 2048 on a CPU, 8192 on a GPU.",
    ),
]
