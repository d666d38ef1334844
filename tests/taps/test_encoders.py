"""Encoders, and encoders with a decoder: every site against float64 moments of what plain hooks saw."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import transformers

import act
from act.models.calls import without_cache
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps.tapped import taps

BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT = {**BODY, "vocab_size": 99, "max_position_embeddings": 40}
V3 = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 4}
V3 |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {"vocab_size": 99, "d_model": 32, "max_position_embeddings": 40}
BART |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 48))}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 2}
LED = {**BART, "attention_window": 16, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 40}
GEMMA = {**BODY, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99}
ENCODERS = {
    "bert": ("BertForMaskedLM", transformers.BertConfig(**BERT)),
    "bert-body": ("BertModel", transformers.BertConfig(**BERT)),
    "bert-texts": ("BertForSequenceClassification", transformers.BertConfig(**BERT)),
    "bert-tokens": ("BertForTokenClassification", transformers.BertConfig(**BERT)),
    "roberta": ("RobertaForMaskedLM", transformers.RobertaConfig(**BERT)),
    "xlm-roberta": ("XLMRobertaModel", transformers.XLMRobertaConfig(**BERT)),
    "modernbert": (
        "ModernBertForMaskedLM",
        transformers.ModernBertConfig(**BERT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    ),
    "deberta": ("DebertaForMaskedLM", transformers.DebertaConfig(**BERT, relative_attention=True, pos_att_type=["c2p", "p2c"])),
    "deberta-v2": ("DebertaV2ForMaskedLM", transformers.DebertaV2Config(**BERT, relative_attention=True, pos_att_type=["c2p", "p2c"])),
    "deberta-v3": ("DebertaV2ForMaskedLM", transformers.DebertaV2Config(**BERT, **V3)),
    "electra": ("ElectraForMaskedLM", transformers.ElectraConfig(**BERT, embedding_size=16)),
    "albert": ("AlbertForMaskedLM", transformers.AlbertConfig(**BERT, embedding_size=16)),
    "mpnet": ("MPNetForMaskedLM", transformers.MPNetConfig(**BERT)),
    "distilbert": ("DistilBertForMaskedLM", transformers.DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=48)),
    "longformer": ("LongformerForMaskedLM", transformers.LongformerConfig(**BERT, attention_window=[4, 16], pad_token_id=1)),
    "t5-encoder": ("T5EncoderModel", transformers.T5Config(**T5)),
}  # fmt: skip
PAIRS = {
    "t5": ("T5ForConditionalGeneration", transformers.T5Config(**T5, decoder_start_token_id=0)),
    "t5-gated": ("T5ForConditionalGeneration", transformers.T5Config(**T5, **GATED, decoder_start_token_id=0)),
    "umt5": ("UMT5ForConditionalGeneration", transformers.UMT5Config(**T5, decoder_start_token_id=0)),
    "bart": ("BartForConditionalGeneration", transformers.BartConfig(**BART)),
    "bart-body": ("BartModel", transformers.BartConfig(**BART)),
    "mbart": ("MBartForConditionalGeneration", transformers.MBartConfig(**BART)),
    "marian": ("MarianMTModel", transformers.MarianConfig(**BART, pad_token_id=1)),
    "pegasus": ("PegasusForConditionalGeneration", transformers.PegasusConfig(**BART)),
    "m2m100": ("M2M100ForConditionalGeneration", transformers.M2M100Config(**BART)),
    "blenderbot": ("BlenderbotForConditionalGeneration", transformers.BlenderbotConfig(**BART)),
    "led": ("LEDForConditionalGeneration", transformers.LEDConfig(**LED)),
    "fsmt": ("FSMTForConditionalGeneration", transformers.FSMTConfig(**BART, langs=["en", "de"], src_vocab_size=99, tgt_vocab_size=99)),
    "t5gemma": ("T5GemmaForConditionalGeneration", transformers.T5GemmaConfig(encoder=GEMMA, decoder=GEMMA, vocab_size=99)),
}  # fmt: skip
OF_SOURCE = re.compile(r"(^|model\.|led\.)encoder\.|(encoder_attn|EncDecAttention|cross_attn)\.(k|v)(_proj)?$")
LENGTH_FIRST = {
    "fsmt": re.compile(r"layers\.\d+\."),
    "longformer": re.compile(r"self\.(query|key|value)$"),
    "led": re.compile(r"longformer_self_attn\.(query|key|value)$"),
}
NOWHERE = re.compile(r"(?!)")
UNREAD = re.compile(
    r"pooler|classifier$|relative_attention_bias|rel_embeddings|relative|pos_(key_|query_|q_)?proj|encoder\.LayerNorm|_global$"
)
BOTH_FOURS, RAGGED = (4, 4, 4), (3, 7, 5)


def made(kind: str, config: transformers.PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def text(batch: int, length: int, left: bool, pad: int) -> dict[str, torch.Tensor]:
    lengths = torch.randint(max(1, length // 2), length + 1, (batch, 1))
    places = torch.arange(length)
    attended = places >= length - lengths if left else places < lengths
    ids = torch.randint(5, 99, (batch, length)).where(attended, torch.tensor(pad))
    return {
        "input_ids": ids,
        "attention_mask": attended.long(),
        "count_mask": attended & (torch.rand(batch, length) < 0.7),
    }


def batches(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    """Ragged ones with padding on each side, and ones of as many rows as tokens and heads."""
    torch.manual_seed(1)
    pad = getattr(model.config, "pad_token_id", None) or 0
    found = []
    for sizes in (BOTH_FOURS, RAGGED):
        for left in (False, True):
            given = text(sizes[0], sizes[1], left, pad)
            if "decoder_input_ids" in model.forward.__code__.co_varnames or model.config.is_encoder_decoder:
                given |= {f"decoder_{name}": x for name, x in text(sizes[0], sizes[2], left, pad).items()}
            found.append(given)
    return found


def reference(model: torch.nn.Module, given: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The counted rows of every module, in float64."""
    rows: dict[str, list[torch.Tensor]] = {}
    masks: dict[str, torch.Tensor] = {}
    seen: set[str] = set()

    def keep(name: str):
        def hook(module, args, output):
            if not isinstance(output, torch.Tensor):
                return
            first = name not in seen
            seen.add(name)
            of_source = OF_SOURCE.search(name) or (name.endswith("shared") and first)  # in versions that call that
            mask = masks["count_mask" if of_source or "decoder_count_mask" not in masks else "decoder_count_mask"]
            if LENGTH_FIRST.get(model.config.model_type, NOWHERE).search(name):
                output = output.transpose(0, 1)
            if (
                model.config.model_type in ("longformer", "led") and "embed_tokens" not in name
            ):  # without what pads a text to whole windows
                output = output[:, : mask.shape[1]] if output.dim() == 3 else output[: mask.shape[1]]
            if output.dim() == 2 and len(output) == mask.numel():
                output = output.view(*mask.shape, -1)
            elif output.shape[:-1].numel() == mask.shape[1]:
                output = output.reshape(1, mask.shape[1], -1).expand(len(mask), -1, -1)
            if output.shape[:2] == mask.shape:
                rows.setdefault(name, []).append(output[mask].reshape(-1, output.shape[-1]).double())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    for each in given:
        masks = {name: x for name, x in each.items() if "count_mask" in name}
        seen.clear()
        with torch.no_grad():
            model(**{name: x for name, x in each.items() if name not in masks}, **without_cache(model))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(found) for name, found in rows.items()}


