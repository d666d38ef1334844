"""The blocks of a model whose channels belong together: attention heads and MLP neurons.

A block says which rows of its sites make head ``h`` or neuron ``j``, and which input columns of its last linear read
them. Here they are read off kinds, sizes and numbers of heads; a probe then tries whether the model computes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import nn

from act.core.plain import Label, Natural, Positive, checked
from act.models.adapters import plain
from act.models.fused import HEAD_DIMS, HEADS, config_of, sizes_named
from act.models.quantised import inputs_of
from act.models.rotary import RotaryPairs, rotary_functions, rotary_pairs
from act.models.sites import Width, expert_site_name

_DEPTH = 3  # how far above a projection the module of its block may be
_OTHER_HEAD_DIMS = ("attention_head_size", "key_value_proj_dim", "v_head_dim")
_SCALES_HEADS = ("attention_gate", "z", "a", "b")  # gates of outputs, and decays of linear attention

Rows = dict[str, torch.Tensor]
"""Site name -> int64 ``[units, width of a unit]``: the rows of every unit."""


@dataclass(frozen=True)
class Attention:
    """One attention module, by site names.

    A unit is a key-value head with all the query heads that read it (one without grouped queries), so that queries
    and their keys always move together.
    """

    q: str
    k: str
    v: str
    o: str
    heads: Positive
    groups: Positive
    """Key-value heads."""
    head_dim: Positive
    """Of queries and keys."""
    layout: Literal["separate", "blocks", "groups"] = "separate"
    """Of a fused projection that is one site, ``q == k == v``, as in files of earlier versions. ``blocks``: all
    queries, then all keys, then all values; ``groups``: the same order within each key-value head."""
    rotary: RotaryPairs = None
    """Which dimensions are rotated together. ``half``: j and j + rotary_dim / 2; ``interleaved``: 2 j and 2 j + 1."""
    rotary_dim: Natural = 0
    """Dimensions of a head that the rotary embedding rotates."""
    widths: dict[str, Width] = field(default_factory=dict)
    """The channels of each site, of which every unit has an equal share in a row: beside queries, keys and values those
    that scale them. Empty in files of earlier versions: there are none beside."""
    columns: Annotated[int, Field(strict=True, ge=0, le=1 << 24)] = 0
    """The inputs of ``o``. 0, in files of earlier versions: ``heads * head_dim``."""

    def roles(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rows of queries ``[heads, head_dim]``, keys and values ``[groups, head_dim]`` in their sites."""
        h, g, d = self.heads, self.groups, self.head_dim
        if self.widths:
            q, k, v = (torch.arange(self.widths[site]) for site in (self.q, self.k, self.v))
            return q.view(h, -1), k.view(g, -1), v.view(g, -1)
        if self.layout == "separate":
            return _grid(0, h, d), _grid(0, g, d), _grid(0, g, d)
        if self.layout == "blocks":
            return _grid(0, h, d), _grid(h, g, d), _grid(h + g, g, d)
        grouped = _grid(0, h + 2 * g, d).view(g, h // g + 2, d)
        return grouped[:, :-2].reshape(h, d), grouped[:, -2], grouped[:, -1]

    def rows(self) -> Rows:
        """The rows of every unit."""
        if self.widths:
            return {site: torch.arange(width).view(self.groups, -1) for site, width in self.widths.items()}
        q, k, v = (role.reshape(self.groups, -1) for role in self.roles())
        if self.layout == "separate":
            return {self.q: q, self.k: k, self.v: v}
        return {self.q: torch.cat([q, k, v], dim=1)}

    def inputs(self) -> Rows:
        """The input columns of ``o`` that read every unit."""
        return {self.o: torch.arange(self.columns or self.heads * self.head_dim).view(self.groups, -1)}

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether sites of these widths can be the projections of these heads."""
        q, k, v = (widths.get(name) for name in (self.q, self.k, self.v))
        if self.o not in widths or self.heads % self.groups or self.rotary_dim > self.head_dim:
            return False
        if self.layout != "separate":
            return self.q == self.k == self.v and q == (self.heads + 2 * self.groups) * self.head_dim
        if not self.widths:
            return q == self.heads * self.head_dim and k == v == self.groups * self.head_dim
        of_heads = q is not None and q % self.heads == 0 and q // self.heads >= self.head_dim
        shared = all(width == widths.get(site) and width % self.groups == 0 for site, width in self.widths.items())
        named = {self.q, self.k, self.v} <= self.widths.keys() and k == self.groups * self.head_dim
        return of_heads and shared and named and self.columns % self.groups == 0

    def pairs(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Site and rows ``[pairs, 2]`` that the rotary embedding rotates together, for queries and for keys."""
        q, k, _ = self.roles()
        for site, role in ((self.q, q), (self.k, k)) if self.rotary else ():
            yield site, _pairs(role, self.rotary, self.rotary_dim)

    def turning(self, rotary: RotaryPairs, rotary_dim: int) -> Attention:
        """The same attention with these rotary pairs, unless its keys are latent: what turns is then not in ``k``."""
        latent = self.widths and self.widths[self.q] != self.heads * self.head_dim
        pairs = (None, 0) if latent or rotary_dim > self.head_dim else (rotary, rotary_dim)
        return replace(self, rotary=pairs[0], rotary_dim=pairs[1])

    def turned(self) -> list[Turned]:
        """What is left of it where its heads are none."""
        sides = ((self.q, self.heads), (self.k, self.groups)) if self.rotary and self.layout == "separate" else ()
        found = [Turned(site, count, self.head_dim, self.rotary, self.rotary_dim) for site, count in sides]
        return [each for each in found if each.fits(self.widths or {each.site: each.heads * each.head_dim})]


@dataclass(frozen=True)
class Turned:
    """Queries or keys that a rotary embedding turns, where heads are no units of their own."""

    site: str
    heads: Positive
    head_dim: Positive
    rotary: RotaryPairs
    rotary_dim: Natural

    def inputs(self) -> Rows:
        """None: there are pairs only."""
        return {}

    def pairs(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Site and rows ``[pairs, 2]`` that the rotary embedding rotates together."""
        yield self.site, _pairs(_grid(0, self.heads, self.head_dim), self.rotary, self.rotary_dim)

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether a site of this width can have these heads."""
        return widths.get(self.site) == self.heads * self.head_dim and 0 < self.rotary_dim <= self.head_dim


@dataclass(frozen=True)
class Mlp:
    """One MLP, by site names; a unit is a neuron.

    ``gate == up``: halves of one projection; ``gate is None``: no gate.
    """

    gate: str | None
    up: str
    down: str
    neurons: Positive

    def rows(self) -> Rows:
        """The rows of every neuron."""
        one = torch.arange(self.neurons)[:, None]
        if self.gate == self.up:
            return {self.up: torch.cat([one, one + self.neurons], dim=1)}
        return {site: one for site in (self.gate, self.up) if site}

    def inputs(self) -> Rows:
        """The input column of ``down`` that reads every neuron."""
        return {self.down: torch.arange(self.neurons)[:, None]}

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether sites of these widths can be the projections of these neurons."""
        if self.down not in widths:
            return False
        if self.gate == self.up:
            return widths.get(self.up) == 2 * self.neurons
        return all(widths.get(site) == self.neurons for site in (self.gate, self.up) if site is not None)


@dataclass(frozen=True)
class Experts:
    """The experts of one layer; a unit is one expert, with all channels of its sites ``{name}[{e}].{role}``."""

    name: Label
    count: Positive
    roles: tuple[Literal["gate", "up", "down"], ...]
    router: str | None = None
    """The site whose channel ``e`` is the score of expert ``e``, if it is known."""

    def sites(self, expert: int) -> list[str]:
        """The names of an expert's sites, in the order of their channels."""
        return [expert_site_name(self.name, expert, role) for role in self.roles]

    def inputs(self) -> Rows:
        """None: an expert is rows only."""
        return {}

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether all experts have these sites, of the same widths, and the router has a channel for each."""
        first = [widths.get(name) for name in self.sites(0)]
        alike = (first == [widths.get(name) for name in self.sites(expert)] for expert in range(self.count))
        routed = self.router is None or widths.get(self.router, 0) >= self.count
        return routed and bool(self.roles) and None not in first and all(alike)


Block = Attention | Turned | Mlp | Experts


def find_blocks(model: nn.Module, kinds: dict[str, str], widths: dict[str, int]) -> tuple[Block, ...]:
    """The attention modules and MLPs of a model whose sites have these kinds and widths, in site order."""
    around: dict[str, dict[str, list[str]]] = {}
    for name, kind in kinds.items():
        parent = name
        for _ in range(_DEPTH):
            parent = parent.rpartition(".")[0]
            around.setdefault(parent, {}).setdefault(kind, []).append(name)
    found: dict[str, Block] = {}  # by the linear that reads the units
    for parent in sorted(around, key=lambda path: -len(path.split("."))):  # the innermost module first
        sites = {kind: names[0] for kind, names in around[parent].items() if len(names) == 1}
        if sites.get("o") not in found and (attention := _attention(model, parent, sites, widths)):
            found[attention.o] = attention
        if sites.get("down") not in found and (mlp := _mlp(model, sites, widths)):
            found[mlp.down] = mlp
    order = {name: number for number, name in enumerate(kinds)}
    return tuple(found[reader] for reader in sorted(found, key=order.__getitem__))


def block_to_json(block: Block) -> dict[str, Any]:
    """Plain data; :func:`block_from_json` reads it back."""
    return {"block": type(block).__name__, **vars(block)}


def block_from_json(data: Any, widths: Mapping[str, int]) -> Block:
    """The inverse of :func:`block_to_json`, for a model whose sites have these ``widths``.

    Raises:
        ValueError: the data is of no block, or of one that these sites cannot be.
    """
    kind = data.get("block") if isinstance(data, dict) else None
    if kind not in _BLOCKS:
        raise ValueError(f"a block is {kind!r:.60}, expected {' or '.join(_BLOCKS)}")
    block = checked(_BLOCKS[kind], {name: value for name, value in data.items() if name != "block"})
    if not block.fits(widths):
        raise ValueError(f"the sizes of {block!r:.120} are not those of its sites")
    return block


_BLOCKS: dict[str, TypeAdapter[Block]] = {
    each.__name__: TypeAdapter(each) for each in (Attention, Turned, Mlp, Experts)
}


def _pairs(role: torch.Tensor, rotary: RotaryPairs, width: int) -> torch.Tensor:
    half = width // 2
    first = torch.arange(half) if rotary == "half" else 2 * torch.arange(half)
    second = first + (half if rotary == "half" else 1)
    return torch.stack([role[:, first], role[:, second]], dim=-1).view(-1, 2)


def _grid(start: int, heads: int, head_dim: int) -> torch.Tensor:
    return torch.arange(start * head_dim, (start + heads) * head_dim).view(heads, head_dim)


def _inputs(model: nn.Module, site: str) -> int:
    """Input width of a linear."""
    module = plain(model.get_submodule(site))
    known = inputs_of(module)
    return known or int(module.weight.shape[1 if isinstance(module, nn.Linear) else 0])  # type: ignore[index]


def _attention(model: nn.Module, parent: str, sites: dict[str, str], widths: dict[str, int]) -> Attention | None:
    if not {"q", "k", "v", "o"} <= sites.keys():
        return None
    q, k, v, o = (sites[kind] for kind in "qkvo")
    columns = _inputs(model, o)
    for heads in _numbers_of_heads(model, parent, columns):
        groups = widths[v] * heads // columns
        if columns % heads or groups < 1 or heads % groups or any(widths[site] % groups for site in (k, v)):
            continue
        head_dim = widths[k] // groups
        if widths[v] * heads != columns * groups or widths[q] % heads or widths[q] < heads * head_dim:
            continue
        beside = (sites[kind] for kind in _SCALES_HEADS if kind in sites)
        own = {site: widths[site] for site in (q, k, v, *(site for site in beside if widths[site] % heads == 0))}
        found = Attention(q, k, v, o, heads, groups, head_dim, widths=own, columns=columns)
        return found.turning(*_rotary(model.get_submodule(parent), getattr(model, "config", None), head_dim))
    return None


def _numbers_of_heads(model: nn.Module, parent: str, columns: int) -> Iterator[int]:
    """How many heads an attention module may have: as it says, or a module in it, or else the configuration."""
    module = model.get_submodule(parent)
    for place in (module, *module.children()):
        yield from sizes_named(place, *HEADS, "num_k_heads")
        yield from (columns // width or 1 for width in sizes_named(place, *HEAD_DIMS, *_OTHER_HEAD_DIMS))
    yield from sizes_named(config_of(model, module), *HEADS, "num_k_heads")


def _mlp(model: nn.Module, sites: dict[str, str], widths: dict[str, int]) -> Mlp | None:
    if "down" not in sites or "up" not in sites:
        return None
    neurons = _inputs(model, sites["down"])
    if any(widths[sites[kind]] != neurons for kind in ("gate", "up") if kind in sites):
        return None
    return Mlp(sites.get("gate"), sites["up"], sites["down"], neurons)


def _rotary(module: nn.Module, config: Any, head_dim: int) -> tuple[RotaryPairs, int]:
    """How the module's rotary function pairs dimensions, and how many it rotates, as its configuration says."""
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):  # by layer type: only a forward can tell
        return None, 0
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    rotated = int(head_dim * share)
    for namespace, name in rotary_functions(module):
        pairs = rotary_pairs(namespace[name], rotated, rotated)
        if pairs[1]:
            return pairs
    return None, 0
