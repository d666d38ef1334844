"""``act-profile rank``: choose the channels in which an ability is located."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import console, next_step, options
from act.cli.grouped import with_options
from act.cli.ranking_options import RankingOptions, by_default, require_profiles_to_keep
from act.core.counted import counted
from act.core.errors import ActError
from act.core.files import require_no_other_ending, reserve_output
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.ranking.scores import score_named, score_names

if TYPE_CHECKING:
    from act.profiles.profile import Profile
    from act.ranking.channel_set import ChannelSet
    from act.ranking.rule import Rule


ONE_KIND = 0.9
"""A larger share of a set in one module kind is warned of."""

EXAMPLES = """
act-profile rank german.safetensors --keep-profile maths.safetensors \\
    --top 5% --output channels.safetensors
act-profile rank german.safetensors --score weight-diff --donor base/ \\
    --target specialist/ --csv apart.csv --output apart.safetensors
"""


@with_options
def command(
    profiles: Annotated[
        list[Path], typer.Argument(help="A pair profile, the profiles of donor and target, or what attribute made.")
    ],
    by: RankingOptions,
    output: options.Output = Path("channels.safetensors"),
    keep_profile: options.KeepProfiles = None,
    top: Annotated[str | None, typer.Option(help="Share of the channels to choose, such as 5% (the default).")] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--number",
            "--count",  # which says in every other command what tokens count
            help="Instead of --top: number of channels, pairs, neurons, heads or experts.",
        ),
    ] = None,
    mass: Annotated[str | None, typer.Option(help="Instead of --top: share of the sum of all positive scores.")] = None,
    csv: options.Csv = None,
    min_expert_tokens: options.MinExpertTokens = MIN_EXPERT_TOKENS,
    donor: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=options.MODELS,
            help=f"The donor, for {score_names(lambda score: score.needs_models)}.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=options.MODELS,
            help=f"The target, for {score_names(lambda score: score.needs_models)}.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        options.choice(
            options.MODELS, options.DTYPES, "Type in which these are loaded. Default: as they were for the profile."
        ),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Rank the channels of all modules and save the best as a channel set."""
    from act.models.loading import load_model
    from act.ranking.activations import types_apart
    from act.ranking.rank import rank
    from act.ranking.selection import parse_amount

    if top is not None or number is not None or mass is not None:
        parse_amount(top, number, mass)
    record = score_named(by.score) if by.score else None
    score = f"score {by.score}" if by.score else "the default score"
    if (donor or target) and not (record and record.needs_models):
        others = score_names(lambda score: score.needs_models)
        raise ActError(f"--donor and --target have no effect on {score}; leave them out, or rank by {others}")
    if dtype and not (record and record.needs_models):
        raise ActError(f"--dtype has no effect on {score}, which loads no model; leave it out")
    if by.seed is not None and not (record and record.takes_seed):
        others = score_names(lambda score: score.takes_seed)
        raise ActError(f"--seed has no effect on {score}; leave it out, or rank by {others}")
    inputs: list[str | Path] = [*profiles, *(keep_profile or []), *(name for name in (donor, target) if name)]
    console.require_models([donor, target])
    reserve_output(output, force, inputs)
    require_no_other_ending(output, ".safetensors")
    if csv:
        from act.ranking.export import export, require_table

        require_table(csv)
        reserve_output(csv, force, [*inputs, output])
    if word := next((str(path) for path in profiles[1:] if not path.suffix and not path.exists()), None):
        raise ActError(
            f"no such file: {word}; expected a profile; if it is meant for an option, repeat that before each value, "
            "such as --include q --include k"
        )
    if len(profiles) > 2:
        raise ActError(f"{len(profiles)} profiles were given; expected a pair profile, or those of donor and target")
    require_profiles_to_keep(keep_profile)
    (ability,) = _abilities(profiles, len(profiles))
    models: dict[str, Any] = {}
    if record and record.needs_models:
        if donor is None or target is None:
            raise ActError(f"{score} compares the models themselves; give --donor and --target")
        console.quiet_transformers()
        models = {
            side: load_model(
                name, dtype=dtype or _dtype_of(side, ability), device="cpu", trust_remote_code=trust_remote_code
            )
            for side, name in {"donor": donor, "target": target}.items()
        }
    kept = _abilities(keep_profile, len(profiles)) if keep_profile else []
    channels = rank(
        ability,
        top=top,
        count=number,
        mass=mass,
        keep=kept or None,
        min_expert_tokens=min_expert_tokens,
        **by.ranking,
        **models,
    )
    channels.save(output, force=force)
    if apart := types_apart([ability, *kept]):
        console.warn(apart)
    if csv:
        export(channels, csv, measured=None if isinstance(ability, tuple) else ability, force=force)
    _report(channels, output, as_json, chosen_kinds=bool(by.include), chosen_score=bool(by.score))
    if not as_json:
        next_step.after_rank(output, channels.rule.models, profiles)


