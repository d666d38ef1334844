"""``recipe --check``: what it finds without weights, and what it says of a hub that cannot be reached."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import pytest
import yaml
from command_line import act_profile, succeed
from datasets.arrow_writer import ArrowWriter
from safetensors.torch import load_file
from support import tiny_model

import act
from act.cli.recipe import _print_sweep, command
from act.core.errors import Unreachable
from act.data.records import open_source
from act.recipes.recipe import Run, check, read_recipe
from act.recipes.reference import reference
from act.recipes.words import in_words_of_the_file

READY = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def folder(tmp_path, tokenizer):
    for name in ("donor", "target"):
        tiny_model("llama", len(name)).config.save_pretrained(tmp_path / name)  # no weights
        tokenizer.save_pretrained(tmp_path / name)
    for name in ("german", "english"):
        rows = [{"frage": f"{name} {n}?", "antwort": f"{n}"} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


COLUMNS = {"prompt": "{frage}", "completion": " {antwort}"}


def written(folder, **changed) -> Path:
    data = {
        "target": "target",
        "donor": [{"model": "donor", "corpus": "german", "keep": "english"}],
        "output": "out",
        "corpora": {name: {"place": f"{name}.jsonl", "columns": COLUMNS} for name in ("german", "english")},
        "tune": {"corpus": "german", "mode": "rows", "steps": 3},
        "evaluate": {"corpus": {"g": "german"}, "controls": ["random"]},
        **changed,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def checked(path, *more, seconds=0.0):
    return act_profile("recipe", path, "--check", "--seconds", seconds, *more, cwd=path.parent)


def test_it_says_what_a_run_takes_without_weights(folder):
    result = checked(written(folder), "--json")
    assert result.returncode == 0, result.stderr
    needs = json.loads(result.stdout)
    stages = {one["stage"]: one for one in needs["stages"]}
    assert list(stages) == ["profile", "rank", "transfer", "tune", "evaluate", "output"]
    assert [one["what"] for one in needs["stages"] if one["stage"] == "profile"] == [
        "donor on german",
        "donor on english",
    ]
    (german, _) = needs["corpora"]
    assert german["columns"] == ["frage", "antwort"] and german["records"] == 40
    assert stages["profile"]["tokens"] == 2 * needs["corpora"][1]["tokens"]
    size = 4 * needs["models"][0]["parameters"]
    patch = 2 * 0.05 * size  # a row as it was and as it is
    assert stages["output"]["disk"] == size and stages["transfer"]["disk"] == pytest.approx(2 * patch, abs=1)
    assert stages["tune"]["disk"] == pytest.approx(3 * patch, abs=1)
    assert needs["unchecked"] == [] and needs["download"] == 0 and needs["seconds"] > 0
    twice = json.loads(checked(written(folder), "--json", "--gpu-tflops", "800").stdout)
    assert twice["gpu_flops"] == 2 * needs["gpu_flops"] and twice["seconds"] < needs["seconds"]
    shown = checked(written(folder))
    assert "nothing is wrong" in shown.stdout and "frage, antwort" in shown.stdout
    assert not list(folder.glob("*out*"))


def test_a_corpus_may_lie_on_another_system(folder):
    place = "memory://texts/german.jsonl"
    fsspec.filesystem("memory").pipe_file("/texts/german.jsonl", (folder / "german.jsonl").read_bytes())
    corpora = {
        "german": {"place": place, "columns": COLUMNS},
        "english": {"place": "english.jsonl", "columns": COLUMNS},
    }
    recipe = read_recipe(written(folder, corpora=corpora))
    assert recipe.resolved()["corpora"]["german"]["place"] == place
    (german, english) = check(recipe)["corpora"]
    assert german["records"] == english["records"] == 40 and german["columns"] == ["frage", "antwort"]


def test_the_time_on_this_machine_is_measured(folder):
    needs = json.loads(checked(written(folder), "--json", seconds=0.02).stdout)
    assert needs["here"]["device"] in ("cpu", "cuda:0") and needs["here"]["tokens_per_second"] > 0
    assert needs["seconds_here"] == pytest.approx(sum(one["seconds_here"] for one in needs["stages"]), rel=1e-3)
    assert needs["seconds_here"] > needs["seconds"] > 0
    shown = checked(written(folder), seconds=0.02).stdout
    assert "tokens/s of a profiled forward, with random weights" in shown and "here" in shown
    unmeasured = checked(written(folder), "--json")
    assert json.loads(unmeasured.stdout)["here"] is None
    elsewhere = json.loads(checked(written(folder, device="cuda:7"), "--json", seconds=0.02).stdout)
    assert elsewhere["here"] is None and "was not measured" in elsewhere["unchecked"][-1]


def test_numbers_of_tokens_are_scaled_up(folder):
    rows = [{"frage": f"{n:03}?", "antwort": "4"} for n in range(1000)]
    (folder / "german.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = json.loads(checked(written(folder), "--json").stdout)["corpora"][0]
    assert found["records"] == 1000 and found["counted"] in (2000, 3000)  # the answer and its end


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"corpora": {"german": {"place": "german.jsonl", "columns": {"prompt": "{passage}"}}}},
            "there is frage, antwort",
        ),
        ({"target": "nothing"}, "no such model: nothing"),
        (
            {"donor": [{"model": "donor", "corpus": "german.jsonl"}], "corpora": {}},
            "got the keys ['antwort', 'frage']",
        ),
        ({"donor": [{"model": "donor", "corpus": "missing.jsonl"}], "corpora": {}}, "no such corpus: missing.jsonl"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, changed, message):
    given = {**changed, "tune": None, "evaluate": None}
    if changed.get("corpora"):
        given["donor"] = [{"model": "donor", "corpus": "german"}]
    result = checked(written(folder, **given))
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_models_that_do_not_fit_and_equal_texts_are_found(folder, tokenizer):
    tiny_model("qwen2").config.save_pretrained(folder / "donor")
    (folder / "english.jsonl").write_text((folder / "german.jsonl").read_text())
    result = checked(written(folder))
    assert result.returncode == 2 and "differ in architecture" in result.stderr
    assert "german and english, the ability to give and one to keep, are the same text" in result.stderr


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A hub that cannot be reached, with an empty cache."""

    def unreachable(*given, **named):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", ["qwen2.5-math-1.5b-german", "merge-three-qwen2.5-1.5b"])
