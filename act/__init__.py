"""Find where an ability lives inside a language model, and move it.

pair = act.profile_pair(donor, target, corpus)
channels = act.rank(pair, score="paired", top=0.05)
patch = act.transfer(donor, target, channels, strength=0.4)
"""

from act.channel_set import ChannelSet
from act.channels import ChannelSpace, Site
from act.corpus import Corpus
from act.errors import ActError
from act.localize import rank
from act.patch import Patch, compose
from act.profile import PairProfile, Profile, load, profile, profile_pair
from act.transfer import Graft, shared_tokens, transfer, transfer_many

__all__ = [
    "ActError",
    "ChannelSet",
    "ChannelSpace",
    "Corpus",
    "Graft",
    "PairProfile",
    "Patch",
    "Profile",
    "Site",
    "compose",
    "load",
    "profile",
    "profile_pair",
    "rank",
    "shared_tokens",
    "transfer",
    "transfer_many",
]
