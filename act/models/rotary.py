"""The rotary functions of modeling files, replaced in their namespace while taps are on.

Attention modules call ``apply_rotary_pos_emb(q, k, cos, sin)`` as a plain function, so no hook on a module sees it.
It is recognised by its parameter names; trying it on random values shows what it computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from act_kernels import rotary
from act_kernels.ops import FLOAT_DTYPES

Rotated = tuple[torch.Tensor, torch.Tensor]
RotaryPairs = Literal["half", "interleaved"] | None
"""Which of ``n`` rotated dimensions turn together. ``half``: j and j + n / 2; ``interleaved``: 2 j and 2 j + 1."""


@dataclass(frozen=True)
class RotaryStyle:
    """How a function rotates pairs: the options of :func:`act_kernels.rotary`, and how it reads cos and sin."""

    interleaved: bool
    round_once: bool
    repeat: bool = False
    """The first half of cos and sin holds one value per pair, to be repeated for both its members."""

    def _widened(self, angles: torch.Tensor) -> torch.Tensor:
        return angles[..., : angles.shape[-1] // 2].repeat_interleave(2, dim=-1) if self.repeat else angles

    def apply(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        v: torch.Tensor | None = None,
        q_moments: torch.Tensor | None = None,
        k_moments: torch.Tensor | None = None,
        v_moments: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> Rotated:
        """Rotated q and k; arguments as :func:`act_kernels.rotary` takes them."""
        return rotary(
            q,
            k,
            self._widened(cos),
            self._widened(sin),
            interleaved=self.interleaved,
            round_once=self.round_once,
            v=v,
            q_moments=q_moments,
            k_moments=k_moments,
            v_moments=v_moments,
            mask=mask,
        )


ROTARY_STYLES = tuple(RotaryStyle(*options) for options in ((False, False), (False, True), (True, False), (True, True)))
ROTARY_STYLES += tuple(RotaryStyle(True, round_once, repeat=True) for round_once in (False, True))

Handler = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, RotaryStyle], "Rotated | None"]
"""Called with q, k, cos, sin and the style; returns None to leave the call to the next handler or the original."""


Watcher = Callable[[Callable[..., Any], torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called with the original function, q, k and cos on every call."""


