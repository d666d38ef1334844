"""Texts as people have them, on the command line: columns, chat templates, names, records one by one."""

from __future__ import annotations

import copy
import csv
import json
import re
import sys

import pytest
from command_line import act_profile, succeed
from huggingface_hub import ModelCard
from support import tiny_model

from act.cli.console import command_for_others, named, places_of
from act.cli.measuring_options import AttributeOptions, PairOptions, TextOptions
from act.cli.reading import ReadingRecords
from act.core import errors
from act.core.errors import ActError
from act.data.stream import require_first

TEMPLATE = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("texts")
    tiny_model("llama").save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    (path / "x.csv").write_text("ask,reply\n" + "".join(f"Is it {word}?,five\n" for word in ("a", "b", "c", "d")))
    (path / "template.jinja").write_text(TEMPLATE)
    return path


def test_columns_and_a_chat_template_decide_what_is_read(folder, tmp_path):
    given = ["--columns", "question=ask,answer=reply", "--chat-template", folder / "template.jinja"]
    shown = act_profile("run", "--model", folder / "model", "--corpus", folder / "x.csv", *given, "--show-spans", "1")
    assert shown.stdout == "[user]\nIs it a?</s>[assistant]\n[[five</s>]]\n", shown.stderr
    (tmp_path / "none.jinja").write_text("no template")
    long = act_profile(
        "run",
        "--model",
        folder / "model",
        "--corpus",
        folder / "x.csv",
        *given,
        "--show-spans",
        "1",
        "--max-length",
        "999",
    )
    assert long.stdout == shown.stdout and "999 tokens, and the model's configuration has 256" in long.stderr
    given[-1] = tmp_path / "none.jinja"
    wrong = act_profile("run", "--model", folder / "model", "--corpus", folder / "x.csv", *given)
    assert wrong.returncode == 2 and "does not mention messages" in wrong.stderr
    missing = act_profile("run", "--model", folder / "model", "--corpus", folder / "x.csv")
    assert (
        missing.returncode == 2 and "got the keys ['ask', 'reply']" in missing.stderr and "--columns" in missing.stderr
    )


@pytest.mark.parametrize(
    ("corpora", "keep", "said"),
    [
        (["x.csv", "x.csv"], [], "x.csv was given twice"),
        (["one=x.csv", "other=./x.csv"], [], "one and other are the same text, ./x.csv"),
        (["one=x.csv"], ["other=./x.csv"], "one and other: the ability and what to keep are the same text"),
        (["x.csv"], ["x.csv"], "x.csv: the ability and what to keep are the same text"),
        (["x.csv"], ["y=other", "z=other"], "y and z are the same text"),
        (["y=x.csv"], ["y=other"], "y was given twice; give each corpus once, each with a name of its own"),
    ],
)
def test_a_text_that_is_given_twice_is_named_by_what_it_was_given_as(folder, monkeypatch, corpora, keep, said):
    monkeypatch.chdir(folder)
    with pytest.raises(ActError, match=re.escape(said)):
        named(corpora, keep)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"ability_column": "replay", "columns": ["prompt=ask,completion=reply"]},
            "x.csv, line 2: there is no column 'replay', which is to name the ability (--ability-column); there is ask, "
            "reply",
        ),
        ({"ability_column": "replies"}, "there is ask, reply; did you mean reply?"),
        (
            {"columns": ["question=asks,answer=reply"]},
            "there is no column 'asks', of which question is to be made; there is ask, reply; did you mean ask?",
        ),
        ({"columns": ["quesion=ask"]}, "no column 'quesion' is read; expected one of prompt, completion, question"),
        ({}, "expected messages or conversations, prompt and completion"),
        ({"columns": ["question=ask,answer=reply"]}, "the tokenizer has no chat template"),
    ],
)
def test_what_is_wrong_with_every_record_is_no_reason_to_leave_records_out(folder, tokenizer, monkeypatch, given, said):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(errors, "_typed", True)
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ActError, match=re.escape(said)) as found:
        require_first(TextOptions(corpus=["x.csv"], **given).open_corpora(plain), skip_bad_records=3)
    assert "skip" not in str(found.value)


def test_a_column_to_ignore_that_no_record_has_is_told_once(folder, tokenizer, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    turns = [{"role": "user", "content": "a", "note": "b"}, {"role": "assistant", "content": "c"}]
    (folder / "turns.jsonl").write_text(json.dumps({"messages": turns, "sources": "none"}))
    given = {"corpus": ["a=x.csv", "b=turns.jsonl"], "columns": ["a:question=ask,answer=reply"]}
    for _ in range(2):
        TextOptions(ignore_columns=["note", "reply,sorces"], **given).open_corpora(tokenizer)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        "ignore_columns sorces: none of the first 128 records of a text has such a column, or key of a message; there is "
        "ask, reply, messages, role, content, note, sources; did you mean sources?"
    )


