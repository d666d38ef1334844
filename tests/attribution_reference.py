"""The truth for attribution: record by record, from the gradients of all parameters."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from act.models.common import common_space, same_names


def attribution(donor, target, corpus):
    """Sum of tokens, and the change of each record's summed loss, float64 ``[records, N]``."""
    donor, target = same_names(donor, target)
    space = common_space(donor, target)
    theirs, mine = (dict(model.named_parameters()) for model in (donor, target))
    names = list(dict.fromkeys(part.key for site in space for part in site.parameters))
    shift = 0 if corpus.count == "predict" else 1
    rows, tokens = [], 0
    for sequence in corpus.for_models(target).sequences():
        ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64)[None]
        counted = torch.as_tensor(sequence.count_mask)
        wanted = counted[1:] if shift else counted[:-1]
        if not wanted.any():
            continue
        logits = target(input_ids=ids).logits[0, :-1]
        loss = cross_entropy(logits[wanted].float(), ids[0, 1:][wanted], reduction="sum")
        gradients = torch.autograd.grad(loss, [mine[name] for name in names], allow_unused=True)
        found = dict(zip(names, gradients, strict=True))
        change = torch.zeros(len(space), dtype=torch.float64)
        for site in space:
            for part in site.parameters:
                if found[part.key] is not None:
                    step = theirs[part.key].detach() - mine[part.key].detach()
                    product = part.part_of(found[part.key].contiguous()).double() * part.part_of(step).double()
                    change[site.channels] += product.sum(1)
        rows.append(change)
        tokens += int(wanted.sum())
    return tokens, torch.stack(rows)
