"""Attribution against finite differences, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_model

import act
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.ranking.attribution import Attribution, attribution, fall_per_cost

RECORDS = [
    {"prompt": "What is two", "completion": " plus three?"},
    {"prompt": "The answer", "completion": " is five."},
    {"prompt": "a b", "completion": " c d e"},
]


def mean_loss(model, corpus) -> float:
    """Mean negative log-likelihood of the answer tokens of a ``predict`` corpus, another way: from log-softmax."""
    total, tokens = 0.0, 0
    for sequence in corpus.sequences():
        ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64)
        logs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for place in sequence.count_mask.nonzero()[0]:
            total -= logs[place, ids[place + 1]].item()
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("family", ["llama", "llama-tied-bias", "phi", "gpt2"])
def test_mean_is_the_slope_of_the_loss(family, tokenizer):
    donor, target = tiny_model(family, 0).double(), tiny_model(family, 1).double()
    corpus = act.Corpus.from_records(RECORDS, tokenizer, count="predict")
    found = attribution(donor, target, corpus)
    space = ChannelSpace.from_model(target)
    generator = torch.Generator().manual_seed(0)
    chosen = (torch.rand(len(space), generator=generator) < 0.5).double()
    step, losses = 1e-4, []
    theirs = dict(donor.named_parameters())
    for sign in (1, -1):
        moved = copy.deepcopy(target)
        with torch.no_grad():
            for site in space:
                for part in site.parameters:
                    mine = part.whole.part_of(moved.get_parameter(part.name))
                    rows = part.places(torch.arange(site.width))
                    change = part.part_of(theirs[part.name]) - mine[rows]
                    mine[rows] += sign * step * chosen[site.channels][:, None] * change
            losses.append(mean_loss(moved, corpus))
    slope = (losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx((found.mean * chosen).sum().item(), rel=1e-3, abs=1e-5)


def test_rms_of_one_record_is_its_summed_change(tokenizer):
    donor, target = tiny_model("llama", 0), tiny_model("llama", 1)
    corpus = act.Corpus.from_records(RECORDS[:1], tokenizer, count="predict")
    found = attribution(donor, target, corpus)
    tokens = sum(int(sequence.count_mask.sum()) for sequence in corpus.sequences())
    torch.testing.assert_close(found.rms, tokens * found.mean.abs())


def test_answer_and_predict_give_the_same_and_the_models_are_left_alone(tokenizer):
    donor, target = tiny_model("qwen2", 0), tiny_model("qwen2", 1)
    target.requires_grad_(False)
    before = fingerprint(donor), fingerprint(target)
    one, other = (
        attribution(donor, target, act.Corpus.from_records(RECORDS, tokenizer, count=count))
        for count in ("answer", "predict")
    )
    torch.testing.assert_close(one.mean, other.mean)
    assert (fingerprint(donor), fingerprint(target)) == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in target.parameters())


def test_a_model_moved_to_itself_changes_nothing(tokenizer):
    model = tiny_model("llama")
    found = attribution(model, copy.deepcopy(model), act.Corpus.from_records(RECORDS, tokenizer))
    assert not found.mean.any() and not found.rms.any()


def test_records_of_one_token_are_refused(tokenizer):
    corpus = act.Corpus.from_records([{"text": "a"}], tokenizer, count="all")
    with pytest.raises(act.ActError, match="longer records"):
        attribution(tiny_model("llama", 0), tiny_model("llama", 1), corpus)


def test_fall_per_cost_divides_and_has_a_floor():
    forgotten = Attribution(torch.tensor([-2.0, -2.0, 1.0, -1.0]).double(), torch.ones(4).double())
    keep = Attribution(torch.zeros(4).double(), torch.tensor([1.0, 4.0, 1.0, 0.0]).double())
    assert fall_per_cost(forgotten, keep).tolist() == pytest.approx([2.0, 0.5, -1.0, 1000.0])
