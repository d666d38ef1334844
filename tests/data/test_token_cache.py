"""Tokens on disk: the same run as from text, whatever is asked of them later."""

from __future__ import annotations

import json

import pytest
import torch
from support import tiny_model

import act
from act import ActError, Corpus
from act.data.stream import Stream

RECORDS = [{"prompt": f"{'a b ' * (number % 7)}c", "completion": " d e" * (1 + number % 3)} for number in range(2100)]
LABELLED = [{**record, "skill": f"s{number % 3}"} for number, record in enumerate(RECORDS[:60])]


@pytest.fixture
def refusing(monkeypatch):
    """Fails whatever tokenises after this was called."""

    def refuse():
        monkeypatch.setattr("act.data.encode.Encoder.__call__", lambda *_: pytest.fail("tokenised again"))

    return refuse


def batches(corpus, **options):
    return [
        (batch.ability, batch.inputs["input_ids"].tolist(), batch.count_mask.tolist(), batch.documents.tolist())
        for batch in Stream({"": corpus}, token_budget=8192, **options)
    ]


@pytest.mark.parametrize("options", [{}, {"shard": (1, 3)}, {"windows": (1, 2), "look_ahead": 40}])
def test_a_cached_corpus_gives_the_batches_of_its_text(tokenizer, tmp_path, refusing, options):
    corpus = Corpus.from_records(RECORDS, tokenizer)
    expected = batches(corpus, **options)
    corpus.cached(tmp_path)
    refusing()
    assert batches(Corpus.from_records(RECORDS, tokenizer).cached(tmp_path), **options) == expected


def test_reading_goes_on_from_any_record(tokenizer, tmp_path):
    corpus = Corpus.from_records(RECORDS, tokenizer)
    cached = corpus.cached(tmp_path)
    for start in (0, 1, 1023, 1024, 2099, 2100, 5000):
        numbers = [entry.number for entry, _ in corpus.numbered(start, (2, 3))]
        assert [entry.number for entry, _ in cached.numbered(start, (2, 3))] == numbers


def test_one_file_serves_every_count_and_length(tokenizer, tmp_path):
    Corpus.from_records(RECORDS, tokenizer).cached(tmp_path)
    for options in ({"count": "prompt"}, {"count": "all"}, {"max_length": 30}):
        Corpus.from_records(RECORDS, tokenizer, **options).cached(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    labelled = Corpus.from_records(LABELLED, tokenizer, ability_column="skill")
    assert batches(labelled.cached(tmp_path)) == batches(labelled)
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_records_stay_bad(tokenizer, tmp_path):
    lines = [json.dumps({"text": "a b"}), "{", json.dumps({"other": 1}), json.dumps({"text": "c"})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    plain = Corpus.from_file(tmp_path / "c.jsonl", tokenizer)
    cached = plain.cached(tmp_path / "tokens")
    found, expected = (
        Stream({"": cached}, token_budget=100, skip_bad_records=2),
        Stream({"": plain}, token_budget=100, skip_bad_records=2),
    )
    assert len(list(found)) == len(list(expected)) and found.skipped == expected.skipped and len(found.skipped) == 2
    with pytest.raises(ActError, match="line 2"):
        list(Stream({"": cached}, token_budget=100))


def test_the_profile_is_the_same_job(tokenizer, tmp_path):
    corpus = Corpus.from_records(RECORDS[:50], tokenizer)
    model = tiny_model("llama")
    plain, cached = act.profile(model, corpus), act.profile(model, corpus.cached(tmp_path))
    assert torch.equal(plain.moments.arena, cached.moments.arena)
    assert plain.provenance.job == cached.provenance.job


def test_a_damaged_file_and_a_file_in_the_way_are_named(tokenizer, tmp_path):
    corpus = Corpus.from_records(RECORDS[:5], tokenizer)
    corpus.cached(tmp_path / "tokens")
    (file,) = (tmp_path / "tokens").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ActError, match=r"is damaged .*; delete the file"):
        batches(corpus.cached(tmp_path / "tokens"))
    with pytest.raises(ActError, match="cannot write tokens"):
        corpus.cached(file)


def test_an_interrupted_cache_leaves_no_file(tokenizer, tmp_path):
    def report(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Corpus.from_records(RECORDS, tokenizer).cached(tmp_path, report=report)
    assert not list(tmp_path.iterdir())
