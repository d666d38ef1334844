"""Find where an ability lives inside a language model, and move it.

pair = act.profile_pair(donor, target, corpus)
channels = act.rank(pair, score="paired", top=0.05)
patch = act.transfer(donor, target, channels, strength=0.4)
"""

from act.channel_set import ChannelSet
from act.channels import ChannelSpace, Site
from act.corpus import Corpus
from act.errors import ActError
from act.evaluate import Comparison, Evaluation, compare, evaluate
from act.localize import rank
from act.patch import Patch, compose
from act.profile import PairProfile, Profile, load, profile, profile_pair
from act.sweep import Sweep, sweep
from act.transfer import Graft, shared_tokens, transfer, transfer_many
from act.tune import Tuned, TuneSettings, tune

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
