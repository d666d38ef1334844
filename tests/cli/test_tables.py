"""``combine``, ``rank`` and ``export`` as their help shows them, of whole folders, and of models in other types."""

from __future__ import annotations

import csv
import io
import json
import shlex
from importlib import import_module

import pytest
import torch
from command_line import act_profile, succeed
from support import tiny_model, train_tokenizer

import act
from act.cli.evaluate import _print_legend

TEXTS = {
    "german": [{"text": f"der Bär Nummer {number} liest im Garten ein Buch"} for number in range(8)],
    "maths": [{"text": f"{number} and {number} make {2 * number}"} for number in range(8)],
}
PAIR = ["pair", "--donor", "base", "--target", "specialist"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models that are stored in bfloat16, two texts, and the profiles of both, in a folder of their own."""
    folder = tmp_path_factory.mktemp("tables")
    tokenizer = train_tokenizer([one["text"] for records in TEXTS.values() for one in records])
    for seed, name in enumerate(("base", "specialist")):
        tiny_model("llama", seed, torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, records in TEXTS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    texts = [word for name in TEXTS for word in ("--corpus", f"{name}={name}.jsonl")]
    made = act_profile(*PAIR, *texts, "--dtype", "float32", "--output", "ünter both", cwd=folder)
    assert made.returncode == 0, made.stderr
    for name in TEXTS:
        (folder / f"{name}.safetensors").symlink_to(folder / "ünter both" / f"{name}.safetensors")
    return folder


def test_the_examples_of_the_help_run_one_after_the_other(folder):
    for name in ("combine", "rank", "export"):
        for line in import_module(f"act.cli.{name}").EXAMPLES.replace("\\\n", " ").strip().splitlines():
            command, _, redirected = line.partition(" > ")
            done = act_profile(*shlex.split(command)[1:], cwd=folder)
            assert done.returncode == 0, (line, done.stderr)
            if redirected:
                assert done.stdout.startswith('"channel","site",') and "\n\n" not in done.stdout
    assert (folder / "whole.safetensors").is_file() and (folder / "apart.csv").is_file()


def test_stdout_gets_the_table_that_a_file_gets(folder, tmp_path):
    german = folder / "german.safetensors"
    succeed("export", german, "--output", tmp_path / "german.csv")
    printed = act_profile("export", german, "--output", "-")
    assert printed.returncode == 0 and printed.stdout == (tmp_path / "german.csv").read_text()
    assert len([*csv.reader(io.StringIO(printed.stdout))]) == 1 + len(act.load(german).space)
    refused = act_profile("export", german, "--output", "-", "--json")
    assert refused.returncode == 2 and "leave one of them out" in refused.stderr


def test_a_folder_of_profiles_is_exported_whole_and_its_files_named_where_one_is_needed(folder, tmp_path):
    both = folder / "ünter both"
    made = succeed("export", both, "--output", tmp_path / "tables")
    assert made["rows"] == {f"{name}.csv": len(act.load(folder / "german.safetensors").space) for name in TEXTS}
    assert sorted(each.name for each in (tmp_path / "tables").glob("*.csv")) == ["german.csv", "maths.csv"]
    refused = act_profile("export", both, "--output", tmp_path / "tables.csv")
    assert "ends with .csv like a file; expected the name of a folder" in refused.stderr
    assert "a folder without profiles" in act_profile("export", folder / "base", "--output", tmp_path / "x").stderr
    ranked = act_profile("rank", both, "--output", tmp_path / "x")
    one_of = f"give one of those in it: {both / 'german.safetensors'}, {both / 'maths.safetensors'}"
    assert ranked.returncode == 2 and one_of in ranked.stderr
    for given in (folder / "german.jsonl", folder / "no.safetensors"):
        wrong = act_profile("export", given, "--output", tmp_path / "x.csv")
        assert wrong.returncode == 2 and "expected a profile, or a channel set" in wrong.stderr


def test_models_are_loaded_in_the_type_of_the_profile_and_other_types_are_told(folder, tmp_path):
    act_profile(*PAIR, "--corpus", "maths.jsonl", "--output", tmp_path / "maths.safetensors", cwd=folder)
    ranked = act_profile("rank", "german.safetensors", "--keep-profile", tmp_path / "maths.safetensors",
                         "--output", tmp_path / "c.safetensors", cwd=folder)  # fmt: skip
    assert ranked.returncode == 0
    assert "the donor was measured in different types, float32 and bfloat16" in ranked.stderr
    act_profile(
        *PAIR, "--corpus", "maths.jsonl", "--dtype", "float16", "--output", tmp_path / "h.safetensors", cwd=folder
    )
    apart = ["rank", tmp_path / "h.safetensors", "--score", "weight-diff", *PAIR[1:], "--output"]
    assert act_profile(*apart, tmp_path / "h", cwd=folder).returncode == 0
    other = act_profile(*apart, tmp_path / "b", "--dtype", "bfloat16", cwd=folder)
    assert other.returncode == 2 and "in the dtype they had then (--dtype float16)" in other.stderr
    same = act_profile("rank", "german.safetensors", "--keep-profile", "maths.safetensors", "--dtype", "float32",
                       "--output", tmp_path / "d.safetensors", cwd=folder)  # fmt: skip
    assert same.returncode == 2 and "--dtype has no effect on the default score" in same.stderr


def test_the_legend_says_which_p_makes_a_change_better_or_worse(capsys):
    tokenizer = train_tokenizer(["A. x B. y Answer: A B"])
    corpus = act.Corpus.from_records([{"prompt": "A. x\nB. y\nAnswer:", "completion": " A"}] * 3, tokenizer)
    found = []
    for metric in ("choice", "nll"):
        both = [act.evaluate(tiny_model("llama", seed), corpus, metric, name=f"m{seed}") for seed in (0, 1)]
        _print_legend(both, [act.compare(*both)], [], None)
        found.append(capsys.readouterr().out)
    judged = "better, worse: p (McNemar's, where answers are judged right or wrong) is below 0.05; unclear: it is not"
    assert judged in found[0]
    assert "better, worse: p is below 0.05; unclear: it is not" in found[1] and "McNemar" not in found[1]
