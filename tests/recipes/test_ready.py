"""The recipes of ``recipes/``: each runs to its end on tiny models of its architectures and rows with its columns."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from support import ATTENTION, SMALL, train_tokenizer

from act.evaluation.harness import TaskFigure
from act.recipes.recipe import Run, check, read_recipe

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))
ROOM = {**SMALL, **ATTENTION, "max_position_embeddings": 1024}


def config_of(model: str) -> transformers.PretrainedConfig:
    """A tiny configuration of the architecture of a model on the hub."""
    name = model.partition("/")[2]
    if name.startswith("Qwen2.5"):
        return transformers.Qwen2Config(**ROOM, tie_word_embeddings="7B" not in name)
    if name.startswith("Qwen3"):
        return transformers.Qwen3Config(**ROOM, head_dim=8, tie_word_embeddings=True)
    if name.startswith("OLMoE"):
        return transformers.OlmoeConfig(**ROOM, num_experts=4, num_experts_per_tok=2)
    return transformers.LlamaConfig(**ROOM)


def rows_of(place: str, count: int) -> list[dict]:
    """Rows with the columns that a corpus of the hub has."""
    name, config, split = place.split(":")
    salt = 100 * len(split)
    made = []
    for n in range(salt, salt + count):  # so that splits differ
        options = [f"{n + each}" for each in range(4)]
        if name == "facebook/belebele":
            answers = {f"mc_answer{each}": text for each, text in enumerate(options, 1)}
            row = {"link": f"l{n}", "question_number": 1, "flores_passage": f"Es sind {n}.", "question": "Wie viele?"}
            row |= {**answers, "correct_answer_num": str(n % 4 + 1), "dialect": config, "ds": "2023-05-03"}
        elif name == "CohereLabs/Global-MMLU":
            answers = {f"option_{letter}": text for letter, text in zip("abcd", options, strict=True)}
            row = {"sample_id": f"s/{n}", "subject": "algebra", "question": f"Was ist {n}+0?", "answer": "ABCD"[n % 4]}
            row |= answers
        elif name == "mhardalov/exams":
            choices = {"text": options, "label": list("ABCD"), "para": [""] * 4}
            row = {
                "id": str(n),
                "question": {"stem": f"Quanto fa {n}+0?", "choices": choices},
                "answerKey": "ABCD"[n % 4],
            }
            row["info"] = {"grade": 12, "subject": "Fisica", "language": "Italian"}
        elif name == "google-research-datasets/mbpp":
            row = {"task_id": n, "text": f"Return {n}.", "code": f"def f():\n    return {n}", "test_list": []}
            row |= {"test_setup_code": "", "challenge_test_list": []}
        elif name == "jbross-ibm-research/mgsm":
            row = {"question": f"{n} + 1?", "answer": None, "answer_number": n + 1, "equation_solution": None}
        else:
            assert name == "openai/gsm8k", name
            row = {"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"}
        made.append(row)
    return made


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a"], 261)  # bytes alone: every letter of an option is a token


@pytest.fixture
def local(tmp_path, tokenizer):
    """A recipe with its ids as local folders and files, few rows, and short stages; its output is in ``tmp_path``."""

    def model(name: str) -> str:
        folder = tmp_path / "models" / name
        if not folder.exists():
            torch.manual_seed(len(list(tmp_path.glob("models/*/*"))))
            made = transformers.AutoModelForCausalLM.from_config(config_of(name))
            made.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    def corpus(place: str, rows: list[dict]) -> str:
        path = tmp_path / place.replace("/", "-").replace(":", "-")
        if "exams" in place or "MMLU" in place:
            path = path.with_name(f"{path.name}.parquet")
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path = path.with_name(f"{path.name}.jsonl")
            path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return str(path)

    def made(path: Path) -> Path:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        data["target"] = model(data["target"])
        for donor in data["donor"]:
            donor["model"] = model(donor["model"])
        parts = {}
        for one in data["corpora"].values():
            if rows := one.get("rows"):
                parts.setdefault(one["place"], set()).add(tuple(rows))
        for one in data["corpora"].values():
            if rows := one.get("rows"):
                number = sorted(parts[one["place"]]).index(tuple(rows))
                one["rows"] = [3 * number, 3 * number + 3]
            one["place"] = corpus(one["place"], rows_of(one["place"], 9))
        if "sweep" in data:
            data["sweep"] |= {"top": ["5%"], "strength": [1.0]}
        if "tune" in data:
            data["tune"] |= {"steps": 1, "batch_size": 2}
        data["evaluate"] |= {"max_new_tokens": 2}
        data["output"] = str(tmp_path / "out")
        changed = tmp_path / path.name
        changed.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return changed

    return made


@pytest.fixture
def tasks(monkeypatch):
    """lm-evaluation-harness, of which every task gives one figure."""

    def run_tasks(model, tokenizer, names, *, name, **settings):
        return [TaskFigure(name, task, "acc", 0.5, 0.1, {0: 0.0, 1: 1.0}) for task in names]

    monkeypatch.setattr("act.recipes.stages.run_tasks", run_tasks)
    if not find_spec("lm_eval"):  # which knows whether there are such tasks
        monkeypatch.setattr("act.recipes.inputs.require_tasks", lambda names, folder: None)


@pytest.fixture
def enough(monkeypatch):
    """Few records of random models choose, which a user is told that they cannot."""
    monkeypatch.setattr("act.recipes.reused.FEWEST", 1)
    monkeypatch.setattr("act.evaluation.choice._require_lost", lambda target, donor: None)
    monkeypatch.setattr("act.evaluation.choice._best", lambda candidates, least, records: candidates[0])


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_it_runs_to_its_end(path, local, tasks, enough):
    recipe = read_recipe(local(path))
    needs = check(recipe)
    assert (
        all(one.startswith("the documents of task") for one in needs["unchecked"])
        and needs["seconds"] > 0
        and needs["memory"] > 0
        and needs["disk"] > 0
    )
    assert {one["corpus"] for one in needs["corpora"]} == set(recipe.corpora) and needs["warnings"] == []
    assert all(one["tokens"] and one["counted"] for one in needs["corpora"])
    run = Run(recipe)
    report = run.execute()
    variants = {"target", "act", *(f"donor {n}" for n, _ in enumerate(recipe.donor, 1)), *recipe.evaluate.controls}
    tuned = {"tune only", *(f"{name} + tune" for name in ("act", *recipe.evaluate.controls))}
    variants |= tuned if recipe.tune else set()
    assert {row["model"] for row in report["results"]} == variants
    assert {row["corpus"] for row in report["results"]} == set(recipe.evaluate.corpora)
    assert {(row["model"], row["task"]) for row in report["tasks"]} == {
        (model, task) for model in variants for task in recipe.evaluate.tasks
    }
    assert bool(report["sweep"]) is (len(recipe.donor) == 1), "share and strength are chosen where that can be"
    if report["sweep"]:
        assert not report["sweep"]["not_compared"], "records with mapped columns are compared one by one"
        assert [*report["sweep"]["records"]] == [recipe.sweep.corpus, *recipe.sweep.kept]
    assert report["moved"]["values"] > 0 and run.done() and all(stage["kept"] for stage in run.plan())


def test_there_is_one_for_each_kind_of_pair():
    models = " ".join(path.read_text(encoding="utf-8") for path in RECIPES)
    for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B-Instruct", "Qwen2.5-Math", "Qwen2.5-Coder"):
        assert f"Qwen/{name}" in models
    for name in ("meta-llama/Llama-2", "Qwen/Qwen3", "OLMoE", "gsm8k", "mgsm", "belebele", "Global-MMLU", "exams"):
        assert name in models
    assert any(len(read_recipe(path).donor) == 3 for path in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_it_is_valid_as_it_is_shipped_and_says_how_it_is_compared(path):
    recipe = read_recipe(path)
    assert recipe.evaluate.controls == ["random", "weight-diff", "interpolation"] and recipe.evaluate.tasks
    assert path.read_text(encoding="utf-8").startswith("# ") and recipe.output == path.stem
