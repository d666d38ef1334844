"""Profiles in one line, as a small table, and as a data frame."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import torch

from act.core.extras import optional
from act.profiles.coverage import Measured, swapped_share
from act.profiles.experts import FewTokens
from act.profiles.statistics import PairStatistics, Statistics

if TYPE_CHECKING:
    import pandas
    import rich.table

    from act.models.channels import ChannelSpace
    from act.profiles.profile import Profile

VECTORS = ("count", "mean", "var", "mean_abs", "max_abs", "positive_rate")
ATTRIBUTED = (
    *("documents", "loss_fall_per_token", "loss_fall_per_token_se"),
    *(f"loss_change_{name}" for name in (*VECTORS[1:], "rms")),
)
KEPT = "keep_"
DIFFERENCES = ("mean_diff", "var_diff", "mean_abs_diff")


def sentence(profile: Profile) -> str:
    """One line: the type, models, text, and numbers of channels and tokens."""
    models = " and ".join(model.name for model in profile.provenance.models.values()) or "an unknown model"
    counted = sum(corpus.counted for corpus in profile.provenance.corpora)
    return (
        f"{type(profile).__name__} of {models} over {_text(profile)}: {len(profile.space):,} channels at "
        f"{_sites(profile)}, {counted:,} tokens counted"
    )


def html(profile: Profile) -> str:
    """A small HTML table."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _rows(profile))
    return f"<table><caption>{type(profile).__name__}</caption><tbody>{rows}</tbody></table>"


def rich_table(profile: Profile) -> rich.table.Table:
    """A small table for a terminal."""
    from rich.markup import escape as plain
    from rich.table import Table

    table = Table(title=type(profile).__name__, title_justify="left", show_header=False)
    for name, value in _rows(profile):
        table.add_row(name, plain(value))
    return table


def frame(profile: Profile) -> pandas.DataFrame:
    """A data frame with one row per channel; see :meth:`act.Profile.to_frame`."""
    pandas = optional("pandas", "frame", "a data frame of channels")
    columns = {name: vector.cpu().numpy() for name, vector in vectors_of(profile).items()}
    return pandas.DataFrame({**places(profile.space, torch.arange(len(profile.space))), **columns})


def vectors_of(profile: Profile) -> dict[str, torch.Tensor]:
    """The statistics of a profile by name, each float64 ``[N]``; see :meth:`act.Profile.to_frame`."""
    if not profile.of_tokens:
        return _attributed(profile)
    if not isinstance(profile, PairStatistics):
        return _vectors(profile)
    vectors = {**_vectors(profile.donor, "donor_"), **_vectors(profile.target, "target_")}
    vectors |= {name: getattr(profile, name) for name in DIFFERENCES}
    if profile.swapped:
        vectors |= {**_vectors(profile.swap, "swap_"), **_vectors(profile.product, "product_")}
    return vectors


def places(space: ChannelSpace, channels: torch.Tensor) -> dict[str, object]:
    """The columns that locate channels: ``site``, ``kind``, ``layer`` and ``row``, as pandas arrays.

    Args:
        space: the channel space.
        channels: sorted distinct flat indices, int64 ``[K]``.

    Raises:
        ActError: pandas is not installed.
    """
    pandas = optional("pandas", "frame", "a data frame of channels")
    sites, rows = zip(*space.split(channels), strict=True) if len(channels) else ((), ())
    widths = torch.tensor([len(each) for each in rows], dtype=torch.int64)
    number = torch.arange(len(sites)).repeat_interleave(widths).numpy()
    kinds = list(dict.fromkeys(site.kind for site in sites))
    codes = torch.tensor([kinds.index(site.kind) for site in sites], dtype=torch.int64).numpy()
    return {
        "site": pandas.Categorical.from_codes(number, [site.name for site in sites]),
        "kind": pandas.Categorical.from_codes(codes[number], kinds),
        "layer": pandas.array([site.layer for site in sites], dtype="Int64").take(number),
        "row": torch.cat([channels.new_empty(0), *rows]).numpy(),
    }


def _vectors(statistics: Statistics, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: getattr(statistics, name) for name in VECTORS}


def _attributed(profile: Profile) -> dict[str, torch.Tensor]:
    """What an attribution profile says of the ability, and then of each text to keep, under names that say so."""
    from act.profiles.attribution import AttributionProfile  # which is a profile, and those show themselves by this

    assert isinstance(profile, AttributionProfile)
    prefixes = [KEPT if len(profile.kept) == 1 else f"{KEPT}{number}_" for number, _ in enumerate(profile.kept, 1)]
    vectors: dict[str, torch.Tensor] = {}
    for prefix, part in zip(["", *prefixes], (profile, *profile.kept), strict=True):
        found = [part.count, part.fall, part.error, *(getattr(part, name) for name in (*VECTORS[1:], "rms"))]
        vectors |= {f"{prefix}{name}": vector for name, vector in zip(ATTRIBUTED, found, strict=True)}
    return {**vectors, "distance": profile.distance}


def _rows(profile: Profile) -> list[tuple[str, str]]:
    corpora = profile.provenance.corpora
    tokens, counted = (sum(getattr(corpus, name) for corpus in corpora) for name in ("tokens", "counted"))
    return [
        *((side, str(model)) for side, model in profile.provenance.models.items()),
        ("text", _text(profile)),
        ("tokens", f"{tokens:,}, of which {counted:,} counted"),
        ("channels", f"{len(profile.space):,} at {_sites(profile)}"),
        *([("coverage", str(measured))] if (measured := Measured.of(profile)) else []),
        *([("swapped outputs", swapped_share(profile))] if profile.swapped else []),
        *([("experts", f"{few}{_how_routed(profile)}")] if (few := FewTokens.of(profile)) else []),
    ]


def _how_routed(profile: Profile) -> str:
    return ", every token through every expert" if profile.provenance.settings.moe_all_experts else ""


def _text(profile: Profile) -> str:
    corpora = profile.provenance.corpora
    return ", ".join(f"{one.name} ({one.part})" if one.part else one.name for one in corpora) or "no text"


def _sites(profile: Profile) -> str:
    sites = len(profile.space.sites)
    return f"{sites} site{'' if sites == 1 else 's'}"
