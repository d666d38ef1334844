"""The command line as a user types it: in its own process, on model folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from command_line import act_profile, succeed
from safetensors import safe_open
from safetensors.torch import save_file
from support import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import act
from act.ranking.channel_set import ChannelSet

RECORDS = [{"prompt": f"a b {word}", "completion": f" {word} c d"} for word in ("one", "two", "three", "four")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A donor, a target, models that do not fit, and corpora."""
    path = tmp_path_factory.mktemp("cli")
    for name, family, seed in (
        ("donor", "llama", 0),
        ("target", "llama", 1),
        ("other", "llama", 2),
        ("gpt2", "gpt2", 0),
    ):
        tiny_model(family, seed).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    wide = tiny_model("llama")
    wide.resize_token_embeddings(310)
    wide.save_pretrained(path / "wide")
    tokenizer.save_pretrained(path / "wide")
    (path / "ability.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (path / "keep.jsonl").write_text("".join(json.dumps({"text": record["prompt"]}) + "\n" for record in RECORDS))
    return path


@pytest.fixture(scope="module")
def pair(folder) -> Path:
    output = folder / "pair.safetensors"
    succeed(
        "pair",
        "--donor",
        folder / "donor",
        "--target",
        folder / "target",
        "--corpus",
        folder / "ability.jsonl",
        "--output",
        output,
    )
    return output


@pytest.fixture(scope="module")
def channels(folder, pair) -> Path:
    output = folder / "channels.safetensors"
    succeed("rank", pair, "--top", "10%", "--output", output)
    return output


@pytest.mark.slow
def test_the_whole_path(folder, pair, tmp_path):
    keep, chosen, result = tmp_path / "keep.safetensors", tmp_path / "set.safetensors", tmp_path / "result"
    models = ["--donor", folder / "donor", "--target", folder / "target"]
    succeed("pair", *models, "--corpus", folder / "keep.jsonl", "--output", keep)
    ranked = succeed("rank", pair, "--keep", keep, "--top", "10%", "--normalize", "std", "--output", chosen)
    assert ranked["chosen"] == len(ChannelSet.load(chosen)) and ranked["rule"]["contrast"]
    moved = succeed("transfer", *models, "--channels", chosen, "--strength", "0.5", "--output", result)
    assert moved["channels"] == ranked["chosen"]

    donor, target = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("donor", "target"))
    act.transfer(donor, target, ChannelSet.load(chosen), 0.5)
    saved = AutoModelForCausalLM.from_pretrained(result)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), saved.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(result).chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep.safetensors", "result", "set.safetensors"]


def test_run_and_two_single_profiles(folder, tmp_path):
    for name in ("donor", "target"):
        summary = succeed(
            "run",
            "--model",
            folder / name,
            "--corpus",
            folder / "ability.jsonl",
            "--count",
            "predict",
            "--output",
            tmp_path / name,
        )
        assert summary["counted"] > 0 and summary["nonfinite"] == {} and summary["uncovered"] == []
    ranked = succeed(
        "rank", tmp_path / "donor", tmp_path / "target", "--score", "mean-abs", "--output", tmp_path / "set"
    )
    assert ranked["chosen"] == round(0.05 * len(act.load(tmp_path / "donor").space))


def test_plan_shows_the_path_of_every_site(folder):
    plan = succeed("plan", "--model", folder / "donor", "--exclude", "head")
    paths = {site["name"]: site["path"] for site in plan["sites"]}
    assert plan["channels"] == sum(site["channels"] for site in plan["sites"]) and plan["uncovered"] == []
    assert paths["model.layers.0.mlp.up_proj"] == "gated_mlp" and paths["lm_head"] == "not measured"
    assert set(succeed("plan", "--model", folder / "gpt2", "--no-fused")["sites"][0].values()) >= {"column_moments"}
    table = act_profile("plan", "--model", folder / "donor")
    assert "add_norm" in table.stdout and "rotary" in table.stdout


