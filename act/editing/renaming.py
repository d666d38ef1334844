"""Where the parameters of a model lie in a checkpoint that stores them otherwise, as transformers loads it.

transformers renames stored tensors, stacks those of single experts, and joins, cuts or turns them. Which ones it would
is asked of it; what that means for a part of a parameter is worked out here, without reading a value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from act.core.errors import ActError
from act.editing.pieces import Layout, Shape, cut, gathered, halved, joined, stacked, turned
from act.editing.weight_files import RenamedWeights
from act.models.loading import empty_model, load_config
from act.models.views import LanguageView, language_view

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Renamed(NamedTuple):
    """Where the tensors of a model lie, by the name in its :func:`act.models.views.language_view`.

    Attributes:
        layouts: where they lie.
        unknown: why that is not known of others.
        parameters: the names of all parameters.
    """

    layouts: dict[str, Layout]
    unknown: dict[str, str]
    parameters: frozenset[str]


def renamed(folder: Path, stored: Mapping[str, Shape], names: Collection[str]) -> Renamed:
    """Where each parameter of a model lies in its checkpoint.

    Args:
        folder: the model folder.
        stored: the shape of each tensor of the checkpoint.
        names: the parameters of the model, which tell whether it is a causal language model or what its configuration
            names as its architecture, such as one with images.

    Raises:
        RenamedWeights: the model cannot be built, or the installed transformers does not say how it renames weights.
    """
    try:
        model = _model(load_config(str(folder)), names)
        collected = _collected(model, stored)
    except (ActError, ImportError) as error:
        raise RenamedWeights(f"{folder} stores its weights under other names than the model's ({error})") from error
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    layouts: dict[str, Layout] = {}
    unknown: dict[str, str] = {}
    for name, (converter, tensors) in collected.items():
        targets = _targets(name, converter)
        try:
            found = [Layout.whole(each, stored[each]) for each in next(iter(tensors.values()))[:1]]
            if converter is not None:
                found = _converted(converter, tensors, stored, shapes[name], model.config)
            if [one.shape for one in found] != [shapes.get(target) for target in targets]:
                raise ValueError("what is stored does not have the shape of the parameter")
        except (ValueError, IndexError) as error:
            unknown |= dict.fromkeys(targets, str(error))
        else:
            layouts |= zip(targets, found, strict=True)
    view = language_view(model)
    if isinstance(view, LanguageView):
        layouts = {view.name_of(name): layout for name, layout in layouts.items()}
        unknown = {view.name_of(name): reason for name, reason in unknown.items()}
    return Renamed(layouts, unknown, frozenset(name for name, _ in view.named_parameters()))


def _model(config: PretrainedConfig, names: Collection[str]) -> PreTrainedModel:
    """The model that a configuration describes, or the causal language model of it that has parameters of these names.

    Raises:
        ActError: none can be built.
    """
    from transformers import AutoModelForCausalLM

    model = empty_model(config)
    loader: Any = AutoModelForCausalLM
    if not language_view(model).state_dict().keys() >= {*names} and type(config) in loader._model_mapping:
        with torch.device("meta"):
            causal: PreTrainedModel = loader.from_config(config)
        if causal.state_dict().keys() >= {*names}:
            return causal
    return model


def _collected(model: PreTrainedModel, stored: Mapping[str, Shape]) -> dict[str, tuple[Any, dict[str, list[str]]]]:
    """For each parameter that transformers would load, what converts it, and the tensors for each of its patterns."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    known, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = rename_source_key(key, [], [], prefix, known)
        if name in known:
            _, tensors = found.setdefault(name, (by_pattern[pattern] if pattern else None, defaultdict(list)))
            tensors[pattern or key].append(key)
    return found


def _targets(name: str, converter: Any) -> list[str]:
    """The parameters that one conversion makes, the first of which is ``name``."""
    if converter is None or len(converter.target_patterns) == 1:
        return [name]
    first, *others = converter.target_patterns
    return [name, *(name.replace(first, other, 1) for other in others)]


def _converted(
    converter: Any,
    tensors: Mapping[str, Sequence[str]],
    stored: Mapping[str, Shape],
    wanted: Shape,
    config: PretrainedConfig,
) -> list[Layout]:
    """What a conversion makes of stored tensors, for each of its targets.

    Raises:
        ValueError: it is of a kind that is not known, or does not fit the tensors.
    """
    groups = [
        [Layout.whole(name, stored[name]) for name in tensors[pattern]]
        for pattern in converter.source_patterns
        if pattern in tensors
    ]
    for operation in converter.operations:
        kind = type(operation).__name__
        if kind == "MergeModulelist":
            groups = [[stacked(group, operation.dim)] for group in groups]
            continue
        if kind == "Concatenate":
            groups = [[joined([*chain(*groups)], operation.dim)]]
            continue
        if kind == "PermuteForRope" and not operation.inverse and len(groups) == len(converter.target_patterns):
            groups = [
                [halved(one, _heads(operation, config)) if _turns(operation, name) else one]
                for name, (one,) in zip(converter.target_patterns, groups, strict=True)
            ]
            continue
        if len(groups) != 1 or len(groups[0]) != 1:
            raise ValueError(f"{kind} of several tensors is not known")
        one = groups[0][0]
        if kind == "Transpose":
            if not (operation.check_dims and one.shape == wanted):
                groups = [[turned(one, operation.dim0, operation.dim1)]]
        elif kind == "Chunk" and operation.num_shards_attribute is None:
            groups = [[each] for each in cut(one, len(converter.target_patterns), operation.dim)]
        elif kind == "Interleave" and not operation.inverse:
            groups = [[gathered(one, operation.dim)]]
        else:
            raise ValueError(f"the conversion {kind} is not known")
    return [one for (one,) in groups]


def _turns(operation: Any, name: str) -> bool:
    """Whether a permutation of rotary pairs is one of this parameter."""
    names = operation.permute_layer_names
    return names is None or any(each in name for each in names)


def _heads(operation: Any, config: PretrainedConfig) -> int:
    """The number of heads whose rotary pairs are permuted."""
    part = getattr(config, operation.subconfig_key, config) if operation.subconfig_key else config
    return getattr(part, "num_attention_heads", 1)
