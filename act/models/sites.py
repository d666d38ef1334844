"""Sites, where channels are read, and the parts of parameters behind their channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field

from act.core.plain import Label, Natural, Positive
from act.models.layout import Layout

Dim = Annotated[int, Field(strict=True, ge=0, le=3)]
Columns = tuple[Natural, Natural, Positive, Positive]
"""``(start, stop, step, run)``: ``run`` places at every ``step``, from ``start`` to before ``stop``."""
Width = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]  # bounds what a file can make a reader allocate


@dataclass(frozen=True)
class ParameterSlice:
    """The part of a parameter behind the channels of a site.

    Attributes:
        name: of the parameter, in the model itself.
        dim: the dimension that channels index (0: a channel is a row, 1: a column), of one expert's matrix if the
            parameter holds several; the others together are the values of a channel.
        expert: which index of the first dimension is the matrix, such as ``3`` of ``[E, O, I]``; None: all of it is.
        rows: of a flat parameter ``[E * rows, W]``, how many rows each expert has; None: the first dimension is
            ``E``.
        span: ``(start, stop, step)`` along ``dim``, where a projection has channels of several sites; None: it is all.
        run: how many channels lie together at each step of ``span``; None: one.
        key: the name of the parameter in the :func:`act.models.views.language_view` of the model, by which slices of
            two models are equal; by default ``name``, as of all models of text alone.

    >>> packed = {"experts.gate_up_proj": torch.arange(2 * 4 * 3.0).view(2, 4, 3)}
    >>> from act.models.sites import ParameterSlice
    >>> gate = ParameterSlice("experts.gate_up_proj", 0, expert=1, span=(0, 2, 1))
    >>> gate.matrix(packed)
    tensor([[12., 13., 14.],
            [15., 16., 17.]])
    """

    name: Label = field(compare=False)
    dim: Dim
    expert: Natural | None = None
    rows: Positive | None = None
    span: tuple[Natural, Natural, Positive] | None = None
    run: Positive | None = None
    key: Label = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)

    @property
    def whole(self) -> ParameterSlice:
        """The part that this is a span of, if its rows lie in runs: a view of it can be written to."""
        return self if self.run is None else replace(self, span=None, run=None)

    def places(self, rows: torch.Tensor) -> torch.Tensor:
        """Where rows of this part lie in :attr:`whole`; in the same order."""
        return rows if self.span is None or self.run is None else _places((*self.span, self.run), rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data for file headers, without what is not set."""
        return {name: value for name, value in _set(vars(self)).items() if (name, value) != ("key", self.name)}

    def matrix(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The part as ``[R, W]``, channels first, without gradient; see :meth:`part_of`."""
        return self.part_of(weights[self.key].detach())

    def part_of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of a parameter as ``[R, W]``, channels first: a view, but where rows lie in runs, a copy.

        Raises:
            IndexError: the parameter has no such expert.
        """
        if self.expert is not None:
            if (self.expert + 1) * (self.rows or 1) > len(parameter):
                raise IndexError(f"{self.name} is {list(parameter.shape)}, which has no expert {self.expert}")
            rows = self.rows
            parameter = parameter[self.expert] if rows is None else parameter[self.expert * rows :][:rows]
        matrix = parameter[:, None] if parameter.dim() == 1 else parameter.movedim(self.dim, 0)
        if matrix.dim() > 2:
            matrix = matrix.view(len(matrix), -1)  # no reshape, which might copy what is to be changed in place
        if self.span is None:
            return matrix
        start, stop, step = self.span
        if self.run is None:
            return matrix[start:stop:step]
        taken = torch.arange(len(range(start, stop, step)) * self.run, device=matrix.device)
        return matrix[self.places(taken)]


@dataclass(frozen=True)
class Site:
    """One place where channels are read.

    Attributes:
        name: module path, such as ``model.layers.0.self_attn.q_proj``; with the role, ``…qkv_proj[q]``, where a fused
            projection has several; ``{path of the experts}[{e}].gate``, ``.up`` or ``.down`` for expert ``e``,
            wherever its weights are; the name of a parameter that no module applies as a whole, such as
            ``model.layers.0.self_attn.sinks``.
        kind: ``q k v o qkv gate up gate_up down router norm embed position head conv``, or else the last part of
            ``name``.
        layer: index of the decoder layer, None outside the stack.
        offset: flat index of its first channel.
        width: number of channels.
        parameters: what the transfer of a channel copies; empty where the tensor belongs to ``tied_to``.
        tied_to: the site that owns the tensor, where two sites share one and this is not the owner.
        layouts: the shapes that its output has, as a probe of the model has shown them; empty before, and where it
            cannot be read.
        expert: the number of the expert that it belongs to; None: every token passes it.
        values: how many values of its parameters lie behind all its channels; None in files of earlier versions.
        scales: the site whose channels its values scale or shift, one value for one channel or for several in a row,
            where it has no output of its own; the moments of those channels stand for its own.
        columns: which of its module's outputs are its channels, where the module is fused; None: all are.

    >>> site = act.ChannelSpace.from_model(model).site("model.layers.1.mlp.down_proj")
    >>> site.kind, site.layer, site.width
    ('down', 1, 32)
    >>> [(part.name, part.dim) for part in site.parameters]
    [('model.layers.1.mlp.down_proj.weight', 0)]
    >>> site.module == site.name, site.inputs.dim, site.channels.stop - site.channels.start
    (True, 1, 32)
    >>> site.outputs(torch.tensor([0, 3])), site.to_json()["kind"]  # nothing is fused
    (tensor([0, 3]), 'down')
    >>> act.Site("model.layers.0.mlp.experts[3].gate", "gate", 0, 0, 48, (), expert=3).experts
    'model.layers.0.mlp.experts'
    """

    name: Label
    kind: Label
    layer: Natural | None
    offset: Natural
    width: Width
    parameters: tuple[ParameterSlice, ...]
    tied_to: str | None = None
    layouts: tuple[Layout, ...] = field(default=(), compare=False)
    expert: Natural | None = None
    values: Natural | None = field(default=None, compare=False)
    scales: Label | None = None
    columns: Columns | None = None

    @property
    def channels(self) -> slice:
        """Its channels in a flat vector."""
        return slice(self.offset, self.offset + self.width)

    @property
    def inputs(self) -> ParameterSlice:
        """The weight of a linear along its input columns, the other dimension than its channels."""
        return replace(self.parameters[0], dim=1 - self.parameters[0].dim, span=None, run=None)

    @property
    def module(self) -> str:
        """Path of the module whose weights make it: its name, but for parts, experts and parameters by themselves."""
        if self.columns is not None:
            return self.name.rpartition("[")[0]
        by_itself = any(part.key == self.name for part in self.parameters)
        return self.parameters[0].key.rpartition(".")[0] if self.expert is not None or by_itself else self.name

    @property
    def experts(self) -> str:
        """Path of the module of the experts that it belongs to; the inverse of :func:`expert_site_name`."""
        return self.name.rpartition("[")[0]

    def outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Where the channels ``rows``, int64 ``[K]``, lie among the outputs of :attr:`module`; in the same order."""
        return rows if self.columns is None else _places(self.columns, rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data for file headers, without what is not set."""
        plain = {**vars(self), "parameters": [part.to_json() for part in self.parameters]}
        return {**_set(plain), "layouts": [asdict(layout) for layout in self.layouts], "layer": self.layer}


def expert_site_name(experts: str, expert: int, role: str) -> str:
    """The name of an expert's site: ``model.layers.0.mlp.experts[3].gate``."""
    return f"{experts}[{expert}].{role}"


def _places(columns: Columns, rows: torch.Tensor) -> torch.Tensor:
    start, _, step, run = columns
    return start + rows // run * step + rows % run


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
