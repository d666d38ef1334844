"""Attribution: how moving each channel to the donor would change the target's loss, to first order.

Statistics of activations say how differently two models use a channel; they do not say whether moving it helps. One
backward pass through the target does: with ``theta`` a channel's parameter rows, the loss changes by
``dL/dtheta . (theta_donor - theta_target)`` for a small step (the first-order term of Taylor pruning, Molchanov et al.,
arXiv 1611.06440, along the direction of the transfer).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from act.core.errors import ActError
from act.data.corpus import Corpus, require_corpus
from act.models.calls import require_decoder, without_cache
from act.models.channels import ChannelSpace
from act.models.common import common_space, same_names
from act.models.loading import require_model
from act.models.modes import evaluating
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
    """Run one forward and backward pass of ``target`` per record; neither model is changed.

    The loss is over the answer tokens, or over all but the first of a corpus that counts ``all``; a corpus of answer
    tokens and one of the positions that predict them therefore give the same. Channels that share a tensor owned by
    another site get 0. Memory: the gradients of one record.

    Raises:
        ActError: models of different architectures; no token to predict.

    >>> found = act.attribution.attribution(donor, target, corpus)
    >>> pair = act.profile_pair(donor, target, corpus)
    >>> channels = act.rank(pair, -found.mean, count=10)  # where the transfer would help most
    >>> len(channels)
    10
    """
    require_model("the donor", donor)
    require_model("the target", target)
    require_corpus("the corpus", corpus)
    donor, target = same_names(donor, target)
    require_decoder(target, "attribution", "rank its profiles by another score")
    space = common_space(donor, target)
    donor_parameters, parameters = (dict(model.named_parameters()) for model in (donor, target))
    names = list(dict.fromkeys(part.key for site in space for part in site.parameters))
    steps = [donor_parameters[name].detach().to(parameters[name]) - parameters[name].detach() for name in names]
    moved = [parameters[name] for name in names]
    frozen = [parameter for parameter in moved if not parameter.requires_grad]
    shift = 1 if corpus.count == "predict" else 0
    total, squares = (torch.zeros(len(space), dtype=torch.float64) for _ in range(2))
    tokens = records = 0
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(target), torch.enable_grad():
            for sequence in corpus.for_models(target).sequences():
                ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64, device=moved[0].device)[None]
                wanted = torch.as_tensor(sequence.count_mask, device=ids.device)
                wanted = wanted[:-1] if shift else wanted[1:]
                if not wanted.any():
                    continue
                logits = target(input_ids=ids, **without_cache(target)).logits[0, :-1]
                loss = cross_entropy(logits[wanted].float(), ids[0, 1:][wanted], reduction="sum")
                gradients = torch.autograd.grad(loss, moved, allow_unused=True)
                change = _by_channel(space, dict(zip(names, zip(gradients, steps, strict=True), strict=True)))
                total += change
                squares += change.square()
                tokens += int(wanted.sum())
                records += 1
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not records:
        raise ActError(
            f"{corpus.name}: no counted token has another before it that could predict it; give longer records"
        )
    return Attribution(total / tokens, (squares / records).sqrt())


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


def _by_channel(space: ChannelSpace, parts: dict[str, tuple[torch.Tensor | None, torch.Tensor]]) -> torch.Tensor:
    """The inner product of gradient and step over the parameter rows of every channel, float64 ``[N]``."""
    change = torch.zeros(len(space), dtype=torch.float64)
    for site in space:
        for part in site.parameters:
            gradient, step = parts[part.key]
            if gradient is not None:
                product = part.part_of(gradient.contiguous()).double() * part.part_of(step).double()
                change[site.channels] += product.sum(1).cpu()
    return change
