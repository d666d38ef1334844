"""Channel sets: the chosen channels, with the rule that chose them, in one safetensors file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from act.channels import ChannelSpace
from act.errors import ActError
from act.files import load_tensors, save_tensors, understood

SCHEMA = "act-channels/1"


class ChannelSet:
    """A sorted selection of channels of one channel space.

    Attributes:
        space: the channel space.
        index: sorted distinct flat indices, int64 ``[K]``.
        scores: the score of each, float64 ``[K]``.
        rule: how they were chosen, and the models they were chosen for, as plain data.
    """

    def __init__(self, space: ChannelSpace, index: torch.Tensor, scores: torch.Tensor, rule: dict[str, Any]) -> None:
        order = index.argsort()
        self.space = space
        self.index = index[order]
        self.scores = scores[order]
        self.rule = rule
        if len(index) and not (self.index[0] >= 0 and self.index[-1] < len(space) and (self.index.diff() > 0).all()):
            raise ActError(f"a channel set needs distinct indices in [0, {len(space)})")

    def __len__(self) -> int:
        return len(self.index)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Channels chosen and channels there are, for every module kind, in model order."""
        chosen: Counter[str] = Counter()
        for site, rows in self.space.split(self.index):
            chosen[site.kind] += len(rows)
        total: dict[str, int] = {}
        for site in self.space:
            total[site.kind] = total.get(site.kind, 0) + site.width
        return {kind: (chosen[kind], width) for kind, width in total.items()}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the set; raises ActError if ``path`` exists and ``force`` is False, or the disk is full."""
        header = {"space": self.space.to_json(), "rule": self.rule}
        save_tensors(Path(path), {"index": self.index, "scores": self.scores}, SCHEMA, header, force=force)

    @classmethod
    def load(cls, path: str | Path) -> ChannelSet:
        """Read a set; raises ActError if the file is missing, damaged or of another schema version."""
        tensors, header = load_tensors(Path(path), SCHEMA)
        with understood(Path(path)):
            return cls(ChannelSpace.from_json(header["space"]), tensors["index"], tensors["scores"], header["rule"])
