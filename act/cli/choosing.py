"""``transfer --auto``: the options by which share and strength are chosen, and what is printed of the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from act.cli import console, options
from act.cli.going_on import going_on
from act.cli.mistakes import require_shares
from act.cli.progress import counter
from act.cli.ranking_options import RankingOptions, profiles_to_keep, ranked_by
from act.cli.reading import ReadingRecords
from act.core.counted import counted
from act.core.errors import ActError

if TYPE_CHECKING:
    from act.data.encoded import Count as CountName
    from act.evaluation.choice import Choice
    from act.evaluation.evaluations import Evaluations
    from act.evaluation.sweep import Setting


AUTO = "Only with --auto, which chooses share and strength on records"


@dataclass(frozen=True, kw_only=True)
class Choosing(RankingOptions, ReadingRecords):
    """The options of ``--auto``, and by what it ranks; None where one was not given."""

    heading: ClassVar[str] = AUTO

    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Records of the ability to recover (also as NAME=PLACE)."),
    ] = None
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Records of abilities to keep (repeatable, also as NAME=PLACE)."),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(help="The pair profile, or what attribute made, that ranks the channels."),
    ] = None
    keep_profile: Annotated[
        list[Path] | None,
        typer.Option(help="With --profile: pair profile of an ability to keep (repeatable)."),
    ] = None
    least_kept: Annotated[
        float | None,
        typer.Option(help="Share of what is to be kept that must be left; 0.95 by default."),
    ] = None
    top: Annotated[
        list[str] | None,
        typer.Option(help="A share of the channels to try (repeatable). Default: 1%, 2%, 5%, 10% and 20%."),
    ] = None
    metric: Annotated[
        str | None, options.choice(None, options.METRICS, "What makes an answer right; see act-profile evaluate.")
    ] = None
    count: Annotated[
        str | None,
        options.choice(None, options.COUNTS, "Which tokens count where half of the records are profiled."),
    ] = None
    donor_device: Annotated[
        str | None,
        typer.Option(help="Where the donor is and runs, such as cpu; by default where the target is."),
    ] = None
    channels_output: Annotated[
        Path | None,
        typer.Option(help="Also write the chosen channel set to this file, for tune --mode rows, report and patch."),
    ] = None

    @property
    def files(self) -> list[str | Path]:
        """The inputs that no output may replace."""
        profiles = [*([self.profile] if self.profile else []), *(self.keep_profile or [])]
        return [*console.named(self.corpus or [], self.keep or []).values(), *profiles]

    def require_unused(self) -> None:
        """Raise :class:`ActError` for an option that was given without ``--auto``."""
        for each in fields(self):
            if getattr(self, each.name) not in (None, [], 0):
                option = f"--{each.name.replace('_', '-')}"
                raise ActError(f"{option} has no effect without --auto; leave it out, or add --auto")

    def require(self, donors: Sequence[str], channels: Sequence[Path], strength_of: Sequence[str]) -> None:
        """Raise :class:`ActError` for options that do not go together."""
        if len(donors) > 1:
            raise ActError(f"{len(donors)} donors were given, and --auto chooses for one; transfer them one by one")
        if not self.corpus or not self.keep:
            raise ActError(
                "--auto chooses on records: give --corpus for the ability to recover and --keep for the rest"
            )
        if len(self.corpus) > 1:
            raise ActError(f"{len(self.corpus)} --corpus were given; give one, of the ability to recover")
        require_shares(self.top)
        if strength_of:
            raise ActError("--auto chooses one strength for all sites; leave --strength-of out")
        if len(channels) + (self.profile is not None) > 1:
            raise ActError("--auto tries one ranking; give one --profile or one --channels")
        if channels and (self.ranking or self.keep_profile):
            raise ActError("--channels are ranked already; leave the options of ranking out, or give --profile")
        if self.keep_profile and not self.profile:
            raise ActError("--keep-profile belongs to a --profile; give both, or neither")
        if self.count and (self.profile or channels):
            raise ActError("--count has no effect on what was profiled before; leave it out")

    def choose(
        self,
        donor: str,
        target: str,
        channels: Sequence[Path],
        strengths: Sequence[float],
        device: str,
        loading: Mapping[str, Any],
        match_experts: bool,
        evaluations: Evaluations,
        as_json: bool,
    ) -> Choice:
        """Load the models, rank unless that was done before, and try every candidate."""
        from act.evaluation.choice import choose, require_candidates, require_different
        from act.evaluation.kept import KEPT
        from act.evaluation.sweep import STRENGTHS, TOPS
        from act.models.loading import load_model, require_plain_weights
        from act.models.quantised import NOT_MOVED
        from act.profiles.profile import load
        from act.profiling.dtype_speed import warn_of_half
        from act.ranking.channel_set import ChannelSet

        least = KEPT if self.least_kept is None else self.least_kept
        require_candidates(least, self.top, strengths, self.metric or "auto", self.ranking)
        console.quiet_transformers()
        for name in (donor, target):
            require_plain_weights(name, NOT_MOVED, trust_remote_code=loading["trust_remote_code"])
        tokenizer = self.tokenizer_of(target, trust_remote_code=loading["trust_remote_code"])
        texts = [*(self.corpus or []), *(self.keep or [])]
        trusted, count = loading["trust_remote_code"], cast("CountName", self.count or "answer")
        opened = self.open_all(texts, {target: tokenizer}, trust_remote_code=trusted, count=count)
        ability, *kept = opened[target].values()
        require_different(ability, kept)
        ranking = ChannelSet.load(channels[0]) if channels else load(self.profile) if self.profile else None
        places = ((donor, self.donor_device or device), (target, device))
        giving, taking = (load_model(name, device=place, **loading) for name, place in places)
        console.order_experts(giving, taking, match_experts)
        warn_of_half(taking)
        total = 1 + len(set(self.top or TOPS)) * len(set(strengths or STRENGTHS))
        with counter("choosing", as_json) as progress, going_on(evaluations):
            done: list[Setting] = []

            def report(setting: Setting) -> None:
                done.append(setting)
                progress(f"top {setting.top:g}, strength {setting.strength:g}", len(done), total)

            progress("the target", 0, total)
            return choose(
                giving,
                taking,
                ranking,
                ability,
                kept,
                least_kept=least,
                tops=list(self.top) if self.top else None,
                strengths=list(strengths) or STRENGTHS,
                metric=self.metric or "auto",  # type: ignore[arg-type]  # checked by evaluate
                keep_profiles=profiles_to_keep(self.keep_profile) or None,
                checkpoints=evaluations.folder,
                report=report,
                **self.ranking,
            )


def print_choice(choice: Choice) -> None:
    """Print the frontier, and what was chosen."""
    rows = [
        [
            "chosen" if one == choice.chosen else "",
            f"{100 * one.top:g}%",
            f"{one.strength:g}",
            f"{one.channels:,}",
            str(one.recovered),
            one.least_kept.told(choice.least),
        ]
        for one in choice.frontier
    ]
    title = f"The frontier of {counted(len(choice.candidates), 'candidate')}; shares, ± standard error"
    console.print_table(title, ["", "top", "strength", "channels", "recovered", "kept"], rows)
    print(ranked_by(choice.channels.rule))
    if choice.meaning:
        print(choice.meaning)
    print(choice.caveat)
