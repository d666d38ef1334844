"""The observer of ``--strict``: a run that would leave a part of the model unmeasured does not begin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from act.core.errors import ActError
from act.models.channels import ChannelSpace
from act.models.coverage import grouped
from act.profiles.coverage import Measured
from act.profiles.profile import Profile
from act.profiling.job import Job
from act.profiling.observer import Observer
from act.profiling.run import Run


class Strict(Observer):
    """Refuses parameters that no site covers and sites that cannot be read, before any text is read.

    Modules that ``exclude`` leaves out on purpose are no gap. Whether every channel was reached can only be said of a
    profile: :func:`require_measured`.

    >>> from act.profiling.strict import Strict
    >>> act.profile(model, corpus, observers=[Strict()])
    <Profile of LlamaForCausalLM over records: 940 channels at 21 sites, 24 tokens counted>
    """

    def prepare(self, job: Job) -> None:
        """Raise :class:`ActError` if a parameter of the models lies behind no channel."""
        require_covered(job.space)

    def before_run(self, run: Run) -> None:
        """Raise :class:`ActError` if a site cannot be read."""
        require_read(run.unread)


def require_covered(space: ChannelSpace) -> None:
    """Raise :class:`ActError`, which names the largest gap, if a parameter lies behind no channel of the space."""
    coverage = space.coverage
    if coverage is not None and coverage.uncovered:
        name, values = next(iter(grouped(coverage.uncovered).items()))
        reason = f" ({why})" if (why := coverage.why.get(name)) else ""
        raise ActError(
            f"{coverage.share:.4%} of the parameters lie behind channels: no site covers {name} ({values:,} "
            f"values){reason}; leave --strict out to measure the rest"
        )


def require_read(unread: Mapping[str, str]) -> None:
    """Raise :class:`ActError` if some sites cannot be read, given why."""
    if unread:
        name, reason = next(iter(unread.items()))
        raise ActError(
            f"{len(unread)} site(s) cannot be measured, such as {name}: {reason}; "
            "leave --strict out to measure the rest"
        )


def require_measured(path: Path, profile: Profile) -> None:
    """Raise :class:`ActError` unless every parameter lies behind a channel that was counted; the profile is written."""
    measured = Measured.of(profile)
    if measured is not None and measured.gap:
        raise ActError(
            f"{path} is written, but only {measured}: the largest gap is {measured.gap}; measure more text, or leave "
            "--strict out"
        )
