"""Recipes as a user writes them: the result, what is kept, and what is said about mistakes."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from command_line import act_profile
from safetensors.torch import load_file

import act
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS
from act.loading import load_model, load_tokenizer
from act.recipe import Run, read_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe")
    for name, language, skills in (("german", "German", OLD_SKILLS), ("english", "English", OLD_SKILLS + NEW_SKILLS)):
        with (path / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for record in examples(language, skills, 32):
                file.write(json.dumps({"prompt": record["prompt"], "completion": " " + record["completion"]}) + "\n")
    return path


def recipe(folder, **changed) -> dict:
    german, english = str(folder / "german.jsonl"), str(folder / "english.jsonl")
    return {
        "merge_method": "act",
        "base_model": str(CHECKPOINTS / "target"),
        "models": [
            {
                "model": str(CHECKPOINTS / "base"),
                "corpus": german,
                "keep": english,
                "parameters": {"weight": 1.0, "top_p": "5%"},
            }
        ],
        "count": "predict",
        "tune": {"corpus": german, "replay": english, "steps": 2, "learning_rate": 0.001},
        "evaluate": {"corpora": {"forgotten": german}, "controls": ["random"]},
        "output": str(folder / "mended"),
        **changed,
    }


def written(folder, data: dict, name: str = "recipe.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@pytest.mark.slow
def test_a_recipe_gives_what_the_commands_give_and_is_done_once(folder, tmp_path):
    path = written(folder, recipe(folder))
    plan = json.loads(act_profile("recipe", path, "--dry-run", "--json").stdout)
    assert not plan["done"] and not any(stage["kept"] for stage in plan["plan"]) and not (folder / "mended").exists()
    first = act_profile("recipe", path, "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    figures = {row["model"]: row["match"] for row in report["results"]}
    assert set(figures) == {"target", "act", "donor 1", "tune without transfer", "random"}
    assert figures["act"] > figures["random"] + 0.1 and report["donors"][0]["channels"] == 229
    again = act_profile("recipe", path, "--json")
    assert json.loads(again.stdout) == report and "up to date" in again.stderr and "profiling" not in again.stderr
    resolved = yaml.safe_load((folder / "mended" / "recipe.yaml").read_text())
    assert resolved["score"] == "paired" and resolved["tune"]["batch_size"] == 8

    models = ["--donor", CHECKPOINTS / "base", "--target", CHECKPOINTS / "target"]
    for name in ("german", "english"):
        corpus = ["--corpus", folder / f"{name}.jsonl", "--count", "predict"]
        assert not act_profile("pair", *models, *corpus, "--output", tmp_path / name).returncode
    ranked = ["--keep", tmp_path / "english", "--top", "5%", "--output", tmp_path / "set"]
    assert not act_profile("rank", tmp_path / "german", *ranked).returncode
    moved = ["--channels", tmp_path / "set", "--strength", "1.0", "--output", tmp_path / "moved"]
    assert not act_profile("transfer", *models, *moved).returncode
    tuning = ["--replay", folder / "english.jsonl", "--steps", "2", "--learning-rate", "0.001"]
    corpus = ["--corpus", folder / "german.jsonl", "--output", tmp_path / "tuned"]
    assert not act_profile("tune", "--model", tmp_path / "moved", *corpus, *tuning).returncode
    one, other = (load_file(path / "model.safetensors") for path in (folder / "mended", tmp_path / "tuned"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_broke_off_loses_one_stage(folder, monkeypatch):
    data = recipe(
        folder, output=str(folder / "broken"), tune=None, evaluate={"corpora": {"g": str(folder / "german.jsonl")}}
    )
    module = sys.modules["act.recipe"]
    real, said = module.evaluate, []
    monkeypatch.setattr(module, "evaluate", lambda *given, **named: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Run(read_recipe(written(folder, data)), said.append).execute()
    assert not (folder / "broken").exists() and any("profiling" in step for step in said)
    monkeypatch.setattr(module, "evaluate", real)
    said.clear()
    Run(read_recipe(written(folder, data)), said.append).execute()
    assert (folder / "broken").exists() and {step.split(":")[0] for step in said} == {"evaluating"}

    changed = recipe(folder, output=str(folder / "broken"), tune=None, evaluate=None, score="mean-abs")
    with pytest.raises(act.ActError, match="exists already"):
        Run(read_recipe(written(folder, changed))).execute()
    said.clear()
    Run(read_recipe(written(folder, changed)), said.append).execute(force=True)
    assert not any("profiling" in step for step in said) and any("ranking" in step for step in said)


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("count: predict", "coumt: predict", r"line 10: no key 'coumt' here; did you mean 'count'\?"),
        ("    weight: 1.0", "    wieght: 1.0", r"line 8: no key 'wieght' here; did you mean 'weight'\?"),
        ("    weight: 1.0", "    weight: -1", "line 8: strength is -1"),
        ("top_p: 5%", "top_p: 700%", "line 9: top is 700%"),
        ("  steps: 2", "  steps: many", "line 14: tune.steps is 'many'"),
        ("  steps: 2", "  steps: 0", "line 11: steps is 0"),
        ("merge_method: act", "merge_method: ties", "line 1: merge_method is 'ties'"),
        ("count: predict", "output", "is not YAML"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, find, replace, message):
    path = written(folder, recipe(folder), "wrong.yaml")
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, replace, 1))
    with pytest.raises(act.ActError, match=message):
        read_recipe(path)


def test_missing_keys_and_inputs(folder):
    data = recipe(folder)
    del data["base_model"]
    with pytest.raises(act.ActError, match="the key 'base_model' is missing"):
        read_recipe(written(folder, data))
    with pytest.raises(act.ActError, match="no such recipe"):
        read_recipe(folder / "none.yaml")
    for changed, message in (
        ({"base_model": str(folder / "none")}, "no such model"),
        ({"output": str(folder / "a" / "b")}, "folder does not exist"),
        ({"evaluate": {"corpora": {"x": "none.jsonl"}}}, "no such corpus: none.jsonl"),
    ):
        result = act_profile("recipe", written(folder, recipe(folder, **changed)), "--dry-run")
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_several_donors_of_whole_units_with_strengths_by_pattern(folder, tmp_path):
    german, english = (str(folder / f"{name}.jsonl") for name in ("german", "english"))
    base, target = str(CHECKPOINTS / "base"), str(CHECKPOINTS / "target")
    donors = [
        {"model": base, "corpus": german, "keep": [english], "parameters": {"weight": {"*.mlp.*": 0.5, "*": 1.0}}},
        {"model": base, "corpus": english, "parameters": {"weight": 0.25, "top_p": 0.1}},
    ]
    options = {"granularity": ["neuron", "head"], "overlap": "mean", "output": str(tmp_path / "merged")}
    path = written(tmp_path, recipe(folder, models=donors, tune=None, evaluate=None, **options))
    Run(read_recipe(path)).execute()

    models = [load_model(name) for name in (base, target)]
    tokenizer = load_tokenizer(target)
    pairs = [
        act.profile_pair(*models, act.Corpus.from_file(corpus, tokenizer, count="predict"))
        for corpus in (german, english)
    ]
    sets = [
        act.rank(pairs[0], top=0.05, keep=[pairs[1]], granularity=["neuron", "head"]),
        act.rank(pairs[1], top=0.1, granularity=["neuron", "head"]),
    ]
    assert all(one.inputs for one in sets)
    strengths = [{"*.mlp.*": 0.5, "*": 1.0}, 0.25]
    grafts = [act.Graft(models[0], one, strength) for one, strength in zip(sets, strengths, strict=True)]
    act.transfer_many(grafts, models[1], "mean")
    merged = load_model(str(tmp_path / "merged"))
    for name, parameter in models[1].named_parameters():
        assert torch.equal(merged.get_parameter(name), parameter.to(torch.float16).to(parameter.dtype)), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"overlap": "most"}, "line 22: overlap"),
        ({"granularity": ["neurons"]}, "line 23: granularity"),
        ({"scop": "kind"}, "line 22: .*scope"),
    ],
)
def test_unknown_choices_are_named_with_their_line(folder, tmp_path, changed, message):
    path = written(tmp_path, recipe(folder, **changed))
    with pytest.raises(act.ActError, match=message):
        read_recipe(path)
