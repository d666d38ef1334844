"""Evaluations that are kept in a folder, so that what tries many changes of a model goes on after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from act.core.files import written_whole
from act.core.versions import versions
from act.data.corpus import Corpus
from act.evaluation.evaluate import Evaluation, evaluate
from act.evaluation.exercises import Metric
from act.models.fingerprint import fingerprint
from act.models.loading import name_of, type_of


class Evaluations:
    """Evaluates models on texts; what was evaluated before is read from a folder.

    An evaluation is known by all that decides it: the model's weights, configuration, type and device, the text and how
    it is read, the metric, and the versions of the packages.

    Attributes:
        folder: where they are kept, one file each; None: nowhere.

    >>> from act.evaluation.evaluations import Evaluations
    >>> for _ in range(2):
    ...     evaluations = Evaluations("evaluations")
    ...     (found,) = evaluations(model, [corpus], "nll")
    >>> evaluations.kept, evaluations.remove()
    (1, None)
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def __call__(self, model: nn.Module, corpora: Iterable[Corpus], metric: Metric) -> list[Evaluation]:
        """As :func:`act.evaluate`, on each corpus; one whose content has no fingerprint is evaluated every time."""
        if self.folder is None:
            return [evaluate(model, corpus, metric) for corpus in corpora]
        of_model = _identity(model)
        found = []
        for corpus in corpora:
            path = self.folder / f"{_hash([of_model, corpus.identity(), corpus.name, metric])}.json"
            known = _read(path) if corpus.source.fingerprint else None
            found.append(known or evaluate(model, corpus, metric))
            if corpus.source.fingerprint and not known:
                with written_whole(path, force=True) as temporary:
                    temporary.write_text(json.dumps(found[-1].to_json()), encoding="utf-8")
        return found

    @property
    def kept(self) -> int:
        """How many are in the folder."""
        return len(self._files())

    def remove(self) -> None:
        """Remove them, and the folder unless it holds something else."""
        for path in self._files():
            path.unlink(missing_ok=True)
        if self.folder:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _files(self) -> list[Path]:
        return [] if self.folder is None else [*self.folder.glob("[0-9a-f]" * 32 + ".json")]


def _identity(model: nn.Module) -> list[object]:
    """All of a model that decides what it answers."""
    config = getattr(model, "config", None)
    device = next(model.parameters()).device.type
    settings = [
        str(getattr(one, "to_dict", lambda: "")()) for one in (config, getattr(model, "generation_config", None))
    ]
    return [fingerprint(model), name_of(model), type_of(model), device, settings, versions()]


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(path: Path) -> Evaluation | None:
    """The evaluation in a file; None if there is none, or it cannot be read."""
    try:
        return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
