"""Loading Hugging Face models and tokenizers, with errors that say what to do."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act.core.errors import ActError, Missing, Unreachable, option, require_choice, require_type
from act.core.extras import optional
from act.core.near import is_local, near_path
from act.core.tensor_files import kind_of
from act.models.adapters import quiet_peft
from act.models.architecture import built, class_of
from act.models.calls import Reader, arguments_of, reader_by
from act.models.hub import base_of, cached_only, downloaded, folder_of, identifier, is_here, revised, unreached
from act.models.load_errors import reason
from act.models.quantised import quantised_by
from act.models.views import original

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MOST_MODULES = 10_000  # of one kind
_NUMBER = re.compile(r"\d+")
_COUNTS = re.compile(r"(num|n)_(\w+_)?(layers?|experts)")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    max_memory: Mapping[str, str] | None = None,
    merge: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A language model in eval mode, of the class that its configuration names (see :mod:`act.models.architecture`).

    Args:
        name: a folder in Hugging Face format, or a hub id (``org/name``, or ``org/name@revision``).
        dtype: one of :data:`DTYPES`; ``auto`` keeps the checkpoint's.
        device: a torch device; ``auto`` is the first GPU, else the CPU.
        device_map: one of :data:`DEVICE_MAPS`: accelerate spreads the model over GPUs, the CPU's memory and the disk.
        max_memory: with ``device_map``, how much of the model each GPU (by number) and ``cpu`` may hold, such as
            ``{"0": "20GiB", "cpu": "64GiB"}``; None: nearly all free memory.
        merge: whether an adapter is merged into its base model.
        trust_remote_code: whether Python code that the model brings along may run; see :func:`code_of`.

    Raises:
        ActError: the model does not exist, is damaged or incomplete, reads no text, or needs code that may not run;
            the dtype or the device is unknown; both a device and a device map are given.
    """
    require_choice("dtype", dtype, DTYPES)
    spread = _spread(device, device_map, max_memory)
    if merge and (base := base_to_merge(name)) != name:
        given: Any = {"dtype": dtype, "device": device, "device_map": device_map, "max_memory": max_memory}
        return _merged(load_model(base, **given, trust_remote_code=trust_remote_code), name)
    model, found = _loaded(
        _model,
        "model",
        name,
        trust_remote_code,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # transformers' own error names none of them
        **spread,
    )
    for key, held, wanted in sorted(found["mismatched_keys"]):
        raise ActError(
            f"cannot load the model {name}: it does not fit its config.json, since {key} has the shape {list(held)} in "
            f"the file and {list(wanted)} in the configuration; download or save it again"
        )
    absent = sorted(found["missing_keys"])  # without those that are tied or that the architecture computes
    if absent:
        raise ActError(
            f"cannot load the model {name}: it lacks {len(absent)} of the model's weights, {absent[0]} for one, which "
            "would be random; download or save the model again"
        )
    if more := _more_of_the_same(model, found["unexpected_keys"]):
        raise ActError(
            f"cannot load the model {name}: it does not fit its config.json, which leaves out {more[0]} and "
            f"{len(more) - 1} more of its weights, though the model has others of that name but for the number; "
            "correct the number of layers there, or download or save it again"
        )
    placed: PreTrainedModel = (model if spread else model.to(device_named(device))).eval()
    if revised(name):
        placed.name_or_path = name  # for the provenance of what is made of it
    return placed


def _more_of_the_same(model: PreTrainedModel, keys: Iterable[str]) -> list[str]:
    """Those weights of a file that no parameter takes, though one does that is called the same but for numbers."""
    if getattr(model.config.get_text_config(), "num_nextn_predict_layers", None):  # layers that predict further ahead
        return []
    known = {_NUMBER.sub("#", name) for name, _ in model.named_parameters()}
    return sorted(key for key in keys if _NUMBER.sub("#", key) in known)


