"""Ablated channels of experts give their means, for every token that reaches them and for no other."""

from __future__ import annotations

import pytest
import torch
from experts_reference import expert_rows, implementations, run_by
from tiny_families import tiny

import act
from act.ranking.analysis import ablated

IDS = torch.randint(1, 200, (3, 7), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@pytest.mark.parametrize(
    ("family", "where"),
    [
        ("qwen3_moe", "mlp"),
        ("gpt_oss", "mlp"),
        ("llama4_text", ""),
        ("jetmoe", "mlp"),
        ("jetmoe", "attention.experts["),
    ],
)
def test_channels_of_experts_give_their_means_and_come_back(family, where):
    model = tiny(family)
    profile = act.profile(model, [BATCH])
    scores = torch.full((len(profile.space),), torch.nan).double()
    site = next(
        site
        for site in profile.space
        if site.kind == "up" and where in site.name and (profile.site(site.name).count > 2).all()
    )
    scores[site.offset + 1 : site.offset + 4] = 1.0
    channels = act.rank(profile, scores, count=3)
    before = {}
    for implementation in implementations(model):
        run_by(implementation, model)
        whole = act.profile(model, [BATCH])
        with ablated(model, channels, profile):
            filled = model(**BATCH, use_cache=False).logits
        before[implementation] = filled
        assert not torch.equal(filled, model(**BATCH, use_cache=False).logits)
        assert torch.equal(act.profile(model, [BATCH]).moments.arena, whole.moments.arena)
        assert "forward" not in vars(model)
    first, *others = before.values()
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-5)


def test_an_ablated_channel_of_an_expert_is_its_column_of_down_times_the_mean():
    model = tiny("qwen3_moe")
    profile = act.profile(model, [BATCH])
    site = next(site for site in profile.space if site.kind == "down" and (profile.site(site.name).count > 2).all())
    scores = torch.full((len(profile.space),), torch.nan).double()
    scores[site.channels] = 1.0
    layer = model.model.layers[site.layer]
    rows = expert_rows(model, IDS, BATCH["attention_mask"])[site.name]
    outputs = []
    hook = layer.mlp.experts.register_forward_hook(lambda module, args, output: outputs.append((args, output)))
    model(**BATCH, use_cache=False)
    with ablated(model, act.rank(profile, scores, count=site.width), profile):
        model(**BATCH, use_cache=False)
    hook.remove()
    ((_, chosen, weights), plain), (_, filled) = outputs[0], outputs[-1]
    share = (weights * (chosen == site.expert)).sum(-1)
    expected = plain.double()
    step = profile.site(site.name).mean - rows.values
    expected[rows.tokens] += share[rows.tokens, None].double() * step
    torch.testing.assert_close(filled.double(), expected, rtol=1e-4, atol=1e-5)
