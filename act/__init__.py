"""Find where an ability lives inside a language model, and move it.

pair = act.profile_pair(donor, target, corpus)
channels = act.rank(pair, score="paired", top=0.05)
patch = act.transfer(donor, target, channels, strength=0.4)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act.core.errors import ActError
    from act.data.corpus import Corpus
    from act.editing import mergekit
    from act.editing.donor import Donor, shared_tokens
    from act.editing.patch import Patch, compose
    from act.editing.transfer import transfer, transfer_many
    from act.editing.tune import Tuned, TuneSettings, tune
    from act.evaluation.choice import Choice, choose
    from act.evaluation.comparison import Comparison, compare
    from act.evaluation.evaluate import Evaluation, evaluate
    from act.evaluation.sweep import Sweep, sweep
    from act.models.channels import ChannelSpace
    from act.models.expert_order import align_experts
    from act.models.sites import Site
    from act.profiles.attribution import AttributionProfile
    from act.profiles.profile import PairProfile, Profile, load
    from act.profiles.statistics import Statistics
    from act.profiling import ray_data
    from act.profiling.attribution import attribute
    from act.profiling.checkpoint import Checkpoint
    from act.profiling.measure import profile, profile_pair
    from act.profiling.observer import Observer
    from act.profiling.until_stable import UntilStable
    from act.ranking import attribution
    from act.ranking.channel_set import ChannelSet
    from act.ranking.rank import rank
    from act.recipes import recipe

    __version__: str

_NAMES = {
    "act.core.errors": ("ActError",),
    "act.data.corpus": ("Corpus",),
    "act.editing.donor": ("Donor", "shared_tokens"),
    "act.editing.patch": ("Patch", "compose"),
    "act.editing.transfer": ("transfer", "transfer_many"),
    "act.editing.tune": ("TuneSettings", "Tuned", "tune"),
    "act.evaluation.choice": ("Choice", "choose"),
    "act.evaluation.comparison": ("Comparison", "compare"),
    "act.evaluation.evaluate": ("Evaluation", "evaluate"),
    "act.evaluation.sweep": ("Sweep", "sweep"),
    "act.models.channels": ("ChannelSpace",),
    "act.models.expert_order": ("align_experts",),
    "act.models.sites": ("Site",),
    "act.profiles.attribution": ("AttributionProfile",),
    "act.profiles.profile": ("PairProfile", "Profile", "load"),
    "act.profiles.statistics": ("Statistics",),
    "act.profiling.attribution": ("attribute",),
    "act.profiling.checkpoint": ("Checkpoint",),
    "act.profiling.measure": ("profile", "profile_pair"),
    "act.profiling.observer": ("Observer",),
    "act.profiling.until_stable": ("UntilStable",),
    "act.ranking.channel_set": ("ChannelSet",),
    "act.ranking.rank": ("rank",),
}
_MODULES = {
    "attribution": "act.ranking.attribution",
    "mergekit": "act.editing.mergekit",
    "ray_data": "act.profiling.ray_data",
    "recipe": "act.recipes.recipe",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "ActError",
    "AttributionProfile",
    "ChannelSet",
    "ChannelSpace",
    "Checkpoint",
    "Choice",
    "Comparison",
    "Corpus",
    "Donor",
    "Evaluation",
    "Observer",
    "PairProfile",
    "Patch",
    "Profile",
    "Site",
    "Statistics",
    "Sweep",
    "TuneSettings",
    "Tuned",
    "UntilStable",
    "__version__",
    "align_experts",
    "attribute",
    "attribution",
    "choose",
    "compare",
    "compose",
    "evaluate",
    "load",
    "mergekit",
    "profile",
    "profile_pair",
    "rank",
    "ray_data",
    "recipe",
    "shared_tokens",
    "sweep",
    "transfer",
    "transfer_many",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import what a name stands for when it is first used (PEP 562), so that ``import act`` itself costs nothing."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("act-profile")
    else:
        raise AttributeError(f"module 'act' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
