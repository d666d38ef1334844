"""Attribution runs: against gradients of all parameters, however batched, and what they leave alone."""

from __future__ import annotations

import copy
import functools

import attribution_reference
import pytest
import tiny_families
import torch
import transformers
from support import CONFIGS, tiny_model

import act
from act.core.errors import ActError, Interrupted
from act.models.fingerprint import fingerprint
from act.profiling.attribution import AttributionJob
from act.profiling.observer import Observer
from act.profiling.plan import Shape

RECORDS = [
    {"prompt": "What is two", "completion": " plus three?"},
    {"prompt": "The answer", "completion": " is five."},
    {"prompt": "a b", "completion": " c d e"},
    {"prompt": "What is the answer", "completion": " a b c d e five"},
    {"prompt": "two plus", "completion": " three"},
]
KEEP = [{"prompt": "a b c", "completion": " e d"}, {"prompt": "is", "completion": " What is"}]
ROUTED = ["mixtral", "gpt_oss", "qwen3_moe", "deepseek_v3"]


def models(family: str, share: float = 0.1) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A donor near its target: of the families above, with norms and biases that are not trivial."""
    if family not in CONFIGS:
        return tiny_families.pair_of(family, share=share)
    target = tiny_model(family, 1)
    donor = copy.deepcopy(target)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(share * torch.randn(parameter.shape, generator=generator) * parameter.std(correction=0))
    return donor, target


def require_same(found: torch.Tensor, expected: torch.Tensor, space: act.ChannelSpace, tolerance: float) -> None:
    """Compare vectors, within a share of the largest value of each site."""
    for site in space:
        one, other = found[site.channels], expected[site.channels]
        assert (one - other).abs().max() <= tolerance * other.abs().max() + 1e-12, site.name


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "llama-tied-bias",
        "qwen2",
        "qwen3",
        "gemma2",
        "phi",
        "phi3",
        "gpt2",
        *ROUTED,
        "falcon",
        "mamba",
        "opt",
        "bart",
    ],
)
def test_a_run_gives_what_gradients_of_parameters_give(family, tokenizer):
    donor, target = models(family)
    corpus = act.Corpus.from_records(RECORDS, tokenizer)
    tokens, changes = attribution_reference.attribution(donor, target, corpus)
    found = act.attribute(donor, target, corpus, token_budget=40)
    assert found.tokens == tokens and found.count.max() == len(RECORDS)
    measured = found.count > 0
    apart = {site.name for site in found.space if not measured[site.channels].all()}
    assert apart <= {site.name for site in found.space if not site.parameters} | unreached(found.space, changes)
    values, rms = (x.nan_to_num(0.0) for x in (-found.fall, found.rms))
    require_same(values * tokens, changes.sum(0), found.space, 2e-5)
    require_same(rms, changes.square().mean(0).sqrt(), found.space, 2e-5)


@pytest.mark.parametrize("answer", [" e d", " e d c b a five is"])
def test_a_model_whose_loss_cannot_be_taken_apart_is_named_with_a_way_out(answer, tokenizer):
    donor, target = models("prophetnet")
    corpus = act.Corpus.from_records([{"prompt": "a b c", "completion": answer}], tokenizer)
    with pytest.raises(
        ActError, match=r"^ProphetNetForCausalLM does not make its logits of .* pair --swap\), and rank"
    ):
        act.attribute(donor, target, corpus)


def unreached(space: act.ChannelSpace, changes: torch.Tensor) -> set[str]:
    return {site.name for site in space if not changes[:, site.channels].any()}


@pytest.mark.parametrize("kernels", ["eager", "grouped_mm", "batched_mm"])
def test_experts_give_the_same_however_they_are_computed(kernels, tokenizer):
    donor, target = models("mixtral")
    target.set_experts_implementation(kernels)
    corpus = act.Corpus.from_records(RECORDS[:3], tokenizer)
    _, changes = attribution_reference.attribution(donor, target, corpus)
    found = act.attribute(donor, target, corpus, include=["gate", "up", "down"])
    for site in found.space:
        if site.kind in ("gate", "up", "down"):
            one, other = found.mean[site.channels], changes.mean(0)[site.channels]
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(changes.abs().max()))


def test_batches_recomputing_and_a_donor_elsewhere_change_nothing_but_rounding(tokenizer):
    donor, target = models("llama")
    corpus = act.Corpus.from_records(RECORDS, tokenizer)
    whole = act.attribute(donor, target, corpus)
    for options in ({"token_budget": 1}, {"token_budget": 30, "look_ahead": 2}, {"recompute": False}):
        other = act.attribute(donor, target, corpus, **options)
        require_same(other.fall.nan_to_num(), whole.fall.nan_to_num(), whole.space, 1e-5)
        require_same(other.rms.nan_to_num(), whole.rms.nan_to_num(), whole.space, 1e-5)
    parts = [act.attribute(donor, target, corpus, shard=(number, 2)) for number in range(2)]
    require_same((parts[0] + parts[1]).fall.nan_to_num(), whole.fall.nan_to_num(), whole.space, 1e-5)


def test_counts_of_predicting_positions_and_of_texts(tokenizer):
    donor, target = models("llama")
    answer, predict = (
        act.attribute(donor, target, act.Corpus.from_records(RECORDS, tokenizer, count=count))
        for count in ("answer", "predict")
    )
    assert torch.equal(answer.moments.arena, predict.moments.arena)
    texts = act.Corpus.from_records([{"text": "a b c d e"}, {"text": "What is"}], tokenizer, count="all", max_length=4)
    tokens, changes = attribution_reference.attribution(donor, target, texts)
    found = act.attribute(donor, target, texts)
    assert found.tokens == tokens and found.count.max() == len(changes)
    require_same(-found.fall.nan_to_num() * tokens, changes.sum(0), found.space, 2e-5)


class _Stop(Observer):
    def __init__(self, after: int) -> None:
        self.left = after

    def after_batch(self, run, batch) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted("stopped")


def test_a_run_that_goes_on_gives_the_same_bits_and_a_file_holds_all_of_it(tokenizer, tmp_path):
    donor, target = models("llama")
    corpus, keep = (act.Corpus.from_records(records, tokenizer) for records in (RECORDS, KEEP))
    options = {"keep": {"english": keep}, "token_budget": 24}
    whole = act.attribute(donor, target, corpus, **options)
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Interrupted):
        act.attribute(donor, target, corpus, checkpoint=act.Checkpoint(path, 0), observers=[_Stop(2)], **options)
    assert path.exists()
    again = act.attribute(donor, target, corpus, checkpoint=act.Checkpoint(path), **options)
    assert torch.equal(again.moments.arena, whole.moments.arena)
    assert torch.equal(again.kept[0].moments.arena, whole.kept[0].moments.arena)
    assert whole.kept[0].provenance.corpora[0].ability == "english"
    alone = act.attribute(donor, target, keep, token_budget=24)
    assert torch.equal(alone.moments.arena, whole.kept[0].moments.arena)
    whole.save(tmp_path / "a.safetensors")
    loaded = act.load(tmp_path / "a.safetensors")
    assert isinstance(loaded, act.AttributionProfile) and loaded.provenance == whole.provenance
    assert torch.equal(loaded.distance, whole.distance)
    assert torch.equal(loaded.kept[0].moments.arena, whole.kept[0].moments.arena)
    tiny = act.ChannelSpace.from_model(target).site("model.norm").channels
    assert (whole.error[tiny] > 0).all()


def _texts(tokenizer, ending: str, count: int = 200) -> act.Corpus:
    records = [
        {"prompt": f"a {number * 7919 % 1000}", "completion": f" c {ending * (1 + number % 3)}"}
        for number in range(count)
    ]
    return act.Corpus.from_records(records, tokenizer)


def test_each_text_ends_when_its_top_channels_are_certain(tokenizer, tmp_path):
    donor, target = models("llama")
    corpora, keep = {"one": _texts(tokenizer, " d"), "two": _texts(tokenizer, " five", 24)}, _texts(tokenizer, " e")
    options = {"keep": keep, "look_ahead": 8, "token_budget": 512}

    def until() -> act.UntilStable:
        return act.UntilStable(top=0.2, overlap=0.7, confidence=0.8)

    found = act.attribute(donor, target, corpora, observers=[until()], **options)
    one = found["one"]
    whole = act.attribute(donor, target, corpora, **options)["one"]
    for ours, all_of_it, name, values in (
        (one, whole, "attribution", [each.fall for each in (one, whole)]),
        (one.kept[0], whole.kept[0], "cost", [each.kept[0].rms for each in (one, whole)]),
    ):
        stable = ours.provenance.corpora[0].extra["stable"]
        assert stable["score"] == name and stable["documents"] == ours.provenance.corpora[0].records < 200
        assert all_of_it.provenance.corpora[0].records == 200
        mine, theirs = (set(x.nan_to_num(-1.0).topk(stable["channels"]).indices.tolist()) for x in values)
        assert len(mine & theirs) >= 0.7 * len(mine)
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        stopped = [until(), _Stop(25)]
        act.attribute(donor, target, corpora, checkpoint=act.Checkpoint(path, 0), observers=stopped, **options)
    checkpoint = act.Checkpoint(path)
    again = act.attribute(donor, target, corpora, checkpoint=checkpoint, observers=[until(), Observer()], **options)
    for name, profile in found.items():
        assert torch.equal(again[name].moments.arena, profile.moments.arena)
        assert torch.equal(again[name].kept[0].moments.arena, profile.kept[0].moments.arena)
        assert again[name].provenance.corpora[0].extra == profile.provenance.corpora[0].extra


def test_the_models_are_left_as_they_were(tokenizer):
    donor, target = models("qwen2")
    target.train()
    target.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    target.lm_head.weight.grad = torch.ones_like(target.lm_head.weight)
    flags = [parameter.requires_grad for parameter in target.parameters()]
    before = fingerprint(donor), fingerprint(target)
    corpus = act.Corpus.from_records(RECORDS[:2], tokenizer)
    act.attribute(donor, target, corpus)
    with pytest.raises(RuntimeError, match="unforeseen"):
        act.attribute(donor, target, corpus, observers=[_Fails()])
    assert (fingerprint(donor), fingerprint(target)) == before and target.training
    assert [parameter.requires_grad for parameter in target.parameters()] == flags
    assert target.lm_head.weight.grad.sum() == target.lm_head.weight.numel()
    assert all(p.grad is None for name, p in target.named_parameters() if name != "lm_head.weight")
    for module in target.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        assert not any(hooks) and "forward" not in vars(module)
        assert not getattr(module, "gradient_checkpointing", False)


class _Fails(Observer):
    def after_batch(self, run, batch) -> None:
        raise RuntimeError("unforeseen")


def _broken(tokenizer):
    donor, target = models("llama")
    with torch.no_grad():
        target.lm_head.weight.mul_(1e38)
        target.model.norm.weight.mul_(1e3)
    return act.attribute(donor, target, act.Corpus.from_records(RECORDS, tokenizer))


def _damaged(tokenizer, side: int = 0):
    both = models("llama")
    with torch.no_grad():
        both[side].lm_head.weight[3] = torch.nan  # of a token that no text has
    return act.attribute(*both, act.Corpus.from_records(RECORDS, tokenizer))


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_the_record_whose_loss_is_no_number_is_named(family, tokenizer, monkeypatch):
    donor, target = models(family)
    token = tokenizer(" five", add_special_tokens=False).input_ids[-1]

    def odd(logits, labels, reduction):
        return torch.nn.functional.cross_entropy(logits, labels, reduction=reduction).where(labels != token, torch.nan)

    monkeypatch.setattr("act.taps.loss.cross_entropy", odd)
    records = [*RECORDS[2:3], *RECORDS[4:], {"prompt": "a b", "completion": " c five"}]
    with pytest.raises(ActError, match="records, record 2: the target's loss over it is nan"):
        act.attribute(donor, target, act.Corpus.from_records(records, tokenizer))


def _quantised(tokenizer):
    donor, target = models("llama")
    for model in (donor, target):
        linear = model.model.layers[0].self_attn.q_proj
        linear.weight = torch.nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    return act.attribute(donor, target, act.Corpus.from_records(RECORDS, tokenizer))


def _encoder(tokenizer):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=300
    )
    bert = transformers.BertForMaskedLM(config)
    return act.attribute(bert, copy.deepcopy(bert), act.Corpus.from_records(RECORDS, tokenizer))


def _headless(tokenizer):
    donor, target = models("llama")
    return act.attribute(donor.model, target.model, act.Corpus.from_records(RECORDS, tokenizer))


def _same(tokenizer):
    model = tiny_model("llama")
    return act.attribute(model, copy.deepcopy(model), act.Corpus.from_records(RECORDS, tokenizer))


def _kept_is_ability(tokenizer):
    corpora = [act.Corpus.from_records(RECORDS, tokenizer) for _ in range(2)]
    return act.attribute(*models("llama"), corpora[0], keep=corpora[1])


def _one_token(tokenizer):
    return act.attribute(*models("llama"), act.Corpus.from_records([{"text": "a"}], tokenizer, count="all"))


def _mixed(tokenizer):
    corpora = {name: act.Corpus.from_records(RECORDS, tokenizer, count=name) for name in ("answer", "predict")}
    return act.attribute(*models("llama"), corpora)


def _until(tokenizer):
    corpus = act.Corpus.from_records(RECORDS, tokenizer)
    return act.attribute(*models("llama"), corpus, observers=[act.UntilStable("paired")])


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (_broken, "records, record [0-4]: the target's loss over it is nan"),
        (_damaged, "lm_head of the donor holds NaN"),
        (functools.partial(_damaged, side=1), "lm_head of the target holds NaN"),
        (_quantised, "is quantised, so there is no step"),
        (_encoder, "is an encoder"),
        (_headless, "a model without an LM head"),
        (_same, "the same weights"),
        (_kept_is_ability, "given twice"),
        (_one_token, "give longer records"),
        (_mixed, "count answer, predict"),
        (_until, "stable score 'paired' needs a pair run; use attribution"),
    ],
)
def test_bad_input_is_one_sentence(attempt, said, tokenizer):
    with pytest.raises(ActError, match=said):
        attempt(tokenizer)


def test_batches_as_memory_allows_count_the_gradients_and_no_donor(tokenizer, monkeypatch):
    donor, target = models("llama")
    corpus = act.Corpus.from_records(RECORDS, tokenizer)
    shapes = [AttributionJob(donor, target, corpus, recompute=recompute) for recompute in (True, False)]
    taken = [
        Shape.of(target, job.space).attributed_token(kept) for job, kept in zip(shapes, (True, False), strict=True)
    ]
    assert taken[0] < taken[1]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 5000 * taken[1], 0))
    for job in shapes:
        job.device = torch.device("cuda")
    assert [job._fitting_budget() for job in shapes] == [5000 * taken[1] // taken[0] // 1024 * 1024, 4096]
