"""Taps, lockstep pairs and profiles against activations that are stored whole and reduced in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from support import CONFIGS, random_batches, state, tiny_model
from torch import nn

import act
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.profiling.job import Job
from act.taps.lockstep import lockstep
from act.taps.sink import ReaderSink
from act.taps.tapped import Taps, taps


def stored_activations(model, batches, donor=None) -> dict[str, torch.Tensor]:
    """Every site's counted rows ``[R, C]`` in float64, by independent hooks that know the shapes of these families.

    With a ``donor``, what its modules give on the inputs of the model's.
    """
    rows: dict[str, list[torch.Tensor]] = {}
    theirs = None if donor is None else dict(donor.named_modules())
    handles = []
    current = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):

            def hook(module, args, output, name=name):
                batch, length = current["mask"].shape
                output = output if theirs is None else theirs[name](*args)
                output = output.expand(batch, *output.shape[1:])
                if output.dim() == 4 and output.shape[1] != length:
                    output = output.transpose(1, 2)
                rows.setdefault(name, []).append(output[current["mask"]].reshape(-1, output.shape[-1]).double())

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        for batch in batches:
            current["mask"] = batch["count_mask"] & batch["attention_mask"].bool()
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    whole = {name: torch.cat(parts) for name, parts in rows.items()}
    return {part: rows for name in whole for part, rows in apart(name, whole[name])}


def apart(name: str, rows: torch.Tensor):
    """What a fused projection of GPT-2 or Phi-3 (with half as many keys as queries) consists of."""
    leaf, width = name.rpartition(".")[2], rows.shape[1]
    if leaf == "c_attn":
        roles, sizes = "qkv", [width // 3] * 3
    elif leaf == "qkv_proj":
        roles, sizes = "qkv", [width // 2, width // 4, width // 4]
    elif leaf == "gate_up_proj":
        roles, sizes = ("gate", "up"), [width // 2] * 2
    else:
        return [(name, rows)]
    return [(f"{name}[{role}]", part) for role, part in zip(roles, rows.split(sizes, 1), strict=True)]


def assert_statistics(found, rows: torch.Tensor, error: float = 1e-7) -> None:
    """``error``: what the values themselves may be off by, relative to the largest of their channel."""
    assert (found.count == len(rows)).all()
    largest = rows.abs().amax(0)
    scale = rows.square().mean(0).sqrt()
    assert ((found.mean - rows.mean(0)).abs() <= 1e-6 * scale + error * largest).all()
    slack = 2e-6 * rows.var(0, correction=0) + 4 * error * largest * scale
    assert ((found.var - rows.var(0, correction=0)).abs() <= slack + 1e-12).all()
    assert ((found.mean_abs - rows.abs().mean(0)).abs() <= 1e-6 * scale + error * largest).all()
    assert ((found.max_abs - largest).abs() <= error * largest).all()
    doubtful = (rows.abs() <= error * largest).double().mean(0)
    assert ((found.positive_rate - (rows > 0).double().mean(0)).abs() <= 1e-12 + doubtful).all()


# A fused norm may differ in its last bit, and a matrix product of other rows (the LM head's) in its last few. Padding
# that comes last is left to causality, without a mask, where older versions of PyTorch run attention by another kernel.
FUSED_ERROR, UNMASKED_ERROR = 1e-5, 1e-6


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_profile_equals_stored_activations(family, fused):
    model, batches = tiny_model(family), random_batches()
    profile = act.profile(model, batches, fused=fused)
    expected = stored_activations(model, batches)
    assert {site.name for site in profile.space} == set(expected)
    for name, rows in expected.items():
        error = FUSED_ERROR if fused or profile.space.site(name).kind == "head" else UNMASKED_ERROR
        assert_statistics(profile.site(name), rows, error)
    assert profile.provenance.corpora[0].irregular == {}


@pytest.mark.parametrize("family", CONFIGS)
def test_pair_profile_equals_stored_activations(family):
    donor, target, batches = tiny_model(family), tiny_model(family, seed=1), random_batches()
    pair = act.profile_pair(donor, target, batches)
    donor_rows, target_rows = stored_activations(donor, batches), stored_activations(target, batches)
    for site in pair.space:
        d, t = donor_rows[site.name], target_rows[site.name]
        error = FUSED_ERROR * torch.maximum(d.abs(), t.abs()).amax(0)
        assert ((pair.mean_abs_diff[site.channels] - (d - t).abs().mean(0)).abs() <= error).all()
        assert ((pair.var_diff[site.channels] - (d - t).var(0, correction=0)).abs() <= error * (1 + error / 1e-5)).all()
        assert ((pair.donor.mean[site.channels] - d.mean(0)).abs() <= error).all()
        assert_statistics(pair.site(site.name), t, FUSED_ERROR)


@pytest.mark.parametrize("family", CONFIGS)
def test_swapped_outputs_equal_stored_activations(family):
    donor, target, batches = tiny_model(family), tiny_model(family, seed=1), random_batches()
    pair, plain = (act.profile_pair(donor, target, batches, swap=swap) for swap in (True, False))
    assert pair.swapped and pair.provenance.corpora[0].unswapped == {} and pair.provenance.settings.swap
    torch.testing.assert_close(pair.moments.arena[:3], plain.moments.arena, rtol=1e-9, atol=1e-12)
    stored = stored_activations(donor, batches), stored_activations(target, batches)
    stored += (stored_activations(target, batches, donor),)
    for site in pair.space:
        d, t, s = (rows[site.name] for rows in stored)
        found, size = pair.site(site.name), torch.stack([d, t, s]).abs().amax((0, 1))
        error = 3 * FUSED_ERROR * size
        for statistics, rows, allowed in (
            (found.swap, s - t, error),
            (found.product, (s - t) * (d - t), 4 * error * size),
        ):
            assert (statistics.count == len(rows)).all()
            assert ((statistics.mean - rows.mean(0)).abs() <= allowed).all(), site.name
            assert ((statistics.mean_abs - rows.abs().mean(0)).abs() <= allowed).all(), site.name
            spread = rows.abs().amax(0)
            assert ((statistics.var - rows.var(0, correction=0)).abs() <= 4 * allowed * (spread + allowed)).all()


def test_a_donor_like_the_target_changes_nothing():
    donor, target = tiny_model("qwen3"), tiny_model("qwen3")
    before = state(target)
    pair = act.profile_pair(donor, target, random_batches(), swap=True)
    assert (pair.swap.count == pair.target.count).all() and pair.swap.max_abs.max() == 0
    assert pair.product.max_abs.max() == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in state(target).items())
    assert not any(module._forward_hooks for model in (donor, target) for module in model.modules())


def test_only_a_module_without_hooks_of_others_is_swapped(caplog):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    seen = []
    donor.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    target.model.layers[1].input_layernorm.register_forward_pre_hook(lambda *_: None)
    act.profile_pair(donor, target, random_batches(), exclude=["head"])
    usual = len(seen)
    pair = act.profile_pair(donor, target, random_batches(), swap=True, exclude=["head"])
    assert len(seen) == 2 * usual  # its hooks saw nothing of the target's
    left_out = {"model.layers.0.mlp.up_proj", "model.layers.1.input_layernorm"}
    assert {site.name for site in pair.space if not pair.site(site.name).swap.count.any()} == left_out | {"lm_head"}
    unswapped = pair.provenance.corpora[0].unswapped
    assert set(unswapped) == {"model.layers.*.mlp.up_proj", "model.layers.*.input_layernorm"}
    assert "model.layers.0.mlp.up_proj and 1 more site are without a swapped output: it has hooks" in caplog.text
    kept = act.profile_pair(donor, target, random_batches(seed=1), swap=True, exclude=["head"])
    channels = act.rank(pair, "match", 1.0, keep=kept, exclude=["head"])
    assert channels.rule.unmeasured == {"up": 48, "norm": 32}


def test_outputs_are_swapped_between_two_models_only():
    model = tiny_model("llama")
    with pytest.raises(act.ActError, match="give a pair of models"):
        Job({"model": model}, random_batches(), swap=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    model, batches = tiny_model("llama", dtype=dtype), random_batches()
    profile = act.profile(model, batches, fused=False)
    for name, rows in stored_activations(model, batches).items():
        if name != "lm_head":
            assert_statistics(profile.site(name), rows, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_outputs_are_unchanged_and_hooks_removed(family):
    model = tiny_model(family)
    hooks_before = [len(module._forward_hooks) for module in model.modules()]
    batch = {name: tensor for name, tensor in random_batches(1)[0].items() if name != "count_mask"}
    with torch.no_grad():
        plain = model(**batch).logits
        with taps(model, Moments(ChannelSpace.from_model(model)), fused=False) as tapped:
            tapped.start(batch["attention_mask"].bool())
            tapped_logits = model(**batch).logits
    assert torch.equal(plain, tapped_logits)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks_before


def test_the_model_is_restored_after_an_exception():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)

    def failing(module, args, output):
        raise KeyboardInterrupt

    handle = target.model.layers[1].mlp.register_forward_hook(failing)
    with pytest.raises(KeyboardInterrupt):
        act.profile_pair(donor, target, random_batches())
    handle.remove()
    for model in (donor, target):
        assert all(not module._forward_hooks for module in model.modules())
    act.profile_pair(donor, target, random_batches())


def test_training_mode_and_gradients_are_left_alone():
    model = tiny_model("llama").train()
    act.profile(model, random_batches())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_models_that_run_their_sites_in_another_order_are_refused():
    class Two(nn.Module):
        def __init__(self, swapped):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.swapped = swapped

        def forward(self, input_ids, **_):
            x = torch.nn.functional.one_hot(input_ids % 4, 4).float()
            one, two = (self.second, self.first) if self.swapped else (self.first, self.second)
            return two(one(x))

    donor, target = Two(False), Two(True)
    with pytest.raises(act.ActError, match="order of sites: first against second"):
        act.profile_pair(donor, target, random_batches())
    assert not donor.first._forward_hooks


def test_a_site_that_only_one_model_reaches_is_refused():
    donor, target = tiny_model("llama"), tiny_model("llama")
    target.model.layers = target.model.layers[:1]
    moments = Moments(ChannelSpace.from_model(donor), pair=True)
    target.model.layers.append(copy.deepcopy(target.model.layers[0]))
    target.config.num_hidden_layers = 1
    batch = random_batches(1)[0]
    with (
        pytest.raises(act.ActError, match=r"disagree on the order|only one model reached"),
        torch.no_grad(),
        lockstep(donor, target, moments) as run,
    ):
        run.forward({"input_ids": batch["input_ids"]}, batch["count_mask"])


def test_models_of_different_width_are_refused():
    with pytest.raises(act.ActError, match=r"q_proj is made by other parameters"):
        act.profile_pair(tiny_model("llama"), tiny_model("qwen2"), random_batches())


def test_a_model_is_no_pair_with_itself_or_with_one_that_shares_its_modules():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    with pytest.raises(act.ActError, match=r"share the module 'model.embed_tokens'.*load the donor and the target as"):
        act.profile_pair(donor, donor, random_batches())
    own = target.model.layers[1]
    target.model.layers[1] = donor.model.layers[1]
    with pytest.raises(act.ActError, match=r"share the module 'model.layers.1.self_attn.q_proj'"):
        act.profile_pair(donor, target, random_batches())
    target.model.layers[1] = own
    target.lm_head.weight = donor.lm_head.weight  # parameters may be shared: no site sees another model's tokens
    act.profile_pair(donor, target, random_batches())
    assert not any(module._forward_hooks for model in (donor, target) for module in model.modules())


def test_a_compiled_model_is_refused():
    model = tiny_model("llama")
    with pytest.raises(act.ActError, match=r"torch\.compile"):
        Taps(torch.compile(model), ChannelSpace.from_model(model), ReaderSink(lambda *_: None, lambda *_: None))


def test_nothing_counted_is_an_error():
    batch = {**random_batches(1)[0]}
    batch["count_mask"] = torch.zeros_like(batch["count_mask"])
    with pytest.raises(act.ActError, match="no token was counted"):
        act.profile(tiny_model("llama"), [batch])


def test_nonfinite_activations_are_reported_by_site():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = float("nan")
    profile = act.profile(model, random_batches())
    nonfinite = profile.provenance.corpora[0].nonfinite
    assert nonfinite["model.layers.1.mlp.down_proj"] == profile.provenance.corpora[0].counted
    assert "model.layers.0.mlp.down_proj" not in nonfinite
    site = profile.site("model.layers.1.mlp.down_proj")
    assert site.count[3] == 0 and site.mean[3].isnan() and site.mean[:3].isfinite().all()


def test_padding_never_counts():
    model, batches = tiny_model("llama"), random_batches()
    poisoned = [{**batch, "count_mask": torch.ones_like(batch["count_mask"])} for batch in batches]
    counted = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert (act.profile(model, poisoned).count == counted).all()


def test_two_runs_give_the_same_bits():
    donor, target = tiny_model("qwen3"), tiny_model("qwen3", seed=1)
    runs = [act.profile_pair(donor, target, random_batches()).moments.arena for _ in range(2)]
    assert torch.equal(*runs)


IDS = torch.ones(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([{}], "has no input_ids, only nothing"),
        ([{"ids": IDS}], "has no input_ids, only ids"),
        (
            ["a text"],
            r"a batch is a text; expected a dict of tensors; texts are records of a corpus: act.Corpus.from_rec",
        ),
        ([{"input_ids": IDS.float()}], r"input_ids of a batch are torch.float32 \[2, 5\]; expected integers"),
        ([{"input_ids": IDS[0]}], r"torch.int64 \[5\]; expected integers \[batch, length\]"),
        ([{"input_ids": IDS.tolist()}], "input_ids of a batch is of type list; expected a tensor"),
        ([{"input_ids": IDS, "count_mask": IDS[:, :3]}], r"count_mask of a batch has the shape \[2, 3\]; expected"),
        ([{"input_ids": IDS, "attention_mask": IDS[:1]}], r"attention_mask of a batch has the shape \[1, 5\]"),
        ([{"input_ids": IDS, "attention_mask": None}], "attention_mask of a batch is of type NoneType"),
        ([["text"]], "a batch is of type list; expected a dict"),
        (IDS, "a batch is of type Tensor; expected a dict"),
        ("corpus.jsonl", "the corpus is a path, corpus.jsonl; expected an act.Corpus"),
        (None, "the corpus is of type NoneType; expected an act.Corpus"),
        (3, "the corpus is of type int; expected an act.Corpus"),
        ({}, "a dict that holds nothing; expected an act.Corpus"),
        ({"input_ids": IDS}, "a dict that holds Tensor; expected .* such as a list"),
    ],
)
def test_what_is_no_corpus_and_no_batch_is_one_sentence(corpora, message):
    model = tiny_model("llama")
    with pytest.raises(act.ActError, match=message):
        act.profile(model, corpora)
    with pytest.raises(act.ActError, match=message):
        act.profile_pair(model, tiny_model("llama", seed=1), corpora)


def test_the_name_of_a_model_is_no_model():
    with pytest.raises(act.ActError, match=r"the model is of type str; expected a PyTorch model"):
        act.profile("org/name", random_batches())
    with pytest.raises(act.ActError, match=r"the target is of type NoneType; expected a PyTorch model"):
        act.profile_pair(tiny_model("llama"), None, random_batches())
