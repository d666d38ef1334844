"""A donor of a transfer: a model, which of its channels are taken, and how strongly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, require_type
from act.core.names import matches
from act.editing.provenance import DonorUsed
from act.editing.rows import MODEL_OR_WEIGHTS, Tokens, Weights
from act.editing.stored import Parameters, StoredModel, fingerprints
from act.editing.strength import require_strength, warn_of_strength
from act.models.adapters import require_none
from act.models.channels import ChannelSpace
from act.models.placement import require_in_memory, require_whole
from act.models.quantised import NOT_MOVED, is_stored_otherwise
from act.models.views import language_view
from act.profiles.profile import Profile
from act.profiles.provenance import ModelRead
from act.ranking.channel_set import ChannelSet, ChosenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_KINDS = ("embed", "head")


@dataclass(frozen=True)
class Donor:
    """One donor of a transfer.

    Attributes:
        model: the model, its folder, or its weights by parameter name; only read.
        channels: the channels to take from it.
        strength: the paper's lambda: 0 changes nothing, 1 copies the donor's rows. Or one for each pattern of site and
            parameter names, of which the first that matches counts: ``{"*.mlp.*": 0.4, "*": 0.2}``. Rows that no
            pattern matches stay as they are.
        tokens: for a donor with another vocabulary, the ids of the tokens that both models have
            (:func:`act.shared_tokens`).
        name: what to call it in patches and model cards; by default its folder.
        token_difference: how its token ids differ from the target's, if they do
            (:func:`act.models.loading.token_difference`). Without ``tokens``, embedding and LM head are left out then,
            as they are where their sizes differ.

    Raises:
        ActError: a negative or non-finite strength, or no pattern.

    >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=8, include="down")
    >>> one = act.Donor(donor, channels, {"model.layers.*": 0.4, "*": 0.2})
    >>> one.matches("*.mlp.down_proj"), one.moves_tokens, len(one.weights)
    (True, False, 21)
    >>> all("down_proj" in name for name in one.names)
    True
    >>> {one.strength_of(chosen) for chosen in channels.rows()}
    {0.4}
    >>> patch = act.transfer_many([one], target)
    >>> patch.revert(target)
    """

    model: nn.Module | Weights | str | Path
    channels: ChannelSet
    strength: float | Mapping[str, float] = 0.4
    tokens: Tokens | None = None
    name: str | None = None
    token_difference: str | None = None

    def __post_init__(self) -> None:
        require_type("the donor", self.model, (nn.Module, Mapping, str, Path), f"{MODEL_OR_WEIGHTS}, or a folder")
        require_type("the channel set", self.channels, ChannelSet, _set_for(self.channels))
        if isinstance(self.strength, Mapping) and not self.strength:
            raise ActError("strength is {}; expected a number, or at least one pattern with its strength")
        for value in self.strength.values() if isinstance(self.strength, Mapping) else [self.strength]:
            require_strength(value)
            warn_of_strength(value)

    def __repr__(self) -> str:
        called = self.name or (str(self.model) if isinstance(self.model, str | Path) else type(self.model).__name__)
        return f"<Donor {called}: {counted(len(self.channels), 'channel')} at strength {self.strength}>"

    @property
    def weights(self) -> Weights:
        """The parameters of the model by name; those of a folder stay on disk."""
        if isinstance(self.model, str | Path):
            return self._stored
        return _under_names_of(self.channels.space, weights_of(self.model, "donor"))

    @cached_property
    def _stored(self) -> Parameters:
        assert isinstance(self.model, str | Path)
        return StoredModel(self.model).parameters(self.channels.space)

    @property
    def moves_tokens(self) -> bool:
        """Whether it gives channels of the embedding or the LM head, where a column or row belongs to a token."""
        return any(chosen.site.kind in VOCABULARY_KINDS for chosen in self.channels.rows())

    @cached_property
    def names(self) -> frozenset[str]:
        """The sites and parameters that it gives rows of: the names that patterns of a strength may match."""
        return frozenset(name for chosen in self.channels.rows() for name in _names_of(chosen))

    def matches(self, pattern: str) -> bool:
        """Whether a pattern matches one of :attr:`names`."""
        return any(matches(name, pattern) for name in self.names)

    def strength_of(self, chosen: ChosenRows) -> float:
        """The strength for the rows ``chosen``; 0 where no pattern matches."""
        if not isinstance(self.strength, Mapping):
            return float(self.strength)
        names = _names_of(chosen)
        found = (value for pattern, value in self.strength.items() if any(matches(name, pattern) for name in names))
        return float(next(found, 0.0))

    def fingerprints(self, anew: Collection[str] = ()) -> tuple[str, ...] | None:
        """What the model's fingerprint may be, if the channel set says which it should have.

        Reads every weight that no earlier run has read, and those of ``anew``; see
        :func:`act.editing.stored.fingerprints`.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=8)
        >>> one = act.Donor(donor, channels)
        >>> one.made_for["donor"].fingerprint in one.fingerprints()
        True
        """
        if "donor" not in self.made_for:
            return None
        if isinstance(self.model, str | Path):
            return fingerprints(self._stored, anew)
        return fingerprints(weights_of(self.model, "donor"))

    @property
    def made_for(self) -> Mapping[str, ModelRead]:
        """The ``donor`` and ``target`` that the channels were chosen for, if known."""
        return self.channels.rule.models

    def used(self) -> DonorUsed:
        """What patches and model cards say about it.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=8)
        >>> found = act.Donor(donor, channels, strength=0.3, name="base").used()
        >>> found.name, found.channels, found.strength
        ('base', 8, 0.3)
        """
        folder = str(self.model) if isinstance(self.model, str | Path) else None
        name = self.name or folder or (self.made_for["donor"].name if "donor" in self.made_for else None)
        strength = dict(self.strength) if isinstance(self.strength, Mapping) else self.strength
        return DonorUsed(name, len(self.channels), strength, self.channels.rule)


def weights_of(model: nn.Module | Weights, side: str) -> Weights:
    """The parameters of a model by name, or the mapping as it is.

    Raises:
        ActError: neither a model nor a mapping; the model is quantised, or not all in memory.
    """
    require_type(f"the {side}", model, (nn.Module, Mapping), MODEL_OR_WEIGHTS)
    if not isinstance(model, nn.Module):
        return model
    require_whole(model)
    packed = any(map(is_stored_otherwise, model.modules()))
    if packed or getattr(model, "is_quantized", False) or hasattr(model, "hf_quantizer"):
        raise ActError(f"{type(model).__name__} is quantised, {NOT_MOVED}")
    require_none(model, side)
    require_in_memory(model, side)
    return {name: parameter.detach() for name, parameter in language_view(model).named_parameters()}


def _names_of(chosen: ChosenRows) -> tuple[str, str, str]:
    return chosen.site.name, chosen.parameter.name, chosen.parameter.key


def _under_names_of(space: ChannelSpace, weights: Weights) -> Weights:
    """The weights under the names of a channel space, where these differ in what the first part of all names is.

    A model and the same one with a head do: ``encoder.layer.0`` and ``bert.encoder.layer.0``.
    """
    wanted = {part.key for site in space for part in site.parameters}
    missing = min(wanted - weights.keys(), default="")
    for name in weights if missing else ():
        if name.endswith(f".{missing}"):
            start = name.removesuffix(missing)
            renamed = {other.removeprefix(start): values for other, values in weights.items()}
        elif missing.endswith(f".{name}"):
            renamed = {missing.removesuffix(name) + other: values for other, values in weights.items()}
        else:
            continue
        if wanted <= renamed.keys():
            return renamed
    return weights


def shared_tokens(donor: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> Tokens:
    """The token strings that two tokenizers share, as ids: what :func:`transfer` takes as ``tokens``.

    Args:
        donor, target: the tokenizers of the two models.

    Returns:
        ``(donor_ids, target_ids)``, both int64 ``[K]``, in order of target id.

    Raises:
        ActError: they have no token in common, or are no tokenizers.

    >>> donor_ids, target_ids = act.shared_tokens(tokenizer, tokenizer)
    >>> bool((donor_ids == target_ids).all())
    True
    """
    for side, given in (("donor", donor), ("target", target)):
        if not hasattr(given, "get_vocab"):
            raise ActError(
                f"the tokenizer of the {side} is of type {type(given).__name__}; expected a tokenizer, such as "
                "AutoTokenizer.from_pretrained gives"
            )
    theirs, ours = donor.get_vocab(), target.get_vocab()
    pairs = sorted((number, theirs[token]) for token, number in ours.items() if token in theirs)
    if not pairs:
        raise ActError("the tokenizers of donor and target have no token in common; leave embedding and LM head out")
    ids = torch.tensor(pairs, dtype=torch.int64)
    return ids[:, 1].contiguous(), ids[:, 0].contiguous()


def _set_for(given: object) -> str:
    """What was expected in place of ``given``, and where to get it."""
    if isinstance(given, Profile):
        return "an act.ChannelSet; make one of a profile with act.rank"
    if isinstance(getattr(given, "channels", None), ChannelSet):  # a choice
        return "an act.ChannelSet; give its channels (choice.channels)"
    return "an act.ChannelSet; read a file with act.ChannelSet.load"