@pytest.mark.parametrize(
    ("prompt", "completion", "told"),
    [
        ("{ask}", "{reply}", "a: prompts and completions meet without a space ('Is it a?five')"),
        ("{ask}", " {reply}", ""),
        ("{ask}\n", "{reply}", ""),
        ("<{ask}>", "{reply}", ""),
        ("{ask}", "数{reply}", ""),
    ],
)
def test_an_answer_that_is_glued_to_its_prompt_is_told(
    folder, tokenizer, monkeypatch, caplog, prompt, completion, told
):
    monkeypatch.chdir(folder)
    given = [f"prompt={prompt},completion={completion}"]
    TextOptions(corpus=["a=x.csv"], columns=given).open_corpora(tokenizer)
    assert "".join(record.getMessage() for record in caplog.records).startswith(told) and bool(told) == bool(
        caplog.records
    )


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        (TextOptions, {"corpus": ["x.csv"], "columns": ["x.csv:text=ask"]}, {"": "text"}),
        (
            AttributeOptions,
            {"corpus": ["my text=x.csv"], "keep": ["y=other.csv", "third.csv"]}
            | {"columns": ["text=reply", "y:prompt=ask,completion=reply", "third.csv:question=ask,answer=reply"]},
            {"my text": "text", "keep/0 y": "prompt", "keep/1": "question"},
        ),
    ],
)
def test_columns_can_be_those_of_one_text(folder, tokenizer, monkeypatch, kind, given, read):
    monkeypatch.chdir(folder)
    for name in ("other.csv", "third.csv"):
        (folder / name).write_text((folder / "x.csv").read_text())
    corpora = kind(**given).open_corpora(tokenizer)
    assert {name: next(iter(next(corpus.source.read()).record)) for name, corpus in corpora.items()} == read
    with pytest.raises(ActError, match="columns are given for 'z', and no text is called that; expected one of"):
        kind(**{**given, "columns": ["z:text=ask"]}).open_corpora(tokenizer)


@pytest.mark.parametrize(
    ("given", "places"),
    [
        (["my notes=x.csv", "数学 (5+)=y"], {"my notes": "x.csv", "数学 (5+)": "y"}),
        (["home=~/x.csv"], {"home": "/home/me/x.csv"}),
        (["a=b=x.csv"], {"": "a=b=x.csv"}),  # there is such a file
        (["data/lang=de/part.csv"], {"": "data/lang=de/part.csv"}),  # a folder as Hive names it
        (["a=b/none.csv"], {"": "a=b/none.csv"}),  # there is such a folder
        (["s3://bucket/lang=de/*.csv"], {"": "s3://bucket/lang=de/*.csv"}),
    ],
)
def test_what_stands_before_an_equals_sign_is_a_name_unless_it_is_part_of_a_path(folder, monkeypatch, given, places):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", "/home/me")
    (folder / "a=b=x.csv").touch()
    (folder / "a=b").mkdir(exist_ok=True)
    assert places_of(given) == places


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["notes/mine=x.csv"], "the name of a corpus is 'notes/mine'; expected a valid file name: at most 50 char"),
        (["notes/mine=*.csv"], "without slashes, and no dot or space in front"),
        (["notes:x.csv"], "a name stands before an equals sign; did you mean notes=x.csv?"),
        ([".x=x.csv"], "the name of a corpus is '.x'; expected a valid file name"),
        (["a=x.csv", "a=y.csv"], "two corpora are named a; give each a name of its own (--corpus NAME=PLACE)"),
        (["a=x.csv", "y.csv"], "and y.csv has none; give it one (--corpus NAME=y.csv)"),
        (["x.csv", "a=y.csv"], "and x.csv has none; give it one (--corpus NAME=x.csv)"),
    ],
)
def test_a_name_that_cannot_be_one_and_a_missing_name_are_two_mistakes(folder, monkeypatch, given, said):
    monkeypatch.chdir(folder)
    (folder / "notes").mkdir(exist_ok=True)
    with pytest.raises(ActError, match=re.escape(said)):
        places_of(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stable_top": "5%"}, "--stable-top has no effect without --until-stable"),
        ({"stable_overlap": 0.98}, "--stable-overlap has no effect without --until-stable"),
        ({"stable_confidence": 0.95}, "--stable-confidence has no effect without --until-stable"),
        ({"stable_score": "paired"}, "--stable-score has no effect without --until-stable"),
        ({"until_stable": True, "stable_top": "500%"}, "--stable-top is 500%; expected a share of the channels"),
        (
            {"until_stable": True, "stable_top": "100%"},
            "stable top is 1; expected a share of the channels above 0 and below 1",
        ),
        ({"until_stable": True, "stable_overlap": 0.0}, "stable overlap is 0.0; expected more than 0"),
    ],
)
def test_options_of_until_stable_are_refused_without_it_and_by_their_names(given, said):
    with pytest.raises(ActError, match=re.escape(said)):
        PairOptions(corpus=["x.csv"], **given).stopping()