def test_plan_reads_a_corpus_as_run_does(folder):
    corpora = ["--corpus", f"one={folder / 'ability.jsonl'}", "--corpus", f"two={folder / 'keep.jsonl'}"]
    plan = ["plan", "--model", folder / "donor", "--seconds", "0"]
    both = succeed(*plan, *corpora)["corpus"]
    assert both["records"] == 8 and {name: one["records"] for name, one in both["texts"].items()} == {
        "one": 4,
        "two": 4,
    }
    assert both["tokens"] == sum(one["tokens"] for one in both["texts"].values())
    assert "one" in act_profile(*plan, *corpora).stdout
    texts = succeed(*plan, "--corpus", folder / "keep.jsonl")["corpus"]
    cut = succeed(*plan, "--corpus", folder / "keep.jsonl", "--max-length", "4", "--stride", "3")["corpus"]
    assert cut["longest"] == 4 < texts["longest"] and cut["tokens"] > texts["tokens"] == texts["counted"]
    assert cut["counted"] == texts["counted"]
    assert "--tokens is -5; expected at least 1" in act_profile(*plan, "--tokens", "-5").stderr


def test_excluded_kinds_are_not_measured(folder, tmp_path):
    options = [
        "--corpus",
        folder / "ability.jsonl",
        "--exclude",
        "head",
        "--exclude",
        "embed",
        "--output",
        tmp_path / "p",
    ]
    summary = succeed("run", "--model", folder / "donor", *options)
    assert "column_moments" not in summary["paths"] and summary["irregular"] == {}
    profile = act.load(tmp_path / "p")
    assert (profile.site("lm_head").count == 0).all() and (profile.site("model.norm").count > 0).all()


def test_some_sites_are_measured_ranked_and_transferred(folder, tmp_path):
    some = ["--include", "*.layers.0.*", "--exclude", "norm"]
    models = ["--donor", folder / "donor", "--target", folder / "target"]
    summary = succeed("pair", *models, "--corpus", folder / "ability.jsonl", *some, "--output", tmp_path / "p")
    assert sum(summary["paths"].values()) == 7 and summary["irregular"] == summary["unreached_values"] == {}
    profile = act.load(tmp_path / "p")
    assert profile.provenance.settings.include == ("*.layers.0.*",) and len(profile.left_out) == 14
    ranked = succeed("rank", tmp_path / "p", "--output", tmp_path / "set")
    assert ranked["chosen"] and all(not kind["chosen"] for name, kind in ranked["kinds"].items() if name == "norm")
    moved = ["transfer", *models, "--channels", tmp_path / "set", "--output", tmp_path / "model"]
    assert succeed(*moved)["channels"] == ranked["chosen"]
    plan = [succeed("plan", "--model", folder / "donor", "--tokens", "100", *more) for more in ([], some)]
    assert plan[1]["flops"] < 0.6 * plan[0]["flops"]
    assert {site["name"] for site in plan[1]["sites"] if site["path"] == "not measured"} == profile.left_out


def test_weight_diff_and_tables(folder, pair, tmp_path):
    result = act_profile(
        "rank",
        pair,
        "--score",
        "weight-diff",
        "--donor",
        folder / "donor",
        "--target",
        folder / "target",
        "--output",
        tmp_path / "set",
    )
    assert result.returncode == 0, result.stderr
    assert "module kind" in result.stdout and "gate" in result.stdout


def test_show_spans_prints_and_writes_nothing(folder, tmp_path):
    result = act_profile(
        "run",
        "--model",
        folder / "donor",
        "--corpus",
        folder / "ability.jsonl",
        "--show-spans",
        "2",
        "--output",
        tmp_path / "p",
    )
    assert result.returncode == 0 and " one c d</s>" in result.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("tirton", "is not a backend; choose one of native, triton, cuda"), ("cuda", "cannot run on cpu: ")],
)
def test_a_backend_that_cannot_run_is_one_sentence(folder, backend, reason):
    command = ("run", "--model", folder / "target", "--corpus", folder / "ability.jsonl", "--output", folder / "no")
    result = act_profile(*command, env={"ACT_KERNELS_BACKEND": backend})
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"error: ACT_KERNELS_BACKEND={backend} ") and reason in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (folder / "no").exists()


