"""What messages call a setting: an option on the command line, an argument in Python."""

from __future__ import annotations

import json

import pytest
from command_line import act_profile
from support import tiny_model

import act
from act.core import errors
from act.core.files import require_output
from act.ranking.selection import parse_top


def test_messages_are_in_the_words_of_whoever_called(tmp_path, tokenizer, monkeypatch):
    records = [{"prompt": "a " * number, "completion": " b"} for number in (50, 2)]
    long = act.Corpus.from_records(records, tokenizer, max_length=16)
    mistakes = {
        lambda: parse_top(5, countable=True): ("--number 5", "count=5"),
        lambda: act.Corpus.from_records([], tokenizer, overlap=-1): ("--stride is -1", "overlap is -1"),
        lambda: require_output(tmp_path, False): ("pass --force to", "pass force=True to"),
        lambda: act.profile(tiny_model("llama"), long): ("(--skip-bad-records N)", "(skip_bad_records=N)"),
    }
    for typed in (True, False):
        monkeypatch.setattr(errors, "_typed", typed)
        for mistake, words in mistakes.items():
            with pytest.raises(act.ActError) as found:
                mistake()
            assert [word in str(found.value) for word in words] == [typed, not typed], found.value


def test_a_record_that_is_too_long_names_an_option_that_the_command_has(tmp_path, tokenizer):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    records = ({"prompt": "a " * number, "completion": " b"} for number in (50, 2))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = ["--model", tmp_path / "model", "--corpus", tmp_path / "a.jsonl", "--max-length", "16"]
    alone = [{"prompt": "a b"}] * 2
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in alone))
    late = [{"prompt": "a b", "completion": " c" if number < 9 else ""} for number in range(10)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in late))
    with_c = [*given[:3], tmp_path / "c.jsonl"]
    refused = act_profile("evaluate", *given[:3], tmp_path / "b.jsonl")
    assert refused.returncode == 2 and refused.stderr.endswith("beside its prompt it has nothing; add one\n")
    refused = act_profile("evaluate", *with_c)
    assert "line 10: the record has no answer" in refused.stderr and "(--skip-bad-records N)" in refused.stderr
    for command in ("evaluate", "tune", "run"):
        output = [] if command == "evaluate" else ["--output", tmp_path / command]
        refused = act_profile(command, *given, *output)
        assert refused.returncode == 2 and "the limit is 16; raise the maximum length (--max-length)" in refused.stderr
        assert "--skip-bad-records" in refused.stderr
