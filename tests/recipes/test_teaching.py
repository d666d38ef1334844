"""What a recipe teaches its author: examples that run, names, paths beside the file, what is redone, and what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_line import act_profile, succeed
from safetensors.torch import load_file
from support import tiny_model

import act
from act.models.loading import load_model, load_tokenizer
from act.recipes.example import EXAMPLES, SCHEMA, example
from act.recipes.finished import page_of_output
from act.recipes.kept import Kept
from act.recipes.recipe import Run, check, read_recipe, room_for
from act.recipes.reference import schema
from act.recipes.variants import compared, result

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Two models, two texts, and no recipe."""
    for name in ("donor", "target"):
        tiny_model("llama", len(name)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for name in ("german", "english"):
        rows = [{"prompt": f"{name} {n}?", "completion": f" {n}"} for n in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def data(**changed) -> dict:
    return {
        "target": "target",
        "donor": [{"model": "donor", "corpus": "german.jsonl", "keep": "english.jsonl", "strength": 0.5}],
        "output": "out",
        "tune": {"corpus": "german.jsonl", "mode": "rows", "steps": 1, "batch_size": 2, "learning_rate": 0.01},
        "evaluate": {
            "corpus": {"g": "german.jsonl"},
            "metric": "nll",
            "controls": ["random", "weight-diff", "interpolation"],
        },
        **changed,
    }


def written(folder: Path, given: dict | None = None, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(data() if given is None else given, sort_keys=False))
    return path


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_whole(name, tmp_path):
    """Nothing is to be put in before it runs; every section is there for a reader to learn from."""
    path = tmp_path / "my.yaml"
    path.write_text(example(name), encoding="utf-8")
    recipe = read_recipe(path)
    places = [recipe.records(corpus).place for corpus in recipe.corpora_used()] + recipe.models()
    assert all(Path(place).exists() for place in places) and recipe.evaluate.controls
    first = path.read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA}" and json.loads(SCHEMA.read_text()) == schema()
    assert (len(recipe.donor) > 1, recipe.sweep is not None) == (name == "merge", name != "merge")
    assert (recipe.score, recipe.dtype) == ("attribution", "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    printed = act_profile("recipe", name, "--example").stdout
    assert printed == example(name)
    short = (
        printed.replace("[256, 384]", "[256, 264]").replace("[0, 128]", "[0, 48]").replace("[128, 256]", "[128, 216]")
    )
    short = short.replace("least_kept: 0.95", "least_kept: 0.4").replace("10%]", "10%]\n  least_kept: 0.4")
    (tmp_path / "my.yaml").write_text(short)
    ran = act_profile("recipe", "my.yaml", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "p vs" in ran.stdout and f"{tmp_path}/" in ran.stdout and ".stages" in ran.stdout
    recipe = read_recipe(tmp_path / "my.yaml")
    card = (recipe.folder / "README.md").read_text()
    assert f"| **act{' + tune' if recipe.tune else ''}** (this model) |" in card
    assert ("- fine-tune" in card) == bool(recipe.tune)
    assert f"## How the channels were found\n\n{'Those of' if name == 'merge' else 'On german.jsonl'}" in card
    if name == "merge":
        assert "act: with the channels of the donors;" in ran.stdout
        assert "channels of base for german at" in ran.stdout and "channels of base for finnish at" in ran.stdout
    if name == "sweep":
        report = json.loads((tmp_path / "mended" / "report.json").read_text())
        controls = {name: len(rows) for name, rows in report["sweep"]["controls"].items()}
        assert controls == {"random": 16, "weight-diff": 16, "interpolation": 4}
        assert len(report["sweep"]["candidates"]) == 16
        assert "most recovered at 40 % kept" in (tmp_path / "mended" / "README.md").read_text()


def test_the_example_is_recover_unless_another_is_named():
    assert act_profile("recipe", "--example").stdout == example("recover")
    assert succeed("recipe", "merge", "--example") == {"example": "merge", "recipe": example("merge")}
    wrong = act_profile("recipe", "blend", "--example")
    assert wrong.returncode == 2 and "expected one of recover, merge, sweep" in wrong.stderr


def test_the_schema_for_editors_is_published():
    assert (
        json.loads((DOCS / "recipe.schema.json").read_text(encoding="utf-8"))
        == schema()
        == succeed("recipe", "--schema")
    )


def test_old_names_mean_what_they_meant(folder):
    old = {
        "merge_method": "act",
        "base_model": "target",
        "models": [
            {
                "model": "donor",
                "corpus": "german.jsonl",
                "keep": "english.jsonl",
                "parameters": {"weight": 0.5, "top_p": "5%"},
            }
        ],
        "output": "out",
        "evaluate": {"corpora": {"g": "german.jsonl"}, "tasks": ["gsm8k"]},
    }
    new = data(tune=None, evaluate={"corpus": {"g": "german.jsonl"}, "task": ["gsm8k"]})
    new["donor"][0]["top"] = "5%"
    assert read_recipe(written(folder, old)).model_dump() == read_recipe(written(folder, new)).model_dump()
    old["models"][0]["parameters"]["strength"] = 1.0
    with pytest.raises(act.ActError, match="line 10: 'weight' and 'strength' are two names of one key"):
        read_recipe(written(folder, old))
    old["models"][0]["parameters"] = {"wieght": 0.5}
    with pytest.raises(act.ActError, match="line 8: no key 'wieght' here; did you mean 'weight'"):
        read_recipe(written(folder, old))


def test_the_schema_for_editors_knows_every_name_that_a_recipe_may_have():
    found = schema()
    for given in (found, *found["$defs"].values()):
        old = {name for name, one in given["properties"].items() if one.get("deprecated")}
        assert not old & {*given.get("required", ())}
    assert found["properties"]["base_model"]["description"] == "Now called `target`."
    assert {"anyOf": [{"required": ["target"]}, {"required": ["base_model"]}]} in found["allOf"]
    donor = found["$defs"]["Donor"]
    assert donor["properties"]["parameters"]["deprecated"] and donor["required"] == ["model", "corpus"]
    (names,) = found["properties"]["corpora"]["patternProperties"].values()
    assert [one.get("type") for one in names["anyOf"]] == [None, "string"]


def test_a_corpus_may_be_a_path_alone(folder):
    given = data(corpora={"g": "german.jsonl", "e": {"place": "english.jsonl"}})
    given["donor"][0] |= {"corpus": "g", "keep": "e"}
    recipe = read_recipe(written(folder, given))
    assert recipe.records("g").place == "german.jsonl" and recipe.at(recipe.records("e").place).endswith(
        "english.jsonl"
    )
    for wrong, message in ((7, "corpora.g is 7; expected a section with place"), ("", "corpora.g is empty")):
        given["corpora"]["g"] = wrong
        with pytest.raises(act.ActError, match=message):
            read_recipe(written(folder, given))


def test_one_text_needs_no_list_and_no_name(folder):
    given = data(evaluate={"corpus": "german.jsonl", "task": "gsm8k"})
    given["donor"][0] |= {"strength": 0.2, "strength_of": {"*.mlp.*": 0.7}}
    recipe = read_recipe(written(folder, given))
    assert recipe.evaluate.corpora == {"german.jsonl": "german.jsonl"} and recipe.evaluate.tasks == ["gsm8k"]
    assert recipe.donor[0].strengths == {"*.mlp.*": 0.7, "*": 0.2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"target": "tarrget"},
            "my.yaml, line 1: no such model: tarrget; .*; looked at /.*/tarrget; did you mean target?",
        ),
        (
            {"tune": {"corpus": "germn.jsonl"}},
            "my.yaml, line 9: no such corpus: germn.jsonl; .*; looked at /.*/germn.jsonl; did you mean german.jsonl?",
        ),
        (
            {"tune": {"corpus": "here.jsonl"}},
            "line 9: no such corpus: here.jsonl; .*paths start at the folder of the recipe",
        ),
        ({"target": "./targt"}, "line 1: no such model: ./targt; .*; looked at /.*/targt; did you mean target?"),
        (
            {"tune": {"corpus": "texts/german.jsonl"}},
            "line 9: no such corpus: texts/german.jsonl; .*; looked at /.*/texts/german.jsonl$",
        ),
        (
            {"corpora": {"french": {"place": "german.jsonl"}}, "tune": {"corpus": "frnech"}},
            "no such corpus: frnech; .*did you mean french?",
        ),
        ({"donor": [{"model": "donor", "corpus": "german.jsonl"} for _ in "ab"]}, "line 5: donor 2 is donor 1 again"),
    ],
)
def test_an_input_that_is_missing_is_named_as_the_file_names_it(
    folder, tmp_path_factory, monkeypatch, changed, message
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "here.jsonl").write_text('{"text": "x"}')
    monkeypatch.chdir(elsewhere)
    path = written(folder, data(**changed))
    with pytest.raises(act.ActError, match=message):
        Run(read_recipe(path))


