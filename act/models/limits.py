"""What a model can take: positions, token ids, packed rows, padding without a mask, and tokens a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from act.core.errors import brief
from act.models.channels import ChannelSpace
from act.models.placement import input_device

PACKING_ATTENTION = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention that skips the blocks between packed pieces; others would compute and mask them."""

CPU_BUDGET = 2048  # what a layer makes of a batch stays in the cache
GPU_BUDGET = 8192
BUDGETS = 1024, 65536
MEMORY_SHARE = 0.5  # of what is free; the rest is for fragmentation, attention's workspace and the LM head's chunks


def vocabulary(model: nn.Module) -> int | None:
    """Rows of the input embedding, if the model has one."""
    embedding = _input_embedding(model)
    return None if embedding is None else len(embedding.weight)


def learned_positions(model: nn.Module) -> int | None:
    """Positions in the model's position embedding; None where positions are computed (rotary, ALiBi)."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is None:
        return None
    words = _input_embedding(model)
    for module in model.modules():
        # OPT and its kin keep two rows in front of the first position.
        if isinstance(module, nn.Embedding) and module is not words and module.num_embeddings - positions in (0, 2):
            return positions
    return None


def trained_positions(config: Any) -> int | None:
    """Positions that a model was made for, as its configuration says; None where it does not say."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((positions for positions in found if isinstance(positions, int) and positions > 1), None)


def packs(model: nn.Module, only_if_faster: bool) -> str | None:
    """None where pieces packed in one row with their own ``position_ids`` give what each gives alone, else why not."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if only_if_faster and attention not in PACKING_ATTENTION:
        return f"{attention} attention computes what lies between packed pieces"
    place = input_device(model)
    ids = torch.arange(1, 13, device=place)[None] % (vocabulary(model) or 1)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].to(place)
    try:
        with torch.inference_mode():
            packed = _logits(model, input_ids=ids, position_ids=positions)[:, 5:]
            alone = _logits(model, input_ids=ids[:, 5:], position_ids=positions[:, 5:])
    except (TypeError, ValueError, RuntimeError) as error:
        return f"the model does not take packed rows ({brief(error, 100)})"
    tolerance = 1e-4 if packed.dtype == torch.float32 else 3e-2
    if not torch.allclose(packed, alone, rtol=tolerance, atol=tolerance * float(alone.abs().max())):
        return "the model lets packed pieces see each other"
    return None


def causal(model: nn.Module) -> bool:
    """Whether no token sees those after it, bit for bit, so that padding on the right needs no mask.

    Without a mask, attention takes its fastest path (flash attention, on a GPU).
    """
    ids = torch.arange(1, 7, device=input_device(model)).repeat(2, 1)
    ids[1, -2:] += 1
    try:
        with torch.inference_mode():
            body: Any = model.base_model  # the LM head, which may not be wanted, looks at one token at a time
            one, other = body(input_ids=ids % (vocabulary(model) or 1), use_cache=False).last_hidden_state[:, :-2]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return torch.equal(one, other)


def default_token_budget(device: torch.device) -> int:
    """Tokens a batch where nobody says: the same on every machine, so that a run may go on elsewhere."""
    return GPU_BUDGET if device.type == "cuda" else CPU_BUDGET


def token_budget_for(models: Iterable[nn.Module], space: ChannelSpace, device: torch.device) -> int:
    """Tokens a batch: 2048 on a CPU; on a GPU what half of its free memory holds, from 1024 to 65536.

    A token takes, in each model, four of the widest site of the body (gate, up, their product and a copy) and twelve of
    the residual stream; if that is too little, a batch that does not fit is cut (see :class:`act.profiling.run.Run`).
    """
    if device.type != "cuda":
        return default_token_budget(device)
    free, _ = torch.cuda.mem_get_info(device)
    return budget_of(free, sum(_bytes_a_token(model, space) for model in models))


def budget_of(free: int, bytes_a_token: int) -> int:
    """The multiple of 1024 tokens that :data:`MEMORY_SHARE` of the free bytes holds, within :data:`BUDGETS`."""
    low, high = BUDGETS
    return min(high, max(low, int(free * MEMORY_SHARE / bytes_a_token) // 1024 * 1024))


def _bytes_a_token(model: nn.Module, space: ChannelSpace) -> int:
    body = [site.width for site in space if site.kind != "head"]
    stream = next((site.width for site in space if site.kind == "embed"), max(body))
    return next(model.parameters()).element_size() * (4 * max(body) + 12 * stream)


def _logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits


def _input_embedding(model: nn.Module) -> Any:
    find = getattr(model, "get_input_embeddings", None)
    try:
        return find() if find else None
    except NotImplementedError:
        return None
