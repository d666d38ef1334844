"""Parameters that scale a site: one of their values changes what the channels change that it scales, and no more."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from tiny_families import tiny
from torch import nn

from act.models.channels import ChannelSpace
from act.models.sites import Site
from act.models.views import language_view

KEPT = Path(__file__).with_name("scaled.txt")
UNREAD = "vision"  # in the paths of what reads no text
CANNOT_RUN = ("zamba2",)  # as small as it is made here
LENGTHS = {"deepseek_v4": 130}  # which compresses windows of 128 tokens
STEPS = (1.0, -1.0, 5.0, -5.0)
"""What is added to a value; where a gate is saturated, or the best experts stay the same, little changes nothing."""

Place = tuple[str, int, int]
"""A module, the number of its call, and which of the tensors that it is given."""


def listed() -> list:
    """The families of the list: of each line the first that no line before has, and the others as thorough tests."""
    first: dict[str, None] = {}
    lines = [line.partition(": ")[2].split(" + ") for line in KEPT.read_text(encoding="utf-8").splitlines()]
    for names in lines:
        if not first.keys() & {*names}:
            first[names[0]] = None
    rest = dict.fromkeys(name for names in lines for name in names if name not in first)
    marks = dict.fromkeys(first, pytest.mark.slow) | dict.fromkeys(rest, pytest.mark.thorough)
    return [pytest.param(name, marks=mark) for name, mark in marks.items() if name not in CANNOT_RUN]


def given(model: nn.Module, length: int) -> dict[Place, torch.Tensor]:
    """What modules with parameters of their own are given in a forward, in the order of the calls, channels last."""
    found: dict[Place, torch.Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls[name] = calls.get(name, 0) + 1
        for number, each in enumerate([*args, *kwargs.values()]):
            if isinstance(each, torch.Tensor) and each.dim() > 1:
                rows = each.movedim(1, -1) if isinstance(module, nn.Conv1d) else each
                found[name, calls[name], number] = rows.clone()

    handles = [
        module.register_forward_pre_hook(functools.partial(note, name), with_kwargs=True)
        for name, module in model.named_modules()
        if dict(module.named_parameters(recurse=False))
    ]
    with torch.no_grad():
        model(input_ids=torch.arange(2 * length).view(2, -1) % 97 + 5)
    for handle in handles:
        handle.remove()
    return found


def changed_by(model: nn.Module, before: dict, site: Site, rows: torch.Tensor, length: int) -> dict[Place, set[int]]:
    """The channels that change at each place, in the order of the calls, when rows of a site's parameters do."""
    parameters = dict(model.named_parameters())
    parts = [(part, parameters[part.key].detach()) for part in site.parameters]
    old = [parameter.clone() for _, parameter in parts]
    found: dict[Place, set[int]] = {}
    for step in STEPS:
        for part, parameter in parts:
            matrix, places = part.whole.part_of(parameter), part.places(rows)
            matrix[places] += step * torch.rand(matrix[places].shape, generator=torch.Generator().manual_seed(0))
        for place, now in given(model, length).items():
            if place in before and before[place].shape == now.shape and not torch.equal(before[place], now):
                found[place] = {*(before[place] != now).flatten(0, -2).any(0).nonzero().flatten().tolist()}
        for (_, parameter), values in zip(parts, old, strict=True):
            parameter.copy_(values)
        if found:
            break
    return found


@pytest.mark.skipif(not transformers.__version__.startswith("5.23."), reason="the list is of transformers 5.23")
@pytest.mark.parametrize("family", listed())
def test_a_value_changes_what_its_channels_change(family):
    model, length = language_view(tiny(family)), LENGTHS.get(family, 40)
    model.config.use_cache = False
    space = ChannelSpace.from_model(model)
    before = given(model, length)
    tried: set[Sequence[str]] = set()
    for site in space:
        names = tuple(re.sub(r"\.\d+(?=\.|$)", "", name) for name in (site.name, site.scales or ""))
        if site.scales is None or UNREAD in site.name or names in tried:
            continue
        tried.add(names)
        scaled = space.site(site.scales)
        share, seen = scaled.width // site.width, 0
        for value in {0, site.width - 1}:
            channels = torch.arange(value * share, (value + 1) * share)
            for place, columns in [*changed_by(model, before, site, torch.tensor([value]), length).items()][:1]:
                seen += 1
                if place[0] == scaled.module:  # it changes what the site reads
                    assert columns == {*channels.tolist()}, (names, value, place)
                else:
                    theirs = changed_by(model, before, scaled, channels, length)
                    assert columns <= theirs.get(place, set()), (names, value, place)
        assert seen, names  # one may be of a gate that is shut
    assert tried or family in ("got_ocr2", "step3p7")  # whose vision towers alone have any
