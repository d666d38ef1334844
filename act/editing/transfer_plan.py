"""The plan of a transfer: which rows each donor gives, checked against shapes and types before any value is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch

from act.core.counted import counted
from act.core.errors import ActError, option, require_choice
from act.editing.donor import VOCABULARY_KINDS, Donor
from act.editing.provenance import TransferProvenance
from act.editing.remembered import believed
from act.editing.rows import DonorRows, Overlap, Weights, blend, by_slice, experts_in, form_of, shape_in, union
from act.editing.stored import Parameters, narrowed_digests, parameter_names
from act.models.sites import ParameterSlice
from act.ranking.channel_set import ChannelSet, ChosenRows
from act_kernels.ops import FLOAT_DTYPES
from act_kernels.rows import gather_rows


class OtherModel(ActError):
    """A channel set was made for a model with other weights."""


@dataclass(frozen=True)
class TransferPlan:
    """What a transfer will do to a target: :meth:`make` checks it, :meth:`blend` carries it out.

    Attributes:
        donors: the donors.
        overlap: what happens to rows that several donors give; see :func:`act.transfer_many`.
        given: part of a parameter -> the rows of it that each donor gives, in model order.
        notes: what was left out, and why.
    """

    donors: Sequence[Donor]
    overlap: Overlap
    given: Mapping[ParameterSlice, Sequence[DonorRows]]
    notes: tuple[str, ...] = ()

    @classmethod
    def make(cls, donors: Sequence[Donor], target: Weights, overlap: Overlap = "sum") -> TransferPlan:
        """Decide what each donor gives.

        Raises:
            ActError: no donor; an unknown overlap rule; models of another architecture than a channel set; a parameter
                that cannot be blended; a strength pattern that matches nothing; rows of one donor that cross columns
                of another.
        """
        require_choice("overlap", overlap, get_args(Overlap))
        if not donors:
            raise ActError("no donor was given; expected at least one with its channels")
        weights = [donor.weights for donor in donors]
        for donor, theirs in zip(donors, weights, strict=True):
            _require_architecture("target", target, donor.channels)
            _require_architecture("donor", theirs, donor.channels)
        _require_patterns(donors)
        given: list[DonorRows] = []
        notes: list[str] = []
        for donor, theirs in zip(donors, weights, strict=True):
            for chosen in donor.channels.rows():
                reason = _why_left_out(donor, chosen, *_blendable(chosen, theirs, target))
                if reason:
                    left = counted(len(chosen.rows), "channel")
                    notes.append(f"{left} of {chosen.site.name} left out: {reason}")
                elif strength := donor.strength_of(chosen):
                    tokens = donor.tokens if chosen.site.kind in VOCABULARY_KINDS else None
                    given.append(DonorRows(chosen, theirs, strength, tokens))
        notes += _beside(donors, target)
        return cls(donors, overlap, by_slice(given), tuple(notes))

    @cached_property
    def parts(self) -> Mapping[str, Sequence[ParameterSlice]]:
        """The parts that will change, by the name of their parameter."""
        found: dict[str, list[ParameterSlice]] = {}
        for part in self.given:
            found.setdefault(part.key, []).append(part)
        return found

    def changed(self, part: ParameterSlice) -> torch.Tensor:
        """The rows of one part that will change, int64 ``[K]``, sorted and distinct."""
        return union(self.given[part])

    def values(self, target: Mapping[ParameterSlice, torch.Tensor]) -> list[torch.Tensor]:
        """The values of the changing rows of each matrix of ``target``, each ``[K, W]`` on the CPU."""
        return gather_rows([*target.values()], [*map(self.changed, target)], [torch.device("cpu")] * len(target))

    def blend(self, target: Mapping[ParameterSlice, torch.Tensor]) -> None:
        """Blend what the donors give into the matrices of ``target``, in place: those of all parts, or of some."""
        blend({part: self.given[part] for part in target}, target, self.overlap)

    def donor_fingerprints(self) -> list[Sequence[str] | None]:
        """What the fingerprints of the donors may be whose channel sets say which they should have.

        What earlier runs have kept of them is compared with the rows that they give.
        """

        def read() -> list[Sequence[str] | None]:
            found: list[Sequence[str] | None] = [donor.fingerprints(self._unsummed(donor)) for donor in self.donors]
            self._require_given()
            return found

        return believed(read)

    def _unsummed(self, donor: Donor) -> set[str]:
        """The parameters of which a donor gives what no fingerprint from an earlier run can be held to."""
        weights = donor.weights
        if not isinstance(weights, Parameters):
            return set()
        given = [one for held in self.given.values() for one in held if one.weights is weights]
        return weights.unsummed(one.parameter for one in given) | {one.parameter.key for one in given if one.tokens}

    def _require_given(self) -> None:
        """Raise :class:`act.editing.remembered.Outdated` unless donors give what their known fingerprints are of."""
        for part, held in self.given.items():
            for one in held:
                if isinstance(one.weights, Parameters) and not one.tokens and one.weights.knows(part):
                    one.weights.require(part, one.rows, one.matrix[one.rows])

    def require_models(self, target: Weights, found: Sequence[str], donors: Sequence[Sequence[str] | None]) -> None:
        """Raise :class:`OtherModel` if channels were chosen for models with other weights.

        They may have been chosen for the same weights in a narrower type.

        Args:
            target: the weights of the target.
            found: what its fingerprint may be.
            donors: as :meth:`donor_fingerprints` gives it.
        """
        for donor, theirs in zip(self.donors, donors, strict=True):
            for side, weights, prints in (("target", target, found), ("donor", donor.weights, theirs)):
                expected = donor.made_for.get(side)
                if not expected or prints is None or expected.fingerprint in prints:
                    continue
                other = "donor" if side == "target" else "target"
                if other in donor.made_for and donor.made_for[other].fingerprint in prints:
                    raise OtherModel(
                        f"donor and target look swapped: the {side} given is the {other} that the channels were chosen "
                        f"for; give {donor.made_for['donor']} as the donor and {donor.made_for['target']} as the target"
                    )
                if expected.fingerprint not in narrowed_digests(weights):
                    dtype = expected.dtype
                    loaded = option(f"--dtype {dtype or ''}".strip(), f"dtype={f'torch.{dtype}' if dtype else '...'}")
                    held = {str(values.dtype).removeprefix("torch.") for values in weights.values()}
                    if held == {dtype}:
                        otherwise = f"give the {side} as it was profiled (a transfer or a training may have changed it)"
                    else:
                        otherwise = f"load them in the type they were profiled in ({loaded})"
                    raise OtherModel(
                        f"the channels were chosen for the {side} {expected}, but the {side} given has other weights "
                        f"({prints[0]}); rank a profile of these models, or {otherwise}"
                    )

    def provenance(self, before: str, after: str, parameters: Sequence[str]) -> TransferProvenance:
        """What patches and model cards say about the transfer, with the target's fingerprints before and after."""
        donors = tuple(donor.used() for donor in self.donors)
        return TransferProvenance(donors, before, after, tuple(sorted(parameters)), self.overlap, self.notes)


