"""Records as people have them: JSON arrays, CSV and TSV, ShareGPT, prompts alone, columns of other names."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from support import batches_of

from act import ActError
from act.data import arrays
from act.data.corpus import Corpus
from act.data.mapped import columns_of
from act.data.records import open_source

ROWS = [{"prompt": "a b", "completion": " c"}, {"prompt": 'say "d",\nthen', "completion": " e"}]


def read(path):
    return [entry.record for entry in open_source(path).read()]


def written(rows, delimiter):
    quoted = [['"' + value.replace('"', '""') + '"' for value in row.values()] for row in rows]
    return "\n".join(delimiter.join(row) for row in [list(rows[0]), *quoted]) + "\n"


@pytest.mark.parametrize("name", ["x.csv", "semicolons.csv", "x.tsv", "x.json", "lines.json", "x.json.gz", "x.csv.gz"])
def test_every_format_gives_the_same_records(name, tmp_path):
    delimiter = {"semicolons.csv": ";", "x.tsv": "\t"}.get(name, ",")
    text = written(ROWS, delimiter) if ".json" not in name else json.dumps(ROWS, indent=2)
    text = "\n".join(map(json.dumps, ROWS)) if name == "lines.json" else text
    content = ("\ufeff" + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name) == ROWS
    assert open_source(tmp_path / name).count() == 2


def test_an_array_longer_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 7)
    rows = [{"text": "w" * length, "n": [length, {"deep": [1.5, None]}]} for length in range(40)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert read(tmp_path / "x.json") == rows
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert read(tmp_path / "empty.json") == []


@pytest.mark.parametrize(
    ("name", "text", "whole", "sentence"),
    [
        ("x.json", '[{"text": "a"}, {"text": ', 1, "item 2 is no JSON"),
        ("x.json", '[{"text": "a"} {"text": "b"}]', 0, "neither a comma nor a bracket"),
        ("x.json", '"text"', 0, "expected a JSON array of objects"),
        ("x.csv", "a,b\n1,2\n3\n4,5\n", 2, "1 values and the header names 2 columns"),
        ("x.csv", "a,a\n1,2\n", 0, "it has 'a' twice"),
        ("x.csv", "\n", 0, "must name the columns"),
        ("x.csv", "", 0, "the file is empty; repair it"),
        ("x.json", "", 0, "the file is empty"),
        ("x.jsonl", '[{"text": "a"}]', 0, "a JSON array, while each line is to be a record; name the file .json"),
        ("x.ndjson", "{'text': 'a'}", 0, "(one of several lines is read from a file named .json)"),
    ],
)
def test_damage_is_one_sentence_and_what_is_whole_is_read(name, text, whole, sentence, tmp_path):
    (tmp_path / name).write_text(text)
    found = read(tmp_path / name)
    errors = [str(record) for record in found if isinstance(record, ActError)]
    assert len(errors) == 1 and sentence in errors[0] and len(found) - 1 == whole


@pytest.mark.parametrize("name", ["A.JSONL", "a.ndjson", "a.NDJSON.GZ", "A.Json", "a.TXT"])
def test_endings_are_read_in_any_case(name, tmp_path):
    text = b"a b" if name == "a.TXT" else b'{"text": "a b"}'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("GZ") else text)
    assert read(tmp_path / name) == read(tmp_path) == [{"text": "a b"}]


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_not_taken_for_damage(name, encoding, tmp_path):
    (tmp_path / name).write_text('[{"text": "für"}]' if name == "x.json" else "für\n", encoding=encoding)
    (found,) = read(tmp_path / name)[:1]
    assert isinstance(found, ActError) and "not UTF-8" in str(found) and "convert the file to UTF-8" in str(found)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "the place of the corpus is ''; expected a JSONL"),
        ("-", "is a pipe or a device, and a text is read more than once; write it to a file"),
        ("/dev/null", "is a pipe or a device"),
        ("a" * 5000, "there is no such file or folder"),
        ("x.pdf,x.pdf", "give each by itself (a Corpus)"),
        ("x.pdf", "its name has none of the endings that are read; expected a JSONL"),
    ],
)
def test_what_is_no_file_of_records_is_refused_in_a_sentence(place, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pdf").touch()
    with pytest.raises(ActError, match=re.escape(said)):
        open_source(place)


def test_json_describes_other_records_and_a_model_is_no_corpus(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "info.json").write_text('{"splits": ["train"]}')
    assert read(tmp_path) == [{"text": "a"}]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ActError, match="is the folder of a model"):
        open_source(tmp_path)


def test_sharegpt_is_read_as_messages_are(tokenizer):
    said = [("human", "What is two plus three?"), ("gpt", "five"), ("human", "and?"), ("gpt", "six")]
    shared = {"conversations": [{"from": who, "value": text} for who, text in said], "system": "Be brief."}
    roles = {"human": "user", "gpt": "assistant"}
    plain = {"messages": [{"role": roles[who], "content": text} for who, text in said], "system": "Be brief."}
    one, other = (next(Corpus.from_records([record], tokenizer).sequences()) for record in (shared, plain))
    assert one.input_ids.tolist() == other.input_ids.tolist() and one.count_mask.tolist() == other.count_mask.tolist()
    shared["conversations"][0]["from"] = "narrator"
    with pytest.raises(
        ActError, match="turn 0 of the conversation is from 'narrator'; expected one of human, user, gpt"
    ):
        next(Corpus.from_records([shared], tokenizer).encoded())


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"prompt": "a b c"}, "a b c"),
        ({"question": "a b"}, "<|user|>\na b</s>\n<|assistant|>\n"),
        ({"instruction": "a", "input": "b"}, "<|user|>\na\n\nb</s>\n<|assistant|>\n"),
        ({"messages": [{"role": "user", "content": "a b"}]}, "<|user|>\na b</s>\n<|assistant|>\n"),
        ({"conversations": [{"from": "human", "value": "a b"}]}, "<|user|>\na b</s>\n<|assistant|>\n"),
    ],
)
def test_a_prompt_alone_counts_where_prompts_do(record, text, tokenizer, tmp_path):
    for count in ("prompt", "all"):
        corpus = Corpus.from_records([record], tokenizer, count=count)
        assert next(corpus.spans(1)) == [(text, True)]
        assert corpus.cached(tmp_path / count).numbered().__next__()[1].unanswered
    for count in ("answer", "predict"):
        for corpus in (Corpus.from_records([record], tokenizer, count=count),):
            for each in (corpus, corpus.cached(tmp_path / count)):
                with pytest.raises(ActError, match=r"has no answer: .*; add one, or count the tokens of prompts"):
                    list(batches_of(each))


def test_columns_of_other_names(tokenizer, tmp_path):
    (tmp_path / "x.csv").write_text("ask,reply,note\nWhat is two?,five,long notes of somebody about this row\n")
    mapped = columns_of(["prompt=ask,completion= {reply}"], ["x"])["x"]
    corpus = Corpus.from_file(tmp_path / "x.csv", tokenizer, columns=mapped)
    assert next(corpus.spans(1)) == [("What is two?", False), (" five</s>", True)]
    wrong = Corpus.from_file(
        tmp_path / "x.csv", tokenizer, columns=columns_of(["prompt=asks,completion=reply"], ["x"])["x"]
    )
    with pytest.raises(ActError, match=r"no column 'asks'.*there is ask, reply, note; did you mean ask"):
        next(wrong.encoded())


def test_columns_of_one_text_take_the_place_of_those_of_all():
    given = ["prompt=ask,completion=reply", "a text:text= Read: {body}", "org/name:test:question=q,answer=a, b:text=c"]
    assert columns_of(given, ["x", "a text", "org/name:test", "b"]) == {
        "x": {"prompt": "{ask}", "completion": "{reply}"},
        "a text": {"text": " Read: {body}"},
        "org/name:test": {"question": "{q}", "answer": "{a}"},
        "b": {"text": "{c}"},
    }
    assert columns_of(given[1:2], ["x", "a text"]) == {"a text": {"text": " Read: {body}"}}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["promt=ask"], "no column 'promt' is read.*did you mean prompt"),
        (["frage=prompt"], "did you mean prompt=frage?"),
        (["ask"], "expected NEW=OLD"),
        (["prompt=a", "prompt=b"], "mapped twice"),
        (["prompt={a"], "the template of prompt"),
        (["a text:prompt=a", "a text:prompt=b"], "mapped twice"),
        (["a text:promt=ask"], "no column 'promt' is read.*did you mean prompt"),
        (["a test:prompt=ask"], "given for 'a test'.*expected one of x, a text; did you mean a text?"),
        (["a text=prompt=ask"], "columns of one text are given behind a colon: a text:prompt=ask"),
        (["prompt=a,b text:answer=c"], "no text is called that"),
    ],
)
def test_columns_that_are_misspelt(given, sentence):
    with pytest.raises(ActError, match=sentence):
        columns_of(given, ["x", "a text"])
