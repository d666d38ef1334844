"""Models on the Hugging Face hub: what the cache has while the hub cannot be reached, and the base of an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from act.core.errors import ActError, Unreachable, brief

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"


def at_revision(name: str, revision: str | None) -> str:
    """A model of the hub at a branch, tag or commit, in one name: ``org/name@revision``.

    Raises:
        ActError: the model is a folder, or a revision is in its name already.

    >>> from act.models.hub import at_revision, identifier
    >>> at_revision("org/name", "v1.0"), at_revision("org/name", None), identifier("org/name@v1.0")
    ('org/name@v1.0', 'org/name', 'org/name')
    """
    if revision is None:
        return name
    if Path(name).is_dir():
        raise ActError(f"{name} is a folder, which has no revision {revision}; leave --revision out, or give a hub id")
    if identifier(name) != name:
        raise ActError(f"{name} names a revision already; leave --revision out")
    return f"{name}@{revision}"


def identifier(name: str) -> str:
    """A folder, or a hub id without its revision."""
    return name if Path(name).is_dir() else name.partition("@")[0]


def revised(name: str) -> dict[str, Any]:
    """The option by which the revision in a name is loaded; empty if it has none."""
    revision = name.removeprefix(identifier(name)).removeprefix("@")
    return {"revision": revision} if revision else {}


def reachable() -> bool:
    """Whether the hub answers, which is asked once, for some seconds at most."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url("gpt2", _CONFIG), timeout=10)
    except HfHubHTTPError:  # an answer
        return True
    except Exception:  # of requests, httpx or sockets, depending on the version
        return False
    return True


def is_here(name: str) -> bool:
    """Whether a model, or its configuration at least, is a folder or in the hub's cache."""
    return Path(name).is_dir() or any(_kept(name).glob(f"*/{_CONFIG}"))


def has_weights(name: str) -> bool:
    """Whether the weights of a model are in a folder or in the hub's cache."""
    return Path(name).is_dir() or any(any(_kept(name).glob(f"*/{kind}")) for kind in (_WEIGHTS, "*.bin"))


def unreached(error: BaseException) -> bool:
    """Whether an error says that the hub cannot be reached, and its cache does not have what was asked for."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    found = list(causes(error))
    if any(isinstance(cause, RepositoryNotFoundError) for cause in found):  # an answer
        return False
    lost = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    known = any(isinstance(cause, lost) or type(cause).__name__ in _NO_CONNECTION for cause in found)
    return known or "couldn't connect" in str(error)


_NO_CONNECTION = ("ConnectError", "ConnectTimeout", "ReadTimeout")  # of the client's HTTP library, which changes


def not_here(name: str) -> str:
    """Why a model is neither here nor to be had, and what to do."""
    from huggingface_hub import constants

    again = ", or unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else ""
    return (
        "there is no such folder, the hub's cache does not have it, and the hub cannot be reached; give a folder, or "
        f"download it where there is a network (hf download {identifier(name)}){again}"
    )


def downloaded(name: str) -> Path:
    """The folder of a model; one of the hub is downloaded to its cache: configuration, tokenizer and weights.

    Raises:
        ActError: it is neither a folder nor on the hub; :class:`Unreachable` if that cannot be told.
    """
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name)
    try:
        known: dict[str, Any] = cached_only(name)
        for weights in (_WEIGHTS, "*.bin"):  # the latter of models that were saved before there were safetensors
            wanted = {"allow_patterns": [*_BESIDE, weights], "ignore_patterns": _OTHER_FORMS, **known}
            folder = Path(snapshot_download(identifier(name), **revised(name), **wanted))
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the client passes on the errors of its HTTP library
        if unreached(error):
            raise Unreachable(f"cannot load the model {name}: {not_here(name)}") from error
        raise ActError(
            f"cannot load the model {name}: the hub says {brief(error)}; correct the name, or log in"
        ) from error
    return folder


_WEIGHTS = "*.safetensors"
_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "README.md")
_OTHER_FORMS = ["*/*", "consolidated*"]


def cached_only(name: str) -> dict[str, Any]:
    """The option by which a model of the hub is loaded from its cache alone; empty while the hub can be reached.

    Without it, every file that the cache lacks is asked for again and again, for half a minute, although most of these
    are ones that the model does not have. The hub is asked once.

    Raises:
        Exception: the cache has nothing of that name, and neither has the hub, or it cannot be reached (see
            :func:`unreached`).
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    if Path(name).is_dir():
        return {}
    known = any(_kept(name).glob("*/*"))
    try:
        get_hf_file_metadata(hf_hub_url(identifier(name), _CONFIG, **revised(name)))
    except EntryNotFoundError:  # as of an adapter
        return {}
    except HfHubHTTPError:  # an answer
        if known:
            return {}
        raise
    except Exception:  # of requests, httpx or sockets, depending on the version
        if known:
            return {"local_files_only": True}
        raise
    return {}


def _kept(name: str) -> Path:
    """Where the hub's cache keeps the versions of a model."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{identifier(name).replace('/', '--')}", "snapshots")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def base_of(name: str, *, merge: bool = False) -> str:
    """The base model of an adapter, which has no configuration of its own; the name itself for any other model.

    Args:
        name: a folder, or a hub id.
        merge: whether a model of the hub with both configurations counts as an adapter.

    Raises:
        ActError: an adapter that names none.
        Exception: as :func:`cached_only`.
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
    """The folder in the hub's cache while the hub cannot be reached, or of a revision; else the name itself."""
    from huggingface_hub import snapshot_download

    known = cached_only(name)
    return str(snapshot_download(identifier(name), **revised(name), **known)) if known or revised(name) else name


def _file(name: str, file: str, known: dict[str, Any]) -> str | None:
    """A file of a model on the hub, in the cache; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(identifier(name), file, **revised(name), **known))
    except LocalEntryNotFoundError:
        if known:
            return None
        raise
    except EntryNotFoundError:
        return None
