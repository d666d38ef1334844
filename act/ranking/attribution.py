"""``act.attribution``, a module: the first-order change of the loss if a channel moved to the donor, as two vectors.

What one wants is mostly the verb, :func:`act.attribute`: it measures the same, can be stopped, knows texts to keep, and
returns an :class:`act.AttributionProfile`, which :func:`act.rank` reads with the score ``"attribution"``. This module
is for formulas of one's own: :func:`attribution` gives plain vectors, :func:`fall_per_cost` is the score's formula.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from act.data.corpus import Corpus, require_corpus
from act.models.loading import require_model
from act.profiles.attribution import AttributionProfile
from act.profiling.attribution import AttributionJob
from act.ranking.costs import per_cost

__all__ = ["Attribution", "attribution", "fall_per_cost"]


class Attribution(NamedTuple):
    """First-order changes of the loss if a channel moved all the way to the donor, both float64 ``[N]``.

    Attributes:
        mean: of the mean negative log-likelihood of a counted token; negative where the transfer would help.
        rms: root mean square over records of the change of a record's summed negative log-likelihood. At a minimum of
            the loss the mean vanishes and this remains: what a transfer disturbs (the diagonal of the empirical Fisher
            information along the transfer).

    >>> act.attribution.Attribution(mean=torch.tensor([-2.0, 1.0]), rms=torch.ones(2)).mean.argmin()
    tensor(0)
    """

    mean: torch.Tensor
    rms: torch.Tensor


def attribution(donor: nn.Module, target: nn.Module, corpus: Corpus) -> Attribution:
    """Run one forward and backward pass of ``target`` over a corpus; neither model is changed.

    The loss is over the answer tokens, or over all but the first of a corpus that counts ``all``; a corpus of answer
    tokens and one of the positions that predict them therefore give the same. Channels that share a tensor owned by
    another site get 0.

    Raises:
        ActError: as :func:`act.attribute`; models that do not differ give zeros.

    >>> found = act.attribution.attribution(donor, target, corpus)
    >>> pair = act.profile_pair(donor, target, corpus)
    >>> channels = act.rank(pair, -found.mean, count=10)  # where the transfer would help most
    >>> len(channels)
    10
    """
    require_model("the donor", donor)
    require_model("the target", target)
    require_corpus("the corpus", corpus)
    found = AttributionJob(donor, target, corpus).measured()
    assert isinstance(found, AttributionProfile)
    return Attribution(*(x.cpu().nan_to_num(0.0) for x in (-found.fall, found.rms)))


def fall_per_cost(forgotten: Attribution, keep: Attribution) -> torch.Tensor:
    """``-mean(forgotten) / rms(keep)``, ``[N]``: how far the loss would fall, per disturbance of the kept ability.

    Highest first, this is the order in which a diagonal quadratic model of the kept loss would spend its budget. Tiny
    costs count as :func:`act.ranking.costs.per_cost` says.

    >>> gain = act.attribution.Attribution(torch.tensor([-2.0, 1.0]), torch.ones(2))
    >>> cost = act.attribution.Attribution(torch.zeros(2), torch.tensor([0.5, 0.5]))
    >>> act.attribution.fall_per_cost(gain, cost)
    tensor([ 4., -2.])
    """
    return per_cost(-forgotten.mean, [keep.rms])
