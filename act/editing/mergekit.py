"""``merge_method: act`` for mergekit, which configures, plans and writes the merge; the rows are chosen here.

    merge_method: act
    base_model: target
    models:
      - model: donor
        parameters: {channels: set.safetensors, weight: 0.4}
    parameters: {overlap: sum}

mergekit looks up methods in a registry and has no entry points, so something must import this module first:
:func:`merge` does (``act-profile mergekit config.yml out``), and so does :func:`register` in your own program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from act.core.errors import ActError, Missing, brief, one_of, require_choice
from act.core.extras import optional
from act.core.files import require_output, written_whole
from act.core.near import meant
from act.core.plain_yaml import read_yaml
from act.editing.card_results import CARD
from act.editing.donor import VOCABULARY_KINDS, Donor
from act.editing.model_card import block, put_card, write_card
from act.editing.provenance import TransferProvenance
from act.editing.rows import DonorRows, Overlap, blend, by_slice
from act.editing.stored import Parameters, StoredModel, fingerprints
from act.editing.transfer_plan import TransferPlan
from act.models.loading import load_tokenizer, model_folder, require_place, token_difference
from act.ranking.channel_set import ChannelSet, ChosenRows

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration
    from pydantic import ValidationError

__all__ = ["merge", "register"]

NAME = "act"
PRINTS_ONE = "act-profile mergekit --example prints one"
_FAULTS = 3  # of a configuration, that are told
_NONE: Mapping[str, str] = {}
_OF_DONORS = ("channels", "weight")
_NAME_MODELS: dict[str, tuple[str, ...]] = {  # mergekit's keys that name a model, with the values that do not
    **dict.fromkeys(("model", "base_model", "path", "lora"), ()),
    **dict.fromkeys(("tokenizer_source", "source"), ("base", "union")),
}


def register() -> None:
    """Make ``merge_method: act`` known to mergekit in this process; calling it again does nothing.

    Raises:
        ActError: mergekit is not installed, or too old to have a registry of methods.

    >>> act.mergekit.register()  # then mergekit's own run_merge
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
        name = group.metadata.name
        base: torch.Tensor = group.base.tensor.clone()
        require_choice("overlap", overlap, get_args(Overlap))
        given = by_slice(
            DonorRows(chosen, {name: entry.tensor}, float(weight[entry.id]))
            for entry in group.non_base
            for chosen in _rows(channels[entry.id]).get(name, [])
            if weight[entry.id]
        )
        blend(given, {part: part.part_of(base) for part in given}, overlap)  # type: ignore[arg-type]  # checked
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


