"""Experts and routers, family by family and implementation by implementation, against float64 by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from experts_reference import Rows, expert_rows, implementations, run_by
from tiny_families import SOME_WITH_EXPERTS, expert_families, tiny

import act
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps.tapped import taps

PAIRS = ("gpt_oss", "jetmoe", "llama4_text", "mixtral")


def each(names, often):
    rest = [pytest.mark.slow, pytest.mark.thorough]
    return [pytest.param(name, marks=[] if name in often else rest) for name in names]


def batch_of(batch, length, seed=1):
    """Token ids, padding on the right where there is room, and an answer mask that leaves tokens out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 200, (batch, length), generator=generator)
    attention_mask = torch.ones_like(ids)
    if length > batch:
        attention_mask[-1, -2:] = 0
    count_mask = (torch.rand(batch, length, generator=generator) < 0.6) & attention_mask.bool()
    count_mask[0, 1] = True
    return {"input_ids": ids, "attention_mask": attention_mask, "count_mask": count_mask}


def outputs_of(model, batch):
    """What the forward gives: logits, or hidden states where there is no language head."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)[0]


def rows_of(model, batches, by=None):
    """What each site computes for the counted tokens of all batches, or the modules of another model on its inputs."""
    found: dict[str, list[Rows]] = {}
    for batch in batches:
        for name, rows in expert_rows(model, batch["input_ids"], batch["attention_mask"], by).items():
            found.setdefault(name, []).append(rows.of(batch["count_mask"]))
    return found


def values_of(found):
    return {name: torch.cat([rows.values for rows in each]) for name, each in found.items()}


def assert_agree(statistics, rows, name):
    """Counts exact, mean and variance within 1e-5 of the largest value."""
    assert statistics.count.tolist() == [len(rows)] * rows.shape[1], name
    if len(rows):
        largest = rows.abs().max()
        assert (statistics.mean - rows.mean(0)).abs().max() <= 1e-5 * largest, name
        assert (statistics.var - rows.var(0, correction=0)).abs().max() <= 1e-5 * largest**2, name


@pytest.mark.parametrize("family", each(expert_families(), SOME_WITH_EXPERTS.split()))
def test_every_expert_and_router_agrees_with_float64(family):
    model = tiny(family)
    batches = [batch_of(2, 7), batch_of(4, 4)]
    expected = values_of(rows_of(model, batches))
    space = ChannelSpace.from_model(model)
    assert {site.name for site in space if site.expert is not None} == {name for name in expected if "[" in name}
    for implementation in implementations(model):
        run_by(implementation, model)
        for fused in (True, False):
            profile = act.profile(model, batches, fused=fused)
            for name, rows in expected.items():
                assert_agree(profile.site(name), rows, (implementation, fused, name))
        for batch in batches:
            with torch.inference_mode():
                plain = outputs_of(model, batch)
                with taps(model, Moments(space), fused=False) as tapped:
                    tapped.start(batch["count_mask"])
                    assert torch.equal(outputs_of(model, batch), plain), implementation


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_an_expert_that_no_token_reached_has_counted_nothing(implementation):
    model = tiny("qwen3_moe")
    run_by(implementation, model)
    batch = batch_of(2, 7)
    batch["count_mask"] = torch.zeros_like(batch["count_mask"])
    batch["count_mask"][1, 3] = True
    profile = act.profile(model, [batch])
    experts = [site for site in profile.space if site.expert is not None]
    reached = [site for site in experts if profile.site(site.name).count.any()]
    assert len(reached) == len(experts) // 2  # two of four
    for site in experts:
        found = profile.site(site.name)
        if site in reached:
            assert (found.count == 1).all()
        else:
            assert found.mean.isnan().all() and found.var.isnan().all()


@pytest.mark.parametrize("family", each(expert_families(), PAIRS))
def test_a_pair_differs_over_the_tokens_that_met_the_same_expert(family):
    donor, target = tiny(family, 0), tiny(family, 1)
    batches = [batch_of(2, 7), batch_of(4, 4)]
    theirs, mine = rows_of(donor, batches), rows_of(target, batches)
    differs = any(
        one.tokens.sort().values.tolist() != other.tokens.sort().values.tolist()
        for name in mine
        for one, other in zip(theirs[name], mine[name], strict=True)
    )
    assert differs, "both route alike"
    for implementation in implementations(donor):
        run_by(implementation, donor, target)
        pair = act.profile_pair(donor, target, batches)
        for name in mine:
            found = pair.site(name)
            where = (implementation, name)
            assert_agree(found.donor, values_of(theirs)[name], where)
            assert_agree(found.target, values_of(mine)[name], where)
            both = torch.cat([one.both(other) for one, other in zip(theirs[name], mine[name], strict=True)])
            assert_agree(found.difference, both, where)
            if len(both):
                assert (found.mean_abs_diff - both.abs().mean(0)).abs().max() <= 1e-5 * both.abs().max(), where


def with_down_of(donor, target):
    """The target with the last matrices of the donor's experts, so that these read what the target's own would."""
    mixed = copy.deepcopy(target)
    theirs = dict(donor.named_parameters())
    for name, parameter in mixed.named_parameters():
        if (".experts." in name and ("down" in name or name.endswith("w2"))) or name.endswith("output_linear.weight"):
            parameter.data.copy_(theirs[name])
    return mixed


@pytest.mark.parametrize("family", each(expert_families(), (*PAIRS, "dbrx", "qwen3_moe")))
def test_the_donors_experts_are_given_the_tokens_of_the_targets(family):
    donor, target = tiny(family, 0), tiny(family, 1)
    batches = [batch_of(2, 7), batch_of(4, 4)]
    theirs, mine = rows_of(donor, batches), rows_of(target, batches)
    first, last = (rows_of(target, batches, by) for by in (donor, with_down_of(donor, target)))
    for implementation in implementations(donor):
        run_by(implementation, donor, target)
        pair = act.profile_pair(donor, target, batches, swap=True)
        for name in mine:
            swapped = last[name] if name.endswith(".down") else first[name]
            swaps = [Rows(t.tokens, s.values - t.values) for t, s in zip(mine[name], swapped, strict=True)]
            where = (implementation, name)
            assert_agree(pair.site(name).swap, torch.cat([each.values for each in swaps]), where)
            pairs = zip(theirs[name], mine[name], swaps, strict=True)
            products = [d.both(t) * swap.where(d) for d, t, swap in pairs]
            assert_agree(pair.site(name).product, torch.cat(products), where)
        unswapped = pair.provenance.corpora[0].unswapped
        assert all(reason.startswith("it only scales") for reason in unswapped.values()), unswapped
