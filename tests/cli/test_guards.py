"""What a person mistakes: swapped models, wrong folders, odd numbers, and where a command runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import act_profile, succeed
from support import save_models, tiny_model

import act
from act.cli import streams
from act.cli.evaluate import _change
from act.cli.transfer import _tokenizer
from act.core.near import near_path
from act.core.tensor_files import save_tensors
from act.editing.strength import warn_of_strength
from act.evaluation.comparison import Comparison
from act.evaluation.sides import sides_of
from act.evaluation.significance import Difference
from act.models.channels import ChannelSpace
from act.models.loading import load_model, load_tokenizer
from act.models.quantised import quantised_by
from act.profiling import dtype_speed
from act.ranking.channel_set import ChannelSet

ROWS = [{"prompt": f"a b {word}", "completion": f" {word} c d"} for word in ("one", "two", "three", "four")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("guards")
    save_models(path, tokenizer, "models/donor", "models/target")
    (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def of(folder: Path, donor: str = "donor", target: str = "target") -> list[object]:
    return ["--donor", folder / "models" / donor, "--target", folder / "models" / target]


@pytest.mark.parametrize("command", ["transfer", "sweep", "pair", "attribute"])
def test_a_model_is_not_its_own_donor(command, folder, tmp_path):
    same = ["--donor", folder / "models" / "donor", "--target", f"{folder}/models/../models/donor"]
    given = {"transfer": ["--channels", "set", "--output", "new"], "sweep": ["pair", "--corpus", folder / "a.jsonl"]}
    given |= {each: ["--corpus", folder / "a.jsonl"] for each in ("pair", "attribute")}
    result = act_profile(command, *same, *given[command], cwd=tmp_path)
    assert result.returncode == 2 and "donor and target are the same model, " in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("match", "nll", "word"),
    [
        (None, Difference(-1.0, 0.1, 0.01), "better"),
        (None, Difference(1.0, 0.1, 0.01), "worse"),
        (Difference(0.1, 0.01, 0.01), Difference(1.0, 0.1, 0.01), "better"),
        (Difference(0.1, 0.1, 0.3), Difference(1.0, 0.1, 0.01), "unclear"),
        (None, None, ""),
    ],
)
def test_a_change_is_called_by_what_its_test_allows(match, nll, word):
    assert _change(Comparison("before", "after", "text", nll, match)) == word


@pytest.mark.parametrize("side", ["donor", "target"])
def test_a_model_that_is_not_there_is_one_error_and_no_warning_of_its_tokenizer(folder, side):
    models = of(folder)
    models[1 if side == "donor" else 3] = "some-org/none"
    found = act_profile(
        "pair", *models, "--corpus", folder / "a.jsonl", "--output", folder / "none", env={"HF_HUB_OFFLINE": "1"}
    )
    assert "download it where there is a network (hf download some-org/none)" in found.stderr
    assert found.returncode == 2 and "the hub cannot be reached" in found.stderr
    assert len(found.stderr.splitlines()) == 1, found.stderr


def test_quantised_weights_are_refused_by_the_configuration_alone(folder, tmp_path):
    for side in ("donor", "target"):
        shutil.copytree(folder / "models" / side, tmp_path / "models" / side)
    config = tmp_path / "models" / "donor" / "config.json"
    method = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **method}))
    (tmp_path / "models" / "donor" / "model.safetensors").unlink()
    texts = ["--corpus", folder / "a.jsonl", "--output", tmp_path / "none"]
    for command, sentence in {
        ("attribute",): "so there is no step from one model's weights",
        ("transfer", "--auto", "--keep", folder / "b.jsonl"): "which can be profiled but not transferred",
    }.items():
        found = act_profile(*command, *of(tmp_path), *texts)
        assert found.returncode == 2 and f"is quantised (bitsandbytes), {sentence}" in found.stderr, found.stderr


def test_weights_that_may_be_plain_once_loaded_are_not_refused_by_the_configuration():
    config = tiny_model("llama").config
    assert quantised_by(config) is None
    for method, expected in {"gptq": "gptq", "mxfp4": None, "fp8": None, "new": "new"}.items():
        config.quantization_config = {"quant_method": method}
        assert quantised_by(config) == expected


def test_offloaded_weights_are_one_sentence_that_names_the_option(folder, tmp_path):
    pytest.importorskip("accelerate")
    spread = ["--device-map", "auto", "--max-memory", "cpu=100KB", "--output", tmp_path / "none"]
    found = act_profile("attribute", *of(folder), "--corpus", folder / "a.jsonl", *spread)
    assert found.returncode == 2 and "--device cpu instead of --device-map" in found.stderr
    assert len(found.stderr.splitlines()) == 1, found.stderr


def test_a_patch_given_as_a_model_is_to_be_applied_first(folder, tmp_path):
    save_tensors(tmp_path / "p.safetensors", {}, "act-patch/1", {})
    for load in (load_model, load_tokenizer):
        with pytest.raises(act.ActError, match=r"p.safetensors is a patch, which changes a model; apply it first"):
            load(str(tmp_path / "p.safetensors"))


def test_a_missing_model_is_not_called_a_tokenizer_nor_warned_of_before(folder, capsys):
    with pytest.raises(act.ActError, match=r"^no such model: nothere/;"):
        load_tokenizer("nothere/")
    with pytest.raises(act.ActError, match=r"^no such model: nothere/;"):
        _tokenizer("nothere/", False, False)


def test_a_misspelt_folder_is_never_asked_of_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    for name, sentence in {
        "models/Doner": "the hub is not asked for it, since models is a folder here.*did you mean models/donor?",
        "models": "it has no config.json; give its folder",
        "models/donor/config.json": "is a file; expected its folder",
        "./models/targt": "no such model.*did you mean ./models/target?",
        "doner": "no such model: doner; expected a folder",
        "modles/": "no such model: modles/; expected a folder.*did you mean models?",
    }.items():
        with pytest.raises(act.ActError, match=sentence):
            load_model(name)
    with pytest.raises(act.ActError, match=r"no such corpus: models/doner.*did you mean models/donor\?"):
        act.Corpus.from_file("models/doner", None)
    assert near_path("A.JSONL") == "a.jsonl" and near_path("models/nothing like it") is None


def test_models_that_look_swapped_are_warned_of(folder, tmp_path):
    better = load_model(str(folder / "models" / "donor"))
    corpus = act.Corpus.from_file(folder / "a.jsonl", act_tokenizer(folder))
    with torch.enable_grad():
        settings = act.TuneSettings(steps=6, batch_size=4, learning_rate=5e-3)
        act.tune(better, corpus, settings)
    better.save_pretrained(tmp_path / "better")
    act_tokenizer(folder).save_pretrained(tmp_path / "better")
    models = {"better": str(tmp_path / "better"), "worse": str(folder / "models" / "donor")}
    for donor, target in (("better", "worse"), ("worse", "better")):
        given = ["pair", "--donor", models[donor], "--target", models[target], "--corpus", folder / "a.jsonl"]
        ran = act_profile(*given, "--output", tmp_path / f"{donor}.safetensors", "--json")
        assert "info: loss on 23 counted tokens of the first 4 records: donor" in ran.stderr
        assert ("donor and target are swapped" in ran.stderr) == (donor == "worse")
        (losses,) = json.loads(ran.stdout)["losses"]
        assert losses.items() >= {"corpus": str(folder / "a.jsonl"), "tokens": 23, "records": 4}.items()
        assert (losses["target"] < losses["donor"]) == (donor == "worse")
    copied = shutil.copytree(models["worse"], tmp_path / "copied")
    same = ["pair", "--donor", copied, "--target", models["worse"], "--corpus", folder / "a.jsonl"]
    assert "the very same loss here; are they the same" in act_profile(*same, "--output", tmp_path / "same").stderr
    sides = sides_of(load_model(models["better"]), load_model(models["worse"]), corpus)
    evaluated = [act.evaluate(load_model(models[name]), corpus, "nll").summary() for name in ("better", "worse")]
    assert [sides.donor, sides.target] == pytest.approx([one["nll_per_token"] for one in evaluated])
    assert sides.tokens == evaluated[0]["tokens"] and not sides.swapped


def act_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "models" / "donor")


def test_a_set_of_one_kind_and_a_large_strength_are_warned_of(folder, tmp_path):
    succeed("pair", *of(folder), "--corpus", folder / "a.jsonl", "--output", tmp_path / "p.safetensors")
    said = act_profile("rank", tmp_path / "p.safetensors", "--output", tmp_path / "s.safetensors").stderr
    assert "of the set are of one kind, norm" in said and "--normalize std" in said
    for asked in (["--normalize", "std"], ["--include", "norm"]):
        other = ["--output", tmp_path / f"{asked[1]}.safetensors"]
        ranked = act_profile("rank", tmp_path / "p.safetensors", *asked, *other)
        assert ranked.returncode == 0 and "of one kind" not in ranked.stderr
    moved = ["transfer", *of(folder), "--channels", tmp_path / "s.safetensors"]
    for strength, warned in (("1.4", False), ("1.6", True)):
        said = act_profile(*moved, "--strength", strength, "--output", tmp_path / strength).stderr
        assert ("goes 1.6 times as far as the donor" in said) == warned
    quiet = act_profile(*moved, "--strength", "2", "--log-level", "error", "--output", tmp_path / "quiet").stderr
    assert quiet == ""
    warn_of_strength(0.5)


@pytest.mark.parametrize("strength", [1.5, 1.61])
def test_a_large_strength_is_warned_of_in_python_too(strength, caplog):
    donor, target = tiny_model("llama"), tiny_model("llama", 1)
    channels = ChannelSet(ChannelSpace.from_model(target), torch.arange(5), torch.zeros(5, dtype=torch.float64))
    for _ in range(2):
        act.transfer(donor, target, channels, strength).revert(target)
    assert ["goes 1.61 times as far" in record.getMessage() for record in caplog.records] == [True] * (strength > 1.5)


def test_a_top_without_a_percent_sign_is_explained(folder, tmp_path):
    succeed("pair", *of(folder), "--corpus", folder / "a.jsonl", "--output", tmp_path / "p.safetensors")
    result = act_profile("rank", tmp_path / "p.safetensors", "--top", "5", "--output", tmp_path / "s")
    assert result.returncode == 2 and "did you mean 5%, or 5 of them (--number 5)?" in result.stderr


@pytest.fixture
def slow_halves(monkeypatch):
    """A processor that is slow in half the width, of which nothing was said yet."""
    monkeypatch.setattr("act.profiling.dtype_speed._times", lambda *_: 3.0)
    monkeypatch.setattr("act.profiling.dtype_speed._told", set())


def test_half_a_width_is_warned_of_where_it_is_slower(slow_halves, caplog):
    model = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=torch.bfloat16))
    for _ in range(2):
        dtype_speed.warn_of_half(model)
    dtype_speed.warn_of_half(model.float())
    (record,) = caplog.records
    assert "3.0 times as fast in float32 as in bfloat16" in record.message


@pytest.mark.parametrize("verb", ["profile", "profile_pair", "attribute", "evaluate"])
def test_half_a_width_is_warned_of_in_python_too(verb, folder, slow_halves, caplog):
    models = [tiny_model("llama", seed).bfloat16() for seed in range(1 if verb in ("profile", "evaluate") else 2)]
    getattr(act, verb)(*models, act.Corpus.from_file(folder / "a.jsonl", act_tokenizer(folder)).beginning(2))
    (record,) = caplog.records
    assert "in bfloat16 on this processor; load the model in float32 (dtype=torch.float32)" in record.getMessage()


def test_more_than_the_positions_is_warned_of(folder, caplog):
    from act.data import corpus as corpora

    corpora._warn_beyond.cache_clear()
    text = act.Corpus.from_file(folder / "a.jsonl", act_tokenizer(folder), max_length=1000)
    for _ in range(2):
        text.for_models(tiny_model("llama"))
    (record,) = caplog.records
    assert "1,000 tokens, and the model's configuration has 256 positions" in record.getMessage()


def command(*words: object, env: dict[str, str] | None = None, **options):
    """A real process, whose locale, home and pipes are its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "LC_ALL", "LANG", "PYTHONUTF8")}
    return subprocess.run(
        [sys.executable, "-m", "act", *map(str, words)], env={**kept, **(env or {})}, capture_output=True, **options
    )