def merge(
    config: str | Path, output: str | Path, *, force: bool = False, trust_remote_code: bool = False
) -> TransferProvenance | None:
    """Run a mergekit configuration, in which ``merge_method: act`` is known, and write the model.

    What ``merge_method: act`` makes has a model card as that of a transfer, unless an adapter is named beside a model
    (``model+adapter``), which mergekit merges first: that has mergekit's own card, as all its other methods have.

    Args:
        config: the YAML file; relative paths in it start at the working directory, as in mergekit's own commands.
        output: the folder of the model; it appears only when it is complete.
        force: replace an output that such a run has made.
        trust_remote_code: let Python code that a model brings along run.

    Returns:
        Which donors gave rows to which model; None where the card is mergekit's own.

    Raises:
        ActError: mergekit is not installed; a configuration it does not accept, or with parameters that
            ``merge_method: act`` does not take; no model or channel set where one is named; channel sets that were
            made for other models; rows of the LM head, with a tokenizer of mergekit's own making; ``output`` is one of
            the models, or exists and ``force`` is False.

    >>> from pathlib import Path
    >>> for name, one in {"donor": donor, "target": target}.items():
    ...     one.save_pretrained(name)
    ...     _ = tokenizer.save_pretrained(name)
    >>> act.rank(act.profile_pair(donor, target, corpus), top="5%").save("set.safetensors")
    >>> lines = ["merge_method: act", "base_model: target", "models: [{model: donor, parameters: {channels:"]
    >>> _ = Path("merge.yaml").write_text("\\n".join(lines) + " set.safetensors, weight: 0.4}}]")
    >>> made = act.mergekit.merge("merge.yaml", "merged")
    >>> [used.strength for used in made.donors], Path("merged/config.json").exists()
    ([0.4], True)
    """
    from pydantic import ValidationError

    register()
    from mergekit.config import InputModelDefinition, MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.merge_methods.registry import registered_methods
    from mergekit.options import MergeOptions

    output = Path(output)
    _, settings = read_yaml(Path(config), "a mergekit configuration")
    if not isinstance(settings, dict):
        raise ActError(f"{config} holds no mergekit configuration; {PRINTS_ONE}")
    _require_keys(str(config), settings, MergeConfiguration.model_fields, settings.get("merge_method") == NAME)
    for place, entry in enumerate(_entries(settings), 1):
        where = f"entry {place} of models in {config}"
        _require_keys(where, entry, InputModelDefinition.model_fields, settings.get("merge_method") == NAME)
    try:
        plan = MergeConfiguration.model_validate(_absolute(settings))
    except ValidationError as error:
        raise ActError(f"mergekit cannot use {config}: {_wrong(error)}; {PRINTS_ONE}") from error
    except RuntimeError as error:
        raise ActError(f"mergekit cannot use {config}: {brief(error, 400)}") from error
    methods = [method.spec.name for method in registered_methods()]
    if plan.merge_method not in methods:
        near = meant(plan.merge_method.lower(), methods) or f"; expected {NAME}, or one of mergekit's own"
        raise ActError(f"merge_method is {plan.merge_method} in {config}{near}")
    require_output(output, force, [config, *_named(settings)])
    moved = _check(plan, trust_remote_code) if plan.merge_method == NAME else None
    if moved:  # what it has looked at, so that it need not ask the hub again
        plan = MergeConfiguration.model_validate(_absolute(settings, moved.folders))
    text = Path(config).read_text(encoding="utf-8")  # for the model card
    with written_whole(output, force=force, directory=True) as folder:
        try:
            options = MergeOptions(copy_tokenizer=True, quiet=True, trust_remote_code=trust_remote_code)
            run_merge(plan, str(folder), options, config_source=text)
        except Exception as error:  # its planner, hub client and model card may raise anything
            reason = brief(error, 400)
            raise ActError(f"mergekit cannot merge by {config}: {reason}") from error
        if moved:
            given = f"## The configuration\n\n{block(text, 'yaml')}"
            write_card(folder, moved.target, moved.provenance, command="act-profile mergekit", afterwards=given)
        elif (card := folder / CARD).is_file():
            put_card(folder, card.read_text(encoding="utf-8"))
    return moved.provenance if moved else None


def _wrong(error: ValidationError) -> str:
    """What a configuration lacks or has too much of, by its keys, the first of it."""
    each = [f"{'.'.join(map(str, one['loc'])) or 'all of it'}: {one['msg']}" for one in error.errors()]
    return "; ".join([*each[:_FAULTS], *([f"and {len(each) - _FAULTS} more"] if each[_FAULTS:] else [])])


def _absolute(settings: Any, known: Mapping[str, str] = _NONE, key: str = "") -> Any:
    """A configuration with absolute model folders: mergekit looks up names such as ``base`` on the hub.

    Args:
        known: the folders of models of the hub, by name.
    """
    if isinstance(settings, list):
        return [_absolute(one, known, key) for one in settings]
    if isinstance(settings, dict):
        return {key: _absolute(value, known, key) for key, value in settings.items()}
    if not isinstance(settings, str) or key not in _NAME_MODELS or settings in _NAME_MODELS[key]:
        return settings
    if settings in known:
        return known[settings]
    folders = [str(Path(name).absolute()) if Path(name).is_dir() else name for name in settings.split("+")]
    plain = not any(mark in name for name in folders for mark in "+@")  # which mergekit reads as adapter and revision
    return "+".join(folders) if plain else settings