def test_the_command_on_a_card_names_no_folder_of_this_machine(monkeypatch):
    places = ["/home/me/base", "--corpus=de=/home/me/de/x.jsonl", "fr=/home/me/my fr/x.jsonl", "../here/x.jsonl", "a/b"]
    monkeypatch.setattr(sys, "argv", ["act-profile", "transfer", "--donor", *places])
    said = "act-profile transfer --donor base --corpus=de=de/x.jsonl 'fr=my fr/x.jsonl' ../here/x.jsonl a/b"
    assert command_for_others() == said


@pytest.mark.parametrize("given", [{"columns": ["text=a"]}, {"max_length": 5}, {"skip_bad_records": 1}])
def test_how_records_are_read_has_no_effect_without_a_text(given):
    reading = ReadingRecords(**given)
    reading.require_text(True)
    with pytest.raises(ActError, match=r"--[a-z-]+ has no effect without --corpus; leave it out, or give a text"):
        reading.require_text(False)
    ReadingRecords(columns=[]).require_text(False)


def test_an_empty_text_has_nothing_to_show(folder, tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    shown = act_profile("run", "--model", folder / "model", "--corpus", tmp_path / "none.jsonl", "--show-spans", "1")
    assert shown.returncode == 2 and "none.jsonl: there is no record to show" in shown.stderr


def test_an_evaluation_names_its_texts_and_writes_each_record(folder, tmp_path):
    given = [
        "--model",
        folder / "model",
        "--corpus",
        f"facts={folder / 'x.csv'}",
        "--columns",
        "question=ask,answer=reply",
    ]
    found = succeed("evaluate", *given, "--metric", "exact", "--details", tmp_path / "d.csv")
    (one,) = found["results"]
    assert one["corpus"] == "facts" and one["majority"] == 1.0 and one["chance"] is None
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert [row["record"] for row in rows] == ["0", "1", "2", "3"] and {row["answer"] for row in rows} == {"five"}
    assert sum(float(row["nll"]) for row in rows) == pytest.approx(4 * one["nll_per_record"])


def test_what_is_a_bad_record_to_one_model_is_left_out_for_all(folder, tmp_path, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens([f"|{letter}" for letter in "abcdefghij"])
    tiny_model("llama", 1).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    long = "".join(f"|{letter}" for letter in "abcdefghij")  # few tokens for the other alone
    rows = [("Is it a?", "five"), (long, "five"), ("Is it b?", ""), *[(f"Is it {word}?", "five") for word in "cdefghi"]]
    (tmp_path / "rows.csv").write_text("prompt,completion\n" + "".join(f"{ask}, {reply}\n" for ask, reply in rows))
    given = ["--corpus", f"rows={tmp_path / 'rows.csv'}", "--max-length", "16", "--metric", "nll"]
    both = ["evaluate", "--before", folder / "model", "--model", tmp_path / "other", *given]
    found = act_profile(*both, "--skip-bad-records", "2", "--json")
    assert found.returncode == 0, found.stderr
    assert [one["records"] for one in json.loads(found.stdout)["results"]] == [8, 8]
    assert "skipped 2 bad records" in found.stderr and "line 3: the record has" in found.stderr
    assert found.stderr.count("line 4: the record has no answer") == 1
    looked = succeed(*both, "--skip-bad-records", "2", "--limit", "4")
    assert [one["records"] for one in looked["results"]] == [2, 2]
    for few in ("0", "1"):
        refused = act_profile(*both, "--skip-bad-records", few)
        assert refused.returncode == 2 and "leave up to N bad records out (--skip-bad-records N)" in refused.stderr


def test_a_text_without_bad_records_stays_what_it_is(folder, tmp_path, tokenizer, caplog):
    (tmp_path / "bad.csv").write_text("ask,reply\nIs it a?,\n" + "Is it b?,five\n" * 9)
    reading = ReadingRecords(columns=["question=ask,answer=reply"], skip_bad_records=1)
    name = str(folder / "model")
    texts = reading.open_all([f"bad={tmp_path / 'bad.csv'}", f"good={folder / 'x.csv'}"], {name: tokenizer})[name]
    (plain,) = reading.open_all([f"good={folder / 'x.csv'}"], {name: tokenizer})[name].values()
    assert texts["good"].source.fingerprint == plain.source.fingerprint and texts["bad"].source.size == 9
    assert [record.getMessage().count("bad.csv, line 2") for record in caplog.records] == [1]


def test_a_quick_look_is_at_the_first_records_and_the_figures_are_explained(folder):
    given = ["--model", folder / "model", "--corpus", folder / "x.csv", "--columns", "question=ask,answer=reply"]
    found = succeed("evaluate", *given, "--metric", "exact", "--limit", "3")
    assert found["limit"] == 3 and found["results"][0]["records"] == 3
    said = act_profile("evaluate", *given, "--metric", "nll", "--limit", "3").stdout
    assert "NLL: negative log-likelihood per token in nats, less is better" in said and "the first 3 of each" in said


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["--fewshot", "2"], "--fewshot has no effect without --task"),
        (["--metric", "nll", "--max-new-tokens", "3"], "--max-new-tokens has no effect with the metric nll"),
        (["--metric", "exakt"], "did you mean exact?"),
        (["--token-budget", "0"], "token budget is 0; expected at least 1"),
        (["--limit", "0"], "limit is 0; expected at least 1"),
        (["--before", "not-there/"], "not-there/ is given twice"),
    ],
)
def test_what_has_no_effect_is_refused_before_anything_is_loaded(given, wrong):
    done = act_profile("evaluate", "--model", "not-there/", "--corpus", "x.csv", *given)
    assert done.returncode == 2 and wrong in done.stderr


