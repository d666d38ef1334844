"""Tokens on disk: the same run as from text, whatever is asked of them later."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
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


@pytest.mark.parametrize("change", ["dropped", "doubled", "reordered", "other answer", "last group dropped"])
def test_rows_that_were_changed_are_noticed(tokenizer, tmp_path, change):
    cached = Corpus.from_records(RECORDS, tokenizer).cached(tmp_path)
    (file,) = tmp_path.iterdir()
    rows = parquet.read_table(file)
    size, metadata = len(rows), parquet.read_metadata(file).metadata
    order = {
        "dropped": [*range(7), *range(8, size)],
        "doubled": [*range(7), 7, *range(7, size)],
        "reordered": [1, 0, *range(2, size)],
        "other answer": range(size),
        "last group dropped": range(2048),
    }[change]
    rows = rows.take(pa.array(order))
    if change == "other answer":
        answer = rows["answer"].to_pylist()
        answer[7] = [not each for each in answer[7]]
        rows = rows.set_column(4, "answer", pa.array(answer, rows["answer"].type))
    parquet.write_table(rows.replace_schema_metadata(metadata), file, row_group_size=1024)
    with pytest.raises(ActError, match=r"parquet is damaged \(.*\); delete the file and run again"):
        batches(cached)


def test_the_file_of_another_corpus_is_noticed(tokenizer, tmp_path):
    one, other = (Corpus.from_records(records, tokenizer) for records in (RECORDS[:9], RECORDS[1:10]))
    cached = one.cached(tmp_path / "one")
    other.cached(tmp_path / "other")
    shutil.copy(*(next((tmp_path / name).iterdir()) for name in ("other", "one")))
    with pytest.raises(ActError, match="written for another corpus"):
        batches(cached)


def test_an_ability_is_no_path(tokenizer, tmp_path, monkeypatch):
    labelled = [{**record, "skill": "fine"} for record in RECORDS[:9]]
    monkeypatch.setattr("act.data.encode.require_name", lambda what, name: "../../evil")
    cached = Corpus.from_records(labelled, tokenizer, ability_column="skill").cached(tmp_path)
    with pytest.raises(ActError, match=r"'\.\./\.\./evil'; expected a valid file name.*delete the file"):
        batches(cached)


def test_an_interrupted_cache_leaves_no_file(tokenizer, tmp_path):
    def report(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Corpus.from_records(RECORDS, tokenizer).cached(tmp_path, report=report)
    assert not list(tmp_path.iterdir())