def _named(settings: Any) -> Iterator[str]:
    """Every text in a configuration: what of it names a model, channel set or tokenizer must not be overwritten."""
    if isinstance(settings, dict | list):
        for one in settings.values() if isinstance(settings, dict) else settings:
            yield from _named(one)
    elif isinstance(settings, str):
        yield from settings.split("+")


@dataclass(frozen=True)
class _Moved:
    """What a merge moves from where, for the model card.

    Attributes:
        target: the folder of the model that gets rows.
        folders: that of every model, by its name in the configuration.
    """

    target: str
    provenance: TransferProvenance
    folders: Mapping[str, str]


def _check(plan: MergeConfiguration, trust_remote_code: bool) -> _Moved | None:
    """Check whole models as a transfer does, before mergekit takes them apart.

    Returns:
        What is moved; None if an adapter is to be merged first, since what it makes of a model is not known yet.
    """
    if plan.slices or plan.modules:
        raise ActError(
            f"merge_method act moves rows between whole models, not {'slices' if plan.slices else 'modules'}; give the "
            "donors as models; act-profile rank --include chooses among their layers"
        )
    if not plan.models or not plan.base_model:
        needed = {"base_model": "the target", "models": "the donors"}
        lacking = [f"{name} ({what})" for name, what in needed.items() if not getattr(plan, name)]
        raise ActError(
            f"merge_method act needs {' and '.join(lacking)} beside it; give {'them' if lacking[1:] else 'it'}"
        )
    base, donors = plan.base_model, {}
    _require_known("parameters of the merge", plan.parameters or {}, (*_OF_DONORS, "overlap"))
    _require_here(str(base.model))
    for entry in plan.models:
        name, settings = str(entry.model.model), {**(plan.parameters or {}), **(entry.parameters or {})}
        called = _called(name)
        _require_known(f"parameters of {called}", entry.parameters or {}, _OF_DONORS)
        if entry.model == base:
            continue
        _require_here(name)
        if entry.model in donors:
            raise ActError(
                f"models names {called} twice, and mergekit takes each model once; give several channel sets of one "
                "donor to act-profile transfer, with --donor and --channels for each"
            )
        channels, weight = settings.get("channels"), settings.get("weight", 0.4)
        if not isinstance(channels, str):
            raise ActError(f"{called} has no parameter channels; give the file of a channel set")
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise ActError(f"weight of {called} is {weight}; merge_method act takes one number")
        try:
            donors[entry.model] = Donor(name, ChannelSet.load(channels), weight)
        except Missing as error:
            raise Missing(f"{error.said} ({_looked_at(channels)})", error.near) from error
    if not donors:
        raise ActError(
            f"models names none beside base_model, {base}, the target; add the donors, which give rows to it"
        )
    overlap: Any = (plan.parameters or {}).get("overlap", "sum")
    require_choice("overlap", overlap, get_args(Overlap))
    by_slice(chosen for donor in donors.values() for chosen in donor.channels.rows())
    source = plan.tokenizer.source if plan.tokenizer else plan.tokenizer_source
    notes = []
    if source is None:
        for donor in donors.values():
            _require_same_tokens(donor, str(base.model), trust_remote_code)
    else:
        notes = [f"mergekit made the tokenizer, and gave each token its row (tokenizer source: {source})"]
        _require_kept_numbers(donors.values(), source in ("base", base), source)
    if any(reference.lora for reference in (base, *donors)):
        return None
    folders = {str(one): str(model_folder(str(one.model))) for one in (base, *donors)}
    given = [replace(donor, model=folders[str(one)], name=str(donor.model)) for one, donor in donors.items()]
    target = StoredModel(folders[str(base)]).parameters(given[0].channels.space)
    for each in given:
        _require_own_names(each, target)
    checked = TransferPlan.make(given, target, overlap)
    found = fingerprints(target)
    checked.require_models(target, found, checked.donor_fingerprints())
    provenance = replace(checked.provenance(found[0], "", list(target)), after=None)
    return _Moved(folders[str(base)], replace(provenance, notes=(*provenance.notes, *notes)), folders)