def test_a_model_is_not_compared_with_itself_however_it_is_written(folder):
    both = ["--before", folder / "model", "--model", f"{folder}/../{folder.name}/model"]
    assert "is given twice" in act_profile("evaluate", *both, "--corpus", folder / "x.csv").stderr


def test_options_of_texts_are_refused_where_there_are_only_tasks():
    done = act_profile("evaluate", "--model", "org/name", "--task", "arc_easy", "--details", "d.csv")
    assert done.returncode == 2 and "--details has no effect without --corpus or --keep" in done.stderr


def test_a_tuned_model_has_a_card(folder, tmp_path):
    pytest.importorskip("accelerate")
    given = ["--corpus", f"facts={folder / 'x.csv'}", "--columns", "question=ask,answer=reply", "--steps", "1"]
    tuned = succeed("tune", "--model", folder / "model", *given, "--output", tmp_path / "a" / "tuned")
    text = (tmp_path / "a" / "tuned" / "README.md").read_text()
    assert (
        f"| loss per token | {tuned['loss_before']:.3f} before, {tuned['loss_after']:.3f} after" in text
        and "from facts" in text
        and "--steps 1" in text
    )
    assert {"fine-tune", "act-profile"} <= {*ModelCard(text).data.tags}
    assert "act-profile evaluate --before" in text and "pypi" not in text
    before = ["--before", folder / "model", *given[:4]]
    measured = act_profile("evaluate", *before, "--model", tmp_path / "a" / "tuned", "--metric", "exact", "--card")
    assert f"facts: used to train on, by the card of {tmp_path / 'a' / 'tuned'}, so figures" in measured.stderr
    assert "README.md: these figures\n" in measured.stderr and "made of" not in measured.stderr
    assert (
        "facts: too few records to tell: with 4, p cannot fall below 0.125; at least 6 are needed\n" in measured.stdout
    )
    text = (tmp_path / "a" / "tuned" / "README.md").read_text()
    assert (
        "| facts | exact match | **tuned** (this model) | 4, on which it was trained |" in text
        and "p against model" in text
    )
    assert "act-profile evaluate" not in text
    assert [one.dataset_name for one in ModelCard(text).data.eval_results] == ["facts", "facts"]
    card = [*before, "--model", tmp_path / "a" / "tuned", "--card", "--metric", "exact", "--limit", "2"]
    look = act_profile("evaluate", *card)
    assert "keeps its figures of all records of facts: those of the first 2 do not take their place" in look.stderr
    assert look.returncode == 0 and (tmp_path / "a" / "tuned" / "README.md").read_text() == text
    lacking = act_profile("evaluate", *before[2:], "--model", folder / "model", "--card")
    assert lacking.returncode == 2 and "has no place for results" in lacking.stderr
    refused = act_profile("tune", "--model", folder / "model", *given, "--push-to-hub", "x", "--output", tmp_path / "b")
    assert refused.returncode == 2 and "expected a name such as org/name" in refused.stderr
    assert json.loads(
        act_profile("tune", "--model", folder / "model", "--mode", "lroa", *given, "--output", "c", "--json").stdout
    ) == {
        "error": "mode is 'lroa'; expected one of full, rows, lora; did you mean lora?",
        "exit_code": 2,
    }