def test_a_file_that_is_missing_twice_is_one_mistake_with_both_lines(folder):
    parts = {name: {"place": "gone.jsonl", "rows": rows} for name, rows in (("a", [0, 4]), ("b", [4, 8]))}
    path = written(folder, data(corpora=parts, tune={"corpus": "a"}, evaluate={"corpus": "b"}))
    numbers = [number for number, line in enumerate(path.read_text().splitlines(), 1) if "gone" in line]
    with pytest.raises(act.ActError) as found:
        check(read_recipe(path))
    assert str(found.value).count("gone.jsonl; there is no such") == 1
    assert f"lines {numbers[0]} and {numbers[1]}: no such corpus: gone.jsonl" in str(found.value)


def test_a_folder_given_as_a_recipe_is_called_one(folder):
    written(folder)
    with pytest.raises(act.ActError, match=r"is a folder; expected a YAML file, such as .*my.yaml$"):
        read_recipe(folder)


def test_a_recipe_names_its_own_key_for_float32(folder, monkeypatch, caplog):
    monkeypatch.setattr("act.profiling.dtype_speed._times", lambda *_: 3.0)
    monkeypatch.setattr("act.profiling.dtype_speed._told", set())
    run = Run(read_recipe(written(folder, data(dtype="bfloat16"))))
    with caplog.at_level("WARNING"):
        run.stages._load("donor", dtype="bfloat16")
    assert "load the model in float32 (dtype: float32)" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output": "/proc/nope/x"}, "cannot write /proc/nope/x: no file can be made in /proc"),
        ({"corpora": {"g": {"place": "german.jsonl", "rows": [4, 80]}}}, "rows [4, 80] of german.jsonl end behind"),
        ({"corpora": {"g": {"place": "german.jsonl", "columns": {"prompt": "{frage}"}}}}, "there is no column 'frage'"),
    ],
)
def test_what_cannot_be_run_is_not_planned(folder, changed, message):
    path = written(folder, data(evaluate={"corpus": "g" if "corpora" in changed else "german.jsonl"}, **changed))
    with pytest.raises(act.ActError) as found:
        Run(read_recipe(path))
    assert message in str(found.value) and not list(folder.glob("*out*"))


