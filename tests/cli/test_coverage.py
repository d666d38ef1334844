"""Coverage as ``run`` and ``plan`` show it, and ``--strict``."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from command_line import act_profile, succeed
from support import ATTENTION, SMALL, tiny_model

import act
from act.models.channels import ChannelSpace
from act.profiles.coverage import Measured
from act.profiles.moments import Moments
from act.profiles.provenance import Provenance, Settings
from act.profiling.strict import require_measured
from act_kernels.statistics import COUNT


def mixture() -> torch.nn.Module:
    """A model with parameters that have no output of their own (sinks)."""
    config = transformers.GptOssConfig(
        **SMALL,
        **ATTENTION,
        head_dim=8,
        num_local_experts=4,
        layer_types=["full_attention"] * 2,
        num_experts_per_tok=2,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def differential() -> torch.nn.Module:
    """A model with parameters that no site covers."""
    config = transformers.DiffLlamaConfig(**SMALL, **ATTENTION)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("coverage")
    for name, model in (("dense", tiny_model("llama")), ("mixture", mixture()), ("partly", differential())):
        model.save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    (path / "text.jsonl").write_text(json.dumps({"prompt": "a b", "completion": " c d e"}) + "\n")
    return path


def test_a_dense_model_is_covered_whole(folder, tmp_path):
    arguments = ("run", "--model", folder / "dense", "--corpus", folder / "text.jsonl", "--output", tmp_path / "whole")
    found = succeed(*arguments, "--strict")
    assert found["coverage"] == 1 and sum(found["coverage_by_kind"].values()) == pytest.approx(1)
    shown = act_profile(*arguments, "--force").stdout
    assert "100% of the parameters lie behind a measured channel" in " ".join(shown.replace("│", " ").split())
    planned = succeed("plan", "--model", folder / "dense", "--seconds", "0", "--strict")
    assert planned["coverage"] == 1 and planned["coverage_by_kind"] == pytest.approx(found["coverage_by_kind"])


def test_what_no_site_covers_is_refused_before_a_text_is_read_whole(folder, tmp_path):
    for arguments in (
        ("plan", "--model", folder / "partly", "--seconds", "0"),
        ("run", "--model", folder / "partly", "--corpus", tmp_path / "text.jsonl", "--output", tmp_path / "profile"),
    ):
        (tmp_path / "text.jsonl").write_text('{"text": "a b"}\n' * 2000 + "this is no JSON\n")
        result = act_profile(*arguments, "--strict")
        said = "no site covers model.layers.*.self_attn.lambda_q1 (16 values) (its values together make one factor"
        assert result.returncode == 2 and said in result.stderr
    planned = succeed("plan", "--model", folder / "partly", "--seconds", "0")
    assert 0.995 < planned["coverage"] < 1 and planned["uncovered_values"]["model.layers.*.self_attn.lambda_k2"] == 16
    shown = act_profile("plan", "--model", folder / "partly", "--seconds", "0").stdout
    assert "lambda_q1, 16 values" in shown and "one factor for a whole layer" in shown


def test_what_scales_a_site_is_covered_with_it(folder, tmp_path):
    planned = succeed("plan", "--model", folder / "mixture", "--seconds", "0", "--strict")
    (sinks,) = (site for site in planned["sites"] if site["name"] == "model.layers.1.self_attn.sinks")
    assert planned["coverage"] == 1 and (sinks["scales"], sinks["path"]) == (
        "model.layers.1.self_attn.q_proj",
        "scales q",
    )
    arguments = ("run", "--model", folder / "mixture", "--corpus", folder / "text.jsonl", "--output", tmp_path / "all")
    assert "model.layers.1.self_attn.sinks" not in succeed(*arguments)["irregular"]
    sinks, q = (act.load(tmp_path / "all").site(f"model.layers.1.self_attn.{name}") for name in ("sinks", "q_proj"))
    assert torch.equal(sinks.count, 8 * q.count[:4])
    torch.testing.assert_close(sinks.mean, q.mean.view(4, 8).mean(1))
    assert succeed(*arguments[:-1], tmp_path / "less", "--exclude", "q")["coverage"] < 1
    assert not act.load(tmp_path / "less").site("model.layers.1.self_attn.sinks").count.any()


def test_the_share_is_of_values_behind_channels_that_were_counted(tmp_path):
    model = mixture()
    space = ChannelSpace.from_model(model)
    moments = Moments(space)
    moments.arena[COUNT] = 5
    unread = "model.layers.1.mlp.experts[2].down"
    moments.block(unread)[COUNT] = 0
    profile = act.Profile(moments, Provenance(settings=Settings(exclude=("head",))))
    moments.block("lm_head")[COUNT] = 0
    found = Measured.of(profile)
    total = sum(parameter.numel() for parameter in model.parameters())
    down, head = 48 * 32 + 32, 300 * 32
    assert found.share == pytest.approx(1 - (down + head) / total) and found.excluded == head / total
    assert found.uncovered == {}
    assert found.unreached == {"model.layers.*.mlp.experts[*].down": down}
    with pytest.raises(act.ActError, match=r"experts\[\*\]\.down \(1,568 values\), which no counted token reached"):
        require_measured(tmp_path / "profile", profile)
    assert found.to_json()["coverage"] == found.share


def test_every_token_through_every_expert(folder, tmp_path):
    arguments = ("run", "--model", folder / "mixture", "--corpus", folder / "text.jsonl", "--count", "all")
    routed = succeed(*arguments, "--output", tmp_path / "routed")
    every = succeed(*arguments, "--output", tmp_path / "every", "--moe-all-experts")
    assert (routed["moe_all_experts"], every["moe_all_experts"]) == (False, True)
    assert every["irregular"] == {} and every["unreached_values"] == {} and every["paths"]["segment_moments"] == 24
    for name, chosen in (("routed", 2), ("every", 4)):
        profile = act.load(tmp_path / name)
        got = [int(profile.site(f"model.layers.1.mlp.experts[{e}].up").count[0]) for e in range(4)]
        assert sum(got) == chosen * every["counted"]
        assert profile.provenance.settings.moe_all_experts == (name == "every")
    assert routed["experts"]["few"] == 4 * 2 and routed["experts"]["least"] == 32
