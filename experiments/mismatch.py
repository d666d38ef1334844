"""Forms of local match: ways to turn swapped outputs into one score per channel.

With ``a_t`` the output of a target's channel, ``a_d`` the donor's own and ``a_s`` what the donor's module gives on the
target's input, ``swap = a_s - a_t`` and ``D = a_d - a_t`` (:mod:`act.ranking.match`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from laboratory import Lab

from act.data.corpus import Corpus
from act.models.channels import ChannelSpace
from act.models.sites import Site
from act.profiles.profile import PairProfile
from act.profiles.statistics import Statistics
from act.profiling.measure import profile_pair
from act.ranking.costs import per_cost
from act.ranking.normalize import Normalize, normalized


class Measured(NamedTuple):
    """Means over the counted tokens of a text, float64 ``[N]``."""

    benefit: torch.Tensor  # swap * D
    change: torch.Tensor  # swap ** 2
    wanted: torch.Tensor  # D ** 2
    size: torch.Tensor  # a_t ** 2

    @classmethod
    def of(cls, pair: PairProfile) -> Measured:
        """Those of a pair profile with swapped outputs."""
        return cls(pair.product.mean, pair.swap.mean_square, pair.difference.mean_square, pair.target.mean_square)

    def at(self, site: Site, those: Measured) -> Measured:
        """These, with ``those`` of one site in their place."""
        mixed = Measured(*(values.clone() for values in self))
        for mine, theirs in zip(mixed, those, strict=True):
            mine[site.channels] = theirs
        return mixed


Views = dict[str, Measured]
"""What was measured of a text, by how the outputs of the LM head are looked at."""


def views(lab: Lab, corpus: Corpus, likely: str) -> Views:
    """All views of a text; ``likely`` is the model, donor or target, whose logits tell which tokens are likely.

    ``likely``: weighted by ``p (1 - p)`` with ``p = softmax(mean + standard deviation)`` of that model's logits;
    ``of the donor``: of the donor's, whatever the text; ``of both``: with the mean of both models' ``p``; ``means``:
    with ``p = softmax(mean)``; ``log-normal``: with ``p = softmax(mean + variance / 2)``.
    """
    pair = profile_pair(lab.donor_model, lab.target_model, corpus, swap=True)
    plain = Measured.of(pair)
    head = next(site for site in lab.space if site.kind == "head")
    sides = {side: (one.mean[head.channels], one.var[head.channels]) for side, one in _sides(pair).items()}

    def weighted(p: torch.Tensor) -> Measured:
        return Measured(*(p * (1 - p) * values[head.channels] for values in plain))

    mean, var = sides[likely]
    each = {side: (its_mean + its_var.sqrt()).softmax(0) for side, (its_mean, its_var) in sides.items()}
    found = {
        "likely": weighted(each[likely]),
        "of the donor": weighted(each["donor"]),
        "of both": weighted((each["donor"] + each["target"]) / 2),
        "means": weighted(mean.softmax(0)),
        "log-normal": weighted((mean + var / 2).softmax(0)),
        **_of_tokens(lab.donor_model, lab.target_model, corpus, head),
    }
    return {"as others": plain, **{name: plain.at(head, those) for name, those in found.items()}}


def _sides(pair: PairProfile) -> dict[str, Statistics]:
    return {"donor": pair.donor, "target": pair.target}


@torch.no_grad()
def _of_tokens(donor: Any, target: Any, corpus: Corpus, head: Site) -> Views:
    """The LM head by what it makes of each token's logits.

    ``centred``: without what all logits of a token have in common, which changes no probability. ``curvature``: squares
    and products of these weighted by ``p (1 - p)``, the curvature of the softmax of the target. ``divergence``: with
    ``D = p_d - p_t``, so that the benefit is the fall of the divergence of the target's distribution from the donor's,
    to first order.
    """
    sums = {name: torch.zeros(4, head.width, dtype=torch.float64) for name in ("centred", "curvature", "divergence")}
    tokens = 0
    for sequence in corpus.sequences():
        ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64)[None]
        counted = torch.as_tensor(sequence.count_mask)
        theirs, mine = (model.model(input_ids=ids).last_hidden_state[0, counted] for model in (donor, target))
        after, before, swapped = donor.lm_head(theirs), target.lm_head(mine), donor.lm_head(mine)
        swap, wanted, size = (_centred(x.double()) for x in (swapped - before, after - before, before))
        p = torch.softmax(before.double(), 1)
        nearer, curvature = torch.softmax(after.double(), 1) - p, p * (1 - p)
        products = torch.stack([swap * wanted, swap.square(), wanted.square(), size.square()])
        sums["centred"] += products.sum(1)
        sums["curvature"] += (curvature * products).sum(1)
        of_distributions = (swap * nearer, curvature * products[1], wanted * nearer, curvature * products[3])
        sums["divergence"] += torch.stack(of_distributions).sum(1)
        tokens += int(counted.sum())
    return {name: Measured(*(values / tokens)) for name, values in sums.items()}


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(1, keepdim=True)


@dataclass(frozen=True)
class Form:
    """One form; the defaults are those of METHOD, so that a form is named after what it has otherwise.

    Attributes:
        module: what benefits of a module are divided by, so that modules can be compared (:data:`SCALES`).
        fall: the benefit: ``first order``, ``swap * D``; the exact fall of the squared mismatch at a ``strength``,
            ``2 swap * D - strength * swap ** 2``, over the strength; or at the ``best strength``, ``(swap * D) ** 2 /
            swap ** 2`` with the sign of ``swap * D``.
        against: what is kept: ``change``: divided by ``swap ** 2`` there, to a ``power``; ``fall``: minus ``weight``
            times the benefit there; ``both``: that, then this; ``penalty``: minus ``weight`` times ``swap ** 2``;
            ``ratio``: over the size of the benefit there; ``nothing``.
        change: what ``swap ** 2`` is divided by, as ``module``.
        power, weight: see ``against``.
        head: how the LM head is looked at (:func:`views`), or ``left out``.
        embedding: ``as others`` or ``left out``.
        then: what the score is divided by at the end: ``none``, or ``std`` or ``kind-std`` of
            :func:`act.ranking.normalize.normalized`.
        units: whether it is the mean over neurons and heads.
    """

    module: str = "mean D2"
    fall: str = "first order"
    against: str = "change"
    change: str = "mean size"
    power: float = 0.5
    weight: float = 1.0
    head: str = "as others"
    embedding: str = "as others"
    then: Normalize = "none"
    units: bool = False

    @property
    def name(self) -> str:
        """What is not as METHOD has it."""
        mine = [(field.name, getattr(self, field.name)) for field in fields(self)]
        plain = {field.name: field.default for field in fields(self)}
        return ", ".join(f"{name}: {value}" for name, value in mine if value != plain[name]) or "as METHOD has it"

    def score(self, lab: Lab, forgotten: Views, retained: Views) -> torch.Tensor:
        """The score of every channel, float64 ``[N]``, NaN where it is left out."""
        view = "as others" if self.head == "left out" else self.head
        mine, kept = forgotten[view], retained[view]
        found = self._benefit(mine) / SCALES[self.module](mine, lab.space)
        if self.against in ("fall", "both", "ratio"):
            harm = self._benefit(kept) / SCALES[self.module](kept, lab.space)
            found = per_cost(found, [harm.abs()]) if self.against == "ratio" else found - self.weight * harm
        if self.against in ("change", "both", "penalty"):
            cost = kept.change / SCALES[self.change](kept, lab.space)
            found = found - self.weight * cost if self.against == "penalty" else per_cost(found, [cost**self.power])
        found = lab.by_unit(found) if self.units else found
        if self.then in ("std", "kind-std"):
            found = normalized(found, lab.space, self.then)
        for site in lab.space:
            if (site.kind, "left out") in (("head", self.head), ("embed", self.embedding)):
                found[site.channels] = torch.nan
        return found

    def _benefit(self, measured: Measured) -> torch.Tensor:
        if self.fall == "first order":
            return measured.benefit
        if self.fall == "best strength":
            found = measured.benefit * measured.benefit.abs() / measured.change
            return found.nan_to_num(0.0)
        return 2 * measured.benefit - float(self.fall) * measured.change


def _by_site(
    reduced: Callable[[torch.Tensor], torch.Tensor], of: str
) -> Callable[[Measured, ChannelSpace], torch.Tensor]:
    def scales(measured: Measured, space: ChannelSpace) -> torch.Tensor:
        values = getattr(measured, of)
        found = torch.ones_like(values)
        for site in space:
            found[site.channels] = reduced(values[site.channels]) or 1.0
        return found

    return scales


def _by_kind(measured: Measured, space: ChannelSpace) -> torch.Tensor:
    found = torch.ones_like(measured.wanted)
    for kind in {site.kind for site in space}:
        places = [site.channels for site in space if site.kind == kind]
        mean = torch.cat([measured.wanted[channels] for channels in places]).mean()
        for channels in places:
            found[channels] = mean
    return found


def _in_the_stream(measured: Measured, space: ChannelSpace) -> torch.Tensor:
    """The share of a module's mismatch, valued by the mismatch of what its block adds to the residual stream."""
    total = {site.name: float(measured.wanted[site.channels].sum()) for site in space}
    added = {(site.layer, site.kind): total[site.name] for site in space if site.kind in ("o", "down")}
    mean = sum(added.values()) / len(added)
    found = torch.ones_like(measured.wanted)
    for site in space:
        block = "o" if site.kind in ("q", "k", "v", "o") or "input_layernorm" in site.name else "down"
        found[site.channels] = total[site.name] / added.get((site.layer, block), mean)
    return found


SCALES: Mapping[str, Callable[[Measured, ChannelSpace], torch.Tensor]] = {
    "none": lambda measured, space: torch.ones_like(measured.wanted),
    "mean D2": _by_site(torch.mean, "wanted"),
    "sum D2": _by_site(torch.sum, "wanted"),
    "sum D2 over root width": _by_site(lambda values: values.sum() / len(values) ** 0.5, "wanted"),
    "root mean D2": lambda measured, space: _by_site(torch.mean, "wanted")(measured, space).sqrt(),
    "root sum D2": lambda measured, space: _by_site(torch.sum, "wanted")(measured, space).sqrt(),
    "mean size": _by_site(torch.mean, "size"),
    "sum size": _by_site(torch.sum, "size"),
    "mean swap2": _by_site(torch.mean, "change"),
    "sum swap2": _by_site(torch.sum, "change"),
    "D2 of the kind": _by_kind,
    "D2 of the channel": lambda measured, space: measured.wanted,
    "size of the channel": lambda measured, space: measured.size,
    "residual stream": _in_the_stream,
}
"""Ways to compare modules: what their benefits or costs are divided by, float64 ``[N]``."""