def test_a_hub_that_cannot_be_reached_is_no_mistake(name, tmp_path, monkeypatch, away, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    command(READY / f"{name}.yaml", check=True)
    assert caplog.text.count("the hub cannot be reached") == 1
    assert "nothing is wrong with what could be checked" in capsys.readouterr().out
    needs = check(read_recipe(READY / f"{name}.yaml"))
    assert "Qwen/Qwen2.5-1.5B" in needs["unchecked"][0] and "openai/gsm8k:main:train" in needs["unchecked"][0]
    assert needs["stages"] == [] == needs["models"]


def test_what_is_here_is_checked_while_the_hub_cannot_be_reached(folder, monkeypatch, away):
    monkeypatch.chdir(folder)
    recipe = read_recipe(written(folder, evaluate={"corpus": {"g": "openai/gsm8k:main:test"}}))
    needs = check(recipe)
    assert "openai/gsm8k:main:test" in needs["unchecked"][0] and len(needs["models"]) == 2 == len(needs["corpora"])
    (folder / "german.jsonl").write_text('{"x": 1}')
    with pytest.raises(act.ActError, match=r"there is no column 'frage', of which prompt is to be made; there is x$"):
        check(recipe)
    with pytest.raises(
        Unreachable, match=r"cannot read the corpus openai/gsm8k:main:test: .* the hub cannot be reached"
    ):
        open_source("openai/gsm8k:main:test")


def test_options_that_do_not_go_together(folder):
    path = written(folder)
    for more, message in (
        (["--gpu-tflops", "1"], "--gpu-tflops has no effect without --check"),
        (["--seconds", "1"], "--seconds has no effect without --check"),
        (["--check", "--dry-run"], "give one of"),
        (["--until", "stage"], "expected one of profile"),
    ):
        result = act_profile("recipe", path, *more, cwd=folder)
        assert result.returncode == 2 and message in result.stderr, result.stderr


def test_an_interrupted_run_says_that_the_same_command_goes_on(folder, weights, monkeypatch, caplog):
    path = written(folder)

    def interrupted(run, force):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "execute", interrupted)
    for kept in (False, True):
        if kept:
            (folder / "out.stages").mkdir()
        with caplog.at_level("INFO", "act"), pytest.raises(KeyboardInterrupt):
            command(path)
        assert (f"kept in {folder / 'out.stages'}; the same command goes on there" in caplog.text) == kept


def test_a_share_below_what_must_be_left_is_not_rounded_up_to_it(capsys):
    one = {"top": 0.05, "strength": 1.0, "channels": 229, "recovered": 0.461, "kept": 0.9492}
    described = SimpleNamespace(sweep=SimpleNamespace(corpus="german", kept=["english"]))
    _print_sweep({"frontier": [one], "candidates": [one], "chosen": None}, described)
    row = capsys.readouterr().out.splitlines()[-2]
    assert "46.1" in row and "94.9" in row and "95" not in row


