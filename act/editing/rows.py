"""Rows of parameters: grouped by the part of a parameter they lie in, and blended from one donor or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch

from act.core.errors import ActError
from act.editing.stored import Parameters
from act.models.sites import ParameterSlice
from act.ranking.channel_set import ChosenRows
from act_kernels import blend_rows

Weights = Mapping[str, torch.Tensor]
MODEL_OR_WEIGHTS = "a PyTorch model, as from_pretrained returns, or its parameters by name"  # for messages
Tokens = tuple[torch.Tensor, torch.Tensor]
"""``(donor_ids, target_ids)`` of the tokens that two vocabularies share, both int64 ``[K]``."""
Overlap = Literal["sum", "mean", "first", "stronger"]


class Rows(Protocol):
    """Rows of one part of a parameter, int64 ``[K]``; columns where ``parameter.dim`` is 1."""

    @property
    def parameter(self) -> ParameterSlice: ...
    @property
    def rows(self) -> torch.Tensor: ...


R = TypeVar("R", bound=Rows)


def by_slice(rows: Iterable[R], owner: str = "donor") -> dict[ParameterSlice, list[R]]:
    """Rows grouped by the part of a parameter that they lie in, those of one parameter together.

    Raises:
        ActError: rows of one ``owner`` cross columns of another.
    """
    found: dict[str, dict[ParameterSlice, list[R]]] = {}
    for one in rows:
        found.setdefault(one.parameter.key, {}).setdefault(one.parameter, []).append(one)
    for parts in found.values():
        if crossing := _crossing(parts):
            where = described(crossing)
            raise ActError(f"rows of one {owner} cross columns of another in {where}; exclude one of them")
    return {part: held for parts in found.values() for part, held in parts.items()}


def _crossing(parts: Iterable[ParameterSlice]) -> ParameterSlice | None:
    """A part of a parameter that shares values with another one of it, in which its rows do not lie the same way."""
    earlier: dict[int | None, list[ParameterSlice]] = {}
    for part in parts:
        if any(not _apart(part, other) for other in earlier.get(part.expert, ())):
            return part
        earlier.setdefault(part.expert, []).append(part)
    whole = None in earlier and len(earlier) > 1  # beside parts of single experts
    return next(part for number, (part, *_) in earlier.items() if number is not None) if whole else None


def _apart(one: ParameterSlice, other: ParameterSlice) -> bool:
    """Whether two different parts of the same expert, or of a parameter without experts, share no value."""
    if one.dim != other.dim or one.rows != other.rows or one.span is None or other.span is None:
        return False
    (start, stop, step), (first, last, stride) = one.span, other.span
    return stop <= first or last <= start or (step == stride and (start - first) % step != 0)


def union(held: Sequence[Rows]) -> torch.Tensor:
    """All the rows of one part of a parameter, sorted and distinct, int64 ``[K]``."""
    return held[0].rows if len(held) == 1 else torch.cat([one.rows for one in held]).unique()


@dataclass(frozen=True)
class DonorRows:
    """The rows of one part of a parameter that one donor gives.

    Attributes:
        weights: the donor's parameters, by name.
        tokens: set if rows or columns belong to tokens that the donor numbers differently.
    """

    chosen: ChosenRows
    weights: Weights
    strength: float
    tokens: Tokens | None = None

    @property
    def parameter(self) -> ParameterSlice:
        """The part of a parameter."""
        return self.chosen.parameter

    @property
    def rows(self) -> torch.Tensor:
        """Its rows, sorted and distinct, int64 ``[K]``."""
        return self.chosen.rows

    @property
    def matrix(self) -> torch.Tensor:
        """The donor's values ``[R, W]``; looked up at each use, so that no tensor stays mapped from disk."""
        return matrix_of(self.parameter, self.weights)


def matrix_of(part: ParameterSlice, weights: Weights) -> torch.Tensor:
    """A part of a parameter as ``[R, W]``, channels first: a view of the model's memory, or of its file."""
    return weights.matrix(part) if isinstance(weights, Parameters) else part.matrix(weights)


