"""Tiny models of text and images, and the models of text alone inside them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from tiny_families import small
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FAMILIES = "gemma3 qwen2_5_vl qwen3_vl llava paligemma idefics3 smolvlm mistral3 internvl llama4 mllama blip-2 gemma4"


@functools.cache
def _config(family: str) -> Any:
    config = small(CONFIG_MAPPING[family], {})
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if "rope_type" in rope:  # by axis of an image, of the pairs that turn
        pairs = int(8 * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [pairs - pairs // 2, pairs // 2 - pairs // 4, pairs // 4]
    text.tie_word_embeddings = config.tie_word_embeddings = family == "gemma3"
    return config


def config_of(family: str) -> Any:
    """The configuration of a family of :data:`FAMILIES`."""
    return copy.deepcopy(_config(family))


def multimodal(family: str, seed: int = 0) -> torch.nn.Module:
    """A model of text and images."""
    return randomised(transformers.AutoModelForImageTextToText.from_config, config_of(family), seed)


def require_stock_forward(family: str) -> None:
    """Skip where transformers itself cannot run a family, as 5.24 cannot run Llama 4 with images."""
    try:
        multimodal(family)(torch.ones(1, 3, dtype=torch.long))
    except AttributeError as error:
        pytest.skip(f"transformers {transformers.__version__} cannot run {family}: {error}")


def of_text(family: str, seed: int = 0) -> torch.nn.Module:
    """The model of text alone that is inside :func:`multimodal`, if there is a class for it."""
    return randomised(transformers.AutoModelForCausalLM.from_config, config_of(family).get_text_config(), seed)


def randomised(make: Any, config: Any, seed: int = 0) -> torch.nn.Module:
    """What ``make`` makes of a configuration, with norms and biases that are not trivial."""
    torch.manual_seed(seed)
    model = make(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
