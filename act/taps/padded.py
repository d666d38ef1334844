"""Texts that a model pads to whole blocks, such as of an attention window, as probes of several lengths show."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from act.core.errors import ActError
from act.models.calls import has_decoder
from act.models.layout import Sizes, Tokens
from act.models.views import original
from act.taps.probe import Recording, probe, sizes_in


def blocks_of(model: nn.Module, sites: set[str], recording: Recording) -> Mapping[Tokens, int]:
    """The texts that a model pads, until their length is a multiple of the number given here.

    Raises:
        ActError: the model has more positions than tokens for another reason.
    """
    texts: tuple[Tokens, ...] = ("length", "source") if has_decoder(model) else ("length",)
    blocks: dict[Tokens, int] = {}
    for text in texts:
        tokens, positions = _tokens(recording, text), _positions(model, recording, text)
        if positions < tokens or positions % tokens == 0:
            continue  # one for each token, or several, as of streams
        longer, whole = (probe(model, sites, {text: length}) for length in (positions + 1, positions))
        # a model that takes no longer text has one block
        block = positions if isinstance(longer, str) else _positions(model, longer, text) - positions
        stays = not isinstance(whole, str) and _positions(model, whole, text) == positions
        if not stays or block < 2 or positions % block:
            raise ActError(
                f"{type(model).__name__} turns {tokens} tokens into {positions} positions, so its outputs have no row "
                "for each token: it adds some of its own, such as a prompt that it was trained with, or virtual tokens "
                "of an adapter; profile a model without them"
            )
        blocks[text] = block
    return blocks


def whole_blocks(model: nn.Module, recording: Recording, blocks: Mapping[Tokens, int]) -> Iterator[dict[Tokens, int]]:
    """Lengths of texts, at least those of a probe, to which the model adds nothing.

    First those that divide no other size in its configuration, then the shortest, as a model may take no longer ones.
    """
    least = {text: _tokens(recording, text) + -_tokens(recording, text) % block for text, block in blocks.items()}
    apart = {}
    for text, block in blocks.items():
        others = sizes_in(model) - {block}
        lengths = itertools.count(least[text], block)
        apart[text] = next(length for length in lengths if all(size % length for size in others))
    yield apart
    yield least


def require_whole(blocks: Mapping[Tokens, int], sizes: Sizes) -> None:
    """Raise :class:`ActError` for texts that the model would pad."""
    for text, block in blocks.items():
        if sizes.of(text) % block:
            raise ActError(
                f"the model pads {sizes.of(text)} tokens to whole blocks of {block}, so its outputs have rows that are "
                f"no tokens; give batches whose length is a multiple of {block}, with an attention mask"
            )


def padded(
    model: nn.Module,
    blocks: Mapping[Tokens, int],
    inputs: Mapping[str, torch.Tensor],
    count_mask: torch.Tensor,
    source_mask: torch.Tensor | None,
) -> tuple[Mapping[str, torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """The inputs and masks of a forward with the padding that the model would add."""
    given = dict(inputs)
    for text, block in blocks.items():
        mask = count_mask if source_mask is None or text == "length" else source_mask
        decodes = source_mask is not None and text == "length"
        ids, attended = (f"{'decoder_' if decodes else ''}{name}" for name in ("input_ids", "attention_mask"))
        given.setdefault(attended, torch.ones_like(given[ids]))
        token: Any = getattr(getattr(original(model), "config", None), "pad_token_id", None)
        for name, tensor in given.items():
            if name.startswith("decoder_") is decodes and tensor.shape[:2] == mask.shape:
                given[name] = _filled(tensor, block, token or 0 if name == ids else 0)
        if mask is count_mask:
            count_mask = _filled(mask, block, False)
        else:
            source_mask = _filled(mask, block, False)
    return given, count_mask, source_mask


def _filled(tensor: torch.Tensor, block: int, value: int) -> torch.Tensor:
    """A tensor ``[batch, length, …]`` with as many more tokens as fill a block."""
    more = -tensor.shape[1] % block
    return pad(tensor, (*[0, 0] * (tensor.dim() - 2), 0, more), value=value)


def _tokens(recording: Recording, text: Tokens) -> int:
    ids = recording.ids if text == "length" or recording.source is None else recording.source
    return ids.shape[1]


def _positions(model: nn.Module, recording: Recording, text: Tokens) -> int:
    """How many rows more than half of the outputs have for each sequence; 0 if these differ."""
    batch = len(recording.ids)
    other = 0 if recording.source is None else _tokens(recording, "source" if text == "length" else "length")
    lengths: Counter[int] = Counter()
    for name, (output, *_) in recording.outputs.items():
        of_source = bool(recording.encoder) and name.startswith(recording.encoder)
        if of_source is not (text == "source") or isinstance(model.get_submodule(name), nn.Conv1d):
            continue  # of the other text; or channels come before tokens
        if getattr(output, "ndim", 0) == 3 and batch in output.shape[:2]:
            lengths[output.shape[1] if len(output) == batch else len(output)] += 1
    del lengths[other]
    most, often = max(lengths.items(), key=lambda item: item[1], default=(0, 0))
    return most if 2 * often > lengths.total() else 0
