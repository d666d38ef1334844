"""``act-profile attribute``: how the target's loss would change if each channel moved to the donor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from act.cli import console
from act.cli.grouped import with_options
from act.cli.measuring import Measuring
from act.cli.measuring_options import KEEP, AttributeOptions
from act.cli.options import Donor, Target

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

    def _job(
        self, models: dict[str, nn.Module], corpora: dict[str, Corpus], ranks: Ranks | None, feeding: JobOptions
    ) -> Job:
        from act.profiling.attribution import AttributionJob, require_different

        kept = {name: corpus for name, corpus in corpora.items() if name.startswith(KEEP)}
        abilities = {name: corpus for name, corpus in corpora.items() if name not in kept}
        job = AttributionJob(
            models["donor"],
            models["target"],
            abilities.get("", abilities),
            keep={_name(name): corpus for name, corpus in kept.items()},
            ranks=ranks,
            recompute=self.options.recompute,
            **feeding,
        )
        require_different(job)
        return job

    def _measured(self, job: Job, checkpoint: Checkpoint | None) -> Profile | dict[str, Profile]:
        from act.profiling.attribution import AttributionJob

        return cast("Profile | dict[str, Profile]", cast(AttributionJob, job).measured(checkpoint))


def _name(kept: str) -> str:
    number, _, name = kept.removeprefix(KEEP).partition(" ")
    return name or f"keep {number}"
