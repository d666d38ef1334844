"""Find where an ability lives inside a language model, and move it.

pair = act.profile_pair(donor, target, corpus)
channels = act.rank(pair, score="paired", top=0.05)
patch = act.transfer(donor, target, channels, strength=0.4)
"""

from act.core.errors import ActError
from act.data.corpus import Corpus
from act.editing.patch import Patch, compose
from act.editing.transfer import Graft, shared_tokens, transfer, transfer_many
from act.editing.tune import Tuned, TuneSettings, tune
from act.evaluation.evaluate import Comparison, Evaluation, compare, evaluate
from act.evaluation.sweep import Sweep, sweep
from act.models.channels import ChannelSpace, Site
from act.profiles.profile import PairProfile, Profile, load
from act.profiling.measure import profile, profile_pair
from act.ranking.channel_set import ChannelSet
from act.ranking.rank import rank

__all__ = [
    "ActError",
    "ChannelSet",
    "ChannelSpace",
    "Comparison",
    "Corpus",
    "Evaluation",
    "Graft",
    "PairProfile",
    "Patch",
    "Profile",
    "Site",
    "Sweep",
    "TuneSettings",
    "Tuned",
    "compare",
    "compose",
    "evaluate",
    "load",
    "profile",
    "profile_pair",
    "rank",
    "shared_tokens",
    "sweep",
    "transfer",
    "transfer_many",
    "tune",
]
