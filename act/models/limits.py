"""What a model can take: positions, token ids, packed rows, padding without a mask, tokens per batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act.core.errors import ActError, brief
from act.models.calls import reader_of, without_cache
from act.models.channels import ChannelSpace
from act.models.embeddings import input_embedding
from act.models.placement import input_device
from act.models.trials import tried
from act.models.views import language_view

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PACKING_ATTENTION = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention that skips the blocks between packed pieces; other implementations compute and mask them."""

CPU_BUDGET = 2048  # the activations of a layer stay in the cache
GPU_BUDGET = 8192
GPU_BUDGETS = 1024, 65536  # the range that token_budget_for chooses from
MEMORY_SHARE = 0.5  # of the free memory; the rest is for fragmentation, attention's workspace and the LM head's chunks


def vocabulary(model: nn.Module) -> int | None:
    """Rows of the input embedding, if the model has one."""
    weight = getattr(input_embedding(model), "weight", None)
    return None if weight is None else len(weight)


def require_known_token(highest: int, rows: int | None) -> None:
    """Raise :class:`ActError` if the ``highest`` token id has no row in an embedding of ``rows`` (None: unknown)."""
    if rows is not None and highest >= rows:
        raise ActError(
            f"the tokenizer gave token {highest} and the model's embedding has {rows} rows; "
            "use the tokenizer that belongs to the model"
        )


def learned_positions(model: nn.Module) -> int | None:
    """Positions in the model's position embedding; None if positions are computed (rotary, ALiBi)."""
    config = getattr(language_view(model), "config", None)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    words = input_embedding(model)
    for module in model.modules():
        # OPT and models derived from it keep two rows in front of the first position.
        if isinstance(module, nn.Embedding) and module is not words and module.num_embeddings - positions in (0, 2):
            # RoBERTa and models derived from it count positions from the one of padding on.
            return positions if module.padding_idx is None else module.num_embeddings - module.padding_idx - 1
    return None


def trained_positions(config: PretrainedConfig | None) -> int | None:
    """The length in tokens that a model was made for, according to its configuration; None if that does not say."""
    text: Any = config
    text = text.get_text_config() if hasattr(text, "get_text_config") else text
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((positions for positions in found if isinstance(positions, int) and positions > 1), None)


def packs(model: nn.Module, only_if_faster: bool) -> str | None:
    """Why pieces cannot be packed into one row, each with its own ``position_ids``; None if they can.

    They can if each piece gives the same logits as by itself. With ``only_if_faster``, the model's attention must
    also be one of :data:`PACKING_ATTENTION`.
    """
    if reader_of(model) == "encoder-decoder":
        return f"{type(model).__name__} has an encoder beside its decoder, which reads another text"
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if only_if_faster and attention not in PACKING_ATTENTION:
        return f"{attention} attention also computes scores between packed pieces, so packing is no faster"
    place = input_device(model)
    ids = torch.arange(1, 13, device=place)[None] % (vocabulary(model) or 1)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].to(place)
    try:
        with tried(model), torch.inference_mode():
            packed = _logits(model, input_ids=ids, position_ids=positions)[:, 5:]
            alone = _logits(model, input_ids=ids[:, 5:], position_ids=positions[:, 5:])
    except (TypeError, ValueError, RuntimeError) as error:
        return f"the model does not take packed rows ({brief(error, 100)})"
    tolerance = 1e-4 if packed.dtype == torch.float32 else 3e-2
    if not torch.allclose(packed, alone, rtol=tolerance, atol=tolerance * float(alone.abs().max())):
        return "the model lets packed pieces attend to each other"
    return None


def causal(model: nn.Module) -> bool:
    """Whether no token is affected by those after it, bit for bit, so that padding on the right needs no mask.

    Without a mask, attention takes its fastest path (flash attention on a GPU).
    """
    if reader_of(model) != "decoder":
        return False
    ids = torch.arange(1, 7, device=input_device(model)).repeat(2, 1)
    ids[1, -2:] += 1
    try:
        with tried(model), torch.inference_mode():
            body: Any = model.base_model  # the LM head, which may be excluded, reads one token at a time
            return alike_before(body(input_ids=ids % (vocabulary(model) or 1), **without_cache(body)), 2)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def alike_before(output: Any, last: int) -> bool:
    """Whether a model gave the same bits for the tokens of two texts before the ``last`` ones, in which they differ."""
    if not hasattr(output, "last_hidden_state"):
        return False  # nothing shows it
    streams = [output.last_hidden_state, getattr(output, "last_hidden_state_ngram", None)]  # as of ProphetNet
    return all(torch.equal(*x[..., :-last, :]) for x in streams if x is not None)


def default_token_budget(device: torch.device) -> int:
    """Tokens per batch by default: 2,048 on a CPU, 8,192 on a GPU.

    They depend on nothing else, so that a run can be resumed on another machine.
    """
    return GPU_BUDGET if device.type == "cuda" else CPU_BUDGET


def token_budget_for(models: Iterable[nn.Module], space: ChannelSpace, device: torch.device) -> int:
    """Tokens per batch of a profile, as :func:`token_budget_of` gives them.

    The estimate: in each model, a token takes four times the widest site of the body (gate, up, their product and a
    copy) and twelve times the residual stream.
    """
    return token_budget_of(sum(_bytes_per_token(model, space) for model in models), device)


def token_budget_of(bytes_per_token: float, device: torch.device) -> int:
    """Tokens per batch: 2,048 on a CPU; on a GPU the multiple of 1,024 that fits in half of the free memory.

    At least 1,024 and at most 65,536. A batch that does not fit all the same is split (see
    :class:`act.profiling.run.Run`).
    """
    if device.type != "cuda":
        return default_token_budget(device)
    free, _ = torch.cuda.mem_get_info(device)
    low, high = GPU_BUDGETS
    return min(high, max(low, int(free * MEMORY_SHARE / bytes_per_token) // 1024 * 1024))


def _bytes_per_token(model: nn.Module, space: ChannelSpace) -> int:
    body = [site.width for site in space if site.kind != "head"]
    stream = next((site.width for site in space if site.kind == "embed"), max(body))
    return next(model.parameters()).element_size() * (4 * max(body) + 12 * stream)


def _logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    output = model(**inputs, **without_cache(model))
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits
