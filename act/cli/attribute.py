"""``act-profile attribute``: how the target's loss would change if each channel moved to the donor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from act.cli import console
from act.cli.grouped import with_options
from act.cli.measuring import Measuring
from act.cli.measuring_options import AttributeOptions
from act.cli.options import Donor, Target
from act.core.errors import ActError
from act.core.places import last_parts
from act.profiling.defaults import KEPT

if TYPE_CHECKING:
    from torch import nn

    from act.data.corpus import Corpus
    from act.profiles.profile import Profile
    from act.profiling.checkpoint import Checkpoint
    from act.profiling.job import Job, JobOptions
    from act.profiling.ranks import Ranks


EXAMPLES = """
act-profile attribute --donor base/ --target specialist/ \\
    --corpus german.jsonl \\
    --keep maths.jsonl --output german.safetensors
act-profile rank german.safetensors --score attribution \\
    --output channels.safetensors
"""


@with_options
def command(
    donor: Donor,
    target: Target,
    options: AttributeOptions,
) -> None:
    """Attribute the target's loss to its channels by gradients, for act-profile rank --score attribution."""
    Attributing({"donor": donor, "target": target}, options).run()


@dataclass(frozen=True)
class Attributing(Measuring):
    """One ``attribute`` of the command line."""

    options: AttributeOptions
    _predicts: ClassVar[bool] = True

    def _inputs(self) -> list[str]:
        return [*super()._inputs(), *self.options.kept.values()]

    def _models(self, ranks: Ranks | None) -> dict[str, nn.Module]:
        from act.models.loading import require_plain_weights
        from act.models.quantised import NO_STEP
        from act.taps.attributed import require_steps

        for name in self.names.values():
            require_plain_weights(name, NO_STEP, trust_remote_code=self.options.trust_remote_code)
        target = self._load(self.names["target"], ranks)
        require_steps(target, "target")  # before anything is run
        donor = self.options.load(self.names["donor"], self.options.donor_device, spread=False)
        console.order_experts(donor, target, self.options.match_experts)
        return {"donor": donor, "target": target}

    def _require_apart(self, corpora: Mapping[str, Corpus]) -> None:
        from act.profiling.attribution import require_others

        abilities = {name: corpus for name, corpus in corpora.items() if not name.startswith(KEPT)}
        super()._require_apart(abilities)
        require_others(abilities.values(), [corpus for name, corpus in corpora.items() if name not in abilities])

    def _job(
        self, models: dict[str, nn.Module], corpora: dict[str, Corpus], ranks: Ranks | None, feeding: JobOptions
    ) -> Job:
        from act.profiling.attribution import AttributionJob, require_different

        kept = {name: corpus for name, corpus in corpora.items() if name.startswith(KEPT)}
        abilities = {name: corpus for name, corpus in corpora.items() if name not in kept}
        job = AttributionJob(
            models["donor"],
            models["target"],
            abilities.get("", abilities),
            keep=dict(zip(_names(kept), kept.values(), strict=True)),
            ranks=ranks,
            recompute=self.options.recompute,
            **feeding,
        )
        require_different(job)
        return job

    def _measured(self, job: Job, checkpoint: Checkpoint | None) -> Profile | dict[str, Profile]:
        from act.profiling.attribution import AttributionJob

        return cast("Profile | dict[str, Profile]", cast(AttributionJob, job).measured(checkpoint))


def _names(kept: Mapping[str, Corpus]) -> list[str]:
    """What the texts to keep are called: as given, or by the last part of their places."""
    given = [name.partition(" ")[2] for name in kept]
    short = last_parts(corpus.name for corpus in kept.values())
    names = [name or short[corpus.name] for name, corpus in zip(given, kept.values(), strict=True)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ActError(f"two texts to keep are called {twice[0]}; give each a name of its own (--keep NAME=PLACE)")
    return names
