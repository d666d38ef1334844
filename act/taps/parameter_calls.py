"""Which products a module computes with its own parameters, and which tokens their rows belong to.

A mode of torch functions sees every call inside the module's forward, changes none, and remembers products with the
parameters asked for. A gather of rows by index (``hidden[token_idx]``) tells which token each row is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from act.core.errors import ActError
from act.taps.holders import Bank, Holder, Parameters, Weight
from act.taps.probe import ADDITIONS
from act.taps.routed import RoutedRows
from act.taps.twins import twin
from act.taps.unchanged import version

_MATMUL = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)
_BMM = (torch.bmm, torch.Tensor.bmm)
_ADD_IN_PLACE = (torch.Tensor.add_, torch.Tensor.__iadd__)
_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.float, torch.Tensor.bfloat16, torch.Tensor.half)
_SAME_ROWS = (
    *_CASTS,
    torch.Tensor.reshape,
    torch.Tensor.view,
    torch.Tensor.unsqueeze,
    torch.Tensor.squeeze,
    torch.Tensor.contiguous,
    torch.reshape,
    torch.unsqueeze,
    torch.squeeze,
)
_GROUPED = tuple(
    function
    for function in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
    if function is not None
)
_GROUPED_OP = "grouped_mm_fallback"
Arrange = Callable[[torch.Tensor], torch.Tensor]
Pair = tuple[torch.Tensor, "torch.Tensor | None"]
"""Memory of parameters, and what lies there in the donor, if that is known."""


@dataclass
class Product:
    """The product of some rows with a parameter.

    Attributes:
        weight: the parameter.
        rows: ``[R, O]``, as a view of what the model computed.
        arrange: makes such rows of anything in the shape of what the call gave.
        tokens: int64 ``[R]``.
        experts: the expert of all rows; the expert of each row, int64 ``[R]``; or, of sorted rows, the end of each
            expert's, ``[E]``.
        in_order: whether rows are sorted by expert, and ``experts`` are ends.
        version: of the memory of the rows when they were whole.
        lacks_bias: whether a bias must still be added.
        swapped: what the donor's parameter gives in the place of ``rows``; None where that is not wanted or not known.
    """

    weight: Weight
    rows: torch.Tensor
    arrange: Arrange
    tokens: torch.Tensor
    experts: int | torch.Tensor | None
    in_order: bool = False
    version: int = 0
    lacks_bias: bool = False
    swapped: torch.Tensor | None = None


class ParameterCalls(TorchFunctionMode):
    """Over one forward of a holder: ``with ParameterCalls(…) as calls: forward(…)``, then :meth:`results`.

    Args:
        holder: what to look for.
        parameter: finds the parameters of the model.
        tokens: how many tokens the batch has, padding included.
        donor: finds the parameters of a donor, if each product is to be computed with those, too.
    """

    def __init__(self, holder: Holder, parameter: Parameters, tokens: int, donor: Parameters | None = None) -> None:
        super().__init__()
        self.holder = holder
        self._parameter, self._donor = parameter, donor
        self._count = tokens
        self._places: dict[int, list[tuple[Weight, torch.Tensor]]] = {}  # by the address of their memory
        self._biases: set[int] = set()
        self._cast: list[tuple[Weight, torch.Tensor]] = []  # copies of parameters in another type
        self._kept: list[torch.Tensor] = []  # so that no other tensor gets an address in _biases
        self._copies: list[Pair] = []  # of parameters, and of the donor's
        self._pairs: dict[int, list[Pair]] = {}  # all parameters and copies, by the address of their memory
        self._call: tuple[Any, Any, Any] = (None, (), {})  # function and arguments of the call that is looked at
        self._gathered: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id -> tensor, token of each of its rows
        self._picked: dict[int, tuple[torch.Tensor, Weight, torch.Tensor]] = {}  # id -> weights picked by expert ids
        self._last: dict[int | None, torch.Tensor] = {}  # tokens of the last product, by expert; None: of all
        self._routed: torch.Tensor | None = None  # see _reached
        self._products: list[Product] = []
        self._all: torch.Tensor | None = None
        self._problem: str | None = None  # told when the forward has ended
        # Accelerate loads offloaded parameters as their module runs, into memory that is used again afterwards.
        self._moves = any(parameter(weight.name).is_meta for weight in holder.weights)
        self._look_up()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if args and isinstance(args[0], torch.Tensor):
            self._note(func, args, kwargs, output)
        return output

    def results(self) -> list[tuple[Bank, RoutedRows]]:
        """What each bank gave, in the order of the computation.

        Raises:
            ActError: a row whose token is unknown; an output that the model changed.
        """
        if self._problem:
            raise ActError(f"{self._problem}; exclude what it computes, or report the architecture")
        given: dict[str, list[tuple[Product, slice]]] = {}
        for product in self._products:
            if product.lacks_bias or version(product.rows) != product.version:
                raise ActError(
                    f"the model changes what it computes with {product.weight.name} in place, or adds its bias in an "
                    "unknown way; exclude what it computes, or report the architecture"
                )
            for bank, span in product.weight.banks:
                columns = slice(None) if span is None else slice(*span)
                given.setdefault(bank.name, []).append((product, columns))
        device = next((product.rows.device for product in self._products), torch.device("cpu"))
        every = self._every(device)
        return [(bank, self._of_bank(bank, given.get(bank.name, ()), every)) for bank in self.holder.banks]

    def _of_bank(self, bank: Bank, given: Sequence[tuple[Product, slice]], every: torch.Tensor) -> RoutedRows:
        found = _joined([(product, product.rows[:, columns]) for product, columns in given], bank, every)
        swapped = [(one, one.swapped[:, columns]) for one, columns in given if one.swapped is not None]
        if self._donor is None or len(swapped) < len(given):
            return found
        return replace(found, swapped=_joined(swapped, bank, every).rows)

    def _note(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Look at one call; most are none of these."""
        if self._donor:
            self._call = func, args, kwargs
        if func is torch.Tensor.__getitem__:
            self._note_index(args[0], args[1], output)
        elif func is F.linear:
            x, weight, bias = (*args, *[None] * (3 - len(args)))[:3]
            bias = kwargs.get("bias", bias)
            self._note_product(x, kwargs.get("weight", weight), output, biased=bias is not None)
        elif func is F.conv1d:
            weight, bias = (*args[1:], *[None] * 2)[:2]
            self._note_columns(kwargs.get("weight", weight), output, biased=kwargs.get("bias", bias) is not None)
        elif func in _MATMUL:
            self._note_product(args[0], args[1], output)
            self._note_columns(args[0], output)
        elif func in _BMM:
            self._note_batched(args[0], args[1], output)
        elif func in _GROUPED or getattr(func, "__name__", "").startswith(_GROUPED_OP):
            self._note_grouped(args, kwargs, output)
        elif func in _SAME_ROWS:
            self._note_view(func, args[0], output)
        elif func in (torch.Tensor.repeat_interleave, torch.repeat_interleave) and isinstance(args[1], int):
            if self._is_of_tokens(args[0]):
                self._gathered[id(output)] = output, self._every(args[0].device).repeat_interleave(args[1])
        elif func in (torch.Tensor.split, torch.split) and id(args[0]) in self._gathered:
            tokens = func(self._gathered[id(args[0])][1], *args[1:], **kwargs)
            self._gathered.update({id(part): (part, of) for part, of in zip(output, tokens, strict=True)})
        elif func in (torch.Tensor.index_select, torch.index_select) and self._is_of_tokens(args[0]):
            self._gathered[id(output)] = output, args[2]
        elif func in _ADD_IN_PLACE or func in ADDITIONS:
            self._note_sum(func, args, output)

    def _note_index(self, x: torch.Tensor, index: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            return
        if isinstance(index, torch.Tensor) and index.dim() == 1 and not index.is_floating_point():
            if found := self._weight_of(x):
                self._picked[id(output)] = output, found[0], index
                self._note_copy(output)
                return
            if self._is_bias(x):
                self._biases.add(output.untyped_storage().data_ptr())
                self._kept.append(output)
                self._note_copy(output)
                return
        if id(x) in self._gathered and isinstance(index, slice):
            self._gathered[id(output)] = output, self._gathered[id(x)][1][index]
        elif self._is_of_tokens(x):
            inner = index[1] if isinstance(index, tuple) and len(index) == 2 and index[0] is None else index
            if isinstance(inner, torch.Tensor) and inner.dim() == 1 and not inner.is_floating_point():
                self._gathered[id(output)] = output, inner.nonzero()[:, 0] if inner.dtype == torch.bool else inner

    def _note_view(self, func: Any, x: torch.Tensor, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            return
        if known := self._gathered.get(id(x)):
            self._gathered[id(output)] = output, known[1]
        if known_pick := self._picked.get(id(x)):
            self._picked[id(output)] = output, *known_pick[1:]
            self._note_copy(output)
        elif func in _CASTS and output is not x and (found := self._weight_of(x)):
            self._cast.append((found[0], output))
            self._note_copy(output)
            self._look_up()

    def _note_product(self, x: torch.Tensor, weight: Any, output: torch.Tensor, biased: bool = False) -> None:
        found = self._weight_of(weight) if isinstance(weight, torch.Tensor) else None
        if found is None:
            return
        of, expert = found
        tokens = self._tokens_of(x, output.numel() // max(1, output.shape[-1]), expert)
        self._add(of, output, _flattened, tokens, expert, biased=biased)

    def _note_columns(self, weight: Any, output: torch.Tensor, biased: bool = False) -> None:
        """Outputs ``[batch, C, columns]``: the weight comes first in the product, or is that of a convolution."""
        found = self._weight_of(weight) if isinstance(weight, torch.Tensor) else None
        if found is None or found[0].packed or found[1] is not None or output.dim() != 3:
            return
        of, bias = found[0], None
        if of.bias is not None and not biased:
            bias = self._parameter(of.bias).detach()  # which the model adds later, in a way of its own
        self._add_columns(of, output.detach(), bias)

    def _add_columns(self, weight: Weight, output: torch.Tensor, bias: torch.Tensor | None) -> None:
        length = self._count // len(output)
        if length * len(output) != self._count or output.shape[2] < length:
            self._problem = f"{weight.name} gives {list(output.shape)}, which is not a column for each token"
            return

        def columns(given: torch.Tensor) -> torch.Tensor:
            return given[..., :length].transpose(1, 2).reshape(self._count, -1)

        later = bias is not None
        self._add(weight, output, columns, self._every(output.device), None, biased=True, later=later)
        if bias is not None:
            last = self._products[-1]
            last.rows = columns(output).float() + bias.float()
            last.version = version(last.rows)
            if last.swapped is not None and self._donor is not None:
                last.swapped = last.swapped.float() + self._donor(str(weight.bias)).detach().to(last.rows)

    def _note_batched(self, one: torch.Tensor, other: torch.Tensor, output: torch.Tensor) -> None:
        for weights, x in ((one, other), (other, one)):
            if picked := self._picked.get(id(weights)):
                arrange = partial(torch.squeeze, dim=-1 if output.shape[-1] == 1 and weights is one else 1)
                self._add(picked[1], output, arrange, self._tokens_of(x, len(output)), picked[2])
                return
            found = self._weight_of(weights)
            if found is not None and found[0].packed and weights.dim() == 3:
                self._add_all(found[0], x, output)
                return

    def _add_all(self, weight: Weight, x: torch.Tensor, output: torch.Tensor) -> None:
        """Products of all experts, ``[E, T, O]``: an expert has the tokens for which its input is not zero."""
        tokens = output.shape[1]
        if tokens != self._count:
            self._problem = f"{weight.name} reads {tokens} rows for each expert; the batch has {self._count} tokens"
            return
        place = self._reached(weight, x).flatten().nonzero().flatten()
        self._add(weight, output, lambda x: x.flatten(0, 1)[place], place % tokens, place // tokens)

    def _reached(self, weight: Weight, x: torch.Tensor) -> torch.Tensor:
        """Which tokens reach which expert, bool ``[E, T]``: the first product shows it for all that follow."""
        if self._routed is None:
            self._routed = ((x != 0) & x.isfinite()).any(-1)  # an infinite value times 0 is no number
            if len(x) > 1 and not self.holder.shared and bool(self._routed.all()):
                self._problem = (
                    f"{weight.name} reads every token for every expert, and nothing shows which are routed to it"
                )
        return self._routed

    def _note_grouped(self, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        x, weight, *rest = args
        ends = kwargs.get("offs", rest[0] if rest else None)
        if (found := self._weight_of(weight)) and isinstance(ends, torch.Tensor):
            self._add(found[0], output, lambda x: x, self._tokens_of(x, len(output)), ends, in_order=True)

    def _note_sum(self, func: Any, args: Any, output: Any) -> None:
        """A bias that is added to a product."""
        if len(args) != 2 or not all(isinstance(x, torch.Tensor) for x in args) or not self._products:
            return
        for one, other in (args, args[::-1]):
            last = self._products[-1]
            same = one.untyped_storage().data_ptr() == last.rows.untyped_storage().data_ptr()
            if last.lacks_bias and same and self._is_bias(other):
                last.rows = last.rows if func in _ADD_IN_PLACE else output.reshape(-1, output.shape[-1])
                last.version, last.lacks_bias = version(last.rows), False
                last.swapped = _plus(last.swapped, self._twin(other), one)
                return

    def _add(
        self,
        weight: Weight,
        output: torch.Tensor,
        arrange: Arrange,
        tokens: torch.Tensor,
        experts: int | torch.Tensor | None,
        *,
        in_order: bool = False,
        biased: bool = False,
        later: bool = False,
    ) -> None:
        rows, again = arrange(output.detach()), self._again(2 if biased and weight.bias and not later else 1)
        swapped = None if again is None else arrange(again.detach()).to(rows.device)
        self._last[experts if isinstance(experts, int) else None] = tokens
        lacks = weight.bias is not None and not biased
        self._products.append(Product(weight, rows, arrange, tokens, experts, in_order, version(rows), lacks, swapped))

    def _again(self, parameters: int) -> torch.Tensor | None:
        """What the call that is looked at gives with so many parameters of the donor; None if these are not known."""
        if self._donor is None:
            return None
        func, args, kwargs = self._call
        given: dict[int | str, Any] = {}
        given.update(enumerate(args))
        given.update(kwargs)
        own = {place: self._twin(x) for place, x in given.items() if isinstance(x, torch.Tensor) and self._is_own(x)}
        theirs = {place: x for place, x in own.items() if x is not None}
        if len(theirs) < max(parameters, len(own)):
            return None
        device = next(iter(theirs.values())).device
        there = {place: x.to(device) if isinstance(x, torch.Tensor) else x for place, x in (given | theirs).items()}
        again: torch.Tensor = func(*[there[place] for place in range(len(args))], **{key: there[key] for key in kwargs})
        return again

    def _is_own(self, x: torch.Tensor) -> bool:
        """Whether a tensor is of the parameters, or of a copy of some."""
        return x.untyped_storage().data_ptr() in self._pairs

    def _twin(self, x: torch.Tensor) -> torch.Tensor | None:
        """What of the donor's parameters stands where a tensor is of this model's."""
        for mine, theirs in self._pairs.get(x.untyped_storage().data_ptr(), ()):
            if theirs is not None and 0 <= x.storage_offset() - mine.storage_offset() < mine.numel():
                return twin(x, mine, theirs)
        return None

    def _note_copy(self, copy: torch.Tensor) -> None:
        """Let the call that is looked at copy the donor's parameters, too, as it has copied this model's."""
        func, args, kwargs = self._call
        if self._donor is None or self._is_own(copy):
            return
        theirs = self._twin(args[0])
        if theirs is not None:
            rest = (x.to(theirs.device) if isinstance(x, torch.Tensor) else x for x in args[1:])
            theirs = func(theirs, *rest, **kwargs)
        self._copies.append((copy, theirs))
        self._pairs.setdefault(copy.untyped_storage().data_ptr(), []).append((copy, theirs))

    def _tokens_of(self, x: torch.Tensor, rows: int, expert: int | None = None) -> torch.Tensor:
        """The token of each row of the input of a product; the rows of a down projection are those of the up."""
        if known := self._gathered.get(id(x)):
            return known[1]
        last = self._last.get(expert)
        if last is not None and len(last) == rows:
            return last
        each = rows // max(1, self._count)
        if each > 1 and rows == each * self._count and not self.holder.routed:
            return self._every(x.device).repeat_interleave(each)  # such as one for each head, as the probe will check
        if rows != self._count:
            self._problem = (
                f"{self.holder.name} computes {rows} rows for {self._count} tokens, and nothing shows which token each "
                "belongs to"
            )
        return self._every(x.device)

    def _every(self, device: torch.device) -> torch.Tensor:
        """The numbers of all tokens."""
        if self._all is None or self._all.device != device:
            self._all = torch.arange(self._count, device=device)
        return self._all

    def _is_of_tokens(self, x: torch.Tensor) -> bool:
        return x.dim() == 2 and len(x) == self._count and x.is_floating_point()

    def _weight_of(self, x: torch.Tensor) -> tuple[Weight, int | None] | None:
        """The parameter that a tensor is a view of, and the expert whose matrix it is."""
        if self._moves:
            self._look_up()
        address = x.untyped_storage().data_ptr()
        for weight, parameter in self._places.get(address, ()):
            first = x.storage_offset() - parameter.storage_offset()
            if not 0 <= first < parameter.numel():
                continue
            if not weight.packed:
                return weight, weight.expert
            whole = x.numel() == parameter.numel()
            return weight, None if whole else first // (parameter.stride(0) * (weight.rows or 1))
        return None

    def _is_bias(self, x: torch.Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self._biases

    def _look_up(self) -> None:
        """Where the parameters lie now."""
        self._places, self._pairs = {}, {}
        for copied, theirs in self._copies:
            self._pairs.setdefault(copied.untyped_storage().data_ptr(), []).append((copied, theirs))
        self._biases = {kept.untyped_storage().data_ptr() for kept in self._kept}
        for weight, copy in self._cast:
            self._places.setdefault(copy.untyped_storage().data_ptr(), []).append((weight, copy))
        for weight in self.holder.weights:
            parameter = self._parameter(weight.name)
            if parameter.is_meta:
                continue
            self._places.setdefault(parameter.untyped_storage().data_ptr(), []).append((weight, parameter))
            if weight.bias:
                self._biases.add(self._parameter(weight.bias).untyped_storage().data_ptr())
            for name in (weight.name, weight.bias):
                if self._donor is not None and name is not None:
                    mine = self._parameter(name)
                    self._pairs.setdefault(mine.untyped_storage().data_ptr(), []).append((mine, self._donor(name)))


def _flattened(output: torch.Tensor) -> torch.Tensor:
    return output.reshape(-1, output.shape[-1])


def _plus(rows: torch.Tensor | None, bias: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Rows with a bias added as the model adds it to what is shaped like ``like``; None if either is not known."""
    if rows is None or bias is None or rows.numel() != like.numel():
        return None
    return _flattened(rows.reshape(like.shape) + bias.to(rows.device))


def _joined(given: Sequence[tuple[Product, torch.Tensor]], bank: Bank, every: torch.Tensor) -> RoutedRows:
    """The products of one bank, expert by expert."""
    count = len(bank.sites)
    if not given:
        return RoutedRows(
            every.new_empty(0, bank.sites[0].width, dtype=torch.float32), every[:0], every.new_zeros(count + 1)
        )
    first, rows = given[0]
    if len(given) == 1 and isinstance(first.experts, torch.Tensor):
        if first.in_order:
            return RoutedRows(rows, first.tokens, F.pad(first.experts, (1, 0)))
        return RoutedRows.of_ids(rows, first.tokens, first.experts, count)
    calls = []
    for product, part in given:
        if isinstance(product.experts, torch.Tensor):
            raise ActError(f"{product.weight.name} is used several times in one forward, in ways that cannot be joined")
        calls.append((product.experts or 0, part, product.tokens))
    return RoutedRows.of_experts(calls, count)
