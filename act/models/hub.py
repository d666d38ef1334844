"""Models on the Hugging Face hub: what the cache has while the hub cannot be reached, and the base of an adapter."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from act.core.errors import ActError

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"


def cached_only(name: str) -> dict[str, Any]:
    """The option by which a model of the hub is loaded from its cache alone; empty while the hub can be reached.

    Without it, every file that the cache lacks is asked for again and again, for half a minute, although most of these
    are ones that the model does not have. Of what the cache has nothing of, one file is asked for in that way.

    Raises:
        huggingface_hub.errors.HfHubHTTPError, LocalEntryNotFoundError: the cache has nothing of that name, and neither
            has the hub, or it cannot be reached.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if Path(name).is_dir():
        return {}
    kept = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    if not any(kept.glob("*/*")):
        _file(name, _CONFIG, {})
        return {}
    try:
        get_hf_file_metadata(hf_hub_url(name, _CONFIG))
    except HfHubHTTPError:  # an answer
        return {}
    except Exception:  # of requests, httpx or sockets, depending on the version
        return {"local_files_only": True}
    return {}


def base_of(name: str, *, merge: bool = False) -> str:
    """The base model of an adapter, which has no configuration of its own; the name itself for any other model.

    Args:
        name: a folder, or a hub id.
        merge: whether a model of the hub with both configurations counts as an adapter.

    Raises:
        ActError: an adapter that names none.
        huggingface_hub.errors.HfHubHTTPError, LocalEntryNotFoundError: as :func:`cached_only`.
    """
    if find_spec("peft") is None:
        return name
    if Path(name).is_dir():
        alone = not Path(name, _CONFIG).is_file() and Path(name, _ADAPTER).is_file()
        adapter = str(Path(name, _ADAPTER)) if alone else None
    else:
        known = cached_only(name)
        adapter = _file(name, _ADAPTER, known) if merge or _file(name, _CONFIG, known) is None else None
    if adapter is None:
        return name
    base = json.loads(Path(adapter).read_text())["base_model_name_or_path"]
    if not isinstance(base, str):
        raise ActError("its adapter_config.json names no base model; write its folder there (base_model_name_or_path)")
    return base


def folder_of(name: str) -> str:
    """The folder in the hub's cache while the hub cannot be reached; else the name itself."""
    from huggingface_hub import snapshot_download

    known = cached_only(name)
    return str(snapshot_download(name, **known)) if known else name


def _file(name: str, file: str, known: dict[str, Any]) -> str | None:
    """A file of a model on the hub, in the cache; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(name, file, **known))
    except LocalEntryNotFoundError:
        if known:
            return None
        raise
    except EntryNotFoundError:
        return None
