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
        ActError: no such model, a damaged or incomplete one, or an unknown dtype or device.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ActError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    place = device_named(device)
    model, found = _from_pretrained(AutoModelForCausalLM, "model", name, dtype=dtype, output_loading_info=True)
    absent = sorted(found["missing_keys"])  # without those that are tied, or made anew by the architecture
    if absent:
        raise ActError(
            f"{name} lacks {len(absent)} of the model's weights, {absent[0]} for one, which would be random; "
            "download or save the model again"
        )
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


def require_same_tokens(donor: Any, target: Any) -> None:
    """Raise :class:`ActError` where a token id means another token to another tokenizer: a pair reads the same ids."""
    tokens = {index: token for token, index in donor.get_vocab().items()}
    for token, index in sorted(target.get_vocab().items(), key=lambda item: item[1]):
        if tokens.get(index, token) != token:
            raise ActError(
                f"token {index} is {tokens[index]!r} to the donor's tokenizer and {token!r} to the target's, so the "
                "models would read different texts; give two models with one vocabulary"
            )


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
