"""The rotary functions of modeling files, replaced in their namespace while taps are on.

Attention modules call ``apply_rotary_pos_emb(q, k, cos, sin)`` as a plain function, so no hook on a module sees it.
It is recognised by its parameters, and its arithmetic by trying it on random values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from act_kernels import rotary
from act_kernels.ops import FLOAT_DTYPES


@dataclass(frozen=True)
class Turn:
    """How a function turns pairs: the options of :func:`act_kernels.rotary`, and how it reads cos and sin."""

    interleaved: bool
    round_once: bool
    repeat: bool = False
    """The first half of cos and sin holds one value a pair, to be repeated for both its members."""

    def _widened(self, angles: torch.Tensor) -> torch.Tensor:
        return angles[..., : angles.shape[-1] // 2].repeat_interleave(2, dim=-1) if self.repeat else angles

    def apply(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **moments: Any) -> Any:
        """Turned q and k; ``moments`` are those of :func:`act_kernels.rotary`."""
        cos, sin = self._widened(cos), self._widened(sin)
        return rotary(q, k, cos, sin, interleaved=self.interleaved, round_once=self.round_once, **moments)


TURNS = tuple(Turn(*options) for options in ((False, False), (False, True), (True, False), (True, True)))
TURNS += tuple(Turn(True, round_once, repeat=True) for round_once in (False, True))

Handler = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Turn], Any]


class RotaryFunction:
    """Stands in for one function; calls that no handler wants, or that it cannot reproduce, go to the original."""

    _installed: ClassVar[dict[tuple[int, str], RotaryFunction]] = {}

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self.namespace, self.name, self.original = namespace, name, namespace[name]
        self.handlers: list[Handler] = []
        self._turns: dict[tuple[torch.dtype, torch.device, int, int], Turn | None] = {}

    @classmethod
    def add(cls, namespace: dict[str, Any], name: str, handler: Handler) -> Callable[[], None]:
        """Offer calls of a function to ``handler``; the last handler to be taken away puts the function back.

        Returns the function that takes the handler away.
        """
        key = (id(namespace), name)
        stand_in = cls._installed.get(key)
        if stand_in is None:
            stand_in = cls._installed[key] = namespace[name] = cls(namespace, name)
        stand_in.handlers.append(handler)

        def remove() -> None:
            stand_in.handlers.remove(handler)
            if not stand_in.handlers:
                stand_in.namespace[name] = stand_in.original
                del cls._installed[key]

        return remove

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any
    ) -> Any:
        if not (more or named or torch.compiler.is_compiling()) and (turn := self._turn(q, k, cos, sin)):
            for handler in self.handlers:
                result = handler(q, k, cos, sin, turn)
                if result is not None:
                    return result
        return self.original(q, k, cos, sin, *more, **named)

    def _turn(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Turn | None:
        if not (q.dim() == k.dim() == 4 and cos.dim() == sin.dim() == 3 and cos.shape == sin.shape):
            return None
        if q.dtype not in FLOAT_DTYPES or not q.dtype == k.dtype == cos.dtype == sin.dtype:
            return None
        if cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] != q.shape[2] or q.shape[3] != k.shape[3]:
            return None
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
            return None
        key = (q.dtype, q.device, q.shape[3], cos.shape[2])
        if key not in self._turns:
            self._turns[key] = self._recognise(*key)
        return self._turns[key]

    def _recognise(self, dtype: torch.dtype, device: torch.device, width: int, turned: int) -> Turn | None:
        """The turn that gives the original's bits on random values, if any."""
        if turned % 2 or turned > width:
            return None
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(2, heads, 3, width, generator=generator).to(device, dtype) for heads in (2, 1))
        angle = torch.randn(2, 3, turned // 2, generator=generator).repeat(1, 1, 2)
        cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
        try:
            expected = self.original(q, k, cos, sin)
        except Exception:  # a function that wants something else is left alone
            return None
        for turn in TURNS:
            found = turn.apply(q, k, cos, sin)
            if all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
                return turn
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
