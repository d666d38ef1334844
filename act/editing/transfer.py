"""Transfer: ``theta_target[row] += strength * (theta_donor[row] - theta_target[row])`` on the rows of a channel set.

One implementation serves models in memory and checkpoints on disk: both are mappings of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import nn

from act.core.errors import ActError, require_choice
from act.editing.patch import Change, Patch, Weights, rows_view
from act.models.channels import ParameterSlice, Site
from act.models.fingerprint import Diagonal, digest, fingerprint
from act.models.placement import require_in_memory
from act.ranking.channel_set import ChannelSet
from act_kernels import blend_rows
from act_kernels.ops import FLOAT_DTYPES
from act_kernels.rows import gather_rows

Overlap = Literal["sum", "mean", "first", "stronger"]
VOCABULARY_KINDS = ("embed", "head")


@dataclass(frozen=True)
class Graft:
    """One donor of a transfer.

    Attributes:
        donor: a model, or the weights of one on disk; only read.
        channels: the channels to take from it.
        strength: the paper's lambda, or one for each pattern (``fnmatch`` on site and parameter names, the first that
            matches counts; what none matches stays as it is): ``{"*.mlp.*": 0.4, "*": 0.2}``.
        tokens: for a donor with another vocabulary, ``(donor_ids, target_ids)`` of the tokens that both have
            (:func:`shared_tokens`); without it, embedding and LM head of another size are left out.
        name: what to call it in headers and model cards.
        token_difference: how the donor's token ids differ from the target's, if they do
            (:func:`act.models.loading.token_difference`): without ``tokens``, embedding and LM head are left out then.
    """

    donor: nn.Module | Weights
    channels: ChannelSet
    strength: float | Mapping[str, float] = 0.4
    tokens: tuple[torch.Tensor, torch.Tensor] | None = None
    name: str | None = None
    token_difference: str | None = None

    @property
    def moves_tokens(self) -> bool:
        """Whether it has channels of the embedding or the LM head, whose rows or columns are those of tokens."""
        return any(part.site.kind in VOCABULARY_KINDS for part in self.channels.parts())

    @cached_property
    def names(self) -> frozenset[str]:
        """The sites and parameters that it gives something of: what the patterns of a strength may match."""
        return frozenset(name for part in self.channels.parts() for name in (part.site.name, part.slice.name))

    def matches(self, pattern: str) -> bool:
        """Whether a pattern matches one of :attr:`names`."""
        return any(fnmatchcase(name, pattern) for name in self.names)

    def strength_of(self, site: Site, parameter: str) -> float:
        """The strength for one parameter of one site; 0 where no pattern matches."""
        if not isinstance(self.strength, Mapping):
            return float(self.strength)
        for pattern, value in self.strength.items():
            if fnmatchcase(site.name, pattern) or fnmatchcase(parameter, pattern):
                return float(value)
        return 0.0

    def describe(self) -> dict[str, Any]:
        """Plain data for headers."""
        models = self.channels.rule.get("models", {})
        strength = dict(self.strength) if isinstance(self.strength, Mapping) else self.strength
        name = self.name or models.get("donor", {}).get("name")
        return {"donor": name, "strength": strength, "channels": len(self.channels), "rule": self.channels.rule}


def transfer(
    donor: nn.Module | Weights,
    target: nn.Module | Weights,
    channels: ChannelSet,
    strength: float | Mapping[str, float] = 0.4,
    *,
    tokens: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Patch:
    """Blend the parameter rows of ``channels`` from donor into target, in place.

    Args:
        donor, target: models of the channel set's architecture; the donor is only read.
        channels: the channels to transfer.
        strength: the paper's lambda; 1 copies the donor's rows bit for bit. Or one for each pattern: :class:`Graft`.
        tokens: the tokens shared with a donor of another vocabulary: :func:`shared_tokens`.

    Returns:
        A :class:`Patch`: ``revert(target)`` gives back the original bytes, ``notes`` say what was left out.

    Raises:
        ActError: a negative or non-finite strength; models of another architecture, or other models than those the set
            was made for; a parameter that is not float32, bfloat16 or float16.
    """
    return transfer_many([Graft(donor, channels, strength, tokens)], target)


def transfer_many(grafts: Sequence[Graft], target: nn.Module | Weights, overlap: Overlap = "sum") -> Patch:
    """Blend rows of several donors into one target, in place.

    Args:
        grafts: the donors with their channels and strengths.
        target: the model to change.
        overlap: for a row that several donors give, with steps ``strength_i * (theta_i - theta_target)``: their ``sum``
            or ``mean``; or the step of the ``first`` donor listed, or of the ``stronger`` one (higher channel score).

    Raises:
        ActError: as :func:`transfer`; an unknown rule; rows of one donor that cross columns of another.
    """
    weights = weights_of(target, "target")
    notes: list[str] = []
    claims = plan(grafts, weights, overlap, notes)
    diagonals = {name: Diagonal.of(parameter) for name, parameter in weights.items()}
    require_models(grafts, before := digest(diagonals), [donor_fingerprint(graft) for graft in grafts])
    # Models in memory change in one launch a device. From disk, one parameter is mapped at a time.
    together = [list(claims)] if isinstance(target, nn.Module) else [[name] for name in claims]
    changes = []
    for names in together:
        held = {name: weights[name] for name in names}
        places = [(held[name], claims[name][0].part, rows_of(claims[name])) for name in names]
        old = _rows(places)
        blend({name: claims[name] for name in names}, held, overlap)
        for name, (parameter, part, rows), earlier, later in zip(names, places, old, _rows(places), strict=True):
            changes.append(Change(part, rows, earlier, later))
            diagonals[name] = diagonals[name].reread(parameter, part.dim, rows)
    header = {**describe(grafts, overlap, notes), "before": before, "after": digest(diagonals)}
    return Patch(changes, {**header, "parameters": sorted(weights)})


def describe(grafts: Sequence[Graft], overlap: Overlap, notes: list[str]) -> dict[str, Any]:
    """What was asked of a transfer, and what was left out, as plain data for headers."""
    return {"grafts": [graft.describe() for graft in grafts], "overlap": overlap, "notes": notes}


def donor_fingerprint(graft: Graft) -> str | None:
    """The donor's fingerprint, where the set says which it should have; all of a donor on disk is read for it."""
    if "donor" not in graft.channels.rule.get("models", {}):
        return None
    return fingerprint(weights_of(graft.donor, "donor"))


