"""Where a forward that runs for its statistics ends: before the first module that no site to measure needs.

Which modules are behind the last such site is learnt from the order in which modules ran in a probe, never from their
names. While a model runs, none of them ends it before everything to measure has been read.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from torch import nn

from act.models.placement import takes_back
from act.models.prefix import Prefix
from act.taps.attachments import Attachments
from act.taps.measurement import Measurement

Run = Callable[[], None]
"""A forward of a model on a probe."""


class Ended(BaseException):
    """Ends a forward that runs for its statistics; no model catches it by mistake."""


class Holding(Protocol):
    """A mechanism that reads some outputs later than they are computed."""

    def let_go(self) -> None:
        """Read what is held, as no other module will run."""
        ...


def behind(model: nn.Module, read: Set[str], runs: Sequence[Run]) -> frozenset[str]:
    """The modules that may end a forward as they start, by name.

    In each run they start only after the modules in ``read`` have ended for the last time, and not while one runs that
    must come to its own end. There are none if some module in ``read`` does not run, or if the model is not as it was
    after a forward that ended like that, or caught what ended it.

    Args:
        model: the model.
        read: the modules at whose end the sites to measure have been computed.
        runs: forwards that reach these modules; the first one reaches the modules that are behind, too.
    """
    before = _attributes(model)
    orders = [_Order.of(model, run) for run in runs]
    if not read <= set().union(*(order.ended for order in orders)):
        return frozenset()
    found = frozenset.intersection(*(order.behind(read) for order in orders))
    after = _attributes(model)
    if found and not _ends(model, found, runs[0], after, _changed(before, after)):
        return frozenset()
    return found


@dataclass(frozen=True)
class _Order:
    """When modules ran in one forward: a number for each first start and each last end, and what must not be cut."""

    started: dict[str, int]
    ended: dict[str, int]
    whole: frozenset[str]
    """Modules that ran within one that must come to its own end, or have hooks of somebody else."""

    @classmethod
    def of(cls, model: nn.Module, run: Run) -> _Order:
        clock = itertools.count()
        started: dict[str, int] = {}
        ended: dict[str, int] = {}
        whole: set[str] = set()
        running: list[bool] = []
        modules = dict(model.named_modules())
        hooked = {name for name, module in modules.items() if module._forward_hooks}
        own_end = hooked | {name for name, module in modules.items() if takes_back(module)}

        def note_start(name: str) -> None:
            started.setdefault(name, next(clock))
            if any(running) or name in hooked:  # a hook before a start may wait for one after the end
                whole.add(name)
            running.append(name in own_end)

        def note_end(name: str) -> None:
            ended[name] = next(clock)
            running.pop()

        with contextlib.ExitStack() as stack:
            for name, module in modules.items():
                before = module.register_forward_pre_hook(lambda *_, name=name: note_start(name))
                after = module.register_forward_hook(lambda *_, name=name: note_end(name))
                stack.callback(before.remove)
                stack.callback(after.remove)
            run()
        return cls(started, ended, frozenset(whole))

    def behind(self, read: Set[str]) -> frozenset[str]:
        last = max((self.ended[name] for name in read if name in self.ended), default=-1)
        return frozenset(name for name, start in self.started.items() if start > last) - self.whole


def _ends(model: nn.Module, names: Iterable[str], run: Run, before: _Attributes, usual: Set[tuple[str, str]]) -> bool:
    """Whether a forward ends at these modules, and leaves the model as a whole one does; else it is put back.

    ``before`` are the attributes of the model now, ``usual`` those that a whole forward changes.
    """

    def end(*_: Any) -> None:
        if next(times) == 0:
            raise Ended

    modules, times = dict(model.named_modules()), itertools.count()
    ended = False
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_pre_hook(end).remove)
        try:
            run()
        except Ended:
            ended = True
        except Exception:  # of a model that caught it
            ended = False
    left = _changed(before, _attributes(model)) - usual
    for name, attribute in left:
        if (name, attribute) in before:
            modules[name].__dict__[attribute] = before[name, attribute].put_back()
        else:
            del modules[name].__dict__[attribute]
    return ended and not left


class _Attribute:
    """A value that a module holds, and what the value holds if it is a plain container."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._content = copy.copy(value) if type(value) in (dict, list, set) else None

    def same(self, other: _Attribute) -> bool:
        return self._value is other._value and self._ids() == other._ids()

    def _ids(self) -> list[int]:
        content = self._content
        items = content.items() if isinstance(content, dict) else ((x,) for x in content or ())
        return [id(x) for item in items for x in item]

    def put_back(self) -> Any:
        """The value, with what it held."""
        if self._content is not None:
            self._value.clear()
            add = self._value.extend if isinstance(self._value, list) else self._value.update
            add(self._content)
        return self._value


_Attributes = dict[tuple[str, str], _Attribute]


def _attributes(model: nn.Module) -> _Attributes:
    return {(name, key): _Attribute(x) for name, module in model.named_modules() for key, x in vars(module).items()}


def _changed(before: _Attributes, after: _Attributes) -> set[tuple[str, str]]:
    keys = before.keys() | after.keys()
    return {key for key in keys if key not in before or key not in after or not before[key].same(after[key])}


class Ending:
    """Ends the forwards of one model.

    Args:
        names: the modules that may end one (see :func:`behind`).
        measurement: the sites of the model that are measured.
        holding: the mechanisms that read later.

    Attributes:
        on: whether this forward runs for its statistics.
        early: whether a module has ended it.
    """

    def __init__(self, names: Set[str], measurement: Measurement, holding: Sequence[Holding]) -> None:
        self._names, self._measurement, self._holding = names, measurement, holding
        self._prefix: Prefix | None = None
        self.on = self.early = False

    def attach(self, attachments: Attachments) -> None:
        """Hook the modules that may end a forward."""
        for name in self._names:
            attachments.before(name, self._before)

    @contextlib.contextmanager
    def over(self, prefix: Prefix | None) -> Iterator[None]:
        """A forward that runs for its statistics, behind a prefix if there is one."""
        self._prefix = prefix
        self.on, self.early = True, False
        try:
            yield
        except Ended:
            pass
        finally:
            self.on, self._prefix = False, None

    def end(self) -> NoReturn:
        """End the forward; what a model computes that catches this is not read."""
        self._let_go()
        self._measurement.close()
        raise Ended

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.on or self._measurement.closed or (self._prefix is not None and not self._prefix.is_whole):
            return
        self._let_go()
        if not self._measurement.missing:  # unlike where only a text with images reaches a site
            self.early = True
            self.end()

    def _let_go(self) -> None:
        for each in self._holding:
            each.let_go()