def _abilities(paths: list[Path], each: int) -> list[Profile | tuple[Profile, Profile]]:
    """Load profiles, each alone, or in pairs of donor and target."""
    from act.profiles.profile import load

    if len(paths) % each:
        given = counted(len(paths), "keep profile")
        raise ActError(
            f"{given} for profiles of donor and target; expected both of each ability to keep, in this order"
        )
    loaded = [load(path) for path in paths]
    return list(zip(loaded[::2], loaded[1::2], strict=True)) if each == 2 else [*loaded]


def _dtype_of(side: str, ability: Profile | tuple[Profile, Profile]) -> str:
    """The type that a model had when it was measured, as far as the profile says."""
    from act.ranking.activations import models_of

    model = models_of(ability).get(side)
    return model.dtype if model and model.dtype in options.DTYPES else "auto"


def _in_units(rule: Rule) -> str:
    """How many units were asked for and taken, where these are more than channels."""
    if rule.count is None or rule.granularity == ("channel",):
        return ""
    one, *others = rule.granularity
    return f", in {counted(rule.count, 'unit' if others else one)}"


def _report(channels: ChannelSet, output: Path, as_json: bool, chosen_kinds: bool, chosen_score: bool) -> None:
    """Print what was chosen by module kind, and warn of anything unusual; not of kinds that were asked for."""
    rule, kinds = channels.rule, channels.by_kind()
    inputs = sum(map(len, channels.inputs.values()))
    if as_json:
        shares = {kind: {"chosen": chosen, "channels": total} for kind, (chosen, total) in kinds.items()}
        result = {"output": str(output), "chosen": len(channels), "inputs": inputs}
        console.print_json({**result, "rule": rule.to_json(), "kinds": shares})
    else:
        whole = max(len(channels), 1)
        rows = [
            [kind, f"{chosen:,}", f"{total:,}", f"{chosen / total:.1%}", f"{chosen / whole:.1%}"]
            for kind, (chosen, total) in kinds.items()
        ]
        title = f"{output}: {len(channels):,} of {counted(rule.ranked or 0, 'ranked channel')}{_in_units(rule)}"
        console.print_table(title, ["module kind", "chosen", "of channels", "share of kind", "share of set"], rows)
        if not chosen_score:
            print(by_default(rule.score))
        for site, owner in rule.tied.items():
            print(f"{site} shares its tensor with {owner} and is transferred only there")
        if inputs:
            print(f"transferred with these units: {counted(inputs, 'input column')} that read them")
    most = max(kinds, key=lambda kind: kinds[kind][0], default="")
    if not chosen_kinds and len(kinds) > 1 and len(channels) > 1 and kinds[most][0] > ONE_KIND * len(channels):
        console.warn(
            f"{kinds[most][0] / len(channels):.0%} of the set are of one kind, {most}, whose scores have the widest "
            "scale; --normalize std spreads the set over the modules, --scope kind takes the share of each kind"
        )
    for name, part in rule.parts.items():
        console.warn(f"{name} was measured in part: {part}; measure all of it, for the whole may rank otherwise")
    if rule.unmeasured:
        why = score_named(rule.score).no_score
        console.warn(f"channels without a score ({why}), so not ranked: {console.some(rule.unmeasured)}")
    if rule.starved_channels:
        console.warn(
            f"not ranked: {counted(rule.starved_channels, 'channel')} of {counted(rule.starved_experts, 'expert')} "
            f"that fewer than {rule.min_expert_tokens} counted tokens reached (--min-expert-tokens): too few to be sure"
        )
    if rule.not_positive:
        console.warn(
            f"{rule.not_positive:,} of the {len(channels):,} chosen channels have a score of 0 or below, chosen "
            "only to reach the number asked for; choose fewer, or only those above 0 with --mass 100%"
        )
