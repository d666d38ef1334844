"""``act-profile transfer``: transfer the chosen channels from donors to a target."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from act.cli import console, next_step, options
from act.cli.choosing import AUTO, Choosing, print_choice
from act.cli.going_on import evaluations_beside
from act.cli.grouped import with_options
from act.core.errors import ActError, require_choice
from act.core.files import require_folder_name, require_no_other_ending, reserve_output, written_whole

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from act.editing.donor import Donor
    from act.editing.patch import Patch
    from act.editing.rows import Overlap


_CALLED = {"values": "values changed", "parameters": "parameters changed", "path": "carried out"}
_PATHS = {"disk": "on files", "memory": "in memory", "patch": "as a patch"}
EXAMPLES = """
act-profile transfer --donor base/ --target specialist/ \\
    --channels channels.safetensors \\
    --strength 0.4 --output mended/
act-profile transfer --donor base/ --target specialist/ --auto \\
    --corpus german.jsonl --keep maths.jsonl --output mended/
"""


@with_options
def command(
    donor: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=options.MODELS,
            help="The model that has the ability: a folder, or a hub id (org/name, or org/name@revision; repeatable).",
        ),
    ],
    target: options.Target,
    output: Annotated[
        Path,
        typer.Option(
            rich_help_panel=options.OUTPUT, help="Folder for the resulting model, or a .safetensors patch file."
        ),
    ],
    automatic: Choosing,
    channels: Annotated[
        list[Path] | None, typer.Option(help="A channel set from act-profile rank, one for each donor.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="How far towards the donor (the paper's lambda): 0 changes nothing, 1 copies its rows, more goes "
            "beyond; one for all donors or one for each; 0.4 by default. With --auto: one to try (repeatable)."
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            rich_help_panel=AUTO,
            help="Choose share and strength on --corpus and --keep, by the ranking of --profile or --channels, or of "
            "half of these records: the most recovered at 95 % kept. What to rank by is said as in act-profile rank. "
            "After an interruption, the same command ranks anew, unless it has a --profile, and tries what is left.",
        ),
    ] = False,
    strength_of: Annotated[
        list[str] | None,
        typer.Option(
            help="PATTERN=VALUE: a different strength for matching sites, such as '*.mlp.*=0.2' (repeatable)."
        ),
    ] = None,
    overlap: Annotated[str, options.choice(None, options.OVERLAPS, "How to combine rows of several donors.")] = "sum",
    align_tokens: Annotated[
        bool,
        typer.Option(
            "--align-tokens", help="Match embedding and LM-head rows of different vocabularies by token string."
        ),
    ] = False,
    match_experts: options.MatchExperts = False,
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="Load the models instead of working on their files.")
    ] = False,
    hard_link: options.HardLink = False,
    device: options.Device = "auto",
    dtype: Annotated[
        str,
        options.choice(
            options.MODELS,
            options.DTYPES,
            "Type in which --auto runs the models and --merge merges them; auto: the checkpoint's. What is written has "
            "the types of the target's checkpoint, with --merge this one.",
        ),
    ] = "auto",
    merge: options.MergeAdapters = False,
    push_to_hub: options.PushToHub = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Blend the chosen channels of the donors into the target; write a model folder or a patch file."""
    from act.editing import publishing
    from act.editing.strength import require_strength, warn_of_strength
    from act.editing.weight_files import RenamedWeights

    channels = channels or []
    strengths = (strength or []) if auto else _one_each("--strength", strength or [0.4], len(donor))
    for value in strengths:
        require_strength(value)
        warn_of_strength(value)
    if push_to_hub:
        if output.suffix == ".safetensors":
            raise ActError("--push-to-hub uploads a model folder, and the output is a patch file; give a folder")
        publishing.require_repository(push_to_hub)
    if auto:
        automatic.require(donor, channels, strength_of or [])
        _require_overlap(overlap)
    else:
        automatic.require_unused()
        if len(channels) != len(donor):
            raise ActError(
                f"{len(donor)} --donor and {len(channels)} --channels were given; give one set for each donor"
                ", or choose with --auto"
            )
        _require_once(donor, channels, overlap)
    if output.suffix != ".safetensors":
        require_folder_name(output, ", or a patch that ends with .safetensors")
    for each in donor:
        console.require_two_models(each, target)
    console.require_models([*donor, target])
    inputs = [*donor, target, *channels, *automatic.files]
    reserve_output(output, force, inputs)
    if automatic.channels_output:
        reserve_output(automatic.channels_output, force, [*inputs, output])
        require_no_other_ending(automatic.channels_output, ".safetensors")
    patterns = dict(_pattern(text) for text in strength_of or [])
    on_disk = not (in_memory or merge)
    if on_disk and match_experts:
        raise ActError("--match-experts reorders loaded models, not files; add --in-memory, or leave it out")
    if on_disk and device != "auto" and not auto:  # which runs the models
        raise ActError(f"--device {device} has no effect on files; add --in-memory, or leave --device out")
    if hard_link and (not on_disk or output.suffix == ".safetensors"):
        raise ActError("--hard-link has no effect unless files are transferred to a folder; leave it out")

    choice = evaluations = None
    if auto:
        evaluations = evaluations_beside(output)
        loading = {"dtype": dtype, "merge": merge, "trust_remote_code": trust_remote_code}
        choice = automatic.choose(
            donor[0], target, channels, strengths, device, loading, match_experts, evaluations, as_json
        )
        if automatic.channels_output:
            choice.channels.save(automatic.channels_output, force=force)
        strengths = [choice.strength]
    how = [f"## Share and strength\n\n{choice.card()}"] if choice else []
    own = bool(choice) and not (channels or automatic.profile)  # the ranking is the command's
    said = "It ranks the channels by half of the records, and chooses on the other half.\n\n" if own else ""
    more = "\n\n".join([*how, f"## The command\n\n{said}```bash\n{console.command_for_others()}\n```"])

    require_choice("dtype", dtype, options.DTYPES)
    source = str(_folder(target)) if on_disk else target

    @functools.cache
    def donors() -> list[Donor]:
        from act.editing.donor import Donor
        from act.ranking.channel_set import ChannelSet

        sets = [choice.channels] if choice else map(ChannelSet.load, channels)
        given = [
            Donor(
                _folder(name) if on_disk else name,
                one,
                {**patterns, "*": patterns.get("*", value)} if patterns else value,
                name=name,
            )
            for name, one, value in zip(donor, sets, strengths, strict=True)
        ]
        return list(_with_tokens(given, source, align_tokens, trust_remote_code))

    summary = None
    if on_disk:
        try:
            summary = _on_disk(donors, source, output, overlap, hard_link, force, more, not own)  # type: ignore[arg-type]  # checked by the plan
        except RenamedWeights as reason:
            console.warn(f"loading the models into memory as a whole: {reason}")
    summary = summary or _in_memory(
        donors(),
        target,
        output,
        overlap,  # type: ignore[arg-type]
        device,
        dtype if merge else "auto",
        force,
        merge,
        trust_remote_code,
        match_experts,
        more,
        not own,
    )
    if evaluations:
        evaluations.remove()
    notes = summary.pop("notes")
    summary = {
        "output": str(output),
        "channels": sum(len(one.channels) for one in donors()),
        **summary,
        "strength": strengths[0] if len(strengths) == 1 else strengths,
        **({"strength_of": patterns} if patterns else {}),
        **({"pushed_to": publishing.push(output, push_to_hub)} if push_to_hub else {}),
    }
    if choice and not as_json:
        print_choice(choice)
    for note in notes:
        console.warn(note)
    if as_json:
        chosen = {"auto": choice.to_json()} if choice else {}
        return console.print_json({**summary, **chosen, "notes": notes})
    summary |= {"strength_of": ", ".join(f"{name}={value}" for name, value in patterns.items())} if patterns else {}
    if isinstance(summary["strength"], list):
        summary["strength"] = ", ".join(map(str, summary["strength"]))
    summary["path"] = _PATHS[summary["path"]]
    rows = [
        [_CALLED.get(name, name.replace("_", " ")), f"{value:,}" if isinstance(value, int | float) else value]
        for name, value in summary.items()
    ]
    console.print_table(str(output), ["", ""], rows[1:])
    next_step.after_transfer(target, output, kept=bool(choice))


