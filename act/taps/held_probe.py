"""Whether the rows of holders are those of the tokens that they seem to be, tried with two texts.

A row of a token, at one expert, must not change where only other tokens do. That shows whether gathers were followed
rightly, whatever a model does between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError
from act.models.layout import Layout
from act.taps.attachments import Attachments
from act.taps.holders import Bank, Holder, around, parameters_of
from act.taps.layouts import ROUNDING, Unread
from act.taps.parameter_calls import ParameterCalls
from act.taps.probe import Recording, other_text, run
from act.taps.routed import RoutedRows

BY_TOKEN, BY_SOURCE = Layout((("batch", "length"),)), Layout((("batch", "source"),))
Seen = dict[str, list[tuple[Bank, RoutedRows]] | Unread]


def learn_held(
    model: nn.Module, holders: Sequence[Holder], recording: Recording
) -> tuple[list[Holder], dict[str, tuple[Layout, ...] | Unread]]:
    """The layout of every site of these holders, or why it cannot be read.

    Returns:
        The holders, some as parts of the module around them, whose forward is what runs; layouts by the site's name.
    """
    found: dict[str, tuple[Layout, ...] | Unread] = {}
    kept: list[Holder] = []
    while holders:
        first, second = (_seen(model, holders, recording, changed) for changed in (False, True))
        idle = []
        for holder in holders:
            one, other = (_unless_unseen(holder, seen.get(holder.name)) for seen in (first, second))
            if one is None and holder.name:
                idle.append(holder)
                continue
            kept.append(holder)
            for place, bank in enumerate(holder.banks):
                if isinstance(one, list) and isinstance(other, list):
                    answer = _checked(bank, one[place][1], other[place][1], read_by(recording, holder.name))
                else:
                    unread = (each for each in (one, other) if isinstance(each, Unread))
                    answer = next(unread, Unread("no probe reached it"))
                found.update(dict.fromkeys((site.name for site in bank.sites), answer))
        holders = around(idle)
    return kept, found


def _unless_unseen(
    holder: Holder, seen: list[tuple[Bank, RoutedRows]] | Unread | None
) -> list[tuple[Bank, RoutedRows]] | Unread | None:
    """What was seen; the reason, if experts ran without any product with their weights."""
    if holder.routed and isinstance(seen, list) and not any(len(rows.rows) for bank, rows in seen if bank.routed):
        return Unread("its experts ran, but no product with their weights was seen, as with kernels of their own")
    return seen


def read_by(recording: Recording, name: str) -> tuple[torch.Tensor, Layout]:
    """The token ids that a module reads, and the layout of one row for each: an encoder's are the source."""
    if recording.source is not None and recording.encoder and name.startswith(recording.encoder):
        return recording.source, BY_SOURCE
    return recording.ids, BY_TOKEN


def _seen(model: nn.Module, holders: Sequence[Holder], recording: Recording, changed: bool) -> Seen:
    """What each holder computes for a text, or for another, or why that cannot be said."""
    texts = other_text(recording.ids), None if recording.source is None else other_text(recording.source)
    seen: Seen = {}
    parameter = parameters_of(model)

    def forward(holder: Holder, original: Any, *args: Any, **kwargs: Any) -> Any:
        calls = ParameterCalls(holder, parameter, read_by(recording, holder.name)[0].numel())
        with calls:
            output = original(*args, **kwargs)
        if holder.name in seen:
            seen[holder.name] = Unread("it runs several times in one forward")
        else:
            try:
                seen[holder.name] = calls.results()
            except ActError as error:
                seen[holder.name] = Unread(str(error))
        return output

    with _attached(model, {holder.name: partial(forward, holder) for holder in holders}):
        run(model, *(texts if changed else (recording.ids, recording.source)), recording.masked)
    return seen


@contextlib.contextmanager
def _attached(model: nn.Module, forwards: Mapping[str, Any]) -> Iterator[None]:
    attachments = Attachments(model)
    try:
        for name, forward in forwards.items():
            attachments.replace(name, forward)
        yield
    finally:
        attachments.remove()


def _same_places(before: RoutedRows, after: RoutedRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows are of the same token at the same expert, in both."""
    if torch.equal(before.tokens, after.tokens) and torch.equal(before.offsets, after.offsets):
        every = torch.arange(len(before.tokens), device=before.tokens.device)
        return every, every
    return before.where_both(after)[:2]


def _checked(
    bank: Bank, before: RoutedRows, after: RoutedRows, text: tuple[torch.Tensor, Layout]
) -> tuple[Layout, ...] | Unread:
    """Whether only rows of tokens changed that changed themselves, or that may see those that did."""
    ids, layout = text
    if not len(before.rows):
        return (layout,) if bank.routed else Unread("no product with its weight was seen")
    if before.rows.shape[1] != bank.sites[0].width:
        return Unread(f"its products are {before.rows.shape[1]} wide, not {bank.sites[0].width}")
    mine, theirs = _same_places(before, after)
    tokens = before.tokens[mine]
    one, other = before.rows[mine].double(), after.rows[theirs].double()
    spread = before.rows.double().std(0, correction=0).clamp(min=torch.finfo(torch.float64).tiny)
    moved = ((one - other).abs() / spread).amax(1) > ROUNDING
    batch, length = ids.shape
    row = tokens // length
    alone = (row >= 2).to(moved.device)
    changed = ((row == 1) | (tokens == length - 1)).to(moved.device)
    if moved[alone].any() or (not moved[changed].any() and bool(changed.any())):
        return Unread("which of its rows belongs to which token depends on the text")
    return (layout,)
