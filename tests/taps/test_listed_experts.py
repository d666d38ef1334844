"""Experts in a list of modules, as in transformers 4 and in models that bring their code along."""

from __future__ import annotations

import pytest
import torch
from support import tiny_model
from torch import nn

import act
from act.core.errors import ActError

EXPERTS, EACH = 4, 2


class Expert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, 24, bias=False), nn.Linear(width, 24)
        self.w2 = nn.Linear(24, width, bias=False)

    def forward(self, x):
        return self.w2(torch.nn.functional.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """Tokens reach their experts by one of the ways that models gather them."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        self.gate = nn.Linear(width, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(EXPERTS))
        self.way = way

    def forward(self, hidden):
        x = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = self.gate(x).softmax(-1).topk(EACH, dim=-1)
        output = torch.zeros_like(x)
        if self.way == "sorted":  # as in the first DeepSeek models: one gather, a slice for each expert
            order = chosen.flatten().argsort()
            rows, start = x[order // EACH], 0
            for number, end in enumerate(torch.bincount(chosen.flatten(), minlength=EXPERTS).cumsum(0).tolist()):
                places = order[start:end]
                if end > start:
                    made = self.experts[number](rows[start:end])
                    output.index_add_(0, places // EACH, made * weights.flatten()[places, None])
                start = end
        else:
            for number, expert in enumerate(self.experts):
                if self.way == "slots":  # as in Mixtral: by top-k slot, then by token
                    slot, token = torch.where((chosen == number).T)
                    rows = x[None, token].reshape(-1, x.shape[-1])
                elif self.way == "mask":
                    reached = (chosen == number).any(-1)
                    token, rows = reached.nonzero()[:, 0], x[reached]
                    slot = (chosen[token] == number).int().argmax(-1)
                else:
                    token, slot = torch.where(chosen == number)
                    rows = x.index_select(0, token)
                if len(token):
                    output.index_add_(0, token, expert(rows) * weights[token, slot, None])
        return output.view_as(hidden)


def mixture(way: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp = Mixture(model.config.hidden_size, way)
    return model.eval()


def batch(shape=(3, 5)):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 200, shape, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "count_mask": torch.rand(shape, generator=generator) < 0.6,
    }


def expected(model, given):
    """Inputs of every mixture, and from them what each expert gives for the counted tokens routed to it."""
    inputs, found = {}, {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda module, args, n=n: inputs.update({n: args[0]}))
        for n, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(given["input_ids"], attention_mask=given["attention_mask"])
        for number, hidden in inputs.items():
            x, mlp = hidden.flatten(0, 1), model.model.layers[number].mlp
            reached = torch.zeros(len(x), EXPERTS, dtype=torch.bool)
            reached.scatter_(1, mlp.gate(x).topk(EACH, dim=-1)[1], True)
            for e, expert in enumerate(mlp.experts):
                rows = x[reached[:, e] & given["count_mask"].flatten()]
                place = f"model.layers.{number}.mlp.experts[{e}]"
                found[f"{place}.gate"], found[f"{place}.up"] = expert.w1(rows), expert.w3(rows)
                found[f"{place}.down"] = expert(rows)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("shape", [(3, 5), (4, 4)])
@pytest.mark.parametrize("way", ["slots", "mask", "index_select", "sorted"])
def test_the_rows_that_count_are_those_of_the_counted_tokens(way, shape):
    model, given = mixture(way), batch(shape)
    profile = act.profile(model, [given])
    assert profile.space.coverage.share == 1.0
    for name, rows in expected(model, given).items():
        site = profile.site(name)
        assert (site.count == len(rows)).all(), name
        if len(rows):
            torch.testing.assert_close(site.mean, rows.double().mean(0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(site.var, rows.double().var(0, correction=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", ["slots", "sorted"])
def test_a_pair_compares_tokens_that_met_the_same_expert_in_both(way):
    donor, target, given = mixture(way), mixture(way, seed=2), batch()
    pair = act.profile_pair(donor, target, [given])
    alone = [act.profile(model, [given]) for model in (donor, target)]
    for side, one in zip((pair.donor, pair.target), alone, strict=True):
        assert torch.equal(side.count, one.count)
        torch.testing.assert_close(side.mean, one.mean, rtol=1e-6, atol=1e-6, equal_nan=True)
    for site in pair.space:
        if site.expert is not None:
            counts = pair.site(site.name)
            assert (counts.difference.count <= torch.minimum(counts.donor.count, counts.target.count)).all()


def test_every_token_can_be_shown_to_every_expert():
    model, given = mixture("slots"), batch()
    profile = act.profile(model, [given], moe_all_experts=True)
    counted = given["count_mask"].sum()
    assert all((profile.site(site.name).count == counted).all() for site in profile.space)
    assert profile.provenance.settings.moe_all_experts


def test_rows_that_no_gather_explains_are_said_to_be_unread(caplog):
    class Shuffled(Mixture):
        def forward(self, hidden):
            x = hidden.reshape(-1, hidden.shape[-1])
            rows = torch.einsum("ij,jk->ik", torch.eye(len(x))[: len(x) - 1], x)
            return hidden + self.gate(hidden).mean() + sum(expert(rows).sum() for expert in self.experts)

    model = mixture("slots")
    for layer in model.model.layers:
        layer.mlp = Shuffled(model.config.hidden_size, "")
    profile = act.profile(model, [batch()])
    assert "nothing shows which token" in caplog.text
    assert (profile.site("model.layers.1.mlp.experts[0].up").count == 0).all()
    assert (profile.site("model.layers.0.self_attn.q_proj").count > 0).all()


def test_experts_that_run_by_kernels_of_their_own_are_said_to_be_unread(caplog):
    from tiny_families import tiny

    model = tiny("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.experts.forward = lambda hidden, index, weights: hidden * weights.sum(-1, keepdim=True)
    profile = act.profile(model, [batch()])
    assert "no product with their weights was seen" in caplog.text
    assert (profile.site("model.layers.0.mlp.experts[0].up").count == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda experts: setattr(experts, "_is_expert_parallel", True), "expert parallelism"),
        (lambda experts: setattr(experts.config, "_experts_implementation", "deepgemm"), "'deepgemm'"),
        (lambda experts: setattr(experts, "down_proj", quantised(experts.down_proj)), "quantised"),
    ],
)
def test_experts_that_cannot_be_read_are_refused_in_a_sentence(change, words):
    from tiny_families import tiny

    model = tiny("qwen3_moe")
    change(model.model.layers[0].mlp.experts)
    with pytest.raises(ActError, match=words):
        act.profile(model, [batch()])


def quantised(parameter):
    return nn.Parameter(torch.zeros(parameter.shape, dtype=torch.uint8), requires_grad=False)


def test_shared_experts_see_every_token_anyway():
    from tiny_families import tiny

    given = batch()
    profile = act.profile(tiny("inkling_text"), [given], moe_all_experts=True)
    counted = given["count_mask"].sum()
    assert all((profile.site(site.name).count == counted).all() for site in profile.space if site.expert is not None)


@pytest.mark.parametrize("make", [lambda: tiny_experts(), lambda: mixture("slots")], ids=["packed", "listed"])
def test_offloaded_experts_are_read_where_they_are_loaded(make):
    accelerate = pytest.importorskip("accelerate")
    given, expected = batch(), act.profile(make(), [batch()])
    model = accelerate.cpu_offload(make(), execution_device=torch.device("cpu"))
    assert torch.equal(act.profile(model, [given]).moments.arena, expected.moments.arena)


def tiny_experts():
    from tiny_families import tiny

    return tiny("gpt_oss")


def test_experts_that_two_layers_share_are_refused_in_a_sentence():
    from tiny_families import tiny

    model = tiny("qwen3_moe")
    model.model.layers[1].mlp.experts.down_proj = model.model.layers[0].mlp.experts.down_proj
    with pytest.raises(ActError, match="give each layer of experts its own"):
        act.ChannelSpace.from_model(model)
