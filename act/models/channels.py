"""The channel space of a model: every site in a fixed order, one flat index for all their channels.

A **channel** is one output dimension of a trainable module (a linear, a norm, the embedding, the LM head); a **site**
is the output of one such module. The space maps a flat index to ``(site, row)`` and to the parameter slices that
produce that channel.
"""

from __future__ import annotations

import bisect
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from html import escape
from typing import Any, Literal, cast

import torch
from pydantic import TypeAdapter
from torch import nn

from act.core.errors import ActError
from act.core.names import matches, names_in
from act.core.plain import checked
from act.models.adapters import named_modules
from act.models.blocks import Block, Experts, Mlp, block_from_json, block_to_json, find_blocks
from act.models.calls import shared_table
from act.models.coverage import Coverage, with_values
from act.models.experts import ExpertsFound, experts_of
from act.models.fused import in_parts, parts_of
from act.models.kinds import Kinds, is_router
from act.models.placement import require_whole, ties_apart
from act.models.quantised import width_of
from act.models.scaled import is_table_of_biases, layer_of, of_parameters
from act.models.sites import ParameterSlice, Site, expert_site_name
from act.models.views import LanguageView, language_view, own_names

Tied = Literal["head", "embed"]


@dataclass(frozen=True)
class ChannelSpace:
    """The ordered sites of one model.

    Example:
        >>> space = act.ChannelSpace.from_model(model)
        >>> site, row = space.locate(0)
        >>> site.kind, row, space.channel(site.name, row)
        ('embed', 0, 0)
    """

    sites: tuple[Site, ...]
    uncovered: tuple[str, ...] = ()
    """Names of parameters that no site covers: a transfer cannot move them."""
    blocks: tuple[Block, ...] = ()
    """The attention modules, MLPs and experts whose heads, neurons and parts are known."""
    coverage: Coverage | None = field(default=None, compare=False)
    """How many values of parameters lie behind channels; None in files of earlier versions."""
    refused: dict[str, str] = field(default_factory=dict, compare=False)
    """Linears whose columns were taken for heads or neurons until a probe was made, each with what the probe showed."""
    keys: dict[str, str] = field(default_factory=dict, compare=False)
    """The names of uncovered parameters in the view of the model, where they have others
    (:class:`act.models.sites.ParameterSlice`)."""

    @classmethod
    def from_model(cls, model: nn.Module, tied: Tied = "head") -> ChannelSpace:
        """Every linear (also those of experts), norm and embedding of a model, in module order.

        Args:
            model: a Hugging Face model, or any module made of such parts; meta tensors are fine.
            tied: which of two sites that share one tensor owns it. ``head``: a channel is a row (one token) of the
                tensor, read at the LM head; ``embed``: a column, read at the embedding. The other site is measured too,
                but cannot be transferred, so no tensor is ever transferred twice.

        Raises:
            ActError: the model has no such module, an adapter on a parameter, or parameters spread over processes.

        >>> act.ChannelSpace.from_model(model)
        <ChannelSpace: 940 channels at 21 sites in 2 layers>
        """
        model = language_view(model)
        require_whole(model)
        apart = ties_apart(model)

        def identity(parameter: Any) -> int:
            return apart.get(id(parameter), id(parameter))

        names = {id(parameter): name for name, parameter in model.named_parameters() if id(parameter) not in apart}
        found: list[tuple[str, nn.Module, dict[str, int]] | ExpertsFound] = []
        parts_of_experts: set[str] = set()
        idle = shared_table(model)
        for name, module in named_modules(model):
            if experts := experts_of(name, module):
                found.append(experts)
                parts_of_experts |= experts.modules
            elif module is idle or name in parts_of_experts or is_table_of_biases(name):
                continue
            elif (dims := _channel_dims(module)) or width_of(module):
                found.append((name, module, dims))
        plain = [one for one in found if isinstance(one, tuple)]
        if not plain:
            raise ActError(f"{type(model).__name__} has no linear, norm or embedding module; give a language model")
        owners: dict[int, str] = {}
        for name, module, _ in sorted(plain, key=lambda item: isinstance(item[1], nn.Embedding) == (tied == "head")):
            owners.setdefault(identity(getattr(module, "weight", module)), name)
        sites: list[Site] = []
        offset = 0
        kind_of = Kinds(model)
        for one in found:
            if isinstance(one, ExpertsFound):
                layer = layer_of(one.name)
                shared = {part.name for site in one.sites for part in site.parameters} - {*names.values()}
                if shared:
                    raise ActError(
                        f"{min(shared)} is a parameter of other experts, too; give each layer of experts its own"
                    )
                for site in one.sites:
                    name = expert_site_name(one.name, site.expert, site.role)
                    sites.append(Site(name, site.role, layer, offset, site.width, site.parameters, expert=site.expert))
                    offset += site.width
                continue
            name, module, dims = one
            owner = owners[identity(getattr(module, "weight", module))]
            tied_to = owner if owner != name else None
            parameters = tuple(
                ParameterSlice(names[identity(getattr(module, attribute))], dim) for attribute, dim in dims.items()
            )
            width = width_of(module) or cast(torch.Tensor, module.weight).shape[dims["weight"]]
            parameters = () if tied_to else parameters
            whole = Site(name, kind_of(name, module), layer_of(name), offset, width, parameters, tied_to)
            sites += in_parts(whole, parts_of(model, name, module) or {})
            offset += width
        common = [site for site in sites if site.expert is None]
        kinds, widths = ({site.name: getattr(site, key) for site in common} for key in ("kind", "width"))
        blocks = [*find_blocks(model, kinds, widths)]
        for one in found:
            if isinstance(one, ExpertsFound):
                blocks += _blocks_of(one, common)
        tensors = {name: model.get_parameter(name) for name in names.values()}
        covered = {parameter.name for site in sites for parameter in site.parameters}
        packed = [f"{name}.{leaf}" for name, part, dims in plain if not dims for leaf in part._parameters]
        left = [name for name in tensors if name not in covered.union(packed)]
        more, reasons = of_parameters(left, tensors, sites)
        reasons |= dict.fromkeys(packed, "quantised, so that no channel is a row of it")
        sites += more
        coverage, sites = Coverage.of(tensors, sites, reasons), with_values(tensors, sites)
        covered = {parameter.name for site in sites for parameter in site.parameters}
        uncovered = tuple(name for name in names.values() if name not in covered)
        return cls(tuple(sites), uncovered, tuple(blocks), coverage).with_own_names(model)

    def with_own_names(self, view: nn.Module) -> ChannelSpace:
        """A space of a view with the names of its parameters in the original; those of sites stay.

        >>> space = act.ChannelSpace.from_model(model)
        >>> space.with_own_names(model) is space  # a model of text alone is its own view
        True
        """
        if not isinstance(view, LanguageView):
            return self
        own = own_names(view)

        def named(part: ParameterSlice) -> ParameterSlice:
            return replace(part, name=own[part.key])

        return replace(
            self,
            sites=tuple(replace(site, parameters=tuple(map(named, site.parameters))) for site in self.sites),
            uncovered=tuple(own[name] for name in self.uncovered),
            keys={own[name]: name for name in self.uncovered if own[name] != name},
            coverage=self.coverage and self.coverage.renamed(own),
        )

    def __repr__(self) -> str:
        layers = {site.layer for site in self.sites} - {None}
        text = f"{_many(len(self), 'channel')} at {_many(len(self.sites), 'site')} in {_many(len(layers), 'layer')}"
        uncovered = f", {_many(len(self.uncovered), 'parameter')} uncovered" if self.uncovered else ""
        return f"<ChannelSpace: {text}{uncovered}>"

    def _repr_html_(self) -> str:
        """A table of the module kinds, for notebooks."""
        sites = Counter(site.kind for site in self.sites)
        channels = {kind: sum(site.width for site in self.sites if site.kind == kind) for kind in sites}
        rows = "".join(f"<tr><td>{kind}<td>{sites[kind]:,}<td>{channels[kind]:,}" for kind in sites)
        return f"{escape(repr(self))}<table><tr><th>kind<th>sites<th>channels{rows}</table>"

    def __len__(self) -> int:
        """Number of channels."""
        return self.sites[-1].offset + self.sites[-1].width

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self.sites}

    @cached_property
    def _offsets(self) -> list[int]:
        return [site.offset for site in self.sites]

    def site(self, name: str) -> Site:
        """The site called ``name``.

        Raises:
            ActError: there is none; the message names one that is near.

        >>> act.ChannelSpace.from_model(model).site("lm_head").width
        300
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise ActError(f"no site called {name}; {self._near(name)}") from None

    def _near(self, name: str, kinds: Iterable[str] = ()) -> str:
        alike = 0.4 if "*" in name else 0.6  # a pattern is shorter than what it was meant to match
        near = difflib.get_close_matches(name, [*kinds, *self._by_name], 1, alike)
        return f"did you mean {near[0]}?" if near else f"the first of {len(self.sites)} is {self.sites[0].name}"

    def covered(self, words: str | Iterable[str]) -> set[str]:
        """The names of the sites whose kind is one of the words, or that match a word which is no kind, as a pattern.

        Raises:
            ActError: a word that covers no site.

        >>> sorted(act.ChannelSpace.from_model(model).covered(["up", "*.1.mlp.down_proj"]))
        ['model.layers.0.mlp.up_proj', 'model.layers.1.mlp.down_proj', 'model.layers.1.mlp.up_proj']
        """
        kinds, found = {site.kind for site in self.sites}, set()
        for word in names_in(words):
            sites = {site.name for site in self if (site.kind == word if word in kinds else matches(site.name, word))}
            if not sites:
                raise ActError(
                    f"no module kind {word}; this model has {', '.join(sorted(kinds))}, and no site matches it as a "
                    f"pattern; {self._near(word, kinds)}"
                )
            found |= sites
        return found

    def without(self, exclude: str | Iterable[str], among: str | Iterable[str] = ()) -> list[Site]:
        """The sites that ``among`` covers (all, if it is empty) and ``exclude`` does not.

        Both hold module kinds or patterns of site names. A site that scales another comes with that one, whose moments
        it has.

        Raises:
            ActError: a word that covers no site; no site is left.

        >>> space = act.ChannelSpace.from_model(model)
        >>> [site.name for site in space.without("*.layers.0.*", among="q")]
        ['model.layers.1.self_attn.q_proj']
        """
        excluded, included = self.covered(exclude), self.covered(among)
        included |= {site.scales for site in self.sites if site.name in included and site.scales}
        left = [site for site in self if site.name not in excluded and (not included or site.name in included)]
        if all(site.scales for site in left):
            left_out = (
                "include and exclude leave no module"
                if included
                else "every module kind is excluded, so there is nothing"
            )
            raise ActError(f"{left_out} to measure; exclude fewer")
        return left

    def left_out(self, include: str | Iterable[str], exclude: str | Iterable[str]) -> frozenset[str]:
        """The names of all sites that are not measured where ``include`` and ``exclude`` are given.

        Raises:
            ActError: as :meth:`without`.

        >>> len(act.ChannelSpace.from_model(model).left_out(include="*.mlp.*", exclude="down"))
        17
        """
        return frozenset(self._by_name) - {site.name for site in self.without(exclude, among=include)}

    def locate(self, channel: int) -> tuple[Site, int]:
        """The ``(site, row)`` of the flat index ``channel``.

        Raises:
            IndexError: it is outside ``[0, len(space))``.

        >>> site, row = act.ChannelSpace.from_model(model).locate(939)
        >>> site.name, row
        ('lm_head', 299)
        """
        if not 0 <= channel < len(self):
            raise IndexError(f"channel {channel} is outside [0, {len(self)})")
        site = self.sites[bisect.bisect_right(self._offsets, channel) - 1]
        return site, channel - site.offset

    def channel(self, site: str, row: int) -> int:
        """The flat index of row ``row`` of a site.

        Raises:
            ActError: there is no site of this name.
            IndexError: the row is outside its width.

        >>> act.ChannelSpace.from_model(model).channel("lm_head", 299)
        939
        """
        found = self.site(site)
        if not 0 <= row < found.width:
            raise IndexError(f"row {row} is outside [0, {found.width}) of {site}")
        return found.offset + row

    def split(self, channels: torch.Tensor) -> Iterator[tuple[Site, torch.Tensor]]:
        """The sites that ``channels``, a sorted int64 vector of flat indices, touches, each with its rows ``[K]``.

        >>> space = act.ChannelSpace.from_model(model)
        >>> first = space.site("lm_head").offset
        >>> [(site.name, rows.tolist()) for site, rows in space.split(torch.tensor([3, first, first + 7]))]
        [('model.embed_tokens', [3]), ('lm_head', [0, 7])]
        """
        ends = torch.tensor([site.offset + site.width for site in self.sites])
        stops = torch.searchsorted(channels, ends).tolist()
        start = 0
        for site, stop in zip(self.sites, stops, strict=True):
            if stop > start:
                yield site, channels[start:stop] - site.offset
            start = stop

    def first_difference(self, other: ChannelSpace) -> str | None:
        """The first difference between ``other`` and this space, as a phrase; None where they are the same.

        >>> space = act.ChannelSpace.from_model(model)
        >>> space.first_difference(space) is None
        True
        """
        counts = [
            {block.name: block.count for block in space.blocks if isinstance(block, Experts)} for space in (self, other)
        ]
        for name, count in counts[0].items():
            if counts[1].get(name, count) != count:
                return f"{name} holds {count} experts against {counts[1][name]}"
        for mine, theirs in zip(self.sites, other.sites, strict=False):
            if mine.name != theirs.name:
                earlier = (mine.columns is None) != (theirs.columns is None) and mine.module == theirs.module
                why = " (which an earlier version took as a whole; profile again)" if earlier else ""
                return f"site {mine.name} against {theirs.name}{why}"
            if mine.width != theirs.width:
                return f"site {mine.name} has {mine.width} channels against {theirs.width}"
            if mine != theirs:
                return f"site {mine.name} is made by other parameters ({_why_other(mine, theirs)})"
        if len(self.sites) != len(other.sites):
            longer = self if len(self.sites) > len(other.sites) else other
            extra = longer.sites[min(len(self.sites), len(other.sites))]
            return f"site {extra.name} exists in one model only"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain data for file headers; :meth:`from_json` reads it back."""
        return {
            "sites": [site.to_json() for site in self.sites],
            "uncovered": list(self.uncovered),
            "blocks": [block_to_json(block) for block in self.blocks],
            **({"refused": self.refused} if self.refused else {}),
            **({"keys": self.keys} if self.keys else {}),
            **({"coverage": asdict(self.coverage)} if self.coverage else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ChannelSpace:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the data is of no channel space.

        >>> space = act.ChannelSpace.from_model(model)
        >>> act.ChannelSpace.from_json(space.to_json()) == space
        True
        """
        space = checked(_SPACE, {**data, "blocks": ()})
        space._require_consistent()
        widths = {site.name: site.width for site in space}
        return replace(space, blocks=tuple(block_from_json(block, widths) for block in data.get("blocks", ())))

    def _require_consistent(self) -> None:
        end = 0
        for site in self.sites:
            if site.offset != end:
                raise ValueError(f"site {site.name:.60} begins at channel {site.offset}, expected {end}")
            end += site.width
        if not self.sites or len(self._by_name) != len(self.sites):
            raise ValueError("it has no site, or two of one name")
        if unknown := self.refused.keys() - self._by_name.keys():
            raise ValueError(f"it refuses the units of {min(unknown):.60}, which is no site")
        if any(site.tied_to is not None and site.tied_to not in self._by_name for site in self.sites):
            raise ValueError("a site is tied to one that there is not")
        for site in self.sites:
            source = None if site.scales is None else self._by_name.get(site.scales)
            if site.scales is not None and (source is None or source.scales or source.width % site.width):
                raise ValueError(f"site {site.name:.60} cannot scale {site.scales:.60}")
            start, stop, step, run = site.columns or (0, site.width, 1, 1)
            runs = [part.run for part in site.parameters if part.run is not None]
            if run > step or len(range(start, stop, step)) * run != site.width or any(each != run for each in runs):
                raise ValueError(f"the columns of {site.name:.60} are not {site.width}")


_SPACE = TypeAdapter(ChannelSpace)


def _why_other(one: Site, other: Site) -> str:
    """How sites of the same name and width differ, in a few words."""
    here, there = ({part.name for part in site.parameters} for site in (one, other))
    if any(".base_layer." in name for name in here | there):
        return "adapted in one model only?"
    if one.tied_to != other.tied_to:
        return f"tied to {one.tied_to or other.tied_to} in one model only"
    if alone := sorted(here ^ there):
        return f"{' and '.join(alone[:2])} in one model only"
    return "laid out in another way"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _channel_dims(module: nn.Module) -> dict[str, int]:
    """Parameter names of a module whose channels are rows of them, each with the dimension that channels index."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.numel() or width_of(module):
        return {}
    if isinstance(module, nn.Embedding):
        return {"weight": 1}
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or is_router(module):
        dim = 0
    elif type(module).__name__ == "Conv1D" and weight.dim() == 2:  # GPT-2's linear, stored transposed
        dim = 1
    elif "norm" in type(module).__name__.lower() and weight.dim() == 1:
        dim = 0
    else:
        return {}
    return {"weight": dim, **({"bias": 0} if isinstance(getattr(module, "bias", None), nn.Parameter) else {})}


def _blocks_of(found: ExpertsFound, common: Iterable[Site]) -> Iterator[Block]:
    """The experts of a layer, and the neurons of each."""
    around, _, leaf = found.name.rpartition(".")
    routers = (site for site in common if site.kind == "router" and site.name.startswith(f"{around}."))
    wide = (site.name for site in routers if site.width >= found.count and "shared" not in leaf)
    router = next(wide, None)
    yield Experts(found.name, found.count, found.roles, router)
    if found.neurons:
        gated = "gate" in found.roles
        for site in found.sites:
            if site.role == "up":
                gate, up, down = (expert_site_name(found.name, site.expert, role) for role in ("gate", "up", "down"))
                yield Mlp(gate if gated else None, up, down, site.width)