def _folder(name: str) -> Path:
    """The folder of a model; torch, which takes a second to import, is only imported for one of the hub."""
    if Path(name).is_dir():
        return Path(name)
    from act.models.loading import model_folder

    return model_folder(name)


def _with_tokens(donors: list[Donor], target: str, align: bool, trust_remote_code: bool) -> Iterator[Donor]:
    """The donors; those that transfer rows or columns of tokens get the shared tokens, or the token difference."""
    from act.editing.same_tokens import same_tokenizer_files

    ours = functools.cache(lambda: _tokenizer(target, align, trust_remote_code))
    for donor in donors:
        alike = not align and same_tokenizer_files(Path(str(donor.model)), Path(target))
        yield donor if alike or not donor.moves_tokens else _aligned(donor, ours(), align, trust_remote_code)


def _aligned(donor: Donor, ours: PreTrainedTokenizerBase | None, align: bool, trust_remote_code: bool) -> Donor:
    """A donor with the tokens that it shares with the target, or, unless they are to be aligned, their difference."""
    from act.editing.donor import shared_tokens
    from act.models.loading import token_difference

    theirs = _tokenizer(str(donor.model), align, trust_remote_code)
    if theirs is None or ours is None:
        return donor
    if align:
        return replace(donor, tokens=shared_tokens(theirs, ours))
    return replace(donor, token_difference=token_difference(theirs, ours))


