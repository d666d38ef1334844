"""Taps: they feed the output of every site to the kernels while the model runs, and leave the model as it was.

Most sites ride along: gated MLPs, rotary embedding, and residual sums with their norms run through fused kernels that
accumulate the statistics while they compute (:mod:`act.taps.fusion` says where). Other sites are read once, by a hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from act.core.errors import ActError
from act.models.channels import ChannelSpace, Site
from act.models.rotary import RotaryFunction, Turn, rotary_functions
from act.profiles.moments import Moments
from act.taps.fusion import Fusion, GatedMlp, halves, needs_gradient, recognise
from act.taps.probe import ADDITIONS, is_idle_dropout
from act_kernels import add_norm, column_moments, gated_mlp

Reader = Callable[[Site, torch.Tensor, "torch.Tensor | None"], None]
"""Called with a site, its output as rows ``[R, C]``, and the bool mask ``[R]`` of the rows that count (None: all)."""

HEAD_CHUNK_BYTES = 32 << 20  # output of the LM head that exists at a time


@contextlib.contextmanager
def taps(model: nn.Module, moments: Moments, *, fused: bool = True, exclude: Iterable[str] = ()) -> Iterator[Taps]:
    """Accumulate the sites of ``model`` into ``moments`` during the block.

    Call ``start(count_mask)`` on the yielded :class:`Taps` before each forward. The model computes what it would
    compute without taps: bit for bit with ``fused=False``; else GELU and norms may differ by one unit in the last place
    (on CPUs with AVX2 or AVX-512, GELU and LayerNorm alone).
    Modules are restored when the block ends, also by an exception.

    Args:
        model: a model that is not compiled.
        moments: the arena of one model.
        fused: let statistics ride inside fused kernels where the model allows it.
        exclude: module kinds not to measure.

    Raises:
        ActError: a compiled model; an unknown kind.
    """

    def read(site: Site, rows: torch.Tensor, mask: torch.Tensor | None) -> None:
        column_moments(rows, tapped.moments.block(site.name), mask)

    tapped = Taps(model, moments.space, read, moments=moments, fused=fused, exclude=exclude)
    try:
        yield tapped
    finally:
        tapped.remove()


class Taps:
    """Hooks and fused parts on a model.

    Args:
        model, fused, exclude: see :func:`taps`.
        space: the channel space of the model.
        read: called with the output of every site that does not ride along, in the order of computation.
        moments: where fused kernels accumulate. Without it every site goes to ``read``, and fused kernels only compute.

    Attributes:
        paths: the op by which each site was last read, by site name.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ChannelSpace,
        read: Reader,
        *,
        moments: Moments | None = None,
        fused: bool = True,
        exclude: Iterable[str] = (),
    ) -> None:
        _refuse_compiled(model)
        self.paths: dict[str, str] = {}
        self._model = model
        self._modules = dict(model.named_modules())
        self._sites = {site.name: site for site in space.without(exclude)}
        self._read, self._moments = read, moments
        self._fusion = recognise(model, space) if fused else Fusion()
        self._head = _head_of(model, self._modules)
        self._stop_at_head = False
        self._count_mask: torch.Tensor | None = None
        self._all_count = False
        self._masks: dict[tuple[torch.device, int], torch.Tensor | None] = {}
        self._held: dict[str, torch.Tensor] = {}
        self._riding: tuple[str, ...] = ()
        self._pending: Pending | None = None
        self._ready: ReadyNorm | None = None
        self._undo = contextlib.ExitStack()
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Give the model back as it was; calling it again does nothing."""
        self._undo.close()
        self._pending = self._ready = None
        self._held.clear()

    @property
    def moments(self) -> Moments:
        """Where the next forward accumulates; assign others of the same space and device between forwards."""
        if self._moments is None:
            raise RuntimeError("these taps feed a reader, not moments")
        return self._moments

    @moments.setter
    def moments(self, moments: Moments) -> None:
        self._moments = moments

    def start(self, count_mask: torch.Tensor) -> None:
        """Announce the next forward: bool ``[batch, length]``, True where a token counts."""
        self._pending = self._ready = None
        self._riding = ()
        self._held.clear()
        self._count_mask = count_mask
        self._masks.clear()
        self._all_count = count_mask.device.type == "cpu" and bool(count_mask.all())

    def forward(self, inputs: Mapping[str, torch.Tensor], count_mask: torch.Tensor) -> None:
        """Run the model for its statistics alone: its LM head sees counted rows only, in chunks, or does not run."""
        self.start(count_mask)
        self._stop_at_head = True
        try:
            self._model(**inputs, use_cache=False)
        except _HeadReached:
            pass
        finally:
            self._stop_at_head = False
        self._settle()

    def _attach(self) -> None:
        fusion, rides = self._fusion, self._moments is not None
        held = {name: names for names in fusion.attentions.values() for name in names} if rides else {}
        for name, site in self._sites.items():
            if name in held:
                self._hook(name, partial(self._hold, name))
            elif name not in fusion.sums and not (rides and name in fusion.norms):
                self._hook(name, partial(self._observe, site))
        for name in fusion.sums:
            self._hook(name, partial(self._send, name))
        for name in fusion.attentions if rides else ():
            self._hook(name, self._release)
        for name, mlp in fusion.mlps.items():
            self._replace(name, partial(self._gated_mlp, mlp))
        for name in fusion.norms:
            self._replace(name, partial(self._norm, name))
        if fusion.mlps or fusion.norms:
            for namespace, name in rotary_functions(self._model):
                self._undo.callback(RotaryFunction.add(namespace, name, self._rotary))
        if self._head:
            handle = self._modules[self._head].register_forward_pre_hook(self._before_head)
            self._undo.callback(handle.remove)

    def _hook(self, name: str, hook: Callable[..., Any]) -> None:
        self._undo.callback(self._modules[name].register_forward_hook(hook).remove)

    def _replace(self, name: str, forward: Callable[..., Any]) -> None:
        module = self._modules[name]
        before = {key: module.__dict__[key] for key in ("forward",) if key in module.__dict__}
        module.forward = partial(forward, module.forward)
        self._undo.callback(module.__dict__.update, before)
        self._undo.callback(module.__dict__.pop, "forward", None)

    # Sites that are read by themselves

    def _observe(self, site: Site, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if site.name not in self._riding:
            self._measure(site, output)

    def _measure(self, site: Site, output: torch.Tensor, columns: slice = slice(None)) -> None:
        """Feed an output, or some of its columns, to the reader, or to the moments."""
        rows, heads = as_rows(output.detach(), self._tokens, site)
        mask = self._mask(rows.device, heads)
        if columns == slice(None):
            self._read(site, rows, mask)
        elif self._moments is not None:
            column_moments(rows[:, columns], self._moments.block(site.name)[:, columns], mask)
        self.paths[site.name] = "column_moments"

    @property
    def _tokens(self) -> torch.Size:
        if self._count_mask is None:
            raise RuntimeError("call start(count_mask) before the forward")
        return self._count_mask.shape

    def _mask(self, device: torch.device, heads: int = 1) -> torch.Tensor | None:
        """The count mask as rows on a device, repeated per head; None where it is known that all rows count."""
        key = (device, heads)
        if key not in self._masks:
            assert self._count_mask is not None
            rows = self._count_mask.to(device, non_blocking=True).reshape(-1, 1)
            self._masks[key] = None if self._all_count else rows.expand(-1, heads).flatten()
        return self._masks[key]

    def _block(self, name: str, path: str) -> torch.Tensor | None:
        """The moments of a site that rides along, None if it is not measured; notes its path."""
        if self._moments is None or name not in self._sites:
            return None
        self.paths[name] = path
        return self._moments.block(name)

    # Gated MLPs

    def _gated_mlp(self, mlp: GatedMlp, original: Callable[..., Any], x: torch.Tensor, *more: Any, **named: Any) -> Any:
        learning = any(needs_gradient(x, self._modules[name]) for name in (mlp.gate, mlp.up, mlp.down))
        if more or named or x.shape[:-1] != self._tokens or learning:
            return original(x, *more, **named)
        fused = mlp.gate == mlp.up
        if self._moments is not None:
            self._riding = (mlp.gate, mlp.up)
        gate = self._modules[mlp.gate](x)
        up = gate if fused else self._modules[mlp.up](x)
        self._riding = ()
        gate_rows, up_rows = (part.flatten(0, -2) for part in halves(gate, up, fused, mlp.gate_first))
        gate_block, up_block = (self._block(name, "gated_mlp") for name in (mlp.gate, mlp.up))
        if fused and gate_block is not None:
            gate_block, up_block = halves(gate_block, gate_block, fused, mlp.gate_first)
        product = gated_mlp(
            gate_rows,
            up_rows,
            mlp.activation,
            gate_moments=gate_block,
            up_moments=up_block,
            mask=self._mask(gate_rows.device),
        )
        return self._modules[mlp.down](product.view(*gate.shape[:-1], -1))

    # Attention: projections wait until their rotary embedding

    def _hold(self, name: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self._held[name] = output

    def _release(self, module: nn.Module, args: Any, output: Any) -> None:
        """Read the projections that no rotary embedding took along."""
        for name, output in self._held.items():
            self._measure(self._sites[name], output)
        self._held.clear()

    def _rotary(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turn: Turn) -> Any:
        spans = [span for x in (q, k) if (span := self._span(x))]
        if self._moments is None or len(spans) < 2:
            return turn.apply(q, k, cos, sin)
        rest = self._rest_of(spans)
        v = None
        if len(rest) == 1:  # one launch for all three; more of them are read by themselves
            name, columns = rest.pop()
            v = self._held[name].detach()[..., columns].unsqueeze(1)
            spans.append((name, columns))
        q_block, k_block, *v_blocks = (self._moments.block(name)[:, columns] for name, columns in spans)
        for name, columns in rest:
            self._measure(self._sites[name], self._held[name], columns)
        self.paths.update({name: "rotary" for name, _ in spans})
        self._held.clear()
        v_block = v_blocks[0] if v_blocks else None
        mask = self._mask(q.device)
        return turn.apply(q, k, cos, sin, v=v, q_moments=q_block, k_moments=k_block, v_moments=v_block, mask=mask)

    def _span(self, x: torch.Tensor) -> tuple[str, slice] | None:
        """The held projection that ``x`` [B, H, L, D] is a view of, and its columns there."""
        batch, heads, length, width = x.shape
        for name, output in self._held.items():
            if output.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or output.stride(-1) != 1:
                continue
            offset = x.storage_offset() - output.storage_offset()
            same_rows = output.shape[:2] == (batch, length) and output.stride()[:2] == (x.stride(0), x.stride(2))
            if (
                same_rows
                and (x.stride(1), x.stride(3)) == (width, 1)
                and 0 <= offset <= output.shape[2] - heads * width
            ):
                return name, slice(offset, offset + heads * width)
        return None

    def _rest_of(self, spans: list[tuple[str, slice]]) -> list[tuple[str, slice]]:
        """The columns of held projections that the spans leave over."""
        rest = []
        for name, output in self._held.items():
            start = 0
            taken = sorted((columns.start, columns.stop) for other, columns in spans if other == name)
            for begin, end in [*taken, (output.shape[2], output.shape[2])]:
                if begin > start:
                    rest.append((name, slice(start, begin)))
                start = end
        return rest

    # Residual sums and norms

    def _send(self, name: str, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Let a module's output go on as :class:`Pending`, to be measured with the sum that it goes into."""
        self._settle()
        measured = name not in self._sites or (self._moments is not None and name in self._fusion.norms)
        site = None if measured else self._sites[name]
        if output.shape[:-1] != self._tokens or needs_gradient(output) or torch.compiler.is_compiling():
            if site:
                self._measure(site, output)
            return None
        if site and self._moments is None:
            self._measure(site, output)
        self._pending = pending = output.as_subclass(Pending)
        pending.taps, pending.origin, pending.measured = self, name, measured or self._moments is None
        return pending

    def _settle(self) -> None:
        """Read the output that is still pending by itself, and make sure that a fused norm was used."""
        pending, self._pending = self._pending, None
        if pending is not None and not pending.measured:
            pending.measured = True
            self._measure(self._sites[pending.origin], plain(pending))
        if self._ready is not None:
            raise ActError(
                f"the model did not hand its residual sum to {self._ready.norm} as it did before; "
                "run without fused kernels (fused=False, --no-fused)"
            )

    def add(self, pending: Pending, residual: torch.Tensor) -> torch.Tensor | None:
        """``residual + pending`` with the norm that follows; None where the stock operators must do it."""
        name = self._fusion.sums[pending.origin]
        x = plain(pending)
        weight = self._modules[name].get_parameter("weight")
        if residual.shape != x.shape or not residual.dtype == x.dtype == weight.dtype:
            return None
        if not residual.device == x.device == weight.device:
            return None
        if needs_gradient(residual, self._modules[name]):
            return None
        total, norm = self._add_norm(name, x, residual, pending)
        self._ready = ReadyNorm(name, total, norm)
        return total

    def _norm(self, name: str, original: Callable[..., Any], x: torch.Tensor, *more: Any, **named: Any) -> Any:
        if self._ready is not None and self._ready.total is x and self._ready.norm == name:
            output, self._ready = self._ready.output, None
            return output
        pending = x if isinstance(x, Pending) else None
        x = plain(x)
        by_token = x.shape[:-1] == self._tokens or (x.shape[:2] == self._tokens and x.dim() == 4)
        weight = self._modules[name].get_parameter("weight")
        fits = by_token and x.is_contiguous() and (x.dtype, x.device) == (weight.dtype, weight.device)
        if more or named or not fits or needs_gradient(x, self._modules[name]):
            output = original(x, *more, **named)
            if self._moments is not None and name in self._sites:
                self._measure(self._sites[name], output)
            return output
        return self._add_norm(name, x, None, pending)[1]

    def _add_norm(
        self, name: str, x: torch.Tensor, residual: torch.Tensor | None, pending: Pending | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_block = None
        if pending is not None and not pending.measured:
            x_block = self._block(pending.origin, "add_norm")
            pending.measured = True
        if pending is self._pending:
            self._pending = None
        module, norm = self._modules[name], self._fusion.norms[name]
        bias = getattr(module, "bias", None)
        total, output = add_norm(
            x.flatten(0, -2),
            None if residual is None else residual.flatten(0, -2),
            module.weight.detach(),
            None if bias is None else bias.detach(),
            eps=norm.eps,
            style=norm.style,
            x_moments=x_block,
            norm_moments=self._block(name, "add_norm"),
            mask=self._mask(x.device, x.shape[2] if x.dim() == 4 else 1),
        )
        return total.view(x.shape), output.view(x.shape)

    # The LM head

    def _before_head(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._stop_at_head:
            return
        site = self._sites.get(self._head or "")
        if site is not None:
            hidden, heads = as_rows(args[0], self._tokens, site)
            mask = self._mask(hidden.device, heads)
            counted = hidden if mask is None else hidden[mask]
            for rows in counted.split(max(16, HEAD_CHUNK_BYTES // (site.width * hidden.element_size()))):
                self._read(site, module.forward(rows), None)
            self.paths[site.name] = "column_moments"
        raise _HeadReached


class ReadyNorm(NamedTuple):
    """A norm that was computed with the sum that it reads."""

    norm: str
    total: torch.Tensor
    output: torch.Tensor


class _HeadReached(BaseException):
    """Ends a forward that runs for its statistics; no model catches it by mistake."""


class Pending(torch.Tensor):
    """A module's output on its way to the residual sum.

    Added to a residual, it runs the fused kernel of the sum and of the norm that follows; a norm may also read it as it
    is. Any other operation reads it by itself first, and finds a plain tensor.
    """

    taps: Taps
    origin: str
    measured: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_idle_dropout(func, args, kwargs or {}):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            if func in ADDITIONS and len(args) == 2 and not kwargs:
                for one, other in (args, args[::-1]):
                    if isinstance(one, Pending) and one is one.taps._pending and isinstance(other, torch.Tensor):
                        total = one.taps.add(one, plain(other))
                        if total is not None:
                            return total
            if getattr(func, "__name__", "") != "__get__":
                for one in args:
                    if isinstance(one, Pending) and one is one.taps._pending:
                        one.taps._settle()
            return func(*args, **(kwargs or {}))


def plain(x: torch.Tensor) -> torch.Tensor:
    """The tensor without its subclass; a plain one is itself, so that autograd sees no new node."""
    return x.as_subclass(torch.Tensor) if isinstance(x, Pending) else x


def _refuse_compiled(model: nn.Module) -> None:
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    if compiled or any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ActError(
            "the model was compiled by torch.compile, which ignores hooks added afterwards; pass the model from before "
            "compiling, or compile it inside the taps"
        )


def _head_of(model: nn.Module, modules: dict[str, nn.Module]) -> str | None:
    """The name of the LM head, if the model has one."""
    find: Callable[[], nn.Module | None] = getattr(model, "get_output_embeddings", lambda: None)
    head = find()
    return next((name for name, module in modules.items() if module is head), None) if head is not None else None


def as_rows(output: torch.Tensor, tokens: torch.Size, site: Site) -> tuple[torch.Tensor, int]:
    """The output of a site as ``[batch * length * heads, C]`` rows, tokens first, and the rows per token.

    Takes ``[batch, length, C]``; ``[batch * length, C]``; ``[batch, length, heads, C]`` and, from norms that run after
    the heads were moved forward, ``[batch, heads, length, C]``; and one row of positions ``[1, length, C]``.

    Raises:
        ActError: any other shape.
    """
    batch, length = tokens
    lead = output.shape[:-1]
    if lead == (batch, length) or lead == (batch * length,):
        return output.reshape(-1, output.shape[-1]), 1
    if lead in ((length,), (1, length)):
        return output.expand(batch, length, -1).reshape(-1, output.shape[-1]), 1
    if len(lead) == 3 and lead[0] == batch:
        if lead[1] == length and not (lead[2] == length and _heads_lead(output)):
            return output.reshape(-1, output.shape[-1]), lead[2]
        if lead[2] == length:
            return output.transpose(1, 2).reshape(-1, output.shape[-1]), lead[1]
    raise ActError(
        f"site {site.name} gave an output of shape {list(output.shape)} for {batch} x {length} tokens; expected "
        "[batch, length, channels], or with a dimension of heads; leave this module out or report the architecture"
    )


def _heads_lead(output: torch.Tensor) -> bool:
    # With as many heads as tokens the shape is ambiguous; heads moved forward keep their memory next to each other.
    return output.stride(1) < output.stride(2)
