"""Tasks of lm-evaluation-harness on local data: from Python, from the command line, and from a recipe."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from command_line import act_profile, succeed
from huggingface_hub import ModelCard

import act
from act.evaluation.harness import _chance, compare_tasks, require_tasks, run_tasks
from act.lab.language import OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS, load
from act.recipes.recipe import Run, read_recipe

WORDS = [
    "eins",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(act.ActError, match=r"pip install 'act-profile\[eval\]'"):
        require_tasks(["gsm8k"])


def test_the_chance_of_a_task_is_that_of_its_choices():
    samples = [
        {"target": 1, "arguments": [("q", "a"), ("q", "b")]},
        {"target": [0, 2], "arguments": [("q", "a"), ("q", "b"), ("q", "c"), ("q", "d")]},
        {"target": 1, "arguments": [("q", "a")] * 9, "filter": "other"},
    ]
    task = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}

    def chance(key="acc,none", **changed):
        given = [{"filter": "none", **one} for one in samples]
        return _chance({"configs": {"t": {**task, **changed}}, "samples": {"t": given}}, "t", key)

    assert chance() == chance("acc_norm,none") == 0.5  # of (1/2 + 2/4) / 2
    assert chance(metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}]) == 1.0  # each asked for twice
    assert chance("exact_match,none") is chance(output_type="generate_until") is chance(process_results="f") is None
    assert _chance({"samples": {}}, "group", "acc,none") is None


@pytest.fixture
def tasks(tmp_path):
    """A folder with tasks of two kinds, and their data."""
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    records = [json.dumps(record) for record in examples("German", ("max",), 12, split="test")]
    (folder / "german.jsonl").write_text("\n".join(records), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "german.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{completion}}",
    }
    choosing = {"output_type": "multiple_choice", "doc_to_choice": WORDS, "metric_list": [{"metric": "acc"}]}
    writing = {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match", "ignore_punctuation": True}],
    }
    for name, own in (("german_max", choosing), ("german_said", writing)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **own}), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_figures_documents_and_their_comparison(tasks, capfd):
    with pytest.raises(act.ActError, match=r"no task called .german_mix.*german_max"):
        require_tasks(["german_mix"], tasks)
    names = ["german_max", "german_said"]
    before, after = (
        run_tasks(*load(CHECKPOINTS / name), names, folder=tasks, fewshot=0) for name in ("base", "target")
    )
    assert [(one.task, one.metric, len(one.per_document)) for one in before] == [
        ("german_max", "acc", 12),
        ("german_said", "exact_match", 12),
    ]
    chosen, said = compare_tasks(before, after)
    assert before[0].chance == pytest.approx(1 / len(WORDS)) and before[1].chance is None
    assert [one.value for one in before] == [1, 1] and [one.value for one in after][1] == 0
    assert chosen["difference"] < -0.5 and chosen["p"] < 0.05 and said["difference"] == -1 and said["p"] < 0.05
    assert "aggregation is not" not in capfd.readouterr().err, "what is for authors of tasks is not said"
    (few,) = run_tasks(*load(CHECKPOINTS / "base"), ["german_max"], folder=tasks, limit=3)
    assert len(few.per_document) == 3


@pytest.mark.slow
def test_the_command_line_and_a_recipe_give_the_same(tasks, tmp_path):
    models = {name: str(CHECKPOINTS / name) for name in ("base", "target")}
    given = ["--before", models["target"], "--model", models["base"], "--task", "german_said", "--task-folder", tasks]
    found = succeed("evaluate", *given, "--device", "cpu")
    said = {row["model"]: row["value"] for row in found["tasks"]}
    assert set(said.values()) == {0, 1}
    records = [
        {"prompt": record["prompt"], "completion": " " + record["completion"]}
        for record in examples("German", OLD_SKILLS, 24)
    ]
    (tmp_path / "german.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    data = {
        "target": models["target"],
        "donor": [{"model": models["base"], "corpus": "german.jsonl", "strength": 1.0}],
        "evaluate": {"task": "german_said", "task_folder": "tasks", "limit": 6},
        "output": "out",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    report = Run(read_recipe(path)).execute()
    figures = {row["model"]: (row["value"], row["documents"]) for row in report["tasks"]}
    assert figures["target"] == (0, 6) and figures["donor 1"] == (1, 6) and set(figures) == {"target", "act", "donor 1"}
    card = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert {(one.dataset_name, one.metric_type) for one in card} == {
        ("german_said", row["metric"]) for row in report["tasks"]
    }
    wrong = act_profile("recipe", path, "--check")
    assert wrong.returncode == 0 and "documents of task german_said" in wrong.stderr
    path.write_text(yaml.safe_dump({**data, "evaluate": {"task": "german_sad", "task_folder": "tasks"}}))
    wrong = act_profile("recipe", path, "--check")
    assert wrong.returncode == 2 and "did you mean german_said" in wrong.stderr