def test_env_tells_what_a_gpu_would_run(folder):
    from act_kernels import cuda

    assert succeed("env")["cuda_kernels"] == cuda.build()
    table = act_profile("env", env={"COLUMNS": "300"}).stdout
    assert "CUDA kernels" in table and (cuda.build()["missing"] or "built with CUDA")[:20] in table
    assert "None" not in table and "[]" not in table and "backend forced" in table
    forced = act_profile("env", "--json", env={"ACT_KERNELS_BACKEND": "triton"})
    if not torch.cuda.is_available():
        found = json.loads(forced.stdout)
        assert "triton kernels run on a CUDA device" in found["backends"]["cpu"]["forced"] == found["error"]
        assert forced.returncode == found["exit_code"] == 2 and forced.stderr == f"error: {found['error']}\n"
        chosen = json.loads(act_profile("env", "--json", env={"ACT_KERNELS_BACKEND": "reference"}).stdout)
        assert chosen["backends"]["cpu"]["reference"] == "chosen (forced)"
        assert "not used: CUDA kernels run on a CUDA device" in chosen["backends"]["cpu"]["cuda"]
        assert chosen["backends"]["cpu"]["triton"].startswith("not used: ")
    mistyped = act_profile("env", env={"ACT_KERNELS_BACKEND": "tritn"})
    assert mistyped.returncode == 2 and "is not a backend; choose one of native" in mistyped.stderr
    assert "did you mean triton?" in mistyped.stderr
    assert "Machine" in mistyped.stdout  # a bug report has the rest
    assert act_profile("env", env={"ACT_FINGERPRINTS": "here"}).returncode == 2
    nowhere = json.loads(act_profile("env", "--json", env={"ACT_FINGERPRINTS": "/dev/null/cache"}).stdout)
    assert nowhere["caches"]["fingerprints"]["writable"] is False


def test_env(folder):
    result = succeed("env")
    states = result["backends"]["cpu"]
    assert sum("chosen" in state for state in states.values()) == 1
    memory, caches = result["memory"], result["caches"]
    assert 0 < memory["available"] <= memory["total"] and result["cores"] >= 1
    assert caches["the hub"]["free"] > 0 and caches["fingerprints"] is None  # as conftest has it
    assert result["packages"]["datasets"] == datasets.__version__
    written = Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8")
    for name, extra in result["extras"].items():
        declared = re.search(rf"^{name} = \[(.*?)\]$", written, re.MULTILINE)[1]
        assert extra["packages"] == [re.match(r"[\w-]+", one.strip(' "'))[0] for one in declared.split(",")]
    assert result["versions"]["torch"] in (torch.__version__, torch.__version__.partition("+")[0])


def truncated(source: Path, to: Path) -> Path:
    to.write_bytes(source.read_bytes()[:-100])
    return to


def of_schema(source: Path, to: Path, schema: str) -> Path:
    with safe_open(source, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, to, {**metadata, "schema": schema})
    return to


def of_text(to: Path, text: str) -> Path:
    to.write_text(text)
    return to


KINDS = ("embed", "norm", "gate", "up", "down", "head")


def excluded(*kinds: str) -> list[str]:
    return [word for kind in kinds for word in ("--exclude", kind)]


def of_config(to: Path, text: str) -> Path:
    to.mkdir()
    (to / "config.json").write_text(text)
    return to


def other_tokens(f: Path, to: Path) -> Path:
    """A model folder whose tokenizer swaps two tokens."""
    shutil.copytree(f / "donor", to)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (to / "tokenizer.json").write_text(json.dumps(tokenizer))
    return to


