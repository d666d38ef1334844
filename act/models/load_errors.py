"""Why a model or tokenizer cannot be loaded, as a sentence that says what to do."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

from safetensors import SafetensorError

from act.core.errors import ActError, brief
from act.models.hub import causes, not_here, unreached

AGAIN = "download or save it again"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def reason(what: str, name: str, error: BaseException) -> str:
    """Why the model or tokenizer (``what``) of that name cannot be loaded, and what to do."""
    if isinstance(error, ActError):
        return str(error)
    said = brief(error, 300)
    if "custom code" in said:
        return (
            "it brings Python code of its own; read that, and if you trust it, let it run (--trust-remote-code, in "
            "Python trust_remote_code=True)"
        )
    missing = virtual_tokens(Path(name)) or _missing(what, Path(name)) if Path(name).is_dir() else None
    return _damage(error) or missing or _hub(name, error) or _architecture(str(error)) or said


def require_no_other_folder(name: str) -> None:
    """Raise :class:`ActError` for a folder that holds no model or adapter; what is no folder is not looked at."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / one).exists() for one in ("config.json", "adapter_config.json")):
        raise ActError(f"there is no model in {name}: {_missing('model', folder)}")


def _missing(what: str, folder: Path) -> str | None:
    """What the folder is instead of a model, or of a tokenizer."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return "the folder is empty; give the folder of a model in Hugging Face format"
    if "adapter_config.json" in names and (what == "tokenizer" or "config.json" not in names):
        base = _base(folder / "adapter_config.json")
        if what == "tokenizer":
            return f"it is an adapter without a tokenizer; copy the tokenizer of its base model{base} into it"
        return f"it is an adapter, and its base model{base} cannot be loaded; correct that name in adapter_config.json"
    if what == "tokenizer":
        return None if names.intersection(_TOKENIZERS) else "it has no tokenizer.json; copy a tokenizer's files into it"
    if "config.json" in names:
        return None
    if any(name.endswith(".gguf") for name in names):
        return "it has GGUF files only; give the model from which they were made, in Hugging Face format"
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f"it has no config.json; {f'give its folder {inner[0]}' if inner else AGAIN}"


def virtual_tokens(folder: Path) -> str | None:
    """Why an adapter that is no change of weights cannot be loaded."""
    method = _named(folder / "adapter_config.json", "peft_type").replace("_", " ").lower()
    if method.endswith(("prompt tuning", "prefix tuning", "p tuning")):
        base = _base(folder / "adapter_config.json")
        return f"it is an adapter of {method}, which puts virtual tokens before the text; give its base model{base}"
    return None


def _base(config: Path) -> str:
    base = _named(config, "base_model_name_or_path")
    return f" {base}" if base else ""


def _named(config: Path, key: str) -> str:
    try:
        named = json.loads(config.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return named if isinstance(named, str) else ""


def _hub(name: str, error: BaseException) -> str | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    found = list(causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in found):
        return "the hub gives it to accepted users only; ask for access on its page, and log in (hf auth login)"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in found):
        return "the hub has none of that name that you may read; correct the name, or log in (hf auth login)"
    if unreached(error):
        return not_here(name)
    return None


def _damage(error: BaseException) -> str | None:
    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError):
        return f"its weights are damaged or cut ({brief(error, 100)}); {AGAIN}"
    if isinstance(error, json.JSONDecodeError | KeyError):
        return f"one of its JSON files is damaged ({brief(error, 100)}); {AGAIN}"
    if re.search("not a valid JSON|No such file|no file named", said := brief(error, 300)):
        return f"{said}; {AGAIN}"
    return None


def _architecture(said: str) -> str | None:
    if found := re.search(r"has model type `([^`]*)` but", said):
        return (
            f"its model type {found[1]!r:.60} is unknown to the installed transformers; correct config.json, or update "
            "transformers (pip install -U transformers)"
        )
    if found := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", said):
        return f"its configuration is a {found[1]}, which belongs to no language model; give one that does"
    if "Should have a `model_type` key" in said:
        return "its config.json names no model_type; " + AGAIN
    return None
