"""Observers of a run: progress, checkpoints and stopping rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act.data.batching import Batch
    from act.data.corpus import Corpus
    from act.profiling.job import Job
    from act.profiling.run import Run


class Observer:
    """Called between the batches of a run; every method does nothing by default.

    An observer may call :meth:`act.profiling.run.Run.stop`, and may replace the moments in
    :attr:`act.profiling.run.Run.moments`, as long as it puts the original ones back before the run ends.

    >>> class Batches(act.Observer):
    ...     def before_run(self, run):
    ...         self.seen = 0
    ...     def after_batch(self, run, batch):
    ...         self.seen += 1
    ...     def after_run(self, run):
    ...         print(run.total.counted, "tokens were counted")
    ...     def provenance(self, ability):
    ...         return {"batches": self.seen}
    >>> profile = act.profile(model, corpus, observers=[Batches()])
    24 tokens were counted

    One that decides what counts tells its settings, and one that goes on from a checkpoint what it has to keep:

    >>> class Enough(act.Observer):
    ...     batches = 0
    ...     def prepare(self, job):
    ...         if job.pair:
    ...             raise act.ActError("this observer is for single models; leave it out")
    ...     def look_ahead(self, corpora):
    ...         return 4  # a batch has at most so many records
    ...     def after_batch(self, run, batch):
    ...         self.batches += 1
    ...         if self.batches == 2:
    ...             run.stop()
    ...     def settings(self):
    ...         return {"enough": 2}
    ...     def state(self):
    ...         return {"batches": self.batches}
    ...     def restore(self, state):
    ...         self.batches = state["batches"]
    >>> act.profile(model, corpus, observers=[Enough()]).provenance.corpora[0].records
    8
    """

    def prepare(self, job: Job) -> None:
        """Called once when the job is created, before any batch is read.

        Raises:
            ActError: this observer cannot work with this job.
        """

    def look_ahead(self, corpora: Collection[Corpus]) -> int | None:
        """The largest number of records per window that this observer can work with; None: any number."""
        return None

    def before_run(self, run: Run) -> None:
        """Called before the first batch, after a checkpoint has been restored."""

    def after_batch(self, run: Run, batch: Batch) -> None:
        """Called when all of ``batch`` has been counted."""

    def after_run(self, run: Run) -> None:
        """Called when the run has ended or was stopped, but not after an exception."""

    def settings(self) -> dict[str, Any]:
        """Plain data that decides which tokens count; it becomes part of the settings of the job."""
        return {}

    def provenance(self, ability: str) -> dict[str, Any]:
        """Plain data to record in the profile of an ability."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, by name: tensors, and plain data that JSON can hold."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