def _spread(device: str, device_map: str | None, max_memory: Mapping[str, str] | None) -> dict[str, Any]:
    """What ``from_pretrained`` needs to spread the model; empty for a model on one device."""
    if device_map is None:
        device_named(device)  # before the weights are read
        if max_memory:
            raise ActError("a maximum memory was given without a device map, which it limits; add --device-map auto")
        return {}
    require_choice("device map", device_map, DEVICE_MAPS)
    if device != "auto":
        raise ActError(f"device {device!r} and device map {device_map!r} were both given; leave one of them out")
    optional("accelerate", "offload", "a device map")
    for place, size in (max_memory or {}).items():
        if not (re.fullmatch(r"\d+|cpu", place) and re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", size)):
            raise ActError(f"maximum memory is {place}={size}; expected such as 0=20GiB or cpu=64GiB")
    limits = {int(place) if place.isdigit() else place: size for place, size in (max_memory or {}).items()}
    return {"device_map": device_map, "max_memory": limits or None}


def load_config(name: str, dtype: str = "auto", *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model, with the dtype that the model is to have.

    Raises:
        ActError: there is no such configuration, or it needs code that may not run; the dtype is unknown.
    """
    from transformers import AutoConfig

    require_choice("dtype", dtype, DTYPES)

    def load(name: str, **options: Any) -> Any:
        base = base_of(name)
        return AutoConfig.from_pretrained(identifier(base), **revised(base), **cached_only(base), **options)

    config: PretrainedConfig = _loaded(load, "model", name, trust_remote_code)
    if dtype != "auto":
        config.dtype = getattr(torch, dtype)
    return config


def require_plain_weights(name: str, why: str, *, trust_remote_code: bool = False) -> None:
    """Raise :class:`ActError` if the configuration of a model says that its weights are quantised; none are read.

    Args:
        name: the model.
        why: how the sentence ends, such as :data:`act.models.quantised.NO_STEP`.
        trust_remote_code: as for :func:`load_config`.
    """
    if method := quantised_by(load_config(name, trust_remote_code=trust_remote_code)):
        raise ActError(f"{name} is quantised ({method}), {why}")


def reading_named(name: str, *, trust_remote_code: bool = False) -> tuple[Reader, bool]:
    """How the model of that name reads, and whether images, too, from its configuration alone.

    Raises:
        ActError: as :func:`load_config`.
    """
    config = load_config(name, trust_remote_code=trust_remote_code)
    kind = class_of(config, trust_remote_code=trust_remote_code)
    return reader_by(kind, config), "pixel_values" in arguments_of(kind)


def empty_model(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model built from its configuration on the meta device: its shapes without its weights.

    Raises:
        ActError: no language model can be built from the configuration.
    """
    try:
        with torch.device("meta"):
            return built(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # the code of a model raises anything
        name = str(config.name_or_path)
        raise ActError(f"cannot build a language model of {name}: {reason('model', name, error)}") from error


def code_of(loaded: nn.Module | PreTrainedTokenizerBase) -> str | None:
    """Whose Python code a model or tokenizer runs, if it is neither ours nor of a package.

    Returns:
        The repository and its revision (``org/name@commit``), or the folder; None if it brought no code along.
    """
    loaded = original(loaded) if isinstance(loaded, nn.Module) else loaded
    parts = loaded.modules() if isinstance(loaded, nn.Module) else [loaded]
    used = [type(part) for one in parts for part in (one, getattr(one, "config", None))]
    own = sorted({kind.__module__ for kind in used if kind.__module__.startswith("transformers_modules.")})
    if not own:
        return None
    config = getattr(loaded, "config", None)
    given = str(getattr(loaded, "name_or_path", "") or getattr(config, "name_or_path", ""))
    settings = getattr(loaded, "init_kwargs", None) or vars(config or object)
    references = [str(value) for value in dict(settings.get("auto_map") or {}).values()]
    repository = next((each.partition("--")[0] for each in references if "--" in each), given)
    revision = re.search(r"\b[0-9a-f]{40}\b", own[0])
    return f"{repository}@{revision[0]}" if revision and not Path(repository).is_dir() else repository


def name_of(model: nn.Module) -> str:
    """The name that a model was loaded by, or else its class; an adapted model has the name of its base."""
    return getattr(model, "name_or_path", "") or type(model).__name__


def type_of(model: nn.Module) -> str | None:
    """The type that a model was loaded in, such as ``bfloat16``: that of its first floating-point parameter."""
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    found = next(types, None)
    return None if found is None else str(found).removeprefix("torch.")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ActError if there is none, or if it needs code that may not run."""
    from transformers import AutoTokenizer

    def load(name: str, **options: Any) -> Any:
        return AutoTokenizer.from_pretrained(identifier(name), **revised(name), **cached_only(name), **options)

    tokenizer: PreTrainedTokenizerBase = _loaded(load, "tokenizer", name, trust_remote_code)
    return tokenizer


def tokenizer_if_any(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model; None for a model that has none.

    Raises:
        ActError: there is no such model, of which it would be no news that its tokenizer is missing, too.
    """
    try:
        return load_tokenizer(name, trust_remote_code=trust_remote_code)
    except ActError:
        load_config(name, trust_remote_code=trust_remote_code)
        return None


def token_difference(donor: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> str | None:
    """The first token id that stands for different tokens in two tokenizers, as a phrase; None if there is none."""
    tokens = {index: token for token, index in donor.get_vocab().items()}
    for token, index in sorted(target.get_vocab().items(), key=lambda item: item[1]):
        if tokens.get(index, token) != token:
            return f"token {index} is {tokens[index]!r} to the donor's tokenizer and {token!r} to the target's"
    return None


def require_same_tokens(donor: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    """Raise :class:`ActError` if a token id stands for different tokens in two tokenizers."""
    difference = token_difference(donor, target)
    if difference:
        raise ActError(f"{difference}, so the models would read different texts; give two models with one vocabulary")


def require_model(what: str, given: object) -> None:
    """Raise :class:`ActError` unless ``given`` is a PyTorch model; ``what`` names it in the message."""
    require_type(what, given, nn.Module, "a PyTorch model, as from_pretrained returns")


def require_place(name: str, what: str) -> None:
    """Raise :class:`ActError` for a name that is neither a folder nor that of something on the hub.

    Where the folder around it is there, it is a misspelt folder, of which the hub is never asked.
    """
    if Path(name).is_dir():
        return
    if Path(name).is_file():
        if kind_of(Path(name)) == "act-patch":
            how = option(f"act-profile patch apply {shlex.quote(name)} --model MODEL --output FOLDER", "act.Patch.load")
            raise ActError(f"no such {what}: {name} is a patch, which changes a model; apply it first ({how})")
        raise ActError(f"no such {what}: {name} is a file; expected its folder, in Hugging Face format")
    if is_local(name) or identifier(name).count("/") != 1:
        aside = (
            f" (the hub is not asked for it, since {Path(name).parent} is a folder here)"
            if name.strip("/").count("/") == 1 and not name.startswith((".", "/", "~"))
            else ""
        )
        raise Missing(
            f"no such {what}: {name}; expected a folder in Hugging Face format, or a hub id such as org/name{aside}",
            near_path(name),
        )


def model_folder(name: str) -> Path:
    """The folder of a model; one of the hub is downloaded to its cache first.

    Raises:
        ActError: there is none of that name.

    >>> from act.models.loading import model_folder
    >>> model_folder(".")
    PosixPath('.')
    """
    require_place(name, "model")
    return downloaded(name)


def base_to_merge(name: str) -> str:
    """The base model of an adapter, which :func:`load_model` merges it into; the name itself for any other model.

    Raises:
        ActError: there is no such model, or it is an adapter that names no base model.

    >>> from act.models.loading import base_to_merge
    >>> base_to_merge(".")
    '.'
    """
    base: str = _loaded(lambda place, **_: base_of(place, merge=True), "model", name, False)
    return base


def _merged(base: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """A base model with an adapter merged into its weights, in place."""
    peft = optional("peft", "tune", "an adapter")

    def merge(name: str, trust_remote_code: bool) -> PreTrainedModel:
        with quiet_peft():
            merged: PreTrainedModel = peft.PeftModel.from_pretrained(base, folder_of(name)).merge_and_unload()
        return merged

    whole: PreTrainedModel = _loaded(merge, "model", adapter, False)
    whole.name_or_path = adapter
    whole.eval()
    return whole


def _model(name: str, **options: Any) -> Any:
    """What ``from_pretrained`` of the model's class returns; an adapter is of the class of its base model."""
    from transformers import AutoConfig

    trusted, base = options["trust_remote_code"], base_of(name)
    known = cached_only(base)
    config = AutoConfig.from_pretrained(identifier(base), trust_remote_code=trusted, **revised(base), **known)
    kind = class_of(config, trust_remote_code=trusted)
    return kind.from_pretrained(identifier(name), **revised(name), **known, **options)


def _loaded(load: Callable[..., Any], what: str, name: str, trust_remote_code: bool, **options: Any) -> Any:
    require_place(name, "model")  # of which a tokenizer is a part
    _require_possible(Path(name, "config.json"))
    try:
        # Given always: unless it is, transformers asks on standard input, where anything may answer.
        return load(name, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers, its backends and the code of a model raise anything
        lost = not Path(name).is_dir() and unreached(error)
        kind, what = (Unreachable, what if is_here(name) else "model") if lost else (ActError, what)
        raise kind(f"cannot load the {what} {name}: {reason(what, name, error)}") from error


def _require_possible(config: Path) -> None:
    """Raise :class:`ActError` for more layers or experts than any model has: transformers would build them for ever."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        parts = [found, *(part for part in found.values() if isinstance(part, dict))]
        counts = [(key, value) for part in parts for key, value in part.items() if _COUNTS.fullmatch(key)]
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # transformers reports it, or looks elsewhere
    for key, value in counts:
        if isinstance(value, int) and value > MOST_MODULES:
            raise ActError(f"{config} says that {key} is {value!r:.20}, more than {MOST_MODULES:,}; download it again")


def device_named(device: str) -> torch.device:
    """The torch device of that name; ``auto`` is the first GPU, else the CPU.

    Raises:
        ActError: there is no such device, or it cannot be used.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, AssertionError) as error:  # which lists devices that hardly anybody has
        raise ActError(f"no device is called {device!r}; expected auto, cpu, cuda, cuda:1 or mps") from error
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ActError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error
    return place
