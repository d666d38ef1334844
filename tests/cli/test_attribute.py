"""``attribute`` and ``rank --score attribution`` on the shipped pair of the invented language, as a user types them."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import act_profile, succeed

import act
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS
from act.ranking.channel_set import ChannelSet

MODELS = ["--donor", CHECKPOINTS / "base", "--target", CHECKPOINTS / "target", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("attribute")
    for name, language, skills in (("german", "German", OLD_SKILLS), ("english", "English", OLD_SKILLS + NEW_SKILLS)):
        records = [{**one, "completion": f" {one['completion']}"} for one in examples(language, skills, 24)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def measured(folder):
    output = folder / "a.safetensors"
    texts = ["--corpus", folder / "german.jsonl", "--keep", f"english={folder / 'english.jsonl'}"]
    summary = succeed("attribute", *MODELS, *texts, "--output", output)
    assert summary["records"] == 24 and summary["coverage"] == 1.0 and summary["nonfinite"] == {}
    assert summary["paths"] == {"output_gradient": len(act.load(output).space.sites)}
    return output


def test_one_file_ranks_at_any_cost_and_transfers(folder, measured):
    found = act.load(measured)
    kept, alone, far = (
        succeed("rank", measured, "--score", "attribution", *cost, "--output", folder / f"{number}.safetensors")
        for number, cost in enumerate(([], ["--cost", "none"], ["--cost", "distance"]))
    )
    assert [one["rule"]["cost"] for one in (kept, alone, far)] == ["keep", "none", "distance"]
    best = ChannelSet.load(folder / "1.safetensors")
    assert torch.equal(best.index, act.rank(found, "attribution", cost="none").index)
    assert set(best.index.tolist()) == set(found.fall.nan_to_num(-torch.inf).topk(len(best)).indices.tolist())
    assert len({tuple(ChannelSet.load(folder / f"{number}.safetensors").index.tolist()) for number in range(3)}) == 3
    units = ["--granularity", "neuron", "--granularity", "head", "--count", "9"]
    grouped = succeed("rank", measured, "--score", "attribution", *units, "--output", folder / "units.safetensors")
    assert grouped["inputs"] and grouped["rule"]["granularity"] == ["neuron", "head"]
    moved = succeed(
        "transfer", *MODELS[:4], "--channels", folder / "0.safetensors", "--output", folder / "patch.safetensors"
    )
    assert moved["channels"] == kept["chosen"]
    report = succeed("report", measured, "--output", folder / "report")
    assert report["score"] == "attribution" and report["concentration"][0]["channels"] == len(found.space)


def test_an_attribution_is_ranked_by_its_one_score_which_is_said(folder, measured):
    table = folder / "channels.csv"
    ranked = act_profile("rank", measured, "--output", folder / "unnamed.safetensors", "--csv", table)
    assert ranked.returncode == 0 and "ranked by attribution, the one score of what" in ranked.stdout
    assert (
        table.read_text().splitlines()[0].endswith('"score","documents","loss_fall_per_token","loss_fall_per_token_se"')
    )
    refused = act_profile("rank", measured, "--seed", "1", "--output", folder / "none.safetensors")
    assert refused.returncode == 2 and "--seed has no effect on the default score" in refused.stderr


def test_shards_combine_and_two_files_rank_as_one(folder, measured):
    parts = [folder / f"part{number}.safetensors" for number in range(2)]
    for number, part in enumerate(parts):
        texts = ["--corpus", folder / "german.jsonl", "--keep", folder / "english.jsonl", "--shard", f"{number}/2"]
        succeed("attribute", *MODELS, *texts, "--output", part)
    succeed("combine", *parts, "--output", folder / "whole.safetensors")
    whole, found = act.load(folder / "whole.safetensors"), act.load(measured)
    assert whole.tokens == found.tokens
    torch.testing.assert_close(whole.fall, found.fall, rtol=1e-4, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(whole.kept[0].rms, found.kept[0].rms, rtol=1e-4, atol=1e-6, equal_nan=True)
    alone = act.AttributionProfile(found.moments, found.provenance, found.distance)
    apart = act.rank(alone, "attribution", keep=found.kept[0])
    assert torch.equal(apart.index, act.rank(found, "attribution").index)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda f, a: ["rank", a, "--score", "paired"], "holds no activations"),
        (lambda f, a: ["rank", a, "--score", "random", "--cost", "none"], "cost 'none' has no effect on score random"),
        (lambda f, a: ["rank", a, "--score", "attribution", "--cost", "cheap"], "cost is 'cheap'"),
        (lambda f, a: ["plan", "--model", CHECKPOINTS / "base", "--pair", "--attribute"], "two kinds of runs"),
        (lambda f, a: ["plan", "--model", CHECKPOINTS / "base", "--no-recompute"], "give --attribute, too"),
        (
            lambda f, a: ["plan", "--model", CHECKPOINTS / "base", "--gpus", "2", "--gpus-a-model", "4"],
            "--gpus is 2, fewer than the 4 of one model",
        ),
        (
            lambda f, a: ["attribute", *MODELS, "--corpus", f / "german.jsonl", "--keep", f / "german.jsonl"],
            "german.jsonl is given twice",
        ),
        (
            lambda f, a: ["attribute", *MODELS, "--corpus", f / "german.jsonl", "--keep", "x=a", "--keep", "x=b"],
            "two texts to keep are named x",
        ),
        (
            lambda f, a: ["attribute", "--donor", MODELS[1], "--target", MODELS[1], "--corpus", f / "german.jsonl"],
            "are the same model",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, folder, measured, tmp_path):
    given = arguments(folder, measured)
    output = [] if given[0] == "plan" else ["--output", tmp_path / "out.safetensors"]
    result = act_profile(*given, *output)
    assert result.returncode == 2 and said in result.stderr, result.stderr
    assert result.stderr.count("error:") == 1 and "Traceback" not in result.stderr


def test_plan_tells_the_memory_of_an_attribution():
    plan = "plan", "--model", CHECKPOINTS / "base", "--seconds", "0", "--tokens", "1000", "--gpu-tflops", "1"
    plain, planned, kept = (succeed(*plan, *more) for more in ([], ["--attribute"], ["--attribute", "--no-recompute"]))
    assert planned["flops"] == 4 * plain["flops"] and "inputs of the layers" in planned["memory"]
    assert kept["flops"] == 3 * plain["flops"] and kept["cluster"]["forward"] < planned["cluster"]["forward"]
    everything = kept["memory"]["activations of all layers"]
    assert "inputs of the layers" not in kept["memory"] and everything > 12 * planned["memory"]["inputs of the layers"]


def test_help_names_the_batches_that_are_the_default():
    for command, said in (
        (["attribute"], "4096 on a GPU"),
        (["plan"], "8192 on a GPU (to attribute: 4096)"),
        (["pair"], "8192"),
    ):
        assert said in " ".join(act_profile(*command, "--help").stdout.replace("│", " ").split())
