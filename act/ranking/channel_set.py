"""Channel sets: the chosen channels, with the rule that chose them, in one safetensors file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from act.core.errors import ActError
from act.core.extras import optional
from act.core.tensor_files import FLOATS, indices, load_tensors, save_tensors, taken, understood
from act.models.blocks import Attention, Mlp
from act.models.channels import ChannelSpace
from act.models.sites import ParameterSlice, Site
from act.profiles.tables import places
from act.ranking.rule import Rule
from act.ranking.selection import best, parse_top

if TYPE_CHECKING:
    import pandas

SCHEMA = "act-channels/2"
_INPUTS = "inputs."


@dataclass(frozen=True)
class ChosenRows:
    """The rows of one parameter that a channel set names (columns, where ``parameter.dim`` is 1).

    Attributes:
        rows: where along ``parameter.dim``, sorted and distinct, int64 ``[K]``.
        scores: the score of each row's channel, or of the unit that a column reads (the mean of its chosen channels),
            float64 ``[K]``.
    """

    site: Site
    parameter: ParameterSlice
    rows: torch.Tensor
    scores: torch.Tensor


class ChannelSet:
    """A sorted selection of channels of one channel space, and of the input columns that read them.

    Attributes:
        space: the channel space.
        index: sorted distinct flat indices, int64 ``[K]``.
        scores: the score of each, float64 ``[K]``.
        rule: how they were chosen, and the models they were chosen for.
        inputs: site name -> sorted distinct input columns of that linear, int64, in site order: those that read whole
            neurons (columns of ``down``) and heads (columns of ``o``); empty for a set of single channels.

    Raises:
        ActError: indices outside the space, or repeated; both rows and input columns of one linear.

    >>> space = act.ChannelSpace.from_model(model)
    >>> first = space.site("model.layers.0.mlp.down_proj").offset
    >>> act.ChannelSet(space, torch.tensor([first, first + 2]), torch.tensor([3.0, 1.0]))
    <ChannelSet: 2 of ... channels by custom: down 2>
    """

    def __init__(
        self,
        space: ChannelSpace,
        index: torch.Tensor,
        scores: torch.Tensor,
        rule: Rule | None = None,
        inputs: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        if len(index) and not (index.diff() > 0).all():
            order = index.argsort()
            index, scores = index[order], scores[order]
        self.space = space
        self.index = index
        self.scores = scores
        self.rule = rule or Rule()
        columns = {name: columns.unique() for name, columns in (inputs or {}).items() if len(columns)}
        self.inputs = {name: columns[name] for name in sorted(columns, key=lambda name: space.site(name).offset)}
        if len(index) and not (self.index[0] >= 0 and self.index[-1] < len(space) and (self.index.diff() > 0).all()):
            raise ActError(f"a channel set needs distinct indices in [0, {len(space)})")
        crossing = [name for name in self.inputs if self._holds(space.site(name))]
        if crossing:
            raise ActError(
                f"the set holds both channels (rows) and input columns of {crossing[0]}, which cross in one tensor; "
                "choose either its channels, or the neurons or heads that it reads"
            )

    def __len__(self) -> int:
        """Number of channels."""
        return len(self.index)

    def __repr__(self) -> str:
        most = [(kind, chosen) for kind, (chosen, _) in self.by_kind().items() if chosen]
        most.sort(key=lambda one: -one[1])
        kinds = ", ".join([f"{kind} {chosen:,}" for kind, chosen in most[:3]] + ["…"] * (len(most) > 3))
        return f"<ChannelSet: {len(self):,} of {len(self.space):,} channels by {self.rule}{kinds and f': {kinds}'}>"

    def _repr_html_(self) -> str:
        """The table that a notebook shows: chosen channels by module kind."""
        rows = "".join(
            f"<tr><td>{escape(kind)}</td><td>{chosen:,}</td><td>{total:,}</td><td>{chosen / total:.1%}</td></tr>"
            for kind, (chosen, total) in self.by_kind().items()
        )
        return (
            f"<table><caption>{len(self):,} of {len(self.space):,} channels by {escape(str(self.rule))}</caption>"
            "<thead><tr><th>module kind</th><th>chosen</th><th>channels</th><th>share</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def to_frame(self) -> pandas.DataFrame:
        """One row per channel: ``site``, ``kind``, ``layer`` (missing outside the stack), ``row`` and ``score``.

        Raises:
            ActError: pandas is not installed.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=3)
        >>> frame = channels.to_frame()
        >>> len(frame), list(frame.columns)
        (3, ['site', 'kind', 'layer', 'row', 'score'])
        """
        pandas = optional("pandas", "frame", "a table of channels")
        return pandas.DataFrame({**places(self.space, self.index), "score": self.scores.numpy()})

    def best(self, share: str | float) -> ChannelSet:
        """The channels with the highest scores, as many as a share of those that were ranked.

        Args:
            share: ``"5%"``, or 0.05.

        Raises:
            ActError: no share; the set holds fewer; it is not of single channels ranked together, or does not know of
                how many.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), top=0.1)
        >>> channels.best(0.05)
        <ChannelSet: 47 of 940 channels by paired, top 5%: ...>
        """
        rule = self.rule
        if rule.ranked is None or rule.scope != "global" or rule.granularity != ("channel",) or self.inputs:
            raise ActError(
                "the channel set is not one of single channels that were ranked together, so its best cannot be told; "
                "give the profile that it was ranked by"
            )
        share = parse_top(share, "the share")
        count = max(1, round(share * rule.ranked))
        if count > len(self):
            raise ActError(
                f"{share:.4g} of the ranked channels are {count:,}, and the channel set holds {len(self):,}; rank "
                "more, or ask for a smaller share"
            )
        places = best(self.scores, count)
        left = int((self.scores[places] <= 0).sum())
        rule = replace(rule, top=share, count=None, mass=None, not_positive=left)
        return ChannelSet(self.space, self.index[places], self.scores[places], rule)

    def _holds(self, site: Site) -> bool:
        """Whether some channel of a site is chosen."""
        first, last = torch.searchsorted(self.index, torch.tensor([site.offset, site.offset + site.width])).tolist()
        return bool(last > first)

    def rows(self) -> Iterator[ChosenRows]:
        """The rows of every parameter that a transfer of the set touches, site by site.

        Channels give their rows (of weight and bias; columns of an embedding); :attr:`inputs` the columns of a weight.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=3, include="head")
        >>> [(chosen.parameter.name, len(chosen.rows)) for chosen in channels.rows()]
        [('lm_head.weight', 3)]
        """
        for site, rows in self.space.split(self.index):
            for parameter in site.parameters:
                scores = self._scores_of(rows + site.offset)
                yield ChosenRows(site, parameter.whole, parameter.places(rows), scores)
        for name, columns in self.inputs.items():
            site = self.space.site(name)
            yield ChosenRows(site, site.inputs, columns, self._column_scores(name, columns))

    def _scores_of(self, channels: torch.Tensor) -> torch.Tensor:
        return self.scores[torch.searchsorted(self.index, channels)]

    def _column_scores(self, reader: str, columns: torch.Tensor) -> torch.Tensor:
        block = self._readers.get(reader)
        if block is None:
            raise ActError(f"the neurons or heads that {reader} reads are not known in this channel space; rank again")
        rows = [rows + self.space.site(name).offset for name, rows in block.rows().items()]
        members = torch.cat(rows, dim=1)[columns // block.inputs()[reader].shape[1]]  # columns lie unit by unit
        if not len(self.index):
            return torch.zeros(len(columns), dtype=self.scores.dtype)
        place = torch.searchsorted(self.index, members).clamp_(max=len(self.index) - 1)
        scores = self.scores[place].masked_fill_(self.index[place] != members, torch.nan)
        return scores.nanmean(1).nan_to_num(0.0)

    @cached_property
    def _readers(self) -> dict[str, Attention | Mlp]:
        """The linears whose columns read heads or neurons, with these."""
        blocks = (block for block in self.space.blocks if isinstance(block, (Attention, Mlp)))
        return {name: block for block in blocks for name in block.inputs()}

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """How many channels were chosen, and how many there are, for every module kind in model order.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=3, include="head")
        >>> channels.by_kind()["head"], channels.by_kind()["q"]
        ((3, 300), (0, 64))
        """
        chosen: Counter[str] = Counter()
        for site, rows in self.space.split(self.index):
            chosen[site.kind] += len(rows)
        total: dict[str, int] = {}
        for site in self.space:
            total[site.kind] = total.get(site.kind, 0) + site.width
        return {kind: (chosen[kind], width) for kind, width in total.items()}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the set to a safetensors file.

        Raises:
            ActError: ``path`` exists and ``force`` is False; it cannot be written.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=3)
        >>> channels.save("channels.safetensors")
        """
        header = {"space": self.space.to_json(), "rule": self.rule.to_json()}
        columns = {_INPUTS + name: columns for name, columns in self.inputs.items()}
        save_tensors(Path(path), {"index": self.index, "scores": self.scores, **columns}, SCHEMA, header, force=force)

    @classmethod
    def load(cls, path: str | Path) -> ChannelSet:
        """Read a set from the file ``path``.

        Raises:
            ActError: the file is missing, damaged or of another schema version.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=3)
        >>> channels.save("channels.safetensors")
        >>> act.ChannelSet.load("channels.safetensors")
        <ChannelSet: 3 of 940 channels by paired, count 3: ...>
        """
        tensors, header = load_tensors(Path(path), SCHEMA)
        with understood(Path(path)):
            space = ChannelSpace.from_json(header["space"])
            index = indices(tensors, "index", len(space))
            scores = taken(tensors, "scores", (*FLOATS, torch.int64), (len(index),))
            scores = scores if scores.is_floating_point() else scores.double()
            sizes = {name: rows.numel() for block in space.blocks for name, rows in block.inputs().items()}
            inputs = {}
            for name in tensors.keys() - {"index", "scores"}:
                reader = name.removeprefix(_INPUTS)
                if reader == name or reader not in sizes or not space.site(reader).parameters:
                    raise ValueError(f"its tensor {name:.60} is of no linear that reads neurons or heads")
                inputs[reader] = indices(tensors, name, sizes[reader])
            return cls(space, index, scores, Rule.from_json(header["rule"]), inputs)
