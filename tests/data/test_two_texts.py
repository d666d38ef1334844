"""What an encoder reads, alone or beside a decoder: special tokens, sources and answers, which of them count, batches."""

from __future__ import annotations

import pytest
import torch
from support import tiny_encoder, word_tokenizer

import act
from act import ActError, Corpus
from act.data.stream import Stream
from act.models.calls import decoder_inputs, reader_of

RECORDS = [{"prompt": "what is two " * (1 + n % 5), "completion": "five answer " * (1 + n % 3)} for n in range(60)]
T5, BERT = word_tokenizer("t5"), word_tokenizer("bert")
EOS, START = 4, 0


def batches(corpus: Corpus, **options):
    return Stream({"": corpus}, **{"token_budget": 100, "shift": decoder_inputs(tiny_encoder("t5")), **options})


@pytest.mark.parametrize(
    ("count", "source", "decoder"),
    [("answer", [True] * 4, [0, 1, 1]), ("predict", [True] * 4, [1] * 3), ("all", [True] * 4, [1] * 3), ("prompt", [True] * 4, [0] * 3)],
)  # fmt: skip
def test_a_decoder_reads_each_token_of_the_answer_a_place_later(count, source, decoder):
    corpus = Corpus.from_records(RECORDS[:1], T5, count=count).read_by("encoder-decoder")
    (batch,) = batches(corpus)
    asked, answer = (T5(text)["input_ids"] for text in RECORDS[0].values())
    assert batch.inputs["input_ids"].tolist() == [asked] and asked[-1] == EOS
    assert batch.inputs["decoder_input_ids"].tolist() == [[START, *answer[:-1]]]
    assert batch.source_mask.tolist() == [source]
    assert batch.count_mask.int().tolist() == [decoder]
    assert batch.counted == sum(source) + sum(decoder) and batch.size == batch.tokens == 7


def test_batches_stay_within_the_budget_and_lose_nothing():
    corpus = Corpus.from_records(RECORDS, T5).read_by("encoder-decoder")
    seen = []
    for batch in batches(corpus):
        assert batch.size <= 100 and len(batch.documents) == len(batch.source_mask)
        assert not batch.source_mask[batch.inputs["attention_mask"] == 0].any()
        assert not batch.count_mask[batch.inputs["decoder_attention_mask"] == 0].any()
        seen += batch.documents.tolist()
        first, second = batch.halves()
        assert first.counted + second.counted == batch.counted
    assert sorted(seen) == list(range(60))


def test_an_encoder_reads_special_tokens_around_a_text_and_counts_none_of_them():
    corpus = Corpus.from_records([{"text": "a b c d e " * 6}, RECORDS[0]], BERT, max_length=16).read_by("encoder")
    *text, answer = corpus.sequences()
    for piece in (*text, answer):
        assert (piece.input_ids[0], piece.input_ids[-1]) == (BERT.cls_token_id, BERT.sep_token_id) and len(piece) <= 16
        assert not piece.count_mask[[0, -1]].any()
    assert sum(int(piece.count_mask.sum()) for piece in text) == 30
    assert BERT.decode(answer.input_ids[answer.count_mask]) == "five answer"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"text": "a b"},
            "no source beside its answer, and the model is an encoder with a decoder; expected prompt and",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "no source beside its answer"),
        ({"input_ids": [5, 6]}, "no source beside its answer"),
        ({"prompt": " ", "completion": "b"}, "no source: the prompt is ' '"),
        ({"prompt": "a", "completion": ""}, "no answer: completion is ''"),
        ({"prompt": "a", "completion": "b", "loss_mask": [1]}, "loss_mask is for one text"),
        ({"prompt": "a " * 99, "completion": "b"}, "has 100 tokens and the limit is 40"),
    ],
)
def test_a_record_without_a_source_is_one_sentence(record, message):
    corpus = Corpus.from_records([record], T5, max_length=40).read_by("encoder-decoder")
    with pytest.raises(ActError, match=message):
        list(corpus.sequences())


@pytest.mark.parametrize(
    "record", [{"question": "a b", "answer": "c"}, {"instruction": "a", "input": "b", "output": "c"}]
)
def test_columns_of_conversations_need_no_template(record):
    corpus = Corpus.from_records([record, {"input_ids": [8, 9], "labels": [10, EOS]}], T5).read_by("encoder-decoder")
    one, tokens = corpus.encoded()
    assert T5.decode(one.input_ids[: one.source]).split() == ["a", "b", "</s>"]
    assert one.input_ids[one.source :].tolist() == T5("c")["input_ids"] and tokens.source == 2


def test_tokens_on_disk_are_those_of_the_model_that_reads_them(tmp_path):
    model = tiny_encoder("t5")
    corpus = Corpus.from_records(RECORDS, T5)
    plain = act.profile(model, corpus, token_budget=100)
    for cached in (corpus.cached(tmp_path), corpus.read_by(reader_of(model)).cached(tmp_path)):
        assert torch.equal(act.profile(model, cached, token_budget=100).moments.arena, plain.moments.arena)
    assert len(list(tmp_path.glob("*.parquet"))) == 2  # one as a decoder alone would read it


class Killed(Exception):
    pass


class Stop(act.Observer):
    def after_batch(self, run, batch):
        if run.position.batch == 3:
            raise Killed


@pytest.mark.parametrize("sides", [1, 2])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(sides, tmp_path):
    models = [tiny_encoder("t5", seed) for seed in range(sides)]
    measure = act.profile if sides == 1 else act.profile_pair
    corpus = Corpus.from_records(RECORDS, T5)
    whole = measure(*models, corpus, token_budget=100)
    with pytest.raises(Killed):
        measure(*models, corpus, token_budget=100, observers=[Stop()], checkpoint=act.Checkpoint(tmp_path / "c", 0))
    again = measure(*models, corpus, token_budget=100, checkpoint=act.Checkpoint(tmp_path / "c", 0))
    assert torch.equal(again.moments.arena, whole.moments.arena)
    assert again.provenance.job == whole.provenance.job


def test_shards_are_the_whole():
    model, corpus = tiny_encoder("t5"), Corpus.from_records(RECORDS, T5)
    whole = act.profile(model, corpus)
    parts = [act.profile(model, corpus, shard=(number, 3)) for number in range(3)]
    both = parts[0] + parts[1] + parts[2]
    assert torch.equal(both.count, whole.count)
    torch.testing.assert_close(both.mean, whole.mean, rtol=1e-5, atol=1e-6)
    read = whole.provenance.corpora[0]
    assert read.reader == "encoder-decoder" and read.counted == sum(
        each.provenance.corpora[0].counted for each in parts
    )
