"""How the output of a site is laid out: which of its dimensions run over the batch, the tokens, heads and channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import torch

from act.core.plain import Natural, Positive

Tokens = Literal["length", "source", "patches"]
"""Which tokens: those that are read, or written by a decoder (``length``), those that its encoder reads, or the patches
of images."""

Axis = Literal["batch", "length", "source", "patches"] | Positive
"""What a dimension, or a factor of one, runs over: the batch, tokens, or a fixed number, such as heads."""


class Sizes(NamedTuple):
    """How many sequences a batch has, of how many tokens; ``source``: of how many for the encoder beside a decoder."""

    batch: int
    length: int
    source: int = 0

    def of(self, tokens: Tokens) -> int:
        """How many of these tokens each sequence has."""
        return self.source if tokens == "source" else self.length


def sizes_of(tokens: torch.Tensor, source: torch.Tensor | None = None) -> Sizes:
    """The sizes of a batch of tokens ``[batch, length]``, with a source ``[batch, source]`` or without."""
    batch, length = tokens.shape
    return Sizes(batch, length, 0 if source is None else source.shape[1])


@dataclass(frozen=True)
class Layout:
    """The dimensions of one output.

    Attributes:
        dims: of every dimension before the channels its factors, outer first: ``(("batch",), ("length",))`` is
            ``[batch, length, C]``, ``(("batch", "length", 4),)`` is ``[batch * length * 4, C]``. Without ``batch``,
            all rows of the batch share the output.
        groups: 1, or the size of a dimension before the last that holds channels too: ``[…, groups, C / groups]``.
        item: which item of a tuple the output is; None: the module returns the tensor itself.
        columns: of an output ``[batch, C, columns]``, as convolutions have, how many columns lie before and after those
            of the tokens; the model cuts them off. None: channels are the last dimension.

    Of patches, ``(("patches",),)``, all dimensions but that of the channels run over patches, of one image after the
    other; ``((1,), ("patches",))`` is shared by all images.
    """

    dims: tuple[tuple[Axis, ...], ...]
    groups: Positive = 1
    item: Natural | None = None
    columns: tuple[Natural, Natural] | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The factors of all dimensions, outer first."""
        return tuple([axis for dim in self.dims for axis in dim])

    @property
    def rows_per_token(self) -> int:
        """How many rows each token has, such as one for each head."""
        return prod([axis for axis in self.axes if isinstance(axis, int)])

    @property
    def tokens(self) -> Tokens:
        """Which tokens it has rows for."""
        return next((axis for axis in ("patches", "source") if axis in self.axes), "length")

    def patches(self, output: torch.Tensor, images: int) -> torch.Tensor:
        """The output of a part that reads images as ``[rows, C]``: all that it gives, for each of the ``images``."""
        if self.columns is not None:
            output = output.movedim(1, -1)
        rows = output.reshape(-1, output.shape[-1])
        return rows.repeat(images, 1) if 1 in self.axes else rows

    @property
    def tokens_first(self) -> bool:
        """Whether rows lie token by token, so that flattening the dimensions puts them in order."""
        return [axis for axis in self.axes if axis != 1][:2] == ["batch", self.tokens]

    def lead(self, sizes: Sizes) -> tuple[int, ...]:
        """The sizes of the dimensions before the channels, or around them."""
        *outer, last = (prod(self._sizes(dim, sizes)) for dim in self.dims)
        return (*outer, last + sum(self.columns or ()))

    def tensor_in(self, output: Any) -> Any:
        """What is laid out so, of all that the module returned."""
        return output if self.item is None else output[self.item]

    def lead_of(self, output: torch.Tensor) -> torch.Size:
        """The sizes of the dimensions of an output before its channels, or around them."""
        if self.columns is not None:
            return torch.Size((*output.shape[:-2], output.shape[-1]))
        return output.shape[:-1] if self.groups == 1 else output.shape[:-2]

    def rows(self, output: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        """The output as ``[batch * tokens * rows_per_token, C]``, token by token; a view where that is possible."""
        if self.groups > 1:
            output = output.flatten(-2)
        if self.columns is not None:
            output = output[..., self.columns[0] :][..., : sizes.of(self.tokens)].transpose(-1, -2)
        if self.tokens_first:
            return output.reshape(-1, output.shape[-1])
        axes, width = self.axes, output.shape[-1]
        factors = output.reshape(*self._sizes(axes, sizes), width)
        rest = [place for place, axis in enumerate(axes) if isinstance(axis, int)]
        if "batch" not in axes:
            ordered = factors.permute(axes.index(self.tokens), *rest, -1)
            return ordered.expand(sizes.batch, *ordered.shape).reshape(-1, width)
        return factors.permute(axes.index("batch"), axes.index(self.tokens), *rest, -1).reshape(-1, width)

    def shared(self) -> Layout | None:
        """The same layout with rows of its own for each row of the batch, for outputs that all of them may share.

        Position embeddings are such: ``[1, length, C]`` unless the batch brings ``position_ids``.
        """
        if self.axes.count(self.tokens) != 1 or self.rows_per_token > 1 or "batch" in self.axes:
            return None
        return Layout((("batch",), (self.tokens,)), self.groups, self.item)

    @staticmethod
    def _sizes(axes: Sequence[Axis], sizes: Sizes) -> list[int]:
        named = sizes._asdict()
        return [axis if isinstance(axis, int) else named[axis] for axis in axes]

    def __str__(self) -> str:
        """The shape in words, such as ``[batch, 4, length, channels]``."""
        dims = [" * ".join(map(str, dim)) or "1" for dim in self.dims]
        if self.columns is not None:
            more = sum(self.columns)
            return f"[{', '.join(dims[:-1])}, channels, {dims[-1]}{f' + {more}' if more else ''}]"
        return f"[{', '.join([*dims, *([str(self.groups)] if self.groups > 1 else []), 'channels'])}]"


PLAIN = Layout((("batch",), ("length",)))
"""``[batch, length, channels]``."""

OF_PATCHES = tuple(
    Layout(dims, columns=columns) for dims in ((("patches",),), ((1,), ("patches",))) for columns in (None, (0, 0))
)
"""What a part that reads images may give: channels last or, of a convolution, second; for each image, or for all."""