def _require_kept_numbers(donors: Iterable[Donor], as_target: bool, source: object) -> None:
    """Raise :class:`ActError` if rows of the LM head, which a set knows by their numbers, would be given other ones."""
    for donor in donors:
        if not as_target and any(chosen.site.kind == "head" for chosen in donor.channels.rows()):
            raise ActError(
                f"mergekit numbers the tokens anew (tokenizer source: {source}), and the channels of {donor.model} "
                "include rows of the LM head, which are those of tokens by number; rank again with --exclude head, or "
                "leave the tokenizer out, or as that of the base"
            )


def _require_keys(where: str, given: Mapping[Any, Any], known: Iterable[str], strict: bool) -> None:
    """Raise :class:`ActError` for a key that mergekit would ignore: any if ``strict``, else one that is misspelt."""
    for key in given:
        near = meant(str(key), [name for name in known if name not in given], 2)
        if key not in known and (strict or near):
            raise ActError(f"{where} has the key {key!r}, which mergekit does not know; {one_of(known)}{near}")


def _entries(settings: Mapping[str, Any]) -> list[Mapping[Any, Any]]:
    """The models of a configuration, as far as they are what mergekit expects, which says what else is wrong."""
    models = settings.get("models")
    return [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []


def _require_known(where: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise :class:`ActError` for a parameter that ``merge_method: act`` does not take, which mergekit would ignore."""
    for key in given:
        if key not in known:
            near = "; did you mean weight?" if key in ("strength", "lambda", "scale") else meant(key, known)
            raise ActError(f"{where}: merge_method act has no key {key!r} here; {one_of(known)}{near}")


def _require_here(name: str) -> None:
    """Raise :class:`Missing` for a model that is neither a folder nor named as one of the hub."""
    try:
        require_place(name, "model")
    except Missing as error:
        raise Missing(f"{error.said} ({_looked_at(name)})", error.near) from error


def _called(name: str) -> str:
    """A model as a configuration is likely to name it: a folder from the working directory on."""
    return str(Path(name).relative_to(Path.cwd())) if Path(name).is_relative_to(Path.cwd()) else name


def _looked_at(place: str) -> str:
    """Where a path of a configuration was looked for, as the end of a sentence."""
    start = "" if Path(place).is_absolute() else ", since relative paths start at the working directory"
    return f"looked at {Path(place).absolute()}{start}"


def _require_own_names(donor: Donor, target: Parameters) -> None:
    """Raise :class:`ActError` if a model stores what a donor gives otherwise than under the names of its parameters."""
    theirs = StoredModel(str(donor.model)).parameters(donor.channels.space)
    for chosen in donor.channels.rows():
        name, key = chosen.parameter.name, chosen.parameter.key
        for weights in (target, theirs):
            apart = weights.places[key].pieces[0].stored != name
            if apart and chosen.site.kind not in VOCABULARY_KINDS:  # which may be tied
                raise ActError(
                    f"mergekit merges tensors by the names they are stored by, and {weights.stored.folder} stores "
                    f"{name} under other names; use act-profile transfer"
                )


def _require_same_tokens(donor: Donor, target: str, trust_remote_code: bool) -> None:
    """Raise :class:`ActError` if a donor that numbers its tokens differently would give rows or columns of tokens."""
    if not donor.moves_tokens:
        return
    try:
        theirs, ours = (
            load_tokenizer(name, trust_remote_code=trust_remote_code) for name in (str(donor.model), target)
        )
        difference = token_difference(theirs, ours)
    except ActError:
        return  # a model without a tokenizer: nothing to compare
    if difference:
        raise ActError(
            f"{donor.model} cannot give embedding or LM head to {target}: {difference}; rank again with "
            "--exclude embed --exclude head, or use act-profile transfer --align-tokens"
        )


@lru_cache(maxsize=8)
def _rows(path: str) -> dict[str, list[ChosenRows]]:
    """The rows that a channel set names, by the name of their parameter."""
    found: dict[str, list[ChosenRows]] = {}
    for chosen in ChannelSet.load(path).rows():
        found.setdefault(chosen.parameter.name, []).append(chosen)
    return found
