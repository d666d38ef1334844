"""Provenance: files of the versions before load, and come back to the same JSON."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_model

import act
from act.profiles.provenance import CorpusIdentity, CorpusRead, ModelRead, Provenance, Settings, short_hash
from act_kernels import STATISTICS

# Word for word what version 0.1.0 wrote before provenance had classes.
SPACE = {
    "sites": [
        {
            "name": "x",
            "kind": "up",
            "layer": 0,
            "offset": 0,
            "width": 2,
            "parameters": [{"name": "x.weight", "dim": 0}],
            "tied_to": None,
        }
    ],
    "uncovered": [],
    "blocks": [],
}
VERSIONS = {"python": "3.11.7", "act-profile": "0.1.0", "torch": "2.13.0+cpu", "greenlet": "not installed"}
CORPUS = {
    "name": "de.jsonl",
    "fingerprint": "b5e68a77da093037",
    "tokenizer": "481cd4083c4fc6fc",
    "vocabulary": "635a99521f5a990a",
    "count": "answer",
    "answer_turns": "last",
    "max_length": 256,
    "overlap": None,
    "ability_column": "skill",
    "ability": "german",
    "shard": [1, 3],
    "tokens": 90,
    "counted": 41,
    "padding": 2,
    "sequences": 9,
    "records": 8,
    "seconds": 0.032,
    "waited": 0.001,
    "paths": {"add_norm": 10, "column_moments": 1},
    "nonfinite": {"x": 3},
    "irregular": {"x": 7, "never": 0},
    "skipped": [{"ability": "", "record": 2, "place": "de.jsonl, line 3", "reason": "no answer"}],
    "stable": None,
}
IDENTITY = {name: CORPUS[name] for name in list(CORPUS)[:9]}
SEEN = {name: CORPUS[name] for name in list(CORPUS)[11:22]}
SOURCE = {
    "models": {"model": {"name": "org/model", "fingerprint": "41a8a36e73dedf8c"}},
    "settings": {
        "token_budget": 64,
        "exclude": ["head"],
        "fused": True,
        "packing": False,
        "look_ahead": 128,
        "until_stable": {"score": "paired", "top": 0.05, "overlap": 0.98, "confidence": 0.95},
        "backend": "native",
    },
    "versions": VERSIONS,
    "job": "25791bdc3ec6f0f2",
    "corpora": [
        CORPUS,
        {"name": "batches", "fingerprint": None, **SEEN, "skipped": []},
        {
            **IDENTITY,
            "name": "x.jsonl, y.jsonl",
            "read": [{**IDENTITY, "name": "x.jsonl"}, {**IDENTITY, "name": "y.jsonl"}],
            **SEEN,
        },
        {**IDENTITY, **SEEN, "shards": 3},
        {**IDENTITY, **SEEN, "shards": [0, 2], "of": 3},
    ],
}


def test_a_file_of_the_version_before_loads_and_is_written_alike(tmp_path):
    header = {"space": SPACE, "source": SOURCE, "pair": False}
    tensors = {name: torch.arange(2, dtype=torch.float64) for name in STATISTICS}
    save_file(tensors, tmp_path / "old", {"schema": "act-profile/1", "header": json.dumps(header)})
    profile = act.load(tmp_path / "old")
    provenance = profile.provenance
    assert (
        provenance.models == {"model": ModelRead("org/model", "41a8a36e73dedf8c")} and provenance.versions == VERSIONS
    )
    assert provenance.settings.exclude == ("head",) and provenance.settings.extra["until_stable"]["top"] == 0.05
    first, batches, several, all_shards, some_shards = provenance.corpora
    assert (first.name, first.count, first.counted, first.shard) == ("de.jsonl", "answer", 41, (1, 3))
    assert first.skipped[0].place == "de.jsonl, line 3" and first.extra == {"stable": None}
    assert (batches.name, batches.fingerprint, batches.count) == ("batches", None, None)
    assert [corpus.name for corpus in several.read] == ["x.jsonl", "y.jsonl"]
    assert (all_shards.shards, some_shards.shards, some_shards.of) == (3, (0, 2), 3)
    assert provenance.to_json() == SOURCE
    profile.save(tmp_path / "new")
    assert act.load(tmp_path / "new").provenance == provenance


def test_what_an_older_version_did_not_write_is_unknown():
    old = {**SOURCE, "settings": {"exclude": [], "backend": "native"}, "corpora": [{"name": "x", "counted": 3}]}
    del old["job"]
    provenance = Provenance.from_json(old)
    assert provenance.job is None and provenance.settings == Settings(backend="native")
    assert provenance.corpora == (CorpusRead("x", counted=3),)


@pytest.mark.parametrize(
    "source",
    [
        None,
        [],
        {**SOURCE, "models": ["a"]},
        {**SOURCE, "models": {"model": {"name": "a"}}},
        {**SOURCE, "corpora": [{}]},
        {**SOURCE, "corpora": [{**CORPUS, "shard": 3}]},
        {**SOURCE, "corpora": [{**CORPUS, "skipped": [{"record": 2}]}]},
    ],
    ids=str,
)
def test_damaged_provenance_is_one_sentence(tmp_path, source):
    header = {"space": SPACE, "source": source, "pair": False}
    tensors = {name: torch.zeros(2, dtype=torch.float64) for name in STATISTICS}
    save_file(tensors, tmp_path / "file", {"schema": "act-profile/1", "header": json.dumps(header)})
    with pytest.raises(act.ActError, match=r"file is damaged.*make it again"):
        act.load(tmp_path / "file")


def test_several_corpora_read_as_one_have_in_common_what_is_equal():
    one = CorpusIdentity("a", "1", "t", "v", "answer", "last", 256, 16, "skill")
    other = CorpusIdentity("b", "2", "t", "v", "answer", "last", 128, 16, "skill")
    joined = CorpusRead.joined([one, other])
    assert (joined.name, joined.count, joined.max_length, joined.read) == ("a, b", "answer", None, (one, other))
    assert joined.fingerprint == short_hash({"read": [one.identity(), other.identity()]})
    assert CorpusRead.joined([one]).identity() == one.identity() and CorpusRead.joined([]).name == "batches"


def test_a_place_is_kept_but_tells_no_text_from_another():
    one, same = (CorpusIdentity("a", "1", "t", "v", "answer", "last", 256, 16, place=place) for place in ("x/a", "y/a"))
    read, again = (CorpusRead.joined([each]) for each in (one, same))
    assert CorpusRead.from_json(read.to_json()).place == "x/a" and "place" not in CorpusRead("a").to_json()
    assert read.shared_by_shards() == again.shared_by_shards()
    joined = CorpusRead.joined([one, CorpusIdentity("b", "2", place="x/b")])
    assert [each.place for each in CorpusRead.from_json(joined.to_json()).read] == ["x/a", "x/b"]
    moved = CorpusRead.joined([same, CorpusIdentity("b", "2", place="y/b")])
    assert moved.fingerprint == joined.fingerprint and moved.shared_by_shards() == joined.shared_by_shards()


def test_parts_of_a_corpus_add_up():
    parts = [CorpusRead.from_json({**CORPUS, "shard": [number, 3], "seconds": 0.1}) for number in range(3)]
    merged = CorpusRead.merged(parts, {"x": 5})
    assert (merged.counted, merged.records, merged.seconds, merged.shard) == (123, 24, 0.3, None)
    assert merged.nonfinite == {"x": 5} and merged.irregular == {"x": 21, "never": 0} and len(merged.skipped) == 3
    assert merged.shared_by_shards() == parts[0].shared_by_shards()


def test_one_text_is_not_added_twice(tokenizer):
    model = tiny_model("llama")
    corpus, other = (
        act.Corpus.from_records([{"text": text}] * 4, tokenizer, name=text) for text in ("a b c", "c b a d")
    )
    whole, second = act.profile(model, corpus), act.profile(model, other)
    halves = [act.profile(model, corpus, shard=(number, 2)) for number in range(2)]
    assert (whole + second).provenance.corpora[1].name == "c b a d"
    assert [each.shard for each in (halves[0] + halves[1]).provenance.corpora] == [(0, 2), (1, 2)]
    quarter = act.profile(model, corpus, shard=(3, 4))
    assert (halves[0] + quarter).provenance.corpora[1].shard == (3, 4)
    twice = ((whole, whole), (halves[0], halves[0]), (whole + second, second), (whole, halves[1]), (halves[1], quarter))
    for one, same in twice:
        with pytest.raises(act.ActError, match="so its tokens would count twice; add profiles of different texts"):
            _ = one + same