def require_models(grafts: Sequence[Graft], target: str, donors: Sequence[str | None]) -> None:
    """Raise :class:`ActError` where a set was made for models of other fingerprints than these."""
    for graft, donor in zip(grafts, donors, strict=True):
        expected = graft.channels.rule.get("models", {})
        found = {"target": target, "donor": donor}
        for side, value in found.items():
            if side in expected and value != expected[side]["fingerprint"]:
                raise ActError(
                    f"the channel set was made for the {side} {expected[side]['name']} "
                    f"({expected[side]['fingerprint']}), but the {side} given has other weights ({value}); "
                    "rank a profile of these models, or load them in the type they were profiled in (--dtype)"
                )


def shared_tokens(donor: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """``(donor_ids, target_ids)``, int64 ``[K]``: the token strings that both tokenizers have, in order of target id.

    Raises:
        ActError: they have no token in common.
    """
    theirs, ours = donor.get_vocab(), target.get_vocab()
    pairs = sorted((number, theirs[token]) for token, number in ours.items() if token in theirs)
    if not pairs:
        raise ActError("the tokenizers of donor and target have no token in common; leave embedding and LM head out")
    ids = torch.tensor(pairs, dtype=torch.int64)
    return ids[:, 1].contiguous(), ids[:, 0].contiguous()


def require_strength(strength: float) -> None:
    """Raise :class:`ActError` unless ``strength`` is a finite number of at least 0."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ActError(f"strength is {strength}; expected 0 (change nothing) or more, 1 copies the donor's rows")


def require_overlap(overlap: str) -> None:
    """Raise :class:`ActError` for an unknown rule."""
    require_choice("overlap", overlap, get_args(Overlap))


def weights_of(model: nn.Module | Weights, side: str) -> Weights:
    """The parameters of a model by name, or the mapping as it is."""
    if not isinstance(model, nn.Module):
        return model
    if getattr(model, "is_quantized", False) or hasattr(model, "hf_quantizer"):
        raise ActError(
            f"{type(model).__name__} is quantised, which can be profiled but not transferred; "
            "load it unquantised, transfer, and quantise the result"
        )
    require_in_memory(model, side)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class Claim:
    """The rows of one parameter that one donor gives."""

    part: ParameterSlice
    source: Weights
    rows: torch.Tensor
    scores: torch.Tensor
    strength: float
    tokens: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def rows_of_donor(self) -> torch.Tensor:
        """The donor's matrix with channels first; looked up at each use, so that none stays mapped from disk."""
        return rows_view(self.source[self.part.name], self.part.dim)


def plan(grafts: Sequence[Graft], target: Weights, overlap: Overlap, notes: list[str]) -> dict[str, list[Claim]]:
    """What each donor gives of each parameter, in model order, once all that can be checked without values has been.

    ``notes`` gets a sentence for everything left out.
    """
    require_overlap(overlap)
    if not grafts:
        raise ActError("no donor was given; expected at least one with its channels")
    for graft in grafts:
        for value in graft.strength.values() if isinstance(graft.strength, Mapping) else [graft.strength]:
            require_strength(value)
        for side, weights in (("target", target), ("donor", weights_of(graft.donor, "donor"))):
            _require_architecture(side, weights, graft.channels)
    _require_patterns(grafts)
    claims: dict[str, list[Claim]] = {}
    for graft in grafts:
        donor = weights_of(graft.donor, "donor")
        for moved in graft.channels.parts():
            site, part, rows = moved.site, moved.slice, moved.index
            if part.name not in donor or part.name not in target:
                side = "donor" if part.name not in donor else "target"
                raise ActError(
                    f"the channel set is of another architecture than the models: the {side} has no {part.name} "
                    "(tied embeddings in one model only?); rank again with --exclude embed --exclude head"
                )
            old, new = target[part.name], donor[part.name]
            for label, tensor in (("target", old), ("donor", new)):
                if tensor.dtype not in FLOAT_DTYPES:
                    raise ActError(
                        f"{part.name} of the {label} is {tensor.dtype}, which cannot be transferred; "
                        "load the models unquantised, as float32, bfloat16 or float16"
                    )
            if old.shape[part.dim] != (site.width if part in site.parameters else new.shape[part.dim]):
                raise ActError(
                    f"the channel set is of another architecture than the models: site {site.name} has "
                    f"{site.width} channels against {old.shape[part.dim]} in the target"
                )
            tokens = graft.tokens if site.kind in VOCABULARY_KINDS else None
            if tokens is None and graft.token_difference and site.kind in VOCABULARY_KINDS:
                notes.append(
                    f"{len(rows)} channels of {site.name} were left out: {graft.token_difference}; "
                    "align the tokens to include them"
                )
                continue
            if tokens is None and old.shape != new.shape:
                if site.kind not in (*VOCABULARY_KINDS, "position") or old.shape[1:] != new.shape[1:]:
                    raise ActError(
                        f"the channel set is of another architecture than the models: {part.name} is "
                        f"{list(new.shape)} in the donor, {list(old.shape)} in the target"
                    )
                notes.append(
                    f"{len(rows)} channels of {site.name} were left out: {part.name} is {list(new.shape)} in the "
                    f"donor, {list(old.shape)} in the target"
                    + ("" if site.kind == "position" else "; align the tokens to include them")
                )
                continue
            if tokens is not None and old.shape[1:] != new.shape[1:]:
                raise ActError(f"{part.name} is {list(new.shape)} in the donor, {list(old.shape)} in the target")
            strength = graft.strength_of(site, part.name)
            if strength == 0:
                continue
            held = claims.setdefault(part.name, [])
            require_parallel([*(claim.part for claim in held), part])
            held.append(Claim(part, donor, rows, moved.scores, strength, tokens))
    return claims


def require_parallel(parts: Sequence[ParameterSlice]) -> None:
    """Raise :class:`ActError` where donors give rows and columns of one parameter, which cross."""
    if len(set(parts)) > 1:
        raise ActError(f"rows of one donor cross columns of another in {parts[0].name}; exclude one of them")


def _require_patterns(grafts: Sequence[Graft]) -> None:
    """Raise :class:`ActError` for a strength by patterns of which one matches nothing that a donor with it gives."""
    having: dict[str, list[Graft]] = {}
    for graft in grafts:
        if isinstance(graft.strength, Mapping):
            if not graft.strength:
                raise ActError("strength is {}; expected a number, or at least one pattern with its strength")
            for pattern in graft.strength:
                having.setdefault(pattern, []).append(graft)
    for pattern, those in having.items():
        if not any(graft.matches(pattern) for graft in those):
            names = sorted(those[0].names) or ["none at all"]
            raise ActError(
                f"the strength pattern {pattern!r} matches none of the chosen sites and parameters, "
                f"such as {names[0]}; mend the pattern, or leave it out"
            )


def rows_of(claims: Sequence[Claim]) -> torch.Tensor:
    """The rows of a parameter that some donor gives, int64 ``[K]``, sorted."""
    return claims[0].rows if len(claims) == 1 else torch.cat([claim.rows for claim in claims]).unique()


def _rows(places: Sequence[tuple[torch.Tensor, ParameterSlice, torch.Tensor]]) -> list[torch.Tensor]:
    """The values of these rows, each ``[K, W]`` on the CPU."""
    views = [rows_view(parameter, part.dim) for parameter, part, _ in places]
    return gather_rows(views, [rows for *_, rows in places], [torch.device("cpu")] * len(places))


def blend(claims: Mapping[str, list[Claim]], target: Mapping[str, torch.Tensor], overlap: Overlap) -> None:
    """Blend what :func:`plan` found into the target, in place; rows of one donor in one launch a device."""
    alone = {name: held[0] for name, held in claims.items() if len(held) == 1 and held[0].tokens is None}
    blend_rows(
        [rows_view(target[name], claim.part.dim) for name, claim in alone.items()],
        [claim.rows_of_donor for claim in alone.values()],
        [claim.rows for claim in alone.values()],
        [claim.strength for claim in alone.values()],
    )
    for name in claims.keys() - alone.keys():
        old = rows_view(target[name], claims[name][0].part.dim)
        for members, rows in _by_donors(claims[name], rows_of(claims[name]), overlap):
            _blend_together([claims[name][i] for i in members], old, rows, overlap)


def _blend_together(claims: list[Claim], old: torch.Tensor, rows: torch.Tensor, overlap: Overlap) -> None:
    """The sum or mean of several donors' steps is one step towards their mean, weighted by strength."""
    here, every = rows.to(old.device), torch.arange(len(rows))
    work = old.dtype if len(claims) == 1 else torch.float32
    mean, total = _wanted(claims[0], old, rows).to(work).contiguous(), claims[0].strength
    for claim in claims[1:]:
        total += claim.strength
        blend_rows([mean], [_wanted(claim, old, rows).to(work).contiguous()], [every], claim.strength / total)
    blended = old[here].to(work).contiguous()
    blend_rows([blended], [mean], [every], total if overlap == "sum" else total / len(claims))
    old[here] = blended.to(old.dtype)


def _wanted(claim: Claim, old: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The donor's rows ``[K, W]`` on the target's device; where it lacks a token, the target's own values."""
    new = claim.rows_of_donor
    if claim.tokens is None:
        return new[rows.to(new.device)].to(old.device)
    donor_ids, target_ids = claim.tokens
    wanted = old[rows.to(old.device)].to(torch.promote_types(old.dtype, new.dtype))
    if claim.part.dim == 0:  # a row is a token
        place = torch.full((old.shape[0],), -1, dtype=torch.int64)
        place[target_ids] = donor_ids
        found = place[rows] >= 0
        wanted[found.to(old.device)] = new[place[rows][found].to(new.device)].to(wanted)
    else:  # a row of the view is one column over all tokens
        columns = new[rows.to(new.device)][:, donor_ids.to(new.device)]
        wanted[:, target_ids.to(old.device)] = columns.to(wanted)
    return wanted


def _by_donors(
    claims: list[Claim], rows: torch.Tensor, overlap: Overlap
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Rows grouped by the donors whose steps they take."""
    wants = torch.stack([torch.isin(rows, claim.rows) for claim in claims])
    if overlap in ("first", "stronger"):
        order = torch.full(wants.shape, -math.inf, dtype=torch.float64)
        for i, claim in enumerate(claims):
            order[i, wants[i]] = claim.scores.nan_to_num(nan=-1e300).double() if overlap == "stronger" else float(-i)
        winner = order.argmax(0)  # the first of equals
        wants = torch.nn.functional.one_hot(winner, len(claims)).T.bool()
    for pattern in wants.T.unique(dim=0):
        members = tuple(pattern.nonzero().flatten().tolist())
        yield members, rows[(wants == pattern[:, None]).all(0)]


def _require_architecture(side: str, weights: Weights, channels: ChannelSet) -> None:
    missing = sorted({part.name for site in channels.space for part in site.parameters} - set(weights))
    if len(missing) > 1:  # one may be missing where one of the models ties its embeddings
        raise ActError(f"the channel set is of another architecture than the models: the {side} has no {missing[0]}")
