"""``act-profile combine``: merge the profiles of the shards of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act.cli import options
from act.cli.profile_report import report_profile, report_profiles
from act.core.errors import ActError
from act.core.files import require_folder_name, require_no_other_ending, reserve_output, written_whole

if TYPE_CHECKING:
    from act.profiles.profile import Profile


EXAMPLES = """
act-profile run --model specialist/ --corpus german.jsonl --shard 0/2 \\
    --output shard-0.safetensors
act-profile run --model specialist/ --corpus german.jsonl --shard 1/2 \\
    --output shard-1.safetensors
act-profile combine shard-0.safetensors shard-1.safetensors \\
    --output whole.safetensors
"""


def command(
    shards: Annotated[list[Path], typer.Argument(help="Profiles, or folders of profiles, that --shard i/n made.")],
    output: options.ProfileOutput = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Combine the given shards even if some are missing.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Merge the profiles of the shards of one run into the profile of the whole corpus."""
    from act.profiles.combine import combine, opened, shard_of

    folders = [path for path in shards if path.is_dir()]
    whole = len(shards) == 1 and bool(folders) and not partial  # with all shards of one text in it
    if folders and not whole:
        output = output or Path("profiles")
        require_folder_name(output, ", which gets a profile of each text")
    else:
        output = output or Path("profile.safetensors")
        require_no_other_ending(output, ".safetensors")
    reserve_output(output, force, shards)
    if whole:
        shards = sorted(folders[0].glob("*.safetensors"))
        if not shards:
            inside = sorted(path.parent for path in folders[0].glob("*/*.safetensors"))
            advice = f"the folders in it, such as {inside[0]}, one by one" if inside else "their folder"
            raise ActError(f"there is no profile in {folders[0]}; give the profiles of --shard i/n, or {advice}")
    if whole or not folders:
        profile = combine(shards, partial=partial)
        profile.save(output, force=force)
        return report_profile(profile, output, as_json)
    contents = [{path.name for path in folder.glob("*.safetensors")} for folder in shards]
    if wrong := [str(path) for path, names in zip(shards, contents, strict=True) if not names]:
        raise ActError(f"{wrong[0]} is no folder of profiles; give the outputs of one run for each --shard i/n")
    numbers = [shard_of(opened(folder / min(names)))[0] for folder, names in zip(shards, contents, strict=True)]
    profiles: dict[str, Profile] = {}
    for name in sorted(set.union(*contents)):
        # With labelled rows, an ability may be in some shards only.
        there = [folder / name for folder, names in zip(shards, contents, strict=True) if name in names]
        without = {number for number, names in zip(numbers, contents, strict=True) if name not in names}
        profiles[name.removesuffix(".safetensors")] = combine(there, partial=partial, without=without)
    with written_whole(output, force=force, directory=True) as folder:
        for ability, profile in profiles.items():
            profile.save(folder / f"{ability}.safetensors")
    report_profiles(profiles, output, as_json)