def _tokenizer(model: str, needed: bool, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model; if there is none, None with a warning, or an error if it is ``needed``."""
    from act.models.hub import is_here
    from act.models.loading import load_tokenizer

    console.quiet_transformers()
    try:
        return load_tokenizer(model, trust_remote_code=trust_remote_code)
    except ActError as error:
        if needed or not is_here(model):  # of a missing model, that is the one thing to say
            raise
        console.warn(f"{error}; it is unknown whether tokens have the same ids in donor and target")
        return None


def _on_disk(
    donors: Callable[[], list[Donor]],
    target: str,
    output: Path,
    overlap: Overlap,
    hard_link: bool,
    force: bool,
    more: str,
    commands: bool,
) -> dict[str, Any]:
    from act.editing.copies import copied

    if output.suffix == ".safetensors":
        from act.editing.folders import patch_of_folders

        return _saved(patch_of_folders(donors(), target, overlap), output, force)
    with copied(Path(target), output, force=force) as copy:
        if not hard_link:
            copy.begin()
        from act.editing.folders import transfer_into  # and with it torch, while the copying goes on

        done = transfer_into(copy, donors(), overlap, hard_link=hard_link, more=more, commands=commands)
    notes = list(done.provenance.notes)
    return {"values": done.values, "parameters": done.parameters, "notes": notes, "path": "disk"}


def _in_memory(
    donors: list[Donor],
    target: str,
    output: Path,
    overlap: Overlap,
    device: str,
    dtype: str,
    force: bool,
    merge: bool,
    trust_remote_code: bool,
    match_experts: bool,
    more: str,
    commands: bool,
) -> dict[str, Any]:
    from act.editing.folders import with_card_of
    from act.editing.model_card import write_card
    from act.editing.transfer import transfer_many
    from act.models.loading import load_model, require_plain_weights
    from act.models.quantised import NOT_MOVED

    console.quiet_transformers()
    names = [donor.name or str(donor.model) for donor in donors]
    for name in (*names, target):
        require_plain_weights(name, NOT_MOVED, trust_remote_code=trust_remote_code)

    def load(name: str) -> nn.Module:
        return load_model(name, dtype=dtype, device=device, merge=merge, trust_remote_code=trust_remote_code)

    loaded = [replace(donor, model=load(name)) for donor, name in zip(donors, names, strict=True)]
    result: Any = load(target)
    for donor in loaded:
        console.order_experts(cast("nn.Module", donor.model), result, match_experts, donor.channels.space)
    patch = transfer_many(loaded, result, overlap)
    if output.suffix == ".safetensors":
        return _saved(with_card_of(target, patch), output, force)
    with written_whole(output, force=force, directory=True) as folder:
        result.save_pretrained(folder)
        _write_companions(target, folder, trust_remote_code)
        write_card(folder, target, patch.provenance, afterwards=more, commands=commands)
    return _summary(patch, "memory")


def _write_companions(target: str, folder: Path, trust_remote_code: bool) -> None:
    """Write what belongs to a model beside its weights, such as the tokenizer."""
    from act.editing.copies import copy_companions
    from act.models.loading import load_tokenizer

    if here := Path(target).is_dir():
        copy_companions(Path(target), folder)
        (folder / "adapter_config.json").unlink(missing_ok=True)  # the adapter is merged
    try:
        tokenizer = load_tokenizer(target, trust_remote_code=trust_remote_code)
        if not here:
            tokenizer.save_pretrained(folder)
    except ActError as error:
        console.warn(f"{error}; the result has no tokenizer")


def _saved(patch: Patch, output: Path, force: bool) -> dict[str, Any]:
    patch.save(output, force=force)
    return _summary(patch, "patch")


def _summary(patch: Patch, path: str) -> dict[str, Any]:
    return {"values": len(patch), "parameters": patch.parameters, "notes": patch.notes, "path": path}


def _require_overlap(overlap: str) -> None:
    from act.editing.rows import Overlap

    require_choice("overlap", overlap, get_args(Overlap))


def _require_once(donors: list[str], channels: list[Path], overlap: str) -> None:
    """Raise :class:`ActError` for a donor that would give the channels of one set twice, of which the steps add up."""
    given = [(os.path.realpath(donor), os.path.realpath(one)) for donor, one in zip(donors, channels, strict=True)]
    twice = next((number for number, one in enumerate(given) if one in given[:number]), None)
    if twice is not None and overlap == "sum":
        raise ActError(
            f"--donor {donors[twice]} with --channels {channels[twice]} is given twice, and --overlap sum adds both "
            "steps; give it once, with the strength that you mean"
        )


def _one_each(option: str, values: list[float], donors: int) -> list[float]:
    if len(values) not in (1, donors):
        raise ActError(f"{len(values)} {option} were given for {donors} donors; give one for all, or one for each")
    return values * donors if len(values) == 1 else values


def _pattern(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ActError(f"--strength-of is {text!r}; expected PATTERN=VALUE, such as '*.mlp.*=0.2'") from None