def test_a_sweep_tries_the_controls_at_its_settings_each_on_its_own(folder):
    for name in ("german", "english"):
        rows = [{"prompt": f"{name} {n}?", "completion": f" {n}"} for n in range(8, 20)]
        (folder / f"more {name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def planned(**changed) -> list[Path]:
        swept = {"corpus": "more german.jsonl", "keep": "more english.jsonl", "top": [0.1, 0.2], "strength": [1.0]}
        given = data(sweep={**swept, **changed}, tune=None)
        del given["donor"][0]["strength"]
        run = Run(read_recipe(written(folder, given)))
        stages = [stage["what"] for stage in run.plan() if stage["stage"] == "sweep"]
        assert stages[1:] == [
            f"{control} at these, on more german.jsonl" for control in ("random", "weight-diff", "interpolation")
        ]
        again = read_recipe(written(folder, run.recipe.resolved(), "again.yaml"))
        assert again.resolved() == run.recipe.resolved()
        return [run.cache.swept_control(control) for control in run.recipe.evaluate.controls]

    first = planned()
    assert len(set(first)) == 3
    assert planned(least_kept=0.5) == first and not set(planned(strength=[0.5])) & set(first)


def test_a_corpus_that_no_section_reads_is_warned_of(folder):
    path = written(folder, data(corpora={"english": "english.jsonl"}))
    ran = act_profile("recipe", path, "--dry-run")
    assert ran.returncode == 0 and "my.yaml: no section reads the corpus english" in ran.stderr


def test_paths_start_at_the_file_and_what_was_kept_runs_again(folder, tmp_path_factory):
    """From anywhere; the recipe kept with the output is that run, and with one number changed another one."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = written(folder)
    first = act_profile("recipe", path, "--json", cwd=elsewhere)
    assert first.returncode == 0, first.stderr
    kept = folder / "out" / "recipe.yaml"
    for more in ([], ["--force"]):
        again = act_profile("recipe", kept, *more, "--json", cwd=elsewhere)
        assert again.returncode == 0, again.stderr
        assert "evaluating" not in again.stderr and "tuning" not in again.stderr
        found, was = json.loads(again.stdout), json.loads(first.stdout)
        assert found["key"] == was["key"] and found["results"] == was["results"]
    assert "up to date" in act_profile("recipe", "my.yaml", cwd=folder).stderr
    resolved = yaml.safe_load(kept.read_text())
    assert resolved["target"] == str(folder / "target") and resolved["evaluate"]["corpus"] == {
        "g": str(folder / "german.jsonl")
    }
    resolved["output"] = "second"
    resolved["evaluate"]["interpolation"] = 0.9
    (elsewhere / "copy.yaml").write_text(yaml.safe_dump(resolved))
    assert act_profile("recipe", elsewhere / "copy.yaml", "--dry-run").returncode == 0
    shutil.copytree(folder / "out.stages", elsewhere / "second.stages")
    ran = act_profile("recipe", elsewhere / "copy.yaml")
    assert ran.returncode == 0, ran.stderr
    said = [line for line in ran.stderr.splitlines() if line.startswith("…")]
    assert said == [
        "… evaluating: interpolation",
        "… tuning: interpolation + tune",
        "… evaluating: interpolation + tune",
    ]


REDONE = {
    "interpolation": (("evaluate", "interpolation", 0.7), {"interpolation", "interpolation + tune"}),
    "seed": (("seed", 7), {"random", "random + tune"}),
    "strength": (
        ("donor", 0, "strength", 0.9),
        {"act", "act + tune", "random", "random + tune", "weight-diff", "weight-diff + tune"},
    ),
    "learning rate": (
        ("tune", "learning_rate", 0.02),
        {"act + tune", "tune only", "random + tune", "weight-diff + tune", "interpolation + tune"},
    ),
    "keep": (("donor", 0, "keep", None), {"act", "act + tune", "tune only"}),  # tuned are the rows that act moves
    "a control": (("evaluate", "controls", ["random"]), set()),
    "one more text": (("evaluate", "corpus", {"e": "english.jsonl", "g": "german.jsonl"}), set()),
}


@pytest.mark.parametrize("what", REDONE)
def test_a_change_redoes_only_what_it_decides(folder, what):
    (*place, last, value), redone = REDONE[what]
    before = Run(read_recipe(written(folder)))
    given = data()
    section = given
    for step in place:
        section = section[step]
    section[last] = value
    after = Run(read_recipe(written(folder, given)))
    kept = {one.name: before.cache.figures(one, "german.jsonl") for one in compared(before.recipe)}
    now = {one.name: after.cache.figures(one, "german.jsonl") for one in compared(after.recipe)}
    changed = {name for name in now if now[name] != kept[name]}
    assert before.key != after.key
    assert changed - {"interpolation + tune"} == redone - {"interpolation + tune"}
    assert what == "keep" or changed == redone


def test_controls_are_patches_and_a_tune_of_rows_is_one(folder, monkeypatch):
    monkeypatch.setattr("act.recipes.stages.LARGE", 9.0)  # rows of a tiny model's embedding are much of it
    run = Run(read_recipe(written(folder)))
    report = run.execute()
    stages = run.cache.folder
    assert stages == folder / "out.stages" and not list(stages.glob("*/*.safetensors"))
    assert len(list(stages.glob("patch-*.safetensors"))) == 3 and len(list(stages.glob("tuned-*.safetensors"))) == 5
    assert [row["model"] for row in report["results"]] == [one.name for one in compared(run.recipe)]
    (said,) = report["warnings"]  # which stands wherever the figures do
    assert "are those that the channels are ranked on and those that the result is tuned on" in said
    card, page = ((folder / "out" / name).read_text() for name in ("README.md", "index.html"))
    assert said in card.partition("<!-- results -->")[2].partition("<!-- end of results -->")[0] and said in page

    donor, target = (load_model(str(folder / name)) for name in ("donor", "target"))
    channels = act.ChannelSet.load(run.cache.channels(run.recipe.donor[0], "paired"))
    act.transfer(donor, target, channels, 0.5)
    corpus = act.Corpus.from_file(folder / "german.jsonl", load_tokenizer(str(folder / "target")))
    act.tune(target, corpus, run.recipe.tune.settings(), channels=channels)
    made = load_file(folder / "out" / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in target.state_dict().items() if name in made)


def test_what_makes_a_large_control_is_not_kept_and_made_again_for_another_text(folder, monkeypatch):
    monkeypatch.setattr("act.recipes.stages.LARGE", 0.0)
    run = Run(read_recipe(written(folder)))
    first = run.execute()
    left = {path.name for path in run.cache.folder.glob("*-*.safetensors")}
    act_patch, act_tuned = run.cache.patch(result(run.recipe)).name, run.cache.tuned(result(run.recipe)).name
    assert {name for name in left if name.startswith(("patch-", "tuned-"))} == {act_patch, act_tuned}
    assert all(stage["kept"] for stage in run.plan())

    said: list[str] = []
    changed = data(evaluate={**data()["evaluate"], "interpolation": 0.7})
    Run(read_recipe(written(folder, changed)), said.append).execute(force=True)
    assert [step for step in said if "transferring" in step or "tuning" in step] == ["tuning: interpolation + tune"]
    said.clear()
    more = data(evaluate={**data()["evaluate"], "corpus": {"e": "english.jsonl", "g": "german.jsonl"}})
    again = Run(read_recipe(written(folder, more)), said.append).execute(force=True)
    assert "recipe my.yaml --force" in (folder / "out" / "index.html").read_text()
    assert "transferring: random" in said and "tuning: random + tune" in said and "transferring: act" not in said
    assert [row for row in again["results"] if row["corpus"] == "g"] == first["results"]


def test_a_tune_of_adapters_is_kept_as_these_and_not_repeated_for_another_text(folder):
    lora = {"corpus": "german.jsonl", "mode": "lora", "lora_rank": 2, "steps": 1, "batch_size": 2, "learning_rate": 0.1}
    evaluated = {"corpus": {"g": "german.jsonl"}, "metric": "nll", "controls": ["random"]}
    run = Run(read_recipe(written(folder, data(tune=lora, evaluate=evaluated))))
    run.execute()
    kept = list(run.cache.folder.glob("tuned-*"))
    files = [path for path in kept if path.suffix == ".safetensors"]
    assert len(files) == 3 and not any(path.is_dir() for path in kept)
    size = sum(path.stat().st_size for path in run.cache.folder.glob("*.safetensors"))
    assert size / 2 < room_for(run.recipe)["stages"] < 2 * size

    donor, target = (load_model(str(folder / name)) for name in ("donor", "target"))
    act.transfer(donor, target, act.ChannelSet.load(run.cache.channels(run.recipe.donor[0], "paired")), 0.5)
    corpus = act.Corpus.from_file(folder / "german.jsonl", load_tokenizer(str(folder / "target")))
    whole = act.tune(target, corpus, run.recipe.tune.settings()).model.state_dict()
    made = load_file(folder / "out" / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in whole.items() if name in made)

    said: list[str] = []
    more = data(tune=lora, evaluate={**evaluated, "corpus": {"g": "german.jsonl", "e": "english.jsonl"}})
    Run(read_recipe(written(folder, more)), said.append).execute(force=True)
    assert "evaluating: random + tune" in said and not [step for step in said if "tuning" in step]


def test_the_room_is_foretold_and_given_back(folder):
    """In mode full, whose tuned controls are whole models, one at a time."""
    path = written(folder, data(tune={"corpus": "german.jsonl", "steps": 1, "batch_size": 2}))
    plan = succeed("recipe", path, "--dry-run")
    recipe = read_recipe(path)
    assert plan["room"] == {**room_for(recipe), "now": 0} and plan["stages"] == str(folder / "out.stages")
    assert plan["room"]["meanwhile"] == 4 * plan["room"]["output"]  # a control, and a checkpoint with AdamW's moments
    run = Run(recipe)
    run.execute()
    folders = [one.name for one in run.cache.folder.iterdir() if one.is_dir()]
    assert folders == [run.cache.tuned(result(recipe)).name]
    weights = sum(one.stat().st_size for one in run.cache.folder.rglob("*.safetensors"))
    assert weights / 2 < plan["room"]["stages"] < 2 * weights
    assert "now " in act_profile("recipe", path, "--dry-run").stdout

    (run.cache.folder / "notes.txt").write_text("mine")
    refused = act_profile("recipe", path, "--clean")
    assert refused.returncode == 2 and "holds notes.txt, which no recipe made" in refused.stderr
    (run.cache.folder / "notes.txt").unlink()
    (folder / ".out.stages").mkdir()  # of an earlier version
    (folder / ".out.stages" / "model-0123456789abcdef.xxh3").write_text("")
    said: list[str] = []
    Run(recipe, said.append)
    assert "earlier version" in said[0]
    size = run.room()
    assert succeed("recipe", path, "--clean") == {"removed": str(folder / "out.stages"), "bytes": size}
    assert not list(folder.glob("*out.stages")) and (folder / "out" / "model.safetensors").is_file()
    assert "nothing to remove" in act_profile("recipe", path, "--clean").stdout


def test_stages_of_another_version_are_refused_in_a_sentence(folder):
    path = written(folder, data(tune=None, evaluate=None))
    Run(read_recipe(path)).make("rank")
    inputs = folder / "out.stages" / "inputs.json"
    for found in ({"models": {}, "corpora": {}}, {**json.loads(inputs.read_text()), "schema": "act-recipe/99"}):
        inputs.write_text(json.dumps(found))
        Kept().add(inputs)
        refused = act_profile("recipe", path)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert (
            "out.stages holds stages of another version of act-profile" in refused.stderr
            and "--clean" in refused.stderr
        )
    assert act_profile("recipe", path, "--clean").returncode == 0
    assert act_profile("recipe", path).returncode == 0


@pytest.mark.parametrize("score", ["match", "match-contrast", "attribution"])
def test_finders_run_end_to_end(folder, score):
    run = Run(read_recipe(written(folder, data(tune=None, score=score))))
    report = run.execute()
    assert report["moved"]["values"] > 0 and {row["model"] for row in report["results"]} >= {"act", "random"}
    profile = act.load(run.cache.profile(run.recipe.donor[0], "german.jsonl"))
    assert isinstance(profile, act.AttributionProfile) == (score == "attribution")


def test_the_page_of_an_output_is_made_again_from_what_is_kept(folder):
    given = data(evaluate={"corpus": {"g": "german.jsonl"}, "metric": "nll", "controls": ["random"]})
    given.pop("tune")
    recipe = read_recipe(written(folder, given))
    act.recipe.run(recipe)
    written_then = (folder / "out" / "index.html").read_text(encoding="utf-8")
    page = page_of_output(folder / "out", "again")
    assert [one.title for one in page.sections][:3] == ["Before and after", "Where it lies", "Concentration"]
    assert page.report and len(page.moved) == 2
    assert all(f"<h3><bdi>{chart.title}</bdi></h3>" in written_then for chart in page.charts if not chart.of)
    act.recipe.clean(recipe)
    with pytest.raises(act.ActError, match=r"out\.stages holds no result of profiling"):
        page_of_output(folder / "out", "again")
    shown = act_profile("report", "out", cwd=folder)
    assert shown.returncode == 0 and "warning: no map, channels and concentration" in shown.stderr
    assert "no map, channels and concentration" in (folder / "report" / "index.html").read_text(encoding="utf-8")
