"""Profiles: the statistics of a run, with its channel space and provenance, in one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from act.core.errors import ActError
from act.core.tensor_files import kind_of, load_tensors, save_tensors, taken, understood
from act.models.channels import ChannelSpace
from act.profiles import tables
from act.profiles.moments import Moments, blocks_of, require_moments
from act.profiles.provenance import Provenance
from act.profiles.statistics import PairStatistics, Statistics
from act_kernels import STATISTICS

if TYPE_CHECKING:
    import pandas
    import rich.table

SCHEMA = "act-profile/1"


class Profile(Statistics):
    """The statistics of one model over a corpus: float64 vectors ``[N]`` over all channels of the model.

    Attributes:
        moments: the arena ``[7, N]``.
        provenance: which models read which text, and how.

    >>> profile = act.profile(model, corpus)
    >>> profile
    <Profile of LlamaForCausalLM over records: 940 channels at 21 sites, 24 tokens counted>
    >>> profile.var.shape, profile.var.dtype
    (torch.Size([940]), torch.float64)
    >>> site, row = profile.space.locate(int(profile.max_abs.argmax()))
    >>> bool(profile.site(site.name).max_abs[row] == profile.max_abs.max())
    True
    >>> profile.provenance.corpora[0].records
    12
    >>> profile.pair, profile.swapped, sorted(profile.left_out)
    (False, False, [])
    """

    of_tokens = True
    """Whether its statistics are over tokens, of which experts get some; otherwise over documents."""

    def __init__(self, moments: Moments, provenance: Provenance) -> None:
        super().__init__(moments.arena)
        self.moments = moments
        self.provenance = provenance

    def __repr__(self) -> str:
        return f"<{tables.sentence(self)}>"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return tables.html(self)

    def __rich__(self) -> rich.table.Table:
        """The table that rich prints."""
        return tables.rich_table(self)

    @property
    def space(self) -> ChannelSpace:
        """The channel space of the vectors."""
        return self.moments.space

    @property
    def pair(self) -> bool:
        """Whether a donor and a target were measured."""
        return self.moments.pair

    @property
    def swapped(self) -> bool:
        """Whether it is of a pair with swapped outputs (:class:`act.profiles.statistics.PairStatistics`)."""
        return self.moments.swap

    @property
    def left_out(self) -> frozenset[str]:
        """Names of the sites that were not to be measured."""
        settings = self.provenance.settings
        return self.space.left_out(settings.include, settings.exclude)

    def site(self, name: str) -> Statistics:
        """The same vectors for one site, ``[width]`` each; views into the profile's moments.

        Raises:
            ActError: there is no site of this name.

        >>> act.profile(model, corpus).site("lm_head").mean_abs.shape
        torch.Size([300])
        """
        return Statistics(self._arena[:, self.space.site(name).channels])

    def __add__(self, other: Profile) -> Profile:
        """The profile over both texts, equal to that of one run over both up to float64 rounding.

        Raises:
            ActError: one profile is of a pair and the other of a single model, one has swapped outputs and the other
                has none, their models differ, or both are of one text.

        >>> first, second = (act.profile(model, corpus, shard=(number, 2)) for number in range(2))
        >>> whole = act.profile(model, corpus)
        >>> torch.allclose((first + second).mean, whole.mean, atol=1e-6)
        True
        """
        if type(self) is not type(other):
            raise ActError(f"cannot add a {type(other).__name__} to a {type(self).__name__}")
        require_same_blocks(self, other, "the profiles")
        require_same_models(self, other)
        merged = self.moments.empty_like()
        merged.arena.copy_(self.moments.arena)
        merged.merge(other.moments)
        return type(self)(merged, self.provenance.merged(other.provenance))

    def to_frame(self) -> pandas.DataFrame:
        """A table with one row per channel, indexed by the channel.

        Columns: ``site``, ``kind``, ``layer`` (missing outside the layers), ``row`` (its number within the site), and
        one for each vector: ``count``, ``mean``, ``var``, ``mean_abs``, ``max_abs`` and ``positive_rate``, preceded by
        ``donor_`` and ``target_`` for a pair, and then ``mean_diff``, ``var_diff`` and ``mean_abs_diff``; with swapped
        outputs also by ``swap_`` and ``product_``. Of attributions: ``documents``; ``loss_fall_per_token``, by how much
        the mean loss of a token would fall if the channel moved all the way, in nats, with its standard error
        ``loss_fall_per_token_se``; ``loss_change_mean`` and so on, and ``loss_change_rms``, of the change of a
        document's summed loss; the same of each text to keep, preceded by ``keep_`` (several: ``keep_1_``,
        ``keep_2_``, in order); and ``distance``, the norm of the channel's step.

        Raises:
            ActError: pandas is not installed.

        >>> frame = act.profile(model, corpus).to_frame()
        >>> frame[frame.kind == "up"].groupby("layer").mean_abs.mean().index.tolist()
        [0, 1]
        """
        return tables.frame(self)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the profile to one safetensors file; :func:`act.load` reads it.

        Args:
            path: the file; it appears only when it is complete.
            force: replace an existing file.

        Raises:
            ActError: the file exists and ``force`` is False; the disk is full.

        >>> profile = act.profile(model, corpus)
        >>> profile.save("english.safetensors")
        >>> torch.equal(act.load("english.safetensors").mean, profile.mean)
        True
        """
        arena = self.moments.arena.cpu()
        blocks = dict(zip(self.moments.blocks, arena, strict=True)) if self.pair else {"": arena}
        tensors = {
            f"{side}.{statistic}".lstrip("."): row
            for side, block in blocks.items()
            for statistic, row in zip(STATISTICS, block, strict=True)
        }
        header = {"space": self.space.to_json(), "source": self.provenance.to_json(), "pair": self.pair}
        if self.moments.swap:
            header["swap"] = True
        save_tensors(Path(path), tensors, SCHEMA, header, force=force)


