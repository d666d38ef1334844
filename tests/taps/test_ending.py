"""Runs that measure some sites only: the model stops behind the last of them, with the bits of a whole forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_batches, tiny_model, train_tokenizer
from tiny_families import WITH_SOURCE, tiny

import act
from act.profiles.moments import Moments
from act.taps import tapped

FAMILIES = {"llama": "model.layers.1", "gpt2": "transformer.h.1", "phi": "model.layers.1", "gemma2": "model.layers.1"}
"""The second layer, which nothing in the first needs."""


def calls_of(model, name):
    """Counts the calls of a module, not by a hook: a module with hooks is never left before its end."""
    calls, module = [], model.get_submodule(name)
    forward = module.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    module.forward = counted
    return calls


def assert_measured(some, whole):
    """The sites that were to be measured have the bits of the other run, and all others nothing."""
    for site in some.space:
        found = some.moments.block(site.name)
        assert torch.equal(
            found, torch.zeros_like(found) if site.name in some.left_out else whole.moments.block(site.name)
        )


def given_to(model, count=2):
    """Batches for a model with or without a source."""
    batches = random_batches(count)
    if hasattr(model, "get_decoder") and model.config.is_encoder_decoder:
        for batch in batches:
            batch |= {f"decoder_{name}": batch[name] for name in ("input_ids", "attention_mask", "count_mask")}
    return batches


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_runs_behind_the_last_site(family, fused):
    layer = FAMILIES[family]
    first = [f"{layer[:-1]}0.*", "embed"]
    whole = act.profile(tiny_model(family), random_batches(), fused=fused)
    model = tiny_model(family)
    calls = calls_of(model, layer)
    act.profile(model, random_batches()[:1], fused=fused, include=first)
    for_one = len(calls)
    assert_measured(act.profile(model, random_batches(), fused=fused, include=first), whole)
    assert len(calls) == 2 * for_one  # of probes: as many for three batches as for one
    pair = act.profile_pair(tiny_model(family, seed=1), model, random_batches(), fused=fused, include=first)
    assert len(calls) == 3 * for_one
    others = act.profile_pair(tiny_model(family, seed=1), tiny_model(family), random_batches(), fused=fused)
    assert_measured(pair, others)


@pytest.mark.parametrize(
    "family", ["mixtral", f"t5{WITH_SOURCE}", f"fsmt{WITH_SOURCE}", "qwen3_5_text", "albert (masked)", "xlnet"]
)
def test_every_site_can_be_the_last(family, monkeypatch):
    """Where experts end, another text is read, tokens come before sequences, an attention holds its projections, or a layer is called again."""
    model = tiny(family)
    batches = given_to(model, 1)
    whole = act.profile(model, batches)
    ends = []
    end = tapped.Ending.end
    monkeypatch.setattr(tapped.Ending, "end", lambda self: (ends.append(self.early), end(self)))
    names = [site.name for site in whole.space if whole.site(site.name).count.any() and not site.scales]
    for name in names[:: max(1, len(names) // 6)]:
        assert_measured(act.profile(model, batches, include=name), whole)
    assert any(ends)


def test_one_expert_can_be_measured_alone():
    model = tiny("mixtral")
    whole = act.profile(model, random_batches())
    some = act.profile(model, random_batches(), include="*.experts[2].*", exclude="*.layers.1.*")
    assert_measured(some, whole)
    assert {site.expert for site in some.space if some.site(site.name).count.any()} == {2}
    pair = act.profile_pair(tiny("mixtral", seed=1), model, random_batches(), include=["*.experts[2].*"])
    channels = act.rank(pair, count=5, min_expert_tokens=1)
    assert {site.expert for site, _ in channels.space.split(channels.index)} == {2}
    assert not channels.rule.starved_experts and channels.rule.unmeasured


@pytest.mark.parametrize(
    ("family", "first"), [("llama", "*.0.*q_proj"), ("gpt2", "*.h.0.attn.c_attn[q]"), ("gpt2", "embed")]
)
def test_a_shared_beginning_has_the_layers_that_ran(family, first):
    generator = np.random.default_rng(0)
    begins = [int(token) for token in generator.integers(5, 300, 24)]
    rows = [[*begins, *(int(token) for token in generator.integers(5, 300, 4))] for _ in range(12)]
    text = act.Corpus.from_records(
        [{"input_ids": row, "loss_mask": [1] * len(row)} for row in rows], train_tokenizer(["a b c"])
    )
    for include in (first, [first, "*.0.*"]):
        shared, alone = (
            act.profile(tiny_model(family), text, shared_prefix=way, token_budget=96, include=include)
            for way in ("auto", "off")
        )
        assert shared.provenance.corpora[0].shared
        torch.testing.assert_close(shared.moments.arena, alone.moments.arena, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learnt", [True, False])
def test_a_model_that_catches_the_end_counts_nothing_twice(learnt):
    whole, model = act.profile(tiny_model("llama"), random_batches(1)), tiny_model("llama")
    layer, catches = model.model.layers[0], [learnt]
    forward, caught = layer.forward, []

    def twice(*args, **kwargs):
        try:
            return forward(*args, **kwargs)
        except BaseException as error:
            if not catches[0]:
                raise
            caught.append(error)
            return forward(*args, **kwargs)

    layer.forward = twice
    batch = random_batches(1)[0]
    moments = Moments(whole.space)
    with torch.no_grad(), tapped.taps(model, moments, include=["*.0.*q_proj", "*.0.*k_proj"]) as taps:
        catches[0], before = True, len(caught)
        taps.forward({name: batch[name] for name in ("input_ids", "attention_mask")}, batch["count_mask"])
    assert len(caught) - before == (0 if learnt else 1)
    for name in ("q", "k"):
        site = f"model.layers.0.self_attn.{name}_proj"
        assert torch.equal(moments.block(site), whole.moments.block(site))


def shows_hidden_states(model):
    """In some versions of transformers, such a model exchanges forwards while it runs, and changes them back at the end."""
    model.config.output_hidden_states = True
    return model


def offloaded(model):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def offloaded_by_layer(model):
    """Each layer gets its parameters when it starts, and gives them back when it ends."""
    accelerate = pytest.importorskip("accelerate")
    for layer in model.model.layers:
        kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        hook = accelerate.hooks.AlignDevicesHook("cpu", offload=True, weights_map=kept, place_submodules=True)
        accelerate.hooks.add_hook_to_module(layer, hook)
    return model


def test_a_hook_at_a_start_is_followed_by_that_at_the_end():
    model, running = tiny_model("llama"), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: running.append(1))
        layer.register_forward_hook(lambda *_: running.pop() and None)
    whole = act.profile(tiny_model("llama"), random_batches(1))
    assert_measured(act.profile(model, random_batches(1), include="*.0.*q_proj"), whole)
    assert not running


def test_what_a_container_of_the_model_holds_is_as_it_was():
    model = tiny_model("llama")
    forward, model.model.state = model.model.forward, {"running": False}

    def marked(*args, **kwargs):
        model.model.state["running"] = True
        result = forward(*args, **kwargs)
        model.model.state["running"] = False
        return result

    model.model.forward = marked
    act.profile(model, random_batches(1), include="q")
    assert model.model.state == {"running": False}


def attributes_of(model):
    return {
        name: (vars(module).get("forward"), [each.is_meta for each in module.parameters()], list(vars(module)))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("prepared", [shows_hidden_states, offloaded, offloaded_by_layer])
def test_the_model_is_as_it_was(prepared):
    whole = act.profile(tiny_model("llama"), random_batches(1))
    model = prepared(tiny_model("llama"))
    assert_measured(act.profile(model, random_batches(1)), whole)
    before = attributes_of(model)
    assert_measured(act.profile(model, random_batches(1), include="*.0.*k_proj"), whole)
    assert attributes_of(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "heads"}, r"no module kind heads; this model has .* did you mean head\?$"),
        ({"include": ["q", "model.layers.7.mlp.up_proj"]}, r"did you mean model.layers.1.mlp.up_proj\?$"),
        ({"exclude": "*.layers.9.*"}, r"no site matches it as a pattern; did you mean model.layers.\d."),
        ({"include": "q", "exclude": "*self_attn*"}, "include and exclude leave no module to measure"),
    ],
)
def test_what_covers_no_site_is_refused(options, message):
    with pytest.raises(act.ActError, match=message):
        act.profile(tiny_model("llama"), random_batches(1), **options)