def test_the_reference_is_printed_and_is_that_of_the_docs():
    printed = act_profile("recipe", "--schema").stdout
    assert printed == reference()
    assert printed in (READY.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert "properties" in succeed("recipe", "--schema")
    assert not re.search(r"\| None \|", printed)


def test_stages_of_another_machine(tmp_path, tokenizer):
    """Profiled where the text is, transferred where only recipe, models and the files of the stages are."""
    here, there = tmp_path / "gpu", tmp_path / "cpu"
    for place in (here, there):
        place.mkdir()
        for name in ("donor", "target"):
            tiny_model("llama", len(name)).save_pretrained(place / name)
            tokenizer.save_pretrained(place / name)
    rows = [{"prompt": f"{n}?", "completion": f" {n}"} for n in range(8)]
    (here / "german.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"target": "target", "donor": [{"model": "donor", "corpus": "german.jsonl"}], "output": "out"}
    for place in (here, there):
        (place / "recipe.yaml").write_text(yaml.safe_dump(data))
    plan = json.loads(act_profile("recipe", "recipe.yaml", "--until", "profile", "--json", cwd=here).stdout)
    assert [(row["stage"], row["kept"]) for row in plan["plan"]] == [
        ("profile", True),
        ("rank", False),
        ("transfer", False),
    ]
    assert not (here / "out").exists()
    alone = act_profile("recipe", "recipe.yaml", cwd=there)
    assert alone.returncode == 2 and "no such corpus: german.jsonl" in alone.stderr
    stages = Path(plan["stages"])
    stages.rename(there / stages.name)
    later = act_profile("recipe", "recipe.yaml", cwd=there)
    assert later.returncode == 0 and "profiling" not in later.stderr, later.stderr
    assert "german.jsonl is not here; what was made of it elsewhere is used" in later.stderr
    assert act_profile("recipe", "recipe.yaml", cwd=here).returncode == 0
    one, other = (load_file(place / "out" / "model.safetensors") for place in (here, there))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    (there / "recipe.yaml").write_text(yaml.safe_dump({**data, "count": "predict", "output": "out"}))
    needs = act_profile("recipe", "recipe.yaml", "--force", cwd=there)
    assert needs.returncode == 2 and "no such corpus: german.jsonl" in needs.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": "bla"}, "no device is called 'bla'; expected auto, cpu, cuda"),
        ({"cost": "keep"}, "cost 'keep' has no effect on score paired"),
        ({"normalize": "channel"}, "control random: normalize 'channel' divides by the spread of activations"),
        ({"score": "attribution", "normalize": "channel"}, "normalize 'channel' divides"),
        ({"include": ["nope*"]}, "nope*"),
        ({"granularity": ["expert"]}, "this model has none that are known"),
        ({"donor": [{"model": "./target", "corpus": "german", "keep": "english"}]}, "is the target itself"),
        ({"output": "donor"}, "would overwrite the input"),
        ({"output": "others"}, "holds photo.png, not written by act-profile, so"),
        ({"output": "/proc/nope/x"}, "cannot write /proc/nope/x: no file can be made in /proc"),
    ],
)
def test_what_the_run_would_refuse_is_found(folder, changed, message):
    (folder / "others").mkdir()
    (folder / "others" / "photo.png").touch()
    path = written(folder, **changed)
    with pytest.raises(act.ActError) as found:
        check(read_recipe(path))
    assert message in str(found.value), found.value
    if "device" in changed:
        assert f"line {len(path.read_text().splitlines())}: " in str(found.value)


def test_a_device_of_another_machine_is_no_mistake(folder):
    found = check(read_recipe(written(folder, device="cuda:7")))
    assert found["seconds"] > 0 and "cannot use device 'cuda:7'" in found["unchecked"][0]


def test_models_of_two_types_are_found(folder):
    path = folder / "donor" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    with pytest.raises(act.ActError, match=r"donor is torch.bfloat16, the target torch.float32"):
        check(read_recipe(written(folder)))
    assert check(read_recipe(written(folder, dtype="float32")))["unchecked"] == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([0, 39], [0, 40]), r"share rows \[0, 39\] of german.jsonl"),
        ((None, [0, 40]), r"share rows \[0, 40\] of german.jsonl"),
        (([0, 20], None), r"share rows \[0, 20\] of german.jsonl"),
        (([0, 20], [20, 40]), None),
        (([0, 20], [20, 20000]), r"rows \[20, 20000\] of german.jsonl end behind its last: it has about 40"),
    ],
)
def test_ability_and_keep_share_no_row(folder, rows, message):
    columns = {"prompt": "{frage}", "completion": " {antwort}"}
    corpora = {
        name: {"place": "german.jsonl", "columns": columns, **({"rows": one} if one else {})}
        for name, one in zip(("german", "english"), rows, strict=True)
    }
    recipe = read_recipe(written(folder, corpora=corpora, tune=None, evaluate=None))
    if message is None:
        assert check(recipe)["unchecked"] == []
        return
    with pytest.raises(act.ActError, match=message):
        check(recipe)