def form_of(part: ParameterSlice, weights: Weights) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape of a parameter and the type of a part of it, of which no value is read."""
    if isinstance(weights, Parameters):
        return weights.shape_of(part.key), weights.dtype_of(part)
    return tuple(weights[part.key].shape), weights[part.key].dtype


def experts_in(part: ParameterSlice, shape: tuple[int, ...]) -> int | None:
    """How many experts a parameter of this shape holds; None for a part of a parameter without experts."""
    return None if part.expert is None or not shape else shape[0] // (part.rows or 1)


def shape_in(part: ParameterSlice, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The shape ``[R, W]`` of a part of a parameter of this shape; None where there is no such part."""
    inner = shape
    if part.expert is not None:
        if part.expert >= (experts_in(part, shape) or 0):
            return None
        inner = shape[1:] if part.rows is None else (part.rows, *shape[1:])
    if part.dim >= len(inner):
        return None
    channels = range(inner[part.dim])
    taken = range(*part.span) if part.span else channels
    if any(end not in channels for end in (*taken[:1], *taken[-1:])):
        return None
    return len(taken), math.prod(inner[: part.dim] + inner[part.dim + 1 :])


def described(part: ParameterSlice) -> str:
    """What to call a part of a parameter in a message."""
    return part.name if part.expert is None else f"expert {part.expert} of {part.name}"


def blend(
    given: Mapping[ParameterSlice, Sequence[DonorRows]], target: Mapping[ParameterSlice, torch.Tensor], overlap: Overlap
) -> None:
    """Blend the given rows into the matrices ``[R, W]`` of the target, in place.

    Rows that one donor gives take one launch per device; see :func:`act.transfer_many` for ``overlap``.
    """
    alone = [held[0] for held in given.values() if len(held) == 1 and held[0].tokens is None]
    try:
        blend_rows(
            [target[one.parameter] for one in alone],
            [one.matrix for one in alone],
            [one.rows for one in alone],
            [one.strength for one in alone],
        )
        for part, held in given.items():
            if len(held) > 1 or held[0].tokens is not None:
                for givers, rows in _by_givers(held, overlap):
                    _blend_together(givers, target[part], rows, overlap)
    except OverflowError as error:
        strongest = max(one.strength for held in given.values() for one in held)
        raise ActError(
            f"strength {strongest:g} takes values of the target out of the range of their type; expected one near 1 or "
            "below, which copies the donor's rows or blends them"
        ) from error


def _by_givers(held: Sequence[DonorRows], overlap: Overlap) -> Iterator[tuple[list[DonorRows], torch.Tensor]]:
    """Groups of rows that take the steps of the same donors."""
    rows = union(held)
    takes = torch.stack([torch.isin(rows, one.rows) for one in held])
    if overlap in ("first", "stronger"):
        order = torch.full(takes.shape, -math.inf, dtype=torch.float64)
        for i, one in enumerate(held):
            scores = one.chosen.scores.nan_to_num(nan=-1e300).double()
            order[i, takes[i]] = scores if overlap == "stronger" else float(-i)
        takes = torch.nn.functional.one_hot(order.argmax(0), len(held)).T.bool()  # the first of equals
    for pattern in takes.T.unique(dim=0):
        yield [held[i] for i in pattern.nonzero().flatten().tolist()], rows[(takes == pattern[:, None]).all(0)]


def _blend_together(givers: Sequence[DonorRows], old: torch.Tensor, rows: torch.Tensor, overlap: Overlap) -> None:
    """Blend rows with the sum or the mean of the steps towards several donors, in float64; or with one donor."""
    here = rows.to(old.device)
    blended = old[here].contiguous()
    if len(givers) == 1:
        new = _wanted(givers[0], old, rows).to(old.dtype).contiguous()
        blend_rows([blended], [new], [torch.arange(len(rows))], givers[0].strength)
    else:
        start = blended.double()
        step = sum(one.strength * (_wanted(one, old, rows).double() - start) for one in givers)
        wanted = start + (step if overlap == "sum" else step / len(givers))
        blended = wanted.to(old.dtype)
        if (wanted.isfinite() & ~blended.isfinite()).any():
            raise OverflowError(f"steps towards {len(givers)} donors leave the range of {old.dtype}")
    old[here] = blended


def _wanted(giver: DonorRows, old: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The donor's rows ``[K, W]`` on the target's device; the target's own values for tokens that the donor lacks."""
    new = giver.matrix
    if giver.tokens is None:
        return new[rows.to(new.device)].to(old.device)
    donor_ids, target_ids = giver.tokens
    wanted = old[rows.to(old.device)].to(torch.promote_types(old.dtype, new.dtype))
    if giver.parameter.dim == 0:  # a row is a token
        place = torch.full((old.shape[0],), -1, dtype=torch.int64)
        place[target_ids] = donor_ids
        found = place[rows] >= 0
        wanted[found.to(old.device)] = new[place[rows][found].to(new.device)].to(wanted)
    else:  # a row of the matrix is one column over all tokens
        columns = new[rows.to(new.device)][:, donor_ids.to(new.device)]
        wanted[:, target_ids.to(old.device)] = columns.to(wanted)
    return wanted
