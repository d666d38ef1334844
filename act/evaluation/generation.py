"""What a model answers, by greedy decoding in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from act.core.errors import ActError
from act.data.pieces import padded
from act.evaluation.likelihoods import by_length
from act.models.placement import input_device
from act.models.views import language_view


@dataclass(frozen=True)
class Generated:
    """An answer: the place of its prompt, its tokens without the one that ended it, and whether one did."""

    place: int
    tokens: list[int]
    ended: bool


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    stop: set[int],
    pad_id: int,
    token_budget: int,
) -> Iterator[Generated]:
    """Greedy continuations of at most ``limit`` tokens, in batches of prompts of similar length.

    The model's own generation settings (sampling, penalties) are not used.

    Raises:
        ActError: a prompt leaves no room in the model's positions.
    """
    from transformers import GenerationConfig

    longest = getattr(language_view(model).config, "max_position_embeddings", None) or 1 << 30
    own = model.generation_config
    device = input_device(model)
    try:
        for places in by_length([len(prompt) for prompt in prompts], token_budget, limit):
            ids, mask = padded([prompts[place] for place in places], pad_id, side="left")
            width = ids.shape[1]
            room = min(limit, longest - width)
            if room < 1:
                raise ActError(f"a prompt of {width} tokens leaves no room in the model's {longest} positions")
            # The model's own settings would fill in whatever these leave unset, so they are replaced.
            model.generation_config = GenerationConfig(  # type: ignore[assignment]
                max_new_tokens=room, do_sample=False, eos_token_id=sorted(stop) or None, pad_token_id=pad_id
            )
            written = model.generate(ids.to(device), attention_mask=mask.to(device))  # type: ignore[operator]
            for place, tokens in zip(places, written[:, width:].tolist(), strict=True):
                end = next((number for number, token in enumerate(tokens) if token in stop), None)
                yield Generated(place, tokens[:end], end is not None)
    finally:
        model.generation_config = own