def _require_architecture(side: str, weights: Weights, channels: ChannelSet) -> None:
    parts = {one.key: one.name for site in channels.space for one in site.parameters}
    missing = sorted(parts.keys() - set(weights))
    if len(missing) > 1:  # one may be missing if one of the models ties its embeddings
        raise ActError(
            f"the channel set is of another architecture than the models: the {side} has no {parts[missing[0]]}; give "
            "the models that it was made for, or rank a profile of these"
        )


def _beside(donors: Sequence[Donor], target: Weights) -> Iterator[str]:
    """What stays as it is because the models that the channels were chosen for do not both have it."""
    known = {name for donor in donors for name in parameter_names(donor.channels.space)}
    held = {part.key for donor in donors for site in donor.channels.space for part in site.parameters}
    if held <= target.keys() and (others := sorted(target.keys() - known)):
        parts = list(dict.fromkeys(name.partition(".")[0] for name in others))
        yield f"{counted(len(others), 'parameter')} of one of the models alone, left unchanged: {', '.join(parts)}"


def _require_patterns(donors: Sequence[Donor]) -> None:
    """Raise :class:`ActError` for a strength pattern that matches nothing that any donor with it gives."""
    having: dict[str, list[Donor]] = {}
    for donor in donors:
        for pattern in donor.strength if isinstance(donor.strength, Mapping) else ():
            having.setdefault(pattern, []).append(donor)
    for pattern, those in having.items():
        if not any(donor.matches(pattern) for donor in those):
            example = min(those[0].names, default="none at all")
            raise ActError(
                f"the strength pattern {pattern!r} matches none of the chosen sites and parameters, "
                f"such as {example}; correct the pattern, or leave it out"
            )


def _blendable(chosen: ChosenRows, donor: Weights, target: Weights) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the parameter in donor and target.

    Raises:
        ActError: a model does not have it; its type, its number of experts or of channels cannot be blended.
    """
    part, name = chosen.parameter, chosen.parameter.name
    shapes = []
    for side, weights in (("donor", donor), ("target", target)):
        if part.key not in weights:
            raise ActError(
                f"the channel set is of another architecture than the models: the {side} has no {name} "
                "(tied embeddings in one model only?); rank again with --exclude embed --exclude head"
            )
        shape, dtype = form_of(part, weights)
        if dtype not in FLOAT_DTYPES:
            raise ActError(
                f"{name} of the {side} is {dtype}, which cannot be transferred; "
                "load the models unquantised, as float32, bfloat16 or float16"
            )
        shapes.append(shape)
    new, old = shapes
    theirs, ours = experts_in(part, new), experts_in(part, old)
    if theirs != ours:
        raise ActError(
            f"{name} has {theirs} experts in the donor, {ours} in the target; "
            "give models with the same experts, or choose other channels (rank --exclude)"
        )
    given, held = shape_in(part, new), shape_in(part, old)
    if given is None or held is None or chosen.rows[-1:] >= given[0]:
        raise ActError(
            f"the channel set is of another architecture than the models: {name} is {list(new)} in the donor"
        )
    wanted = chosen.site.width if part in chosen.site.parameters else given[0]
    if held[0] != wanted:
        raise ActError(
            f"the channel set is of another architecture than the models: site {chosen.site.name} has "
            f"{wanted} channels against {held[0]} in the target"
        )
    return new, old


def _why_left_out(donor: Donor, chosen: ChosenRows, new: tuple[int, ...], old: tuple[int, ...]) -> str | None:
    """Why rows cannot move between models of the same architecture, or None; ``new`` is the donor's shape.

    Raises:
        ActError: the shapes differ in more than their number of tokens or positions.
    """
    kind = chosen.site.kind
    of_tokens = kind in VOCABULARY_KINDS
    aligned = of_tokens and donor.tokens is not None
    if of_tokens and not aligned and donor.token_difference:
        return f"{donor.token_difference}; align the tokens to include them"
    same_rest = new[1:] == old[1:]
    if new == old or (aligned and same_rest):
        return None
    difference = f"{chosen.parameter.name} is {list(new)} in the donor, {list(old)} in the target"
    if not (same_rest and (of_tokens or kind == "position")):
        raise ActError(f"the channel set is of another architecture than the models: {difference}")
    return f"{difference}; align the tokens to include them" if of_tokens else difference