@pytest.mark.parametrize("family", [*ENCODERS, *PAIRS])
def test_every_site_agrees_with_float64(family):
    model = made(*(ENCODERS | PAIRS)[family])
    given = batches(model)
    assert family in ENCODERS or "decoder_input_ids" in given[0]
    expected = reference(model, given)
    profile = act.profile(model, given)
    read = 0
    for site in profile.space:
        found = profile.site(site.name)
        if site.scales or (UNREAD.search(site.name) and not found.count.any()):
            continue  # a parameter without an output of its own, or no row for each token
        rows = expected[site.module]
        if site.name.endswith("]"):
            parts = ("gate", "up") if site.kind in ("gate", "up") else ("q", "k", "v")
            rows = rows.chunk(len(parts), -1)[parts.index(site.kind)]
        size = rows.square().mean(0).sqrt().clamp(min=1e-3)
        assert found.count.unique().tolist() == [len(rows)], site.name
        assert ((found.mean - rows.mean(0)).abs() / size).max() < 1e-5, site.name
        assert ((found.var - rows.var(0, correction=0)).abs() / size.square()).max() < 1e-5, site.name
        read += 1
    assert read > 0.7 * sum(not site.scales for site in profile.space)


@pytest.mark.parametrize(
    "family",
    ["bert", "albert", "deberta-v2", "deberta-v3", "distilbert", "mpnet", "modernbert", "t5", "t5-gated", "bart"],
)
def test_kinds_mean_the_same_in_every_family(family):
    model = made(*(ENCODERS | PAIRS)[family])
    kinds = {site.kind for site in ChannelSpace.from_model(model)}
    assert {"q", "k", "v", "o", "down", "norm", "embed", "head"} <= kinds and kinds & {"up", "Wi"}


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        "deberta-v3",
        "longformer",
        "electra",
        "distilbert",
        "modernbert",
        "bart",
        "fsmt",
        "t5gemma",
        "t5",
        "t5-gated",
    ],
)
def test_heads_and_neurons_are_found_on_both_sides(family):
    model = made(*(ENCODERS | PAIRS)[family])
    with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        kinds = [type(block).__name__ for block in tapped.space.blocks]
        assert not tapped.space.refused
    expected = (2, 2) if family in ENCODERS else (6, 4)  # two layers each, and attention to the source
    assert (kinds.count("Attention"), kinds.count("Mlp")) == expected