class PairProfile(Profile, PairStatistics):
    """The statistics of a donor and a target over the same tokens, and of donor - target.

    The plain vectors (``mean``, ``var``, …) are the target's; ``donor`` and ``target`` have those of each side,
    ``difference`` those of donor - target and, of a run with swapped outputs, ``swap`` and ``product`` what these say
    (:class:`act.profiles.statistics.PairStatistics`).

    Attributes:
        moments: the arena ``[3, 7, N]``: donor, target, difference; ``[5, 7, N]`` with swap and product.

    >>> pair = act.profile_pair(donor, target, corpus)
    >>> pair
    <PairProfile of LlamaForCausalLM and LlamaForCausalLM over records: 940 channels at 21 sites, 24 tokens counted>
    >>> pair.mean_abs_diff.shape
    torch.Size([940])
    >>> torch.equal(pair.mean, pair.target.mean)
    True
    """

    def site(self, name: str) -> PairStatistics:
        """The same vectors for one site, ``[width]`` each; views into the profile's moments.

        Raises:
            ActError: there is no site of this name.

        >>> pair = act.profile_pair(donor, target, corpus)
        >>> up = pair.site("model.layers.0.mlp.up_proj")
        >>> up.mean_abs_diff.shape, up.donor.var.shape
        (torch.Size([48]), torch.Size([48]))
        >>> act.profile_pair(donor, target, corpus, swap=True).site("lm_head").swap.mean.shape
        torch.Size([300])
        """
        return PairStatistics(self._arena[..., self.space.site(name).channels])


class StoredProfile:
    """A profile on disk, of which only the header has been read.

    Attributes:
        space, pair, swapped, provenance: as in :class:`Profile`.

    Raises:
        ActError: see :func:`load`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _, header = load_tensors(path, SCHEMA, header_only=True)
        with understood(path):
            self.space, self.pair, self.swapped, self.provenance = _described(header)

    def load(self) -> Profile:
        """Read the whole profile."""
        return load(self.path)


def require_same_blocks(first: Profile | StoredProfile, second: Profile | StoredProfile, which: str) -> None:
    """Raise :class:`ActError`, which names both (``which``), unless both have swapped outputs or none has."""
    if first.swapped != second.swapped:
        raise ActError(f"{which} are one with swapped outputs (--swap) and one without; profile all alike")


def require_same_models(first: Profile | StoredProfile, second: Profile | StoredProfile) -> None:
    """Raise :class:`ActError`, which names the difference, unless both profiles are of the same models."""
    difference = first.space.first_difference(second.space)
    if difference:
        raise ActError(f"the profiles are of different architectures: {difference}")
    for side, model in first.provenance.models.items():
        other = second.provenance.models.get(side)
        if other is None or other.fingerprint != model.fingerprint:
            types = [one.dtype for one in (model, other) if one and one.dtype]
            loaded = f" in the same type (they had {' and '.join(types)})" if len({*types}) > 1 else ""
            raise ActError(
                f"the profiles are of different models: the {side} is {model} in one and {other} in the other; "
                f"profile the same models for both{loaded}"
            )


def load(path: str | Path) -> Profile:
    """Read a profile from ``path``, as written by :meth:`Profile.save`, ``act-profile run`` or ``act-profile pair``.

    Returns:
        A :class:`PairProfile` or an :class:`act.AttributionProfile` if the file holds one.

    Raises:
        ActError: the file is missing, damaged, of another kind or of another schema version.

    >>> act.profile_pair(donor, target, corpus).save("pair.safetensors")
    >>> type(act.load("pair.safetensors")).__name__
    'PairProfile'
    """
    if kind_of(Path(path)) == "act-attribution":
        from act.profiles.attribution import load_attribution  # which builds on this module

        return load_attribution(Path(path))
    tensors, header = load_tensors(Path(path), SCHEMA)
    with understood(Path(path)):
        space, pair, swap, provenance = _described(header)
        sides = [f"{side}." for side in blocks_of(pair, swap)] or [""]
        names = [[side + statistic for statistic in STATISTICS] for side in sides]
        if extra := tensors.keys() - {name for side in names for name in side}:
            raise ValueError(f"it has a tensor {min(extra):.60}")
        for name in (name for side in names for name in side):
            taken(tensors, name, (torch.float64,), (len(space),))
        moments = Moments(space, pair=pair, swap=swap)  # only now: the sizes in the header are those of the file
        for block, side in zip(moments.arena if pair else [moments.arena], names, strict=True):
            for row, name in zip(block, side, strict=True):
                row.copy_(tensors.pop(name))  # and its memory is free
        require_moments(moments.arena)
        return (PairProfile if pair else Profile)(moments, provenance)


def _described(header: dict[str, Any]) -> tuple[ChannelSpace, bool, bool, Provenance]:
    """Space, pair, swap and provenance of a file, from its header."""
    provenance, pair, swap = Provenance.from_json(header["source"]), header["pair"], header.get("swap", False)
    if pair not in (True, False) or swap not in (False, pair):
        raise ValueError("it does not say whether it is of a pair")
    if provenance.models and sorted(provenance.models) != (["donor", "target"] if pair else ["model"]):
        raise ValueError(f"it is of the models {', '.join(sorted(provenance.models)):.60}")
    return ChannelSpace.from_json(header["space"]), bool(pair), bool(swap), provenance