def test_a_compressed_copy_of_the_ability_is_not_kept(folder):
    packed = (folder / "german.jsonl").read_bytes().replace(b"\n", b"\r\n")
    (folder / "copy.jsonl.gz").write_bytes(gzip.compress(packed))
    data = yaml.safe_load(written(folder).read_text())
    data["corpora"]["english"]["place"] = "copy.jsonl.gz"
    with pytest.raises(
        act.ActError, match="german and english, the ability to give and one to keep, are the same text"
    ):
        check(read_recipe(written(folder, corpora=data["corpora"])))


@pytest.fixture
def weights(folder):
    for name in ("donor", "target"):
        tiny_model("llama", len(name)).save_pretrained(folder / name)


SWEPT = {name: {"place": f"{name}.jsonl", "columns": COLUMNS, "rows": [0, 20]} for name in ("german", "english")}
SWEPT |= {f"{name} other": {**one, "rows": [20, 40]} for name, one in SWEPT.items()}
SWEEP = {"corpus": "german other", "keep": "english other", "metric": "nll"}


@pytest.mark.parametrize(
    ("corpora", "sweep", "message"),
    [
        ({}, {}, None),
        ({}, {"corpus": "german"}, r"sweep chooses on german, and all its records .* ranked on \(german, english\)"),
        ({"copy": {"place": "copy.jsonl.gz", "columns": COLUMNS}}, {"keep": "copy"}, "sweep chooses on copy, and all"),
        ({"german other": {**SWEPT["german"], "rows": [5, 15]}}, {}, "sweep chooses on german other, and all"),
        ({"german other": {**SWEPT["german"], "rows": [15, 25]}}, {}, "has 10 records, without those .*, 5, but it"),
        ({"german other": {**SWEPT["german"], "rows": [20, 29]}}, {}, "which has 9 records, but it takes 10"),
        ({}, {"metric": "choice"}, "german other, record 0: expected options in the prompt"),
    ],
)
def test_what_cannot_be_chosen_on_is_found_before_anything_is_profiled(folder, weights, corpora, sweep, message):
    rows = (folder / "english.jsonl").read_text().splitlines()[:20]
    (folder / "copy.jsonl.gz").write_bytes(gzip.compress("\r\n".join(reversed(rows)).encode()))
    given = {"corpora": SWEPT | corpora, "sweep": SWEEP | sweep, "tune": None, "evaluate": None}
    recipe = read_recipe(written(folder, **given))
    for look in (check, Run):
        if message is None:
            look(recipe)
            continue
        with pytest.raises(act.ActError, match=message) as found:
            look(recipe)
        assert "leave the profile out" not in str(found.value)
    assert not list(folder.glob("*out*"))


def test_texts_to_evaluate_on_that_were_used_before_are_warned_of(folder, weights, capsys, caplog):
    one = {"corpora": SWEPT, "sweep": SWEEP, "tune": {"corpus": "german", "steps": 3}}
    clean = written(folder, **one, evaluate=None)
    assert check(read_recipe(clean))["warnings"] == Run(read_recipe(clean)).warnings == []
    more = {"german part": {**SWEPT["german"], "rows": [10, 30]}}
    path = written(
        folder, **one | {"corpora": SWEPT | more}, evaluate={"corpus": {"g": "german other", "part": "german part"}}
    )
    said = check(read_recipe(path))["warnings"]
    assert said == Run(read_recipe(path)).warnings and len(said) == 2
    assert said[0].startswith(
        "the records of g, which is evaluated on, are those that share and strength are chosen on"
    )
    assert "part, which is evaluated on, are some of those that the channels are ranked on and some of" in said[1]
    command(path, check=True, seconds=0)
    assert said[0] in caplog.text and "the card will say" in capsys.readouterr().out


