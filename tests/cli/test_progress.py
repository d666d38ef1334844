"""What is shown of long work: bars, lines, and tables that keep to the width."""

from __future__ import annotations

import io
import json
import logging

import pytest
from rich.console import Console
from support import tiny_model

import act
from act import ActError
from act.cli.logs import to_file, to_stderr
from act.cli.progress import Progress, counter
from act.cli.tables import print_table
from act.editing.tune import TuneSettings, tune
from act.evaluation.evaluate import evaluate


def test_times_are_whole_on_a_narrow_terminal():
    progress = Progress(as_json=False)
    text = "12,345,678 counted of 67,890,000 tokens, 12,345 tokens/s, 2.1% padding, top set 98.0% stable"
    progress._bar.disable = False
    progress._bar.update(progress._task, total=100_000, completed=2_000, text=text)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(progress._bar.get_renderable())
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0:00:00 -:--:--" in drawn and "…" not in drawn
    assert all(word in drawn for word in text.split())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_every_ten_seconds_where_there_is_no_bar(as_json, monkeypatch, capsys, tmp_path):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with to_stderr("info"), to_file(tmp_path / "new" / "log.jsonl"), counter("tuning", as_json) as report:
        for done in range(1, 5):
            now[0] += 6
            report("loss 1.5", done, 40)
    lines = capsys.readouterr().err.splitlines()
    logged = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    assert [line["done"] for line in logged] == [2, 4] and logged[0]["seconds_left"] == 228.0
    if as_json:
        assert [json.loads(line)["done"] for line in lines] == [2, 4] and json.loads(lines[0])["event"] == "progress"
    else:
        assert lines[0] == "tuning: loss 1.5, 2 of 40, 3 min 48 s left" and len(lines) == 2


def test_work_says_when_it_begins_so_that_the_first_step_tells_the_time_left(monkeypatch, capsys, tokenizer):
    told: list[tuple[str, int, int]] = []
    corpus = act.Corpus.from_records([{"prompt": "a", "completion": " b"}] * 4, tokenizer)
    model = tiny_model("llama")
    evaluate(model, corpus, "exact", progress=lambda *one: told.append(one))
    tune(model, corpus, TuneSettings(steps=2, batch_size=2), progress=lambda *one: told.append(one))
    begun = [(doing, total) for doing, done, total in told if done == 0]
    assert begun == [("scoring", 4), ("answering", 4), ("training", 2)]

    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with to_stderr("info"), counter("recipe") as report:
        for seconds, *one in ((1, "scoring", 8, 8), (50, "training", 0, 20), (12, "loss 1.194", 1, 20)):
            now[0] += seconds
            report(*one)
    assert capsys.readouterr().err.splitlines()[-1] == "recipe: loss 1.194, 1 of 20, 3 min 48 s left"


def test_the_level_decides_what_is_shown(capsys):
    for level, shown in {"error": 0, "warning": 1, "info": 2, "debug": 4}.items():
        with to_stderr(level):
            logging.getLogger("act.cli.console").info("a note")
            logging.getLogger("act.cli.console").warning("a warning")
            logging.getLogger("act.taps").info("for the log file")
            logging.getLogger("act.taps").debug("deep inside")
        assert len(capsys.readouterr().err.splitlines()) == shown
    with (
        pytest.raises(ActError, match=r"log level is 'inof'; expected one of .*; did you mean info\?"),
        to_stderr("inof"),
    ):
        pass


def test_no_word_of_a_table_is_broken(monkeypatch, capsys):
    columns = ["model", "corpus", "right, %", "NLL per token"]
    rows = [["specialist", "test-de[1].jsonl", "25.0 ± 2.5", "5.918 ± 0.014"]]
    for width in (80, 60, 50, 30):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table("Figures", columns, rows)
        shown = capsys.readouterr().out
        assert all(cell in shown for cell in rows[0])
        assert ("│" in shown) == (width >= 70) and max(map(len, shown.splitlines())) <= width


def test_a_narrow_terminal_keeps_titles_lines_and_figures_apart(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_table(
        "Memory of a pair run on one device", ["part", "size"], [["weights", "9.8 MiB"], ["moments", "101.9 MiB"]]
    )
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "Memory of a pair run on one device" and len(lines[0]) < len(title)  # wider than its table
    assert "│ weights │   9.8 MiB │" in lines
    print_table("Facts", ["", ""], [["machine", "Linux-6.18.44-fc-v657-x86_64-with-glibc2.36"], ["threads", "1"]])
    shown = capsys.readouterr().out
    assert "│ threads │ 1 " in shown and "┡" not in shown  # texts stand left, and no heading is empty
    monkeypatch.setenv("COLUMNS", "36")
    print_table("Sites", ["kind", "channels", "of parameters"], [["embedding", "192", "15.37%"]])
    assert "─" * 30 in capsys.readouterr().out