BAD = {
    "no such model": lambda f, t: (
        ["run", "--model", f / "none", "--corpus", f / "ability.jsonl"],
        "no such model: ",
    ),
    "no such corpus": lambda f, t: (["run", "--model", f / "donor", "--corpus", f / "none.jsonl"], "no such corpus"),
    "malformed JSONL": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", of_text(t / "bad.jsonl", '{"text": "a"}\n{')],
        "line 2: not JSON",
    ),
    "no answer": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", of_text(t / "bad.jsonl", '{"prompt": "a", "completion": ""}')],
        "line 1: the record has no answer",
    ),
    "other architecture": lambda f, t: (
        ["pair", "--donor", f / "gpt2", "--target", f / "target", "--corpus", f / "ability.jsonl"],
        "site transformer.wte against model.embed_tokens",
    ),
    "other vocabulary": lambda f, t: (
        ["pair", "--donor", f / "wide", "--target", f / "target", "--corpus", f / "ability.jsonl"],
        "lm_head has 310 channels against 300",
    ),
    "other tokens": lambda f, t: (
        ["pair", "--donor", other_tokens(f, t / "d"), "--target", f / "target", "--corpus", f / "ability.jsonl"],
        "to the donor's tokenizer and",
    ),
    "truncated profile": lambda f, t: (["rank", truncated(f / "pair.safetensors", t / "p")], "truncated or damaged"),
    "another schema version": lambda f, t: (
        ["rank", of_schema(f / "pair.safetensors", t / "p", "act-profile/99")],
        "holds act-profile/99, expected act-profile/1",
    ),
    "not a profile": lambda f, t: (
        ["rank", f / "channels.safetensors"],
        "is a channel set, expected a profile; act-profile pair, attribute or run makes one",
    ),
    "not a channel set": lambda f, t: (
        ["transfer", "--donor", f / "donor", "--target", f / "target", "--channels", f / "pair.safetensors"],
        "is a profile, expected a channel set; make one of it: act-profile rank",
    ),
    "profile of another model": lambda f, t: (
        ["transfer", "--donor", f / "donor", "--target", f / "other", "--channels", f / "channels.safetensors"],
        "chosen for the target",
    ),
    "top 0": lambda f, t: (["rank", f / "pair.safetensors", "--top", "0"], "top is 0"),
    "top 200%": lambda f, t: (["rank", f / "pair.safetensors", "--top", "200%"], "top is 200%"),
    "negative strength": lambda f, t: (
        [
            "transfer",
            "--donor",
            f / "donor",
            "--target",
            f / "target",
            "--channels",
            f / "channels.safetensors",
            "--strength",
            "-0.4",
        ],
        "strength is -0.4",
    ),
    "unknown device": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", f / "ability.jsonl", "--device", "tpu9"],
        "no device is called 'tpu9'; expected auto, cpu",
    ),
    "unknown kind to exclude": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", f / "ability.jsonl", "--exclude", "heads"],
        "no module kind heads; this model has down",
    ),
    "site to include that does not exist": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", f / "ability.jsonl", "--include", "model.layers.7.mlp.up_proj"],
        "did you mean model.layers.1.mlp.up_proj",
    ),
    "unknown count": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", f / "ability.jsonl", "--count", "some"],
        "count is 'some'",
    ),
    "donor for another score": lambda f, t: (
        ["rank", f / "pair.safetensors", "--donor", f / "donor", "--target", f / "target"],
        "--donor and --target have no effect on the default score",
    ),
    "seed for another score": lambda f, t: (
        ["rank", f / "pair.safetensors", "--seed", "0"],
        "--seed has no effect on the default score",
    ),
    "records for a profile": lambda f, t: (
        ["rank", f / "ability.jsonl"],
        "is not a safetensors file; expected a profile",
    ),
    "every kind excluded": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", f / "ability.jsonl", *excluded(*"qkvo", *KINDS)],
        "every module kind is excluded",
    ),
    "checkpoints in the past": lambda f, t: (
        ["run", "--model", f / "donor", "--corpus", f / "ability.jsonl", "--checkpoint-every", "-5"],
        "--checkpoint-every is -5; expected at least 0",
    ),
    "configuration that is a list": lambda f, t: (
        ["pair", "--donor", of_config(t / "list", "[]"), "--target", f / "target", "--corpus", f / "ability.jsonl"],
        "cannot load the model",
    ),
    "replay share without replay": lambda f, t: (
        ["tune", "--model", f / "target", "--corpus", f / "ability.jsonl", "--replay-share", "0.9"],
        "--replay-share has no effect without --replay",
    ),
    "rank of no adapter": lambda f, t: (
        ["tune", "--model", f / "target", "--corpus", f / "ability.jsonl", "--lora-rank", "4"],
        "--lora-rank has no effect in mode full",
    ),
    "rows of no set": lambda f, t: (
        ["tune", "--model", f / "target", "--corpus", f / "ability.jsonl", "--mode", "rows"],
        "mode rows trains the rows of a channel set; give it with --channels",
    ),
    "no such option": lambda f, t: (
        ["rank", f / "pair.safetensors", "--tops", "3%"],
        "no such option: --tops; see act-profile rank --help; did you mean --top?",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(name, folder, pair, channels, tmp_path):
    scratch = tmp_path / "inputs"
    scratch.mkdir()
    output = tmp_path / "output"
    output.mkdir()
    arguments, message = BAD[name](folder, scratch)
    if "--output" not in arguments:
        arguments += ["--output", output / "result"]
    result = act_profile(*arguments)
    assert result.returncode == 2, result.stderr
    assert any(part in result.stderr for part in message.split("|")), result.stderr
    assert "Traceback" not in result.stderr
    assert not list(output.iterdir())


def test_existing_output_is_refused_without_force(folder, pair, tmp_path):
    for arguments in (
        ["run", "--model", folder / "donor", "--corpus", folder / "ability.jsonl"],
        ["rank", pair],
        ["transfer", "--donor", folder / "donor", "--target", folder / "target", "--channels", tmp_path / "set"],
    ):
        output = tmp_path / "held"
        output.write_text("precious")
        result = act_profile(*arguments, "--output", output)
        assert result.returncode == 2 and "exists already; pass --force" in result.stderr
        assert output.read_text() == "precious"
    assert act_profile("rank", pair, "--output", output, "--force").returncode == 0
    assert len(ChannelSet.load(output)) > 0


def test_force_replaces_a_model_folder_but_no_one_elses(folder, channels, tmp_path):
    output = tmp_path / "model"
    models = ["--donor", folder / "donor", "--target", folder / "target", "--channels", channels]
    succeed("transfer", *models, "--output", output)
    (output / "config.json").write_text("{}")
    succeed("transfer", *models, "--output", output, "--force")
    assert json.loads((output / "config.json").read_text())
    (output / "notes.txt").write_text("mine")
    refused = act_profile("transfer", *models, "--output", output, "--force")
    assert refused.returncode == 2 and "holds notes.txt, not written by act-profile" in refused.stderr
    assert (output / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_report_and_units(folder, pair, channels, tmp_path):
    other = tmp_path / "other.safetensors"
    models = ["--donor", folder / "donor", "--target", folder / "target"]
    succeed("pair", *models, "--corpus", folder / "keep.jsonl", "--output", other)
    texts = ["--corpus", folder / "ability.jsonl"]
    report = succeed("report", pair, other, "--channels", channels, *models, *texts, "--output", tmp_path / "report")
    assert {row["relation"] for row in report["overlaps"]} == {"disentanglement", "set"}
    assert {row["second"] for row in report["overlaps"]} == {"other", "channels", "weight-diff"}
    assert [row["ablated"] for row in report["necessity"]] == ["pair", "other", "random"]
    assert report["files"] == sorted(path.name for path in (tmp_path / "report").glob("[!.]*"))
    table = act_profile("report", pair, other, "--output", tmp_path / "again")
    stage = tmp_path / "pair-6fe9066544680621.safetensors"  # as a recipe keeps it
    shutil.copy(other, stage)
    named = succeed("report", stage, "--output", tmp_path / "named")
    assert [row["ability"] for row in named["concentration"]] == ["keep"]
    assert table.returncode == 0 and "Concentration of paired" in table.stdout and "two abilities" in table.stdout

    chosen = tmp_path / "units"
    units = ["--granularity", "neuron", "--granularity", "head", "--normalize", "kind-std", "--scope", "layer"]
    ranked = succeed("rank", pair, "--keep", other, "--mass", "30%", *units, "--output", chosen)
    assert ranked["inputs"] == sum(map(len, ChannelSet.load(chosen).inputs.values())) > 0
    assert ranked["rule"]["granularity"] == ["neuron", "head"] and ranked["rule"]["mass"] == 0.3


def test_a_name_never_turns_a_line_of_the_terminal(tmp_path):
    name = "evil\u202ename"
    rows = [{"top": top, "strength": 1.0, "channels": 9, name: 0.1 + top} for top in (0.0, 0.1)]
    (tmp_path / "sweep.json").write_text(json.dumps({"rows": rows, "frontier": []}))
    arguments = "report", tmp_path / "sweep.json", "--output", tmp_path / "report"
    assert name in succeed(*arguments)["verdict"]  # data is whole
    shown = act_profile(*arguments, "--force")
    assert "evil\ufffdname" in shown.stdout and "\u202e" not in shown.stdout + shown.stderr
    refused = act_profile("report", f"{name}.json")
    assert refused.returncode == 2 and "evil\ufffdname" in refused.stderr and "\u202e" not in refused.stderr


def test_a_report_tells_files_of_one_name_apart(folder, pair, channels, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in (pair, channels, folder / "ability.jsonl"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    one, two = tmp_path / "one", tmp_path / "two"
    sets = ["--channels", one / channels.name, "--channels", two / channels.name]
    texts = ["--donor", folder / "donor", "--corpus", one / "ability.jsonl", "--corpus", two / "ability.jsonl"]
    report = succeed("report", pair, *sets, *texts, "--output", tmp_path / "report")
    assert [row["second"] for row in report["overlaps"]] == [str(one / channels.name), str(two / channels.name)]
    assert {row["text"] for row in report["necessity"]} == {str(one / "ability.jsonl"), str(two / "ability.jsonl")}
    for arguments, message in (
        ([pair, *sets[:2], *sets[:2]], "twice; give each once"),
        (
            [one / pair.name, two / pair.name],
            "several profiles are named pair; give the ability of each with --ability",
        ),
    ):
        refused = act_profile("report", *arguments, "--output", tmp_path / "none")
        assert refused.returncode == 2 and message in refused.stderr


def test_what_does_not_exist_is_said_first(folder, tmp_path):
    places = ["--target", folder / "target", "--corpus", folder / "ability.jsonl"]
    refused = act_profile("pair", "--donor", tmp_path / "nowhere", *places, "--output", tmp_path / "p")
    assert refused.returncode == 2 and "no such model" in refused.stderr and "warning" not in refused.stderr


def test_channels_with_nothing_for_them_are_said(folder, tmp_path):
    donor = tiny_model("llama")
    with torch.no_grad():
        donor.lm_head.weight[7] += 1
    donor.save_pretrained(tmp_path / "near")
    models = ["--donor", tmp_path / "near", "--target", folder / "donor"]
    succeed("pair", *models, "--corpus", folder / "ability.jsonl", "--output", tmp_path / "near.pair")
    ranked = act_profile("rank", tmp_path / "near.pair", "--count", "9", "--output", tmp_path / "set", "--json")
    assert "8 of the 9 chosen channels have a score of 0 or below" in ranked.stderr
    assert json.loads(ranked.stdout)["rule"]["not_positive"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "{pair}", "--keep-profile", "{pair}"], "the ability's own text"),
        (["rank", "{pair}", "--top", "5%", "--number", "3"], "one of --top, --number and --mass"),
        (["rank", "{pair}", "--count", "99999"], "99999 were requested"),
        (["rank", "{pair}", "--granularity", "layer"], "granularity is 'layer'; expected one of"),
        (["rank", "{pair}", "--scope", "model"], "scope is 'model'; expected one of"),
        (["rank", "{pair}", "--score", "lape"], "at least one other ability"),
        (["report", "{pair}", "{pair}"], "same models and text"),
        (["report", "{pair}", "--corpus", "x.jsonl"], "give --donor"),
        (["report", "{pair}", "--donor", "x"], "--donor has no effect by itself"),
        (["report", "{pair}", "--top", "0"], "expected a share of the channels"),
    ],
)
def test_ranking_that_makes_no_sense_is_one_sentence(pair, tmp_path, arguments, message):
    result = act_profile(*(text.format(pair=pair) for text in arguments), "--output", tmp_path / "out")
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