def test_spans_in_a_plain_locale_and_without_a_home(tmp_path, tokenizer):
    name = "mödel ü 数学"
    (tmp_path / name).mkdir()
    tiny_model("llama").save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "ä b.jsonl").write_text(json.dumps({"prompt": "ö", "completion": " ß数"}), encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    (tmp_path / "m").symlink_to(name)  # tokenizers itself reads no name that the locale cannot write
    given = ["run", "--corpus", "ä b.jsonl", "--show-spans", "1", "--model"]
    shown = command(*given, "m", env=plain, cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.decode() == "ö[[ ß数</s>]]\n", shown.stderr
    as_json = command(*given, name, "--json", env={"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, cwd=tmp_path)
    assert json.loads(as_json.stdout)["spans"][""][0][1] == {"text": " ß数</s>", "counted": True}


def test_a_pipe_that_closes_ends_the_command_quietly():
    script = f"{sys.executable} -m act env | head -c 7; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ended.stdout == "Machine" and ended.stderr == "" and ended.returncode == 0


def test_a_command_whose_reader_has_gone_works_on_to_its_end(monkeypatch):
    reading, writing = os.pipe()
    with open(writing, "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        streams.prepare()
        print("ü \udcc3\udcbc \ud800", flush=True)
        assert os.read(reading, 100).decode() == "ü ü \\ud800\n" and not streams.unread()
        os.close(reading)
        for _ in range(3):
            print("x" * 100_000, flush=True)
        assert streams.unread()
    monkeypatch.undo()
    assert streams.names_read("\udcc3\udcbc") == "ü" and streams.names_read("\udcff") == "\udcff"


def test_the_set_that_a_csv_is_of_and_a_profile(folder, tmp_path):
    succeed("pair", *of(folder), "--corpus", folder / "a.jsonl", "--output", tmp_path / "p.safetensors")
    table = tmp_path / "new" / "s.csv"
    succeed("rank", tmp_path / "p.safetensors", "--output", tmp_path / "s.safetensors", "--csv", table)
    chosen = ChannelSet.load(tmp_path / "s.safetensors")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert rows[0] == ['"channel"', '"site"', '"kind"', '"layer"', '"row"', '"score"']
    assert [int(row[0]) for row in rows[1:]] == chosen.index.tolist()
    assert [float(row[5]) for row in rows[1:]] == chosen.scores.tolist()
    assert succeed("export", tmp_path / "p.safetensors", "--output", tmp_path / "p.parquet")["rows"] == len(
        chosen.space
    )
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    pair = act.load(tmp_path / "p.safetensors")
    assert columns["mean_abs_diff"].to_pylist() == pair.mean_abs_diff.tolist()
    assert columns["site"].to_pylist()[5] == next(iter(ChannelSpace.from_model(tiny_model("llama")))).name
    wrong = act_profile("export", tmp_path / "p.safetensors", "--output", tmp_path / "p.cvs")
    assert wrong.returncode == 2 and "did you mean .csv?" in wrong.stderr
    wrong = act_profile("export", tmp_path / "p.safetensors", "--output", f"{tmp_path}/new/")
    assert wrong.returncode == 2 and f"new is a folder; expected a file in it, such as {table.parent}/" in wrong.stderr
    heads = ["rank", tmp_path / "p.safetensors", "--granularity", "head", "--number", "2"]
    assert "ranked channels, in 2 heads\n" in act_profile(*heads, "--output", tmp_path / "h.safetensors").stdout


def test_a_second_value_of_an_option_is_no_profile(folder):
    for given in (["--granularity", "neuron", "head"], ["--include", "q", "k", "v"]):
        said = act_profile("rank", "pair.safetensors", *given, "--output", "x.safetensors", cwd=folder).stderr
        assert f"no such file: {given[2]}; expected a profile; if it is meant for an option, repeat that" in said


def test_weights_are_no_profile(folder):
    weights = folder / "models" / "donor" / "model.safetensors"
    for command in ("rank", "combine"):
        result = act_profile(command, weights, "--output", "x.safetensors", cwd=folder)
        assert result.returncode == 2 and "is no file of act-profile, but tensors of something else" in result.stderr


def test_a_swapped_pair_says_of_which_score_its_certificate_is(folder, tmp_path):
    rows = [{"prompt": f"a b {number}", "completion": f" {number * 7919 % 1000} c d"} for number in range(800)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = ["pair", *of(folder), "--until-stable", "--corpus", tmp_path / "many.jsonl"]
    refused = act_profile(*plain, "--stable-score", "match", "--output", tmp_path / "none")
    assert refused.returncode == 2 and "stable score match needs swapped outputs; add --swap" in refused.stderr
    refused = act_profile(*plain, "--stable-score", "attribution", "--output", tmp_path / "none")
    assert "stable score is 'attribution'; expected one of paired, mean-abs, mean-shift, match" in refused.stderr
    given = [*plain, "--swap"]
    loose = ["--stable-top", "50%", "--stable-overlap", "0.5", "--stable-confidence", "0.5", "--look-ahead", "16"]
    ended = act_profile(*given, *loose, "--output", tmp_path / "pair.safetensors")
    assert ended.returncode == 0 and "by paired is also that of the whole corpus" in ended.stdout, ended.stderr
    assert "certain of paired alone: match and match-contrast may still change" in ended.stdout
    ended = act_profile(*given, *loose, "--stable-score", "match", "--output", tmp_path / "match.safetensors")
    assert ended.returncode == 0 and "by match is also that of the whole corpus" in ended.stdout, ended.stderr
    assert "certain of match without --keep" in ended.stdout
