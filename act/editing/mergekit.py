"""``merge_method: act`` for mergekit: its configuration, its planner and its writer, our rows.

    merge_method: act
    base_model: target
    models:
      - model: donor
        parameters: {channels: set.safetensors, weight: 0.4}
    parameters: {overlap: sum}

mergekit looks up methods in a registry and has no entry points, so something must import this module first:
:func:`merge` does (``act-profile mergekit config.yml out``), or :func:`register` in a program of one's own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from act.core.errors import ActError, brief
from act.core.extras import optional
from act.core.files import require_output, written_whole
from act.editing.folders import open_parameters
from act.editing.stored import StoredModel
from act.editing.transfer import (
    Claim,
    Graft,
    blend,
    donor_fingerprint,
    require_models,
    require_overlap,
    require_parallel,
    require_strength,
)
from act.models.channels import ParameterSlice
from act.models.fingerprint import fingerprint
from act.models.loading import load_tokenizer, token_difference
from act.ranking.channel_set import ChannelSet, Part

NAME = "act"
_NAME_MODELS: dict[str, tuple[str, ...]] = {  # keys of mergekit that name a model, and words of theirs that do not
    **dict.fromkeys(("model", "base_model", "path", "lora"), ()),
    **dict.fromkeys(("tokenizer_source", "source"), ("base", "union")),
}


def register() -> None:
    """Make ``merge_method: act`` known to mergekit in this process; once is enough, more does no harm.

    Raises:
        ActError: mergekit is not installed, or too old to have a registry of methods.
    """
    optional("mergekit", "mergekit", "merging through mergekit")
    try:
        from mergekit.merge_methods import registry
        from mergekit.merge_methods.base import BasePolicy, InputContract, PerNonBase, TensorGroup
        from mergekit.merge_methods.easy_define import merge_method
    except ImportError as error:
        raise ActError(
            f"this mergekit has no registry of methods ({error}); install mergekit 0.1.5 or newer"
        ) from error
    if any(method.spec.name == NAME for method in registry.registered_methods()):
        return

    def act(group: Any, channels: Any, weight: Any = 0.4, overlap: str = "sum") -> torch.Tensor:
        name, base = group.metadata.name, group.base.tensor.clone()
        require_overlap(overlap)
        claims = [
            Claim(part.slice, {name: entry.tensor}, part.index, part.scores, float(weight[entry.id]), None)
            for entry in group.non_base
            for part in _parts(channels[entry.id]).get(name, [])
            if weight[entry.id]
        ]
        if claims:
            blend({name: claims}, {name: base}, overlap)  # type: ignore[arg-type]  # checked
        return base

    act.__annotations__ = {
        "group": TensorGroup,
        "channels": PerNonBase[str],
        "weight": PerNonBase[float],
        "overlap": str,
        "return": torch.Tensor,
    }
    method = merge_method(
        act,
        name=NAME,
        pretty_name="ACT",
        reference_url="https://arxiv.org/abs/2601.09398",
        contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2),
        uses_accelerator=False,
    )
    registry.register(method)


def merge(config: str | Path, output: str | Path, *, force: bool = False) -> None:
    """Run a mergekit configuration, with ``merge_method: act`` known, and write the model it makes.

    Raises:
        ActError: mergekit is not installed; a configuration it does not accept; channel sets that were made for other
            models; ``output`` is one of the models, or exists and ``force`` is False.
    """
    import yaml
    from pydantic import ValidationError

    register()
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    output = Path(output)
    try:
        text = Path(config).read_text(encoding="utf-8")
        plan = MergeConfiguration.model_validate(_absolute(yaml.safe_load(text)))
    except (OSError, yaml.YAMLError, ValidationError, RuntimeError) as error:
        raise ActError(f"mergekit cannot use {config}: {brief(error, 400)}") from error
    require_output(output, force, [config, *(reference.model.path for reference in plan.referenced_models())])
    if plan.merge_method == NAME:
        _check(plan)
    with written_whole(output, force=force, directory=True) as folder:
        try:
            run_merge(plan, str(folder), MergeOptions(copy_tokenizer=True, quiet=True), config_source=text)
        except Exception as error:  # its planner, its hub client and its card raise anything
            reason = brief(error, 400)
            raise ActError(f"mergekit cannot merge by {config}: {reason}") from error


def _absolute(settings: Any, key: str = "") -> Any:
    """A configuration with model folders named from the root: mergekit asks the hub about names such as ``base``."""
    if isinstance(settings, list):
        return [_absolute(one, key) for one in settings]
    if isinstance(settings, dict):
        return {key: _absolute(value, key) for key, value in settings.items()}
    if not isinstance(settings, str) or key not in _NAME_MODELS or settings in _NAME_MODELS[key]:
        return settings
    folders = [str(Path(name).absolute()) if Path(name).is_dir() else name for name in settings.split("+")]
    plain = not any(mark in name for name in folders for mark in "+@")  # which mergekit reads as adapter and revision
    return "+".join(folders) if plain else settings


def _check(plan: Any) -> None:
    """What the transfer checks of whole models, before mergekit takes them apart; only of models in folders."""
    if not plan.models or not plan.base_model:
        raise ActError("merge_method act needs base_model (the target) and models (the donors)")
    base = plan.base_model.model.path
    grafts = []
    parts: dict[str, list[ParameterSlice]] = {}
    for entry in plan.models:
        settings = {**(plan.parameters or {}), **(entry.parameters or {})}
        if entry.model.model.path == base:
            continue
        if not isinstance(settings.get("channels"), str):
            raise ActError(f"{entry.model.model.path} has no parameter channels; give the file of a channel set")
        weight = settings.get("weight", 0.4)
        if not isinstance(weight, int | float):
            raise ActError(f"weight of {entry.model.model.path} is {weight}; merge_method act takes one number")
        require_strength(weight)
        grafts.append(Graft({}, ChannelSet.load(settings["channels"]), weight, name=entry.model.model.path))
        for part in grafts[-1].channels.parts():
            parts.setdefault(part.slice.name, []).append(part.slice)
    for held in parts.values():
        require_parallel(held)
    require_overlap((plan.parameters or {}).get("overlap", "sum"))
    if plan.tokenizer_source is None and plan.tokenizer is None:  # else mergekit renumbers tokens itself
        _require_same_tokens([graft for graft in grafts if graft.moves_tokens], base)
    if all(Path(name).is_dir() for name in (base, *(graft.name or "" for graft in grafts))):
        for graft in grafts:
            donor = open_parameters(graft.name or "", graft)
            target = fingerprint(StoredModel(base).parameters(graft.channels.space))
            graft = Graft(donor, graft.channels, graft.strength)
            require_models([graft], target, [donor_fingerprint(graft)])


def _require_same_tokens(grafts: list[Graft], target: str) -> None:
    """Raise :class:`ActError` where rows or columns of tokens would come from a donor that numbers them otherwise."""
    for graft in grafts:
        try:
            difference = token_difference(load_tokenizer(str(graft.name)), load_tokenizer(target))
        except ActError:
            continue  # a model without a tokenizer: nothing to compare
        if difference:
            raise ActError(
                f"{graft.name} cannot give embedding or LM head to {target}: {difference}; rank again with "
                "--exclude embed --exclude head, or use act-profile transfer --align-tokens"
            )


@lru_cache(maxsize=8)
def _parts(path: str) -> dict[str, list[Part]]:
    """The parts of a channel set by parameter name."""
    parts: dict[str, list[Part]] = {}
    for part in ChannelSet.load(path).parts():
        parts.setdefault(part.slice.name, []).append(part)
    return parts