@pytest.mark.parametrize("length", [8, 5])
def test_relative_positions_are_not_counted_beside_tokens(length):
    model = made(*ENCODERS["deberta-v3"])  # 8 distances: of as many tokens, outputs have the same shape
    ids = torch.randint(5, 99, (1, length))
    rows = []
    query = model.deberta.encoder.layer[1].attention.self.query_proj
    handle = query.register_forward_hook(lambda module, args, output: rows.append(output[0].double()))
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    found = act.profile(model, [{"input_ids": ids}]).site("deberta.encoder.layer.1.attention.self.query_proj")
    assert len(rows) == 2 and found.count.unique().tolist() == [length]
    torch.testing.assert_close(found.mean, rows[0].mean(0), rtol=1e-5, atol=1e-6)


def test_a_forward_of_the_user_must_fill_the_blocks_of_a_window():
    model = made(*ENCODERS["longformer"])
    with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        with pytest.raises(act.ActError, match="the model pads 7 tokens to whole blocks of 16"):
            tapped.start(torch.ones(2, 7, dtype=torch.bool))


def test_what_pools_a_text_is_left_out_by_name():
    model = made(*ENCODERS["bert-texts"])
    with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        assert set(tapped.unread) == {"bert.pooler.dense", "classifier"}
        assert all("not a row for each token" in why for why in tapped.unread.values())


def test_keys_of_a_source_are_told_apart_in_a_decoder():
    model = made(*PAIRS["bart"])
    with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        tokens = {site.name: site.layouts[0].tokens for site in tapped.space}
    layer = "model.decoder.layers.0"
    assert tokens[f"{layer}.encoder_attn.k_proj"] == tokens[f"{layer}.encoder_attn.v_proj"] == "source"
    assert tokens[f"{layer}.encoder_attn.q_proj"] == tokens[f"{layer}.self_attn.k_proj"] == "length"
    assert tokens["model.encoder.layers.1.fc1"] == "source" and tokens["lm_head"] == "length"
    assert "model.shared" not in tokens  # holds the tensor, and is never called


def test_an_embedding_that_reads_both_texts_counts_each_by_its_own_mask():
    model = made(*PAIRS["bart"])
    shared = model.model.encoder.embed_tokens
    model.model.decoder.embed_tokens = model.model.shared = shared
    given = batches(model)[:1]  # as many tokens on both sides
    profile = act.profile(model, given)
    name = next(site.name for site in profile.space if site.kind == "embed")
    rows = [shared(given[0][f"{side}input_ids"])[given[0][f"{side}count_mask"]] for side in ("", "decoder_")]
    rows = torch.cat(rows).double().detach()
    assert profile.site(name).count[0] == len(rows)
    torch.testing.assert_close(profile.site(name).mean, rows.mean(0), rtol=1e-5, atol=1e-7)


def test_a_pair_runs_in_lockstep():
    donor, target = (made(*PAIRS["t5"], seed=seed) for seed in (0, 1))
    given = batches(donor)
    pair = act.profile_pair(donor, target, given)
    alone = [act.profile(model, given) for model in (donor, target)]
    for side, profile in zip((pair.donor, pair.target), alone, strict=True):
        torch.testing.assert_close(side.mean, profile.mean, rtol=1e-5, atol=1e-6)
        assert torch.equal(side.count, profile.count)


def test_a_batch_for_a_decoder_that_there_is_not_is_refused():
    given = batches(made(*PAIRS["t5"]))
    with pytest.raises(act.ActError, match="has decoder_input_ids, and BertModel has no decoder beside an encoder"):
        act.profile(made(*ENCODERS["bert-body"]), given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("decoder_input_ids"), "has no decoder_input_ids, which T5ForConditionalGeneration reads"),
        (lambda one: one.update(decoder_input_ids=one["decoder_input_ids"][:2]), "decoder_attention_mask .* shape"),
        (lambda one: one.update(decoder_count_mask=one["decoder_count_mask"][:, :2]), "decoder_count_mask .* shape"),
        (lambda one: one.update(decoder_input_ids=one["decoder_input_ids"].float()), "decoder_input_ids .* integers"),
    ],
)
def test_a_batch_that_lacks_something_is_refused(change, message):
    model = made(*PAIRS["t5"])
    (given, *_) = batches(model)
    change(given)
    with pytest.raises(act.ActError, match=message):
        act.profile(model, [given])


@pytest.mark.parametrize(("block", "length", "told"), [(4, 23, False), (16, 60, True)])
def test_what_grows_by_block_is_left_out_and_the_tokens_are_read(block, length, told):
    small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
    config = transformers.LongT5Config(
        **small, encoder_attention_type="transient-global", global_block_size=block, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.LongT5ForConditionalGeneration(config).eval()
    batch = {"input_ids": torch.randint(5, 300, (2, length)), "decoder_input_ids": torch.randint(5, 300, (2, 7))}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        profile = act.profile(model, [batch])
    attention = "encoder.block.1.layer.0.TransientGlobalSelfAttention"
    calls = []
    hook = model.get_submodule(f"{attention}.k").register_forward_hook(lambda _, __, out: calls.append(out.double()))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    tokens, blocks = calls
    assert blocks.shape[1] == length // block
    measured = profile.site(f"{attention}.k")
    assert (measured.count == (2 * length if told else 0)).all()  # several blocks in a probe look like any text
    if told:
        torch.testing.assert_close(measured.mean, tokens.mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert not profile.site(f"{attention}.global_input_layer_norm").count.any()
