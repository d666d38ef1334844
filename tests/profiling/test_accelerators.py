"""Plans for GPUs by name: published figures, what fits, and a CPU's rate that is never a GPU's."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from command_line import act_profile, succeed
from support import tiny_model
from typer.testing import CliRunner

from act import ActError
from act.cli import app
from act.core.units import amount, count_of, duration, rate, size
from act.profiling.accelerators import ACCELERATORS, EFFICIENCY, accelerator_named
from act.profiling.plan import Fit

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("plan") / "model"
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_every_gpu_has_figures_with_a_source():
    for name, one in ACCELERATORS.items():
        assert one.source.startswith("https://") and one.memory * 2**30 > one.usable > 0.9 * one.memory * 2**30
        assert one.float16 >= one.float32 and 100 < one.bandwidth < 10_000 and name == name.lower()
        assert one.flops("float16") == EFFICIENCY * one.float16 * 1e12
    assert accelerator_named("RTX 4090") is ACCELERATORS["4090"] and accelerator_named("H100") is ACCELERATORS["h100"]
    with pytest.raises(
        ActError, match=r"no figures are known of the GPU 'h10'; expected one of h100.*did you mean h100\?"
    ):
        accelerator_named("h10")
    with pytest.raises(ActError, match="has no units for bfloat16; plan for float16"):
        accelerator_named("v100").flops("bfloat16")


def test_what_does_not_fit_has_ways_out():
    parts = {"weights": 100, "moments": 10, "moments before the batch": 10, "activations": 80}
    assert Fit.of(parts, 200, 1024, 2).fits
    tight = Fit.of(parts, 160, 1024, 4)
    assert not tight.fits and tight.needs == 200
    batch, half, spread, *_ = tight.ways
    assert batch == "in batches of 512 tokens (--token-budget 512)" and "--dtype bfloat16" in half
    assert "over 2 such devices (--device-map auto, --gpus-a-model 2)" in spread
    assert Fit.of(parts, 160, 1024, 4, gpus_a_model=2).fits
    assert Fit.of(parts, 60, 1024, 2).ways == (
        "with what does not fit on the CPU or disk, more slowly (--device-map auto)",
    )


def test_what_does_not_fit_on_this_machine_is_no_matter_of_nine_of_it():
    parts = {"weights": 133 * 2**30, "moments": 2**30, "moments before the batch": 2**30, "activations": 2**30}
    assert Fit.of(parts, 17 * 2**30, 1024, 2, on_cpu=True).ways == (
        "on one NVIDIA B200 180 GB (--gpu b200)",
        "with the weights spread over 2 NVIDIA H100 SXM 80 GB (--device-map auto; to plan it, --gpu h100 "
        "--gpus-a-model 2)",
        "with what does not fit on disk, more slowly (--device-map auto)",
    )
    assert Fit.of({**parts, "weights": 30 * 2**30}, 18 * 2**30, 1024, 4, on_cpu=True).ways[:2] == (
        "in half the width (--dtype bfloat16)",
        "on one NVIDIA A100 SXM 40 GB (--gpu a100-40)",
    )


def test_a_rate_of_this_machine_is_never_that_of_a_gpu(model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, whose rate can be measured")
    plan = ["plan", "--model", model, "--tokens", "1e9", "--seconds", "0.05"]
    refused = act_profile(*plan, "--gpus", "8")
    assert refused.returncode == 2 and "that of a CPU tells nothing of it; name the GPU (--gpu h100" in refused.stderr
    assert "cluster" not in succeed(*plan)
    planned = {name: succeed(*plan, "--gpu", name, "--gpus", "8") for name in ("h100", "a100")}
    forward = {name: one["cluster"]["forward"] for name, one in planned.items()}
    assert forward["a100"] / forward["h100"] == pytest.approx(989 / 312, rel=0.01)
    assert planned["h100"]["fit"] == {
        "device": "NVIDIA H100 SXM 80 GB",
        "needs": sum(planned["h100"]["memory"].values()),
        "has": accelerator_named("h100").usable,
        "fits": True,
        "ways": [],
    }
    given = succeed(*plan, "--gpu", "h100", "--gpu-tflops", "1")["cluster"]
    assert given["assumptions"]["flops"] == 1e12 and given["assumptions"]["memory"] == 3350e9
    rates = succeed("plan", "--model", model, "--gpu", "h100", "--gpus", "8")  # of no number of tokens
    assert rates["cluster"]["tokens_per_second"] == planned["h100"]["cluster"]["tokens_per_second"]
    assert "wall" not in rates["cluster"] and rates["measured"] is None and "seconds_here" not in planned["h100"]
    assert {"rotary", "gated_mlp"} < {site["path"] for site in rates["sites"]}  # how sites are read is still tried
    shown = act_profile("plan", "--model", model, "--gpu", "h100").stdout
    assert "1 x NVIDIA H100 SXM 80 GB: " in shown and "measured here" not in shown and "this processor" not in shown


def test_a_plan_is_read_by_people(model):
    large = act_profile(
        "plan",
        "--model",
        model,
        "--tokens",
        "1e9",
        "--seconds",
        "0",
        "--gpu",
        "t4",
        "--dtype",
        "float16",
        "--token-budget",
        "99999999",
    )
    assert large.returncode == 0, large.stderr
    first, *ways = large.stdout.splitlines()
    assert first.startswith("does not fit: ") and "GiB are needed, and NVIDIA T4 16 GB has 14.7 GiB" in first
    assert "in batches of" in ways[0] and "1 x NVIDIA T4 16 GB" in large.stdout and "1 billion tokens" in large.stdout
    assert "(40% of the dense rate in https://" in " ".join(large.stdout.split())


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("1B", 1e9),
        ("500m", 5e8),
        ("2.5k", 2500),
        ("1e9", 1e9),
        ("1,500,000", 1.5e6),
        ("1_000", 1e3),
        ("3 trillion", 3e12),
    ],
)
def test_counts_are_read_as_people_write_them(given, count):
    assert count_of(given) == count


@pytest.mark.parametrize("given", ["", "k", "1x", "1,5B", "nan", "inf", "1.2.3", "1e999", "five"])
def test_what_is_no_count_is_refused(given):
    with pytest.raises(ValueError, match=r"no number|could not convert|not finite"):
        count_of(given)


@pytest.mark.parametrize(
    ("given", "said"), [("1e9x", "a number of tokens, such as 1e9, 500M or 2.5k"), ("0", "at least 1")]
)
def test_a_mistaken_number_of_tokens_is_one_sentence(given, said, model):
    refused = act_profile("plan", "--model", model, "--tokens", given)
    assert refused.returncode == 2 and "--tokens is" in refused.stderr and said in refused.stderr


def test_units_are_those_that_people_read():
    assert [duration(x) for x in (0, 0.004, 59.97, 3599.7, 86_399, 9e5, 1e10, float("inf"))] == [
        "0 s", "under 0.1 s", "1 min", "1 h", "1 d", "10 d 10 h", "317 years", "unknown",
    ]  # fmt: skip
    assert (size(0), size(1023), size(1024), size(2**60)) == ("0 B", "1,023 B", "1.0 KiB", "1,024.0 PiB")
    assert (rate(0), rate(1.5e15), amount(999_999), amount(2_500_000)) == (
        "0 FLOP/s",
        "1.5 PFLOP/s",
        "999,999",
        "2.5 million",
    )


def test_a_plan_of_a_large_model_says_what_it_measures_and_that_it_does_not_fit(model, monkeypatch):
    monkeypatch.setattr("act.profiling.forward_speed.WHOLE_BYTES", 0)
    monkeypatch.setitem(ACCELERATORS, "t4", replace(ACCELERATORS["t4"], memory=0.001))
    here = RUNNER.invoke(app, ["plan", "--model", str(model), "--seconds", "0.01"])
    assert "… measuring one and two layers with random weights on cpu" in here.output, here.output
    asked = ["plan", "--model", str(model), "--gpu", "t4", "--dtype", "float16"]
    hours = RUNNER.invoke(app, [*asked, "--gpu-tflops", "0.00001", "--tokens", "1B"]).output
    assert re.search(r"GPU hours +│ \d{1,3}(,\d{3})+ ", hours), hours
    there = RUNNER.invoke(app, [*asked, "--tokens", "1k"])
    assert "does not fit" in there.output and "1 x NVIDIA T4 16 GB, if it fitted" in there.output
    assert "measuring" not in there.output
    untimed = RUNNER.invoke(app, ["plan", "--model", str(model), "--seconds", "0", "--tokens", "1k"])
    assert "in what time was not measured: give --seconds for this device, or --gpu" in untimed.output
