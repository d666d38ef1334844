"""Recipes as a user writes them: the result, what is kept, and what is said about mistakes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import act_profile
from safetensors.torch import load_file
from support import tiny_encoder, word_tokenizer

import act
from act.editing.interpolation import interpolate
from act.evaluation import evaluations
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS
from act.models.loading import load_model, load_tokenizer
from act.recipes.recipe import Run, read_recipe
from act.recipes.variants import Variant, compared, result


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
        "target": str(CHECKPOINTS / "target"),
        "donor": [
            {
                "model": str(CHECKPOINTS / "base"),
                "corpus": german,
                "keep": english,
                "strength": 1.0,
                "top": "5%",
            }
        ],
        "count": "predict",
        "tune": {"corpus": german, "replay": english, "steps": 2, "learning_rate": 0.001},
        "evaluate": {"corpus": {"forgotten": german}, "controls": ["random"]},
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
    assert list(figures) == ["target", "act", "act + tune", "random", "tune only", "random + tune", "donor 1"]
    assert figures["act"] > figures["random"] + 0.1 and report["donors"][0]["channels"] == 229
    pairs = [("random", "act"), ("tune only", "act + tune"), ("random + tune", "act + tune")]
    assert [(row["before"], row["after"]) for row in report["comparisons"] if row["before"] != "target"] == pairs
    assert all(0 <= row["match_p"] <= 1 for row in report["comparisons"])
    left = {path.name for path in (folder / "mended.stages").glob("tuned-*") if path.is_dir()}
    assert len(left) == 1  # of the output; tuned controls are measured and removed
    again = act_profile("recipe", path, "--json")
    assert json.loads(again.stdout) == report and "up to date" in again.stderr and "profiling" not in again.stderr
    resolved = yaml.safe_load((folder / "mended" / "recipe.yaml").read_text())
    assert resolved["score"] == "paired" and resolved["tune"]["batch_size"] == 8
    assert "## The tune\n\nFingerprints of what it was trained on: `" in (folder / "mended" / "README.md").read_text()

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


def test_a_recipe_by_attribution_measures_no_pair(folder):
    data = recipe(folder, output=str(folder / "attributed"), tune=None, score="attribution", cost="keep")
    data["evaluate"] = {"corpus": {"g": str(folder / "german.jsonl")}, "controls": ["random", "weight-diff"]}
    said: list[str] = []
    run = Run(read_recipe(written(folder, data, "attributed.yaml")), said.append)
    figures = {row["model"]: row["match"] for row in run.execute()["results"]}
    assert figures["act"] > figures["random"] + 0.1
    assert len([step for step in said if step.startswith("attributing")]) == 2
    assert not any(step.startswith("profiling") for step in said)
    found = act.load(run.cache.profile(run.recipe.donor[0], str(folder / "german.jsonl")))
    assert isinstance(found, act.AttributionProfile)


def test_a_sweep_that_broke_off_evaluates_only_what_is_left(folder, monkeypatch):
    halves = {
        name + end: {"place": str(folder / f"{name}.jsonl"), "rows": rows}
        for name in ("german", "english")
        for end, rows in (("", [0, 16]), (" test", [16, 32]))
    }
    data = recipe(
        folder,
        output=str(folder / "swept"),
        corpora=halves,
        donor=[{"model": str(CHECKPOINTS / "base"), "corpus": "german", "keep": "english"}],
        sweep={
            "corpus": "german test",
            "keep": "english test",
            "top": ["2%", "5%"],
            "strength": [1.0],
            "metric": "nll",
        },
        tune=None,
        evaluate={"corpus": {"german": "german test"}, "metric": "nll", "controls": ["random"]},
    )
    data["sweep"]["least_kept"] = 0.01
    done, real = [], evaluations.evaluate

    def evaluate(*given):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(given)
        return real(*given)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        Run(read_recipe(written(folder, data, "swept.yaml"))).execute()
    kept = next((folder / "swept.stages").glob("sweep-*.evaluations"))
    assert len(list(kept.iterdir())) == 5
    done.clear()
    monkeypatch.setattr(evaluations, "evaluate", lambda *given: (done.append(given), real(*given))[1])
    Run(read_recipe(written(folder, data, "swept.yaml"))).execute()
    assert len(done) == 3 + 4 and not kept.exists()  # what was left of target and two settings, then the control's


def test_a_run_that_broke_off_loses_one_stage(folder, monkeypatch):
    data = recipe(
        folder, output=str(folder / "broken"), tune=None, evaluate={"corpus": {"g": str(folder / "german.jsonl")}}
    )
    module = sys.modules["act.recipes.stages"]
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
    with pytest.raises(act.ActError, match="by this one before it or its inputs changed; pass force=True"):
        Run(read_recipe(written(folder, changed))).execute()
    said.clear()
    Run(read_recipe(written(folder, changed)), said.append).execute(force=True)
    assert not any("profiling" in step for step in said) and any("ranking" in step for step in said)


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("count: predict", "coumt: predict", r"line 8: no key 'coumt' here; did you mean 'count'\?"),
        ("  strength: 1.0", "  strenght: 1.0", r"line 6: no key 'strenght' here; did you mean 'strength'\?"),
        ("  strength: 1.0", "  strength: -1", "line 6: donor 1.strength is -1"),
        ("  strength: 1.0", "  strength: {}", "line 6: strength has patterns of its own, or none"),
        ("top: 5%", "top: 700%", "line 7: donor 1.top is 700%; expected a share of .* such as 5% or 0.05$"),
        ("top: 5%", "top: 5", r"line 7: donor 1.top is 5; .*; did you mean 5%\?$"),
        ("top: 5%", "strength_of: {q: -1}", "line 7: donor 1.strength_of: strength is -1"),
        ("count: predict", "sweep: {corpus: x, keep: y, top: [200%]}", "line 8: sweep.top is 200%"),
        ("count: predict", "corpora: {g: {place: x, rows: [5, 3]}}", r"line 8: corpora.g.rows is \[5, 3\]"),
        ("count: predict", "corpora: {g: {place: x, columns: {ask: y}}}", "line 8: corpora.g.columns: "),
        ("top: 5%", "top: [5%]", r"line 7: donor 1.top is \['5%'\]; expected a number or a text"),
        ("  steps: 2", "  steps: many", "line 12: tune.steps is 'many'; expected a whole number"),
        ("  steps: 2", "  steps: yes", "line 12: tune.steps is yes; expected a whole number"),
        (
            "  steps: 2",
            "  mode: row",
            r"line 12: tune.mode is 'row'; expected one of full, rows, lora; did you mean rows\?",
        ),
        ("  steps: 2", "  steps: 0", "line 12: tune.steps is 0; expected a whole number from 1"),
        (
            "  steps: 2",
            "  mode: row\n  steps: -3\n  batch_size: 0\n  replay_share: 1\n  #",
            "line 12: tune.mode is 'row'.*; line 13: tune.steps is -3.*; line 14: tune.batch_size is 0.*; "
            "line 15: tune.replay_share is 1; expected a number from 0 to below 1",
        ),
        ("learning_rate: 0.001", "learning_rate: .inf", "tune.learning_rate is .inf; expected a number above 0$"),
        ("  replay:", "  replay_share: 0.9\n  #", "line 11: tune.replay_share 0.9 is a share of nothing"),
        ("  steps: 2", "  lora_rank: 4", "line 12: tune.lora_rank has no effect in mode full"),
        ("  steps: 2", "  seed: -1", "line 12: tune.seed is -1; expected a whole number from 0 to 4,294,967,295"),
        ("count: predict", "max_length: 0", "line 8: max_length is 0; expected a whole number from 2"),
        ("count: predict", "token_budget: 0", "line 8: token_budget is 0"),
        ("count: predict", "seed: 5000000000", "line 8: seed is 5000000000"),
        ("count: predict", "score: pared", r"line 8: score is 'pared'; expected one of .*; did you mean paired\?"),
        ("count: predict", "granularity: [channel, neurons]", r"line 8: granularity is .*; did you mean neuron\?"),
        ("count: predict", "exclude: [q, k, q]", "line 8: exclude names q twice"),
        (
            "  controls:",
            "  interpolation: 7\n  controls:",
            "line 17: evaluate.interpolation is 7; expected a number from 0 to 1",
        ),
        ("  controls:", "  max_new_tokens: 0\n  controls:", "line 17: evaluate.max_new_tokens is 0"),
        ("  - random", "  - random\n  - random", "line 17: controls names random twice"),
        ("  - random", "  - radnom", r"line 18: evaluate.controls is .*; did you mean random\?"),
        ("count: predict", "score: random", "line 5: score random does not look at activations, so keep has no effect"),
        ("count: predict", "merge_method: ties", "line 8: merge_method is 'ties'; expected one of act"),
        (
            "count: predict",
            "base_model: x",
            "line 8: 'target' and 'base_model' are two names of one key; keep 'target'",
        ),
        (
            "count: predict",
            "corpora: [german.jsonl]",
            "line 8: corpora is .*; expected names, and below each a section with place",
        ),
        (
            "count: predict",
            "corpora: {german: [german.jsonl]}",
            r"line 8: corpora.german is \['german.jsonl'\]; expected a section with place",
        ),
        (
            "count: predict",
            "corpora: {g: {palce: x}}",
            r"line 8: no key 'palce' here; did you mean 'place'\?.*'place' of corpora.g is missing",
        ),
        (
            "count: predict",
            "sweep: {corpus: x, keep: y}",
            "line 6: strength is what sweep chooses.*line 7: top is what sweep chooses",
        ),
        ("count: predict", "count: predict\ncount: all", r"the key 'count' is given twice \(line 9\)"),
        ("count: predict", "output", "is not YAML: line 8 has no colon after its key$"),
        ("  steps: 2", " steps: 2", "is not YAML: line 12 is indented otherwise than the lines that it belongs to$"),
        (
            "  steps: 2",
            "   steps: 2",
            "is not YAML: line 12 has a colon where no key can be; indent it as its neighbours",
        ),
        ("  steps: 2", "\tsteps: 2", "is not YAML: line 12 has a character that begins no value, such as a tab"),
        ("count: predict", "count: 'predict", "is not YAML: the quote that line 8 opens is not closed$"),
        ("count: predict", "include: [q, k", "is not YAML: the bracket that line 8 opens is not closed in line 9$"),
        ("output: ", 'output: "a\\0b"  #', r"line 19: output is 'a\\x00b'; expected a text without control characters"),
        ("output: ", "output:  #", "line 19: output is empty; expected a text"),
        ("  replay:", '  replay: "\\0"\n  #', "tune.replay is"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, find, replace, message):
    path = written(folder, recipe(folder), "wrong.yaml")
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, replace, 1))
    with pytest.raises(act.ActError, match=message) as error:
        read_recipe(path)
    assert "nput should" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", "# A model\n\nLoad it so: name: here\n", "is not YAML: line 3 .*; expected a YAML file with"),
        ("notes.txt", "# A model\n\nSome words.\n", "is empty or not a mapping; expected a YAML file with"),
        ("list.json", "[1, 2]", "is empty or not a mapping; expected a YAML file with"),
        (
            "config.json",
            '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "hidden_size": 64}',
            r"config.json is no recipe: it has other keys \('architectures', 'model_type', 'dtype', …\)",
        ),
    ],
)
def test_what_is_no_recipe_at_all_is_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(act.ActError, match=message) as error:
        read_recipe(tmp_path / name)
    assert "is missing" not in str(error.value) and "recipe --example" in str(error.value)
    (tmp_path / "my.yaml").write_text("taget: a\ndonr: b\nscroe: paired\n")
    with pytest.raises(act.ActError, match="did you mean 'target'"):
        read_recipe(tmp_path / "my.yaml")


def test_a_text_that_the_tokenizer_cannot_read_is_found_before_anything_is_run(folder, tmp_path):
    talk = [{"role": "user", "content": "2 3 add"}, {"role": "assistant", "content": "5"}]
    talks = tmp_path / "talks.jsonl"
    talks.write_text(json.dumps({"messages": talk}) + "\n")
    data = recipe(folder, evaluate={"corpus": {"forgotten": str(talks)}}, output=str(tmp_path / "none"))
    with pytest.raises(act.ActError, match=r"recipe\.yaml.*talks\.jsonl.*line 1.*chat template"):
        Run(read_recipe(written(tmp_path, data)))


def test_missing_keys_and_inputs(folder):
    data = recipe(folder)
    del data["target"]
    with pytest.raises(act.ActError, match="the key 'target' is missing"):
        read_recipe(written(folder, data))
    with pytest.raises(act.ActError, match="no such recipe"):
        read_recipe(folder / "none.yaml")
    path = written(folder, data)
    with pytest.raises(act.ActError, match=rf"no such recipe: .*did you mean {path}\?"):
        read_recipe(path.with_suffix(".yml"))
    for changed, message in (
        ({"target": str(folder / "none")}, "no such model"),
        ({"evaluate": {"corpus": {"x": "none.jsonl"}}}, "no such corpus: none.jsonl"),
    ):
        result = act_profile("recipe", written(folder, recipe(folder, **changed)), "--dry-run")
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_several_donors_of_whole_units_with_strengths_by_pattern(folder, tmp_path):
    german, english = (str(folder / f"{name}.jsonl") for name in ("german", "english"))
    base, target = str(CHECKPOINTS / "base"), str(CHECKPOINTS / "target")
    donors = [
        {"model": base, "corpus": german, "keep": [english], "strength": {"*.mlp.*": 0.5, "*": 1.0}},
        {"model": base, "corpus": english, "strength": 0.25, "top": 0.1},
    ]
    options = {"granularity": ["neuron", "head"], "overlap": "mean", "output": str(tmp_path / "merged")}
    path = written(tmp_path, recipe(folder, donor=donors, tune=None, evaluate=None, **options))
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
    donors = [act.Donor(models[0], one, strength) for one, strength in zip(sets, strengths, strict=True)]
    act.transfer_many(donors, models[1], "mean")
    merged = load_model(str(tmp_path / "merged"))
    for name, parameter in models[1].named_parameters():
        assert torch.equal(merged.get_parameter(name), parameter.to(torch.float16).to(parameter.dtype)), name


def light(folder, **changed) -> dict:
    """A recipe of one transfer, and nothing after it."""
    german = str(folder / "german.jsonl")
    donors = [{"model": str(CHECKPOINTS / "base"), "corpus": german, "strength": 1.0, "top": "5%"}]
    return recipe(folder, **{"donor": donors, "tune": None, "evaluate": None, **changed})


@pytest.mark.parametrize(("like", "kind"), [("bert", "an encoder"), ("t5", "an encoder-decoder")])
def test_an_encoder_is_not_tuned_or_evaluated_which_is_said_before_anything_is_run(folder, tmp_path, like, kind):
    for side, seed in (("donor", 0), ("target", 1)):
        tiny_encoder(like, seed).save_pretrained(tmp_path / side)
        word_tokenizer(like).save_pretrained(tmp_path / side)
    record = {"text": "a b c"} if like == "bert" else {"prompt": "what is two", "completion": "five answer"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(record))
    given = {"target": str(tmp_path / "target"), "count": "all", "output": str(tmp_path / "out")}
    given["donor"] = [{"model": str(tmp_path / "donor"), "corpus": str(tmp_path / "asked.jsonl")}]
    whole = {name: value for name, value in recipe(folder, **given).items() if name not in ("tune", "evaluate")}
    for stage in (
        {"tune": {"corpus": given["donor"][0]["corpus"]}},
        {"evaluate": {"corpus": {"x": given["donor"][0]["corpus"]}}},
    ):
        with pytest.raises(act.ActError, match=f"target is {kind}, and tune and evaluate are for causal"):
            Run(read_recipe(written(tmp_path, whole | stage)))
    report = Run(read_recipe(written(tmp_path, whole))).execute()
    assert report["moved"]["values"] > 0 and (tmp_path / "out" / "model.safetensors").is_file()


def test_a_donor_of_other_tokens_is_refused_before_anything_is_run(folder, tmp_path):
    donor = tmp_path / "renumbered"
    shutil.copytree(CHECKPOINTS / "base", donor)
    tokenizer = json.loads((donor / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, other = list(words)[-2:]
    words[one], words[other] = words[other], words[one]
    (donor / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = light(folder, output=str(tmp_path / "out"))
    data["donor"][0]["model"] = str(donor)
    for more in ([], ["--dry-run"]):
        result = act_profile("recipe", written(tmp_path, data), *more)
        assert result.returncode == 2 and "cannot be a donor" in result.stderr, result.stderr
        assert f"is {other!r} to the donor's tokenizer" in result.stderr or f"is {one!r} to the" in result.stderr
    assert not list(tmp_path.glob("*out*"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (donor / name).unlink()
    said = []
    Run(read_recipe(written(tmp_path, data)), said.append)
    assert "it is unknown whether it reads the same tokens" in said[0]


def test_an_output_that_lacks_a_file_is_not_done(folder, tmp_path):
    """Also: corpora as folders and globs, the card, and what is said of the values moved."""
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    shutil.copy(folder / "german.jsonl", corpora / "german.jsonl")
    weight = {"*.mlp.*": 0.5, "*": 1.0}
    donors = [{"model": str(CHECKPOINTS / "base"), "corpus": str(corpora), "strength": weight}]
    output = tmp_path / "mended"
    path = written(tmp_path, light(folder, donor=donors, output=str(output)))
    first = act_profile("recipe", path)
    assert first.returncode == 0, first.stderr
    assert "at strength 0.5 for *.mlp.*, 1 for *" in first.stdout and "values of" in first.stdout
    report = json.loads((output / "report.json").read_text())
    assert report["moved"]["values"] > 0 and report["donors"][0]["strength"] == weight
    card = (output / "README.md").read_text()
    assert "Made with act-profile (`act-profile recipe`)" in card and card.count("| donor | base |") == 1
    assert Run(read_recipe(path)).done()

    kept = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    assert not Run(read_recipe(path)).done()
    refused = act_profile("recipe", path)
    assert refused.returncode == 2 and "model.safetensors is missing or was changed since" in refused.stderr
    said = []
    Run(read_recipe(path), said.append).execute(force=True)
    assert (output / "model.safetensors").read_bytes() == kept and said == []
    (output / "README.md").write_text("my own words")  # not what a run depends on
    assert Run(read_recipe(path)).done()
    Run(read_recipe(path), said.append).execute(force=True)
    assert "my own words" not in (output / "README.md").read_text() and said == []

    donors[0]["corpus"] = str(corpora / "*.jsonl")
    run = Run(read_recipe(written(tmp_path, light(folder, donor=donors, output=str(output)))))
    assert run.done() and [stage["kept"] for stage in run.plan()] == [True, True, True]  # the same text
    shutil.copy(folder / "english.jsonl", corpora / "other.jsonl")
    assert not any(stage["kept"] for stage in Run(run.recipe).plan())


def test_random_controls_of_several_donors_are_of_equal_size(folder, tmp_path):
    donors = [
        {"model": str(CHECKPOINTS / "base"), "corpus": str(folder / f"{name}.jsonl"), "top": "20%"}
        for name in ("german", "english")
    ]
    run = Run(read_recipe(written(tmp_path, light(folder, donor=donors, output=str(tmp_path / "out"), seed=3))))
    run.cache.folder.mkdir()
    one, other = (run.stages.rank(donor, "random") for donor in run.recipe.donor)
    assert (one.rule.seed, other.rule.seed) == (3, 4) and len(one) == len(other)
    shared = int(torch.isin(one.index, other.index).sum())
    assert shared < 0.3 * len(one)  # a fifth by chance, all of them from one seed


def test_a_control_need_not_have_channels_for_each_pattern(folder, tmp_path):
    data = light(folder, output=str(tmp_path / "out"), score="random")
    data["donor"][0] |= {"top": "0.5%", "strength": 0.4}
    run = Run(read_recipe(written(tmp_path, data)))
    run.cache.folder.mkdir()
    chosen, control = (
        {chosen.site.name for chosen in run.stages.rank(run.recipe.donor[0], score).rows()}
        for score in ("random", "weight-diff")
    )
    data["donor"][0]["strength"] = {min(chosen - control): 1.0}
    run = Run(read_recipe(written(tmp_path, data)))
    before = load_model(str(CHECKPOINTS / "target")).state_dict()
    control = Variant("weight-diff", "transfer", score="weight-diff")
    for variant, moves in ((result(run.recipe), True), (control, False)):
        after = load_model(str(CHECKPOINTS / "target"), dtype="auto")
        run.stages.patch(variant).apply(after)
        after = after.state_dict()
        assert any(not torch.equal(after[name], before[name]) for name in before) == moves


def test_interpolation_blends_all_donors_from_where_the_target_was():
    target, *donors = (torch.nn.Linear(1, 1, bias=False) for _ in range(3))
    with torch.no_grad():
        for value, model in enumerate((target, *donors)):
            model.weight.fill_(value)
    interpolate(target, donors, 1.0)
    assert target.weight.item() == 1.5
    interpolate(target, donors[:1], 0.5)
    assert target.weight.item() == 1.25


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": "lape"}, "line 4: score lape compares abilities"),
        ({"overlap": "most"}, "line 20: overlap is 'most'"),
        ({"granularity": ["neurons"]}, "line 21: granularity"),
        ({"scop": "kind"}, "line 20: .*scope"),
    ],
)
def test_unknown_choices_are_named_with_their_line(folder, tmp_path, changed, message):
    path = written(tmp_path, (light if "score" in changed else recipe)(folder, **changed))
    with pytest.raises(act.ActError, match=message):
        read_recipe(path)


def test_the_order_of_patterns_and_of_corpora_decides(folder, tmp_path):
    """The first pattern that matches counts; figures are kept for each corpus alone."""
    german, english = (str(folder / f"{name}.jsonl") for name in ("german", "english"))

    def paths(weight: dict, corpora: dict):
        donors = [{"model": str(CHECKPOINTS / "base"), "corpus": german, "strength": weight}]
        data = recipe(folder, donor=donors, evaluate={"corpus": corpora}, output=str(tmp_path / "out"))
        run = Run(read_recipe(written(tmp_path, data)))
        variant = result(run.recipe)
        return run.key, run.cache.patch(variant), [run.cache.figures(variant, corpus) for corpus in corpora.values()]

    patterns, corpora = {"*.mlp.*": 0.5, "*": 1.0}, {"g": german, "e": english}
    first = paths(patterns, corpora)
    assert first == paths(patterns, corpora)
    other = paths(dict(reversed(patterns.items())), corpora)
    assert other[0] != first[0] and other[1] != first[1]
    swapped = paths(patterns, dict(reversed(corpora.items())))
    assert swapped[0] != first[0] and swapped[1] == first[1] and swapped[2] == first[2][::-1]


def test_one_more_control_redoes_nothing_else(folder, tmp_path):
    def kept_in(controls: list):
        evaluating = {"corpus": {"g": str(folder / "german.jsonl")}, "controls": controls}
        data = light(folder, evaluate=evaluating, output=str(tmp_path / "out"))
        return Run(read_recipe(written(tmp_path, data)))

    few, more = kept_in(["random"]), kept_in(["random", "interpolation"])
    assert few.key != more.key
    german = str(folder / "german.jsonl")
    shared = [cache.figures(variant, german) for cache in (few.cache, more.cache) for variant in compared(few.recipe)]
    assert shared[: len(shared) // 2] == shared[len(shared) // 2 :]


def test_an_output_of_another_version_is_refused_in_a_sentence(folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "recipe.yaml").write_text(yaml.safe_dump({"run": {"schema": "act-recipe/2", "key": "x", "files": {}}}))
    result = act_profile("recipe", written(tmp_path, light(folder, output=str(output))))
    assert result.returncode == 2 and "made by another version of act-profile (act-recipe/2" in result.stderr


def test_a_kept_stage_that_was_changed_is_not_used(folder, tmp_path):
    """A bit of each kept result turned over; one in the place of another; one that no run has finished."""
    data = light(folder, evaluate={"corpus": {"g": str(folder / "german.jsonl")}}, output=str(tmp_path / "out"))
    path, said = written(tmp_path, data), []
    report = Run(read_recipe(path)).execute()
    stages = tmp_path / "out.stages"

    def again() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        said.clear()
        assert Run(read_recipe(path), said.append).execute() == report

    used = [*stages.glob("figures*.json"), *stages.glob("patch-*.safetensors")]
    for file in sorted(used):
        whole = file.read_bytes()
        file.write_bytes(bytes(byte ^ 4 if place == len(whole) // 2 else byte for place, byte in enumerate(whole)))
        with pytest.raises(act.ActError, match="is not as the recipe made it; delete it"):
            again()
        file.write_bytes(whole)
    again()
    assert len(used) == 4 and said == []
    one, other = sorted(stages.glob("figures-*.json"))[:2]
    saved = one.read_bytes(), Path(f"{one}.xxh3").read_bytes()
    shutil.copy(other, one)
    shutil.copy(f"{other}.xxh3", f"{one}.xxh3")
    with pytest.raises(act.ActError, match="is not as the recipe made it"):
        again()
    one.write_bytes(saved[0])
    Path(f"{one}.xxh3").unlink()
    again()
    assert len(said) == 1 and said[0].startswith("evaluating")
    text = (tmp_path / "out" / "report.json").read_text()
    (tmp_path / "out" / "report.json").write_text(text.replace("1", "2", 1))
    with pytest.raises(act.ActError, match=r"report\.json is missing or was changed since"):
        Run(read_recipe(path)).execute()
