"""The plan: shapes from configurations alone, costs that add up, tokens that are the corpus' own."""

from __future__ import annotations

import gzip

import datasets
import pytest
import torch
import transformers
from support import CONFIGS, tiny_model

import act
from act import ActError
from act.data.corpus import Corpus
from act.models.channels import ChannelSpace
from act.models.loading import empty_model
from act.profiling import dtype_speed
from act.profiling.cluster import Cluster
from act.profiling.forward_speed import _FewDraws, measure, path_of
from act.profiling.plan import Shape, unmoved
from act.profiling.text_plan import tokens_of


def shape_of(config) -> Shape:
    model = empty_model(config)
    return Shape.of(model, ChannelSpace.from_model(model))


@pytest.mark.parametrize("family", ["llama", "llama-tied-bias", "qwen3", "gpt2"])
def test_a_shape_is_that_of_the_model(family):
    shape, model = shape_of(CONFIGS[family]()), tiny_model(family)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.channels == len(ChannelSpace.from_model(model))
    linears = sum(
        m.weight.numel()
        for n, m in model.named_modules()
        if (isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D") and n != "lm_head"
    )
    assert shape.active == linears and shape.head == 300 * 32


def test_flops_are_those_that_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model, shape = tiny_model("llama"), shape_of(CONFIGS["llama"]())
    ids = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    assert shape.flops(32, 32, 16) == pytest.approx(counter.get_total_flops(), rel=0.1)  # attention is counted causal


def test_a_large_model_and_experts_plan_without_memory():
    big = transformers.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        dtype=torch.bfloat16,
    )
    assert shape_of(big).parameters == pytest.approx(70.55e9, rel=1e-3)
    experts = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    model = empty_model(experts)
    space = ChannelSpace.from_model(model)
    shape = Shape.of(model, space)
    attention = 2 * (2 * 64 * 64 + 2 * 64 * 32)
    routers = 2 * 64 * 8
    assert shape.active == attention + routers + 2 * 2 * 3 * 64 * 128
    reasons = unmoved(space)
    assert set(reasons) == set(space.uncovered)
    assert not reasons and space.coverage.share == 1


def test_a_cluster_divides_what_can_be_divided():
    shape = shape_of(CONFIGS["llama"]())
    one, eight = (Cluster().seconds(shape, 1e12, gpus=gpus) for gpus in (1, 8))
    assert one["forward"] == pytest.approx(8 * eight["forward"], rel=1e-3)
    assert one["reduce"] == 0 < eight["reduce"] and one["load"] == eight["load"]
    assert Cluster(storage=1).seconds(shape, 1e12)["bottleneck"] == "read"
    assert Cluster(tokenise=1, cores=1).seconds(shape, 1e12, gpus=8)["bottleneck"] == "tokenise"
    memory, pair = shape.memory(1024), shape.memory(1024, pair=True)
    assert pair["moments"] == 3 * memory["moments"] == 3 * 7 * 8 * shape.channels
    assert pair["weights"] == 2 * memory["weights"]


def test_tokens_whole_and_sampled(tokenizer):
    corpus = Corpus.from_records([{"text": "a b c " * (1 + n % 3)} for n in range(300)], tokenizer)
    whole = tokens_of({"": corpus}, 0)
    assert whole["tokens"] == sum(len(each.input_ids) for each in corpus.encoded()) and not whole["sampled"]
    sampled = tokens_of({"": corpus}, 70)
    assert sampled["sampled"] and sampled["tokens"] == pytest.approx(whole["tokens"], rel=0.05)


def test_texts_are_planned_as_a_run_cuts_them(tokenizer):
    model = empty_model(CONFIGS["gpt2"]())
    texts = {"": Corpus.from_records([{"text": "a b c d e " * 300}] * 3, tokenizer).for_models(model)}
    plan = tokens_of(texts)
    run = act.profile(tiny_model("gpt2"), texts)[""].provenance.corpora[0]
    assert {key: plan[key] for key in ("sequences", "tokens", "counted")} == {
        key: getattr(run, key) for key in ("sequences", "tokens", "counted")
    }
    assert plan["longest"] == 256 >= plan["attended_length"] >= plan["mean_length"] > 0


def test_bad_records_are_scaled_up_and_archives_sampled(tokenizer, tmp_path):
    lines = [b'{"txt": 1}' if number % 7 == 5 else b'{"text": "a b c"}' for number in range(300)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    corpus = Corpus.from_file(tmp_path / "a.jsonl.gz", tokenizer)
    plan = tokens_of({"": corpus}, 60)
    assert plan["sampled"] and plan["records"] == 300 and plan["bad_records"] == pytest.approx(43, abs=5)
    assert tokens_of({"": corpus}, 0)["bad_records"] == 43


def test_what_is_wrong_with_every_record_is_said(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n' * 3)
    corpus = Corpus.from_file(tmp_path / "a.jsonl", tokenizer, columns={"prompt": "{frage}"})
    with pytest.raises(ActError, match=r"a.jsonl, line 1: there is no column 'frage', .*; there is text"):
        tokens_of({"": corpus})


def test_a_corpus_that_counts_nothing_and_a_stream_of_unknown_size(tokenizer):
    with pytest.raises(ActError, match="no token was counted"):
        tokens_of({"": Corpus.from_records([], tokenizer)})
    stream = Corpus.from_dataset(datasets.Dataset.from_list([{"text": "a"}]).to_iterable_dataset(), tokenizer)
    with pytest.raises(ActError, match=r"size of dataset is unknown.*--sample 0"):
        tokens_of({"": stream})
    assert tokens_of({"": stream}, 0)["records"] == 1


WITHOUT_HEADS = {
    "mamba": lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=300),
    "rwkv": lambda: transformers.RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=300),
}


