"""Loading Hugging Face models and tokenizers, with errors a person can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from act.errors import ActError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(name: str, *, dtype: str = "auto", device: str = "auto") -> nn.Module:
    """A causal language model in eval mode.

    Args:
        name: a folder in Hugging Face format, or a hub id.
        dtype: one of :data:`DTYPES`; ``auto`` keeps the checkpoint's.
        device: a torch device; ``auto`` is the first GPU, else the CPU.

    Raises:
        ActError: no such model, a damaged one, or an unknown dtype or device.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ActError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    place = device_named(device)
    model = _from_pretrained(AutoModelForCausalLM, "model", name, dtype=dtype)
    return model.to(place).eval()


def load_config(name: str, dtype: str = "auto") -> Any:
    """The configuration of a model, with the dtype that it will have; raises ActError if there is none."""
    from transformers import AutoConfig

    if dtype not in DTYPES:
        raise ActError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    config = _from_pretrained(AutoConfig, "model", name)
    if dtype != "auto":
        config.dtype = getattr(torch, dtype)
    return config


def empty_model(config: Any) -> nn.Module:
    """The model of a configuration on the meta device: its shapes without its weights."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise ActError(f"cannot build a causal language model: {' '.join(str(error).split())[:300]}") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model; raises ActError if there is none."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, "tokenizer", name)


def _from_pretrained(loader: Any, what: str, name: str, **options: Any) -> Any:
    if not Path(name).is_dir() and (Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/"))):
        raise ActError(
            f"no such {what}: {name}; expected a folder in Hugging Face format, or a hub id such as org/name"
        )
    try:
        return loader.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ActError(f"cannot load the {what} {name}: {' '.join(str(error).split())[:300]}") from error


def device_named(device: str) -> torch.device:
    """The torch device of that name; ``auto`` is the first GPU, else the CPU. Raises ActError if it cannot be used."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ActError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error
    return place