class RotaryFunction:
    """Stands in for one function; calls that no handler takes, or whose style is not known, go to the original."""

    _installed: ClassVar[dict[tuple[int, str], RotaryFunction]] = {}

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self.namespace, self.name, self.original = namespace, name, namespace[name]
        self.handlers: list[Handler] = []
        self.watchers: list[Watcher] = []
        self._styles: dict[tuple[torch.dtype, torch.device, int, int], RotaryStyle | None] = {}

    @classmethod
    def add(cls, namespace: dict[str, Any], name: str, handler: Handler) -> Callable[[], None]:
        """Offer calls of a function to ``handler``.

        Returns:
            A function that removes the handler; when the last is removed, the original is put back.
        """
        stand_in = cls._standing_in(namespace, name)
        stand_in.handlers.append(handler)
        return partial(stand_in._without, stand_in.handlers, handler)

    @classmethod
    def watch(cls, namespace: dict[str, Any], name: str, watcher: Watcher) -> Callable[[], None]:
        """Tell ``watcher`` of every call of a function, also of those that no handler is offered; see :meth:`add`."""
        stand_in = cls._standing_in(namespace, name)
        stand_in.watchers.append(watcher)
        return partial(stand_in._without, stand_in.watchers, watcher)

    @classmethod
    def _standing_in(cls, namespace: dict[str, Any], name: str) -> RotaryFunction:
        key = (id(namespace), name)
        if key not in cls._installed:
            cls._installed[key] = namespace[name] = cls(namespace, name)
        return cls._installed[key]

    def _without(self, among: list[Any], one: Any) -> None:
        among.remove(one)
        if not self.handlers and not self.watchers:
            self.namespace[self.name] = self.original
            del self._installed[id(self.namespace), self.name]

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        *more: Any,
        **named: Any,
    ) -> Any:
        if k is None or cos is None or sin is None:  # some turn q alone
            return self.original(q, k, cos, sin, *more, **named)
        for watcher in self.watchers:
            watcher(self.original, q, k, cos)
        if not (more or named or torch.compiler.is_compiling()) and (style := self._style(q, k, cos, sin)):
            for handler in self.handlers:
                result = handler(q, k, cos, sin, style)
                if result is not None:
                    return result
        return self.original(q, k, cos, sin, *more, **named)

    def _style(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> RotaryStyle | None:
        if not (q.dim() == k.dim() == 4 and cos.dim() == sin.dim() == 3 and cos.shape == sin.shape):
            return None
        if q.dtype not in FLOAT_DTYPES or not q.dtype == k.dtype == cos.dtype == sin.dtype:
            return None
        if cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] != q.shape[2] or q.shape[3] != k.shape[3]:
            return None
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
            return None
        key = (q.dtype, q.device, q.shape[3], cos.shape[2])
        if key not in self._styles:
            self._styles[key] = self._recognise(*key)
        return self._styles[key]

    def _recognise(self, dtype: torch.dtype, device: torch.device, width: int, rotated: int) -> RotaryStyle | None:
        """The style that gives the original's bits on random values, if any."""
        if rotated % 2 or rotated > width:
            return None
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(2, heads, 3, width, generator=generator).to(device, dtype) for heads in (2, 1))
        angle = torch.randn(2, 3, rotated // 2, generator=generator).repeat(1, 1, 2)
        cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
        try:
            expected = self.original(q, k, cos, sin)
        except Exception:  # a function that takes other arguments is left alone
            return None
        for style in ROTARY_STYLES:
            found = style.apply(q, k, cos, sin)
            if all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
                return style
        return None


def rotary_functions(model: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Namespace and name of every function ``f(q, k, cos, sin, …)`` that the forward of a module calls."""
    seen = set()
    for kind in {type(module) for module in model.modules()}:
        forward = inspect.unwrap(kind.forward)
        namespace = getattr(forward, "__globals__", {})
        for name in getattr(getattr(forward, "__code__", None), "co_names", ()):
            function = namespace.get(name)
            if isinstance(function, RotaryFunction):
                function = function.original
            if (id(namespace), name) in seen or not inspect.isfunction(function):
                continue
            if list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]:
                seen.add((id(namespace), name))
                yield namespace, name


def rotary_pairs(function: Callable[..., Any], head_dim: int, angles: int) -> tuple[RotaryPairs, int]:
    """Which dimensions of a head a rotary function turns together, found by turning unit vectors.

    Args:
        function: ``f(q, k, cos, sin)``.
        head_dim: width of a head.
        angles: width of ``cos`` and ``sin``.

    Returns:
        The pairs and the number of dimensions that are turned; ``(None, 0)`` if they are neither of the known pairs.
    """
    function = function.original if isinstance(function, RotaryFunction) else function
    angle = torch.ones(1, head_dim, angles, device="cpu")
    unit = torch.eye(head_dim, device="cpu")[None, None]
    try:
        mixed = function(unit, unit, angle.cos(), angle.sin())[0][0, 0]
    except Exception:  # a function that takes other arguments
        return None, 0
    turned = ((mixed != 0) & ~torch.eye(head_dim, dtype=torch.bool, device="cpu")).nonzero()
    width = len(turned)  # each turned dimension is mixed with exactly one other
    if not width or width % 2 or width > head_dim:
        return None, 0
    half, even = torch.arange(width // 2, device="cpu"), 2 * torch.arange(width // 2, device="cpu")
    known: dict[RotaryPairs, torch.Tensor] = {
        "half": torch.stack([half, half + width // 2], dim=1),
        "interleaved": torch.stack([even, even + 1], dim=1),
    }
    for name, pairs in known.items():
        if torch.equal(turned[turned[:, 0] < turned[:, 1]], pairs):
            return name, width
    return None, 0