def test_an_automatic_budget_is_that_of_the_device(folder):
    recipe = read_recipe(written(folder, token_budget="auto"))
    needs = check(recipe)
    assert needs["stages"] == check(read_recipe(written(folder)))["stages"]
    assert needs["unchecked"] == [
        "token_budget auto follows the free memory of the GPU; costs are those of 2,048 tokens"
    ]
    assert recipe.resolved()["token_budget"] == "auto" and recipe.stated_budget is None
    with pytest.raises(
        act.ActError, match="token_budget is 'automatic'; expected a whole number from 1 or one of auto"
    ):
        read_recipe(written(folder, token_budget="automatic"))


def test_columns_of_another_language_are_another_text(folder):
    corpora = {
        name: {"place": "german.jsonl", "columns": {"prompt": "{frage}", "completion": template}}
        for name, template in {"german": " {antwort}", "english": " {antwort} {frage}"}.items()
    }
    assert check(read_recipe(written(folder, corpora=corpora)))["unchecked"] == []


def test_the_costs_are_those_of_what_the_score_needs(folder):
    found = {}
    for score in ("paired", "match", "attribution"):
        needs = check(read_recipe(written(folder, score=score, evaluate={"corpus": {"g": "german"}})), gpu_flops=1e6)
        found[score] = next(one for one in needs["stages"] if one["stage"] == "profile")
    plain, swapped, attributed = found.values()
    assert 1.2 * plain["seconds"] < swapped["seconds"] < 1.6 * plain["seconds"]  # a third forward, without attention
    assert swapped["disk"] > 1.5 * plain["disk"] and swapped["memory"] > plain["memory"]
    assert attributed["seconds"] == pytest.approx(2 * plain["seconds"], rel=0.1)  # four forwards of one model
    assert attributed["disk"] < plain["disk"] and attributed["memory"] != plain["memory"]


def test_tasks_are_said_not_to_be_counted_or_known(folder, monkeypatch):
    recipe = read_recipe(written(folder, evaluate={"task": "gsm9k"}))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    said = " ".join(check(recipe)["unchecked"])
    assert "the documents of task gsm9k of lm-evaluation-harness are not known here" in said
    assert "the tasks were not checked" in said
    manager = SimpleNamespace(all_tasks=["gsm8k"])
    tasks = SimpleNamespace(TaskManager=lambda include_path: manager)
    monkeypatch.setattr("act.evaluation.harness.optional", lambda *given: tasks)
    with pytest.raises(act.ActError, match="no task called 'gsm9k' in lm-evaluation-harness; did you mean gsm8k"):
        check(recipe)
    monkeypatch.undo()
    if find_spec("lm_eval"):
        with pytest.raises(act.ActError, match="no task called 'gsm9k'"):
            check(recipe)


def test_errors_name_keys_and_not_options(folder):
    with pytest.raises(act.ActError) as found:
        check(read_recipe(written(folder, max_length=3)))
    assert "(max_length)" in str(found.value) and "--" not in str(found.value)
    with pytest.raises(act.ActError, match=r"^pass --force, or choose another dtype$"), in_words_of_the_file():
        raise act.ActError("pass --force, or choose another --dtype")


def test_a_cached_data_set_is_read_while_the_hub_cannot_be_reached(folder, monkeypatch, away):
    kept = folder / "datasets" / "openai___gsm8k" / "main" / "0.0.0" / ("a" * 40)
    rows = datasets.Dataset.from_list([{"frage": f"{n}?", "antwort": f"{n}"} for n in range(5)])
    kept.mkdir(parents=True)
    with ArrowWriter(path=str(kept / "gsm8k-train.arrow"), features=rows.features) as writer:
        for row in rows:
            writer.write(row)
        count, size = writer.finalize()
    split = {"name": "train", "num_bytes": size, "num_examples": count, "dataset_name": "gsm8k"}
    named = {"dataset_name": "gsm8k", "config_name": "main", "version": "0.0.0"}
    info = datasets.DatasetInfo(features=rows.features, splits={"train": split}, **named)
    info.write_to_directory(str(kept))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "datasets"))
    columns = {"prompt": "{frage}", "completion": " {antwort}"}
    given = {"german": {"place": "openai/gsm8k:main:train", "columns": columns}}
    given["english"] = {"place": "english.jsonl", "columns": columns}
    needs = check(read_recipe(written(folder, corpora=given)))
    assert needs["unchecked"] == [] and needs["corpora"][0]["records"] == 5
    found = open_source("openai/gsm8k:main:train")  # the same corpus as while the hub was there
    revision = hashlib.sha256(f"openai/gsm8k:main:train@{'a' * 40}".encode()).hexdigest()[:16]
    assert found.fingerprint == revision and next(found.read()).record == {"frage": "0?", "antwort": "0"}
    with pytest.raises(Unreachable, match="the cache of datasets does not have it"):
        open_source("openai/gsm8k:main:test")