@pytest.mark.parametrize("family", WITHOUT_HEADS)
def test_models_without_attention_are_planned_without(family):
    shape = shape_of(WITHOUT_HEADS[family]())
    assert shape.attention is None and shape.flops(1, 1, 10) == shape.flops(1, 1, 1000)


def test_layers_without_attention_are_told_and_need_no_setter():
    config = transformers.JambaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, num_experts=2, mamba_d_state=8, use_mamba_kernels=False,
    )  # fmt: skip
    assert shape_of(config).attention == 32  # of the eight layers one has attention
    assert measure(config, torch.device("cpu"), 0.01)["layers_measured"] == [8]


def test_a_measured_row_fits_the_model():
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=300, max_seq_len=64)
    assert measure(config, torch.device("cpu"), 0.01)["tokens_per_second"] > 0
    broken = transformers.Mamba2Config(hidden_size=32, num_hidden_layers=2, vocab_size=300, num_heads=4, head_dim=16)
    with pytest.raises(ActError, match=r"does not run on cpu .*--seconds 0"):
        measure(broken, torch.device("cpu"), 0.01)


def test_the_configuration_is_blamed_only_if_the_model_itself_does_not_run(monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("act.profiling.forward_speed.taps", fails)
    with pytest.raises(
        ActError, match=r"runs on cpu, but not while it is measured \(no such kernel\).* try --no-fused"
    ):
        measure(CONFIGS["llama"](), torch.device("cpu"), 0.01)
    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", fails)
    with pytest.raises(ActError, match=r"does not run on cpu \(no such kernel\); correct the configuration"):
        measure(CONFIGS["llama"](), torch.device("cpu"), 0.01)
    monkeypatch.setattr("act.profiling.forward_speed.WHOLE_BYTES", 0)
    config = CONFIGS["llama"]()
    config.num_hidden_layers = 40
    with pytest.raises(ActError, match=r"with 1 of its 40 layers does not run on cpu \(no such kernel\); leave the"):
        measure(config, torch.device("cpu"), 0.01)


def test_measured_deep_and_shallow(monkeypatch):
    config = CONFIGS["llama"]()
    whole = measure(config, torch.device("cpu"), 0.1)
    assert whole["layers_measured"] == [2] and whole["tokens_per_second"] > 0
    monkeypatch.setattr("act.profiling.forward_speed.WHOLE_BYTES", 0)
    config.num_hidden_layers = 40
    deep = measure(config, torch.device("cpu"), 0.1)
    assert deep["layers_measured"] == [1, 2]
    assert path_of("model.layers.39.mlp.gate_proj", deep["paths"]) == whole["paths"]["model.layers.1.mlp.gate_proj"]


def test_how_sites_are_read_takes_no_time(monkeypatch):
    monkeypatch.setattr("act.profiling.forward_speed.WHOLE_BYTES", 0)
    monkeypatch.setattr("act.profiling.forward_speed.DRAWN", 100)
    config = CONFIGS["llama"]()
    config.num_hidden_layers = 40
    batches = []

    def counted(embedding, ids):
        batches.append(ids.numel())
        return embedding.weight[ids]

    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)
    tried = measure(config, torch.device("cpu"), 0)
    assert tried["layers_measured"] == [2] and tried["float32_speed"] is None and 64 <= max(batches) < 100
    assert tried["paths"].items() <= measure(config, torch.device("cpu"), 0.01)["paths"].items()


def test_random_weights_are_drawn_once_and_repeated(monkeypatch):
    monkeypatch.setattr("act.profiling.forward_speed.DRAWN", 100)
    with _FewDraws():
        drawn = torch.nn.init.normal_(torch.empty(5, 50), std=3.0).flatten()
        other = torch.nn.init.uniform_(torch.empty(250), 2.0, 3.0)
        few = torch.nn.init.normal_(torch.empty(100))
    assert drawn[:100].std() > 2 and drawn[100:200].equal(drawn[:100]) and drawn[200:].equal(drawn[:50])
    assert other.min() >= 2 and other[200:].equal(other[:50]) and few.unique().numel() == 100


def test_a_type_that_the_processor_emulates_is_named(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(dtype_speed.time, "perf_counter", lambda: 0.001 * next(clock))
    monkeypatch.setattr(
        dtype_speed, "linear", lambda x, weight: [next(clock) for _ in range(4 * (x.element_size() == 2))]
    )
    assert dtype_speed.float32_speed(torch.bfloat16, 64, 64, 0.1) == pytest.approx(5)
    assert dtype_speed.float32_speed(torch.float32, 64, 64) == 1
    config = CONFIGS["llama"]()
    assert measure(config, torch.device("cpu"), 0.01)["float32_speed"] == 1
