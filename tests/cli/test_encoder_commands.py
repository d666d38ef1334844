"""Encoders, and encoders with a decoder, as a user types it."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import act_profile, succeed
from support import state, tiny_encoder, word_tokenizer

import act
from act.models.loading import load_model

ASKED = [{"prompt": "what is two " * (1 + n % 4), "completion": "five answer " * (1 + n % 3)} for n in range(12)]
TEXTS = [{"text": "a b c d e " * (1 + n % 9)} for n in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for like in ("bert", "t5"):
        for side, seed in (("donor", 0), ("target", 1)):
            tiny_encoder(like, seed).save_pretrained(folder / like / side)
            word_tokenizer(like).save_pretrained(folder / like / side)
    for name, records in (("asked", ASKED), ("texts", TEXTS)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.mark.parametrize(
    ("like", "corpus", "counted"), [("bert", "texts", 255), ("bert", "asked", 48), ("t5", "asked", 150)]
)
def test_from_a_pair_to_a_patch(folder, tmp_path, like, corpus, counted):
    donor, target = folder / like / "donor", folder / like / "target"
    places = {name: tmp_path / f"{name}.safetensors" for name in ("pair", "set", "patch")}
    found = succeed("pair", "--donor", donor, "--target", target, "--corpus", folder / f"{corpus}.jsonl", "--output", places["pair"])  # fmt: skip
    assert found["counted"] == counted
    succeed("rank", places["pair"], "--score", "paired", "--top", "10%", "--output", places["set"])
    options = ("--donor", donor, "--target", target, "--channels", places["set"])
    succeed("transfer", *options, "--output", tmp_path / "moved")
    succeed("transfer", *options, "--output", places["patch"])
    succeed("patch", "apply", places["patch"], "--model", target, "--output", tmp_path / "patched")
    models = [load_model(str(place), device="cpu") for place in (donor, target)]
    act.transfer(*models, act.ChannelSet.load(places["set"]), strength=0.4)
    expected = state(models[1])
    for name in ("moved", "patched"):
        moved = state(load_model(str(tmp_path / name), device="cpu"))
        assert moved.keys() == expected.keys() and all(torch.equal(moved[key], expected[key]) for key in moved)


def test_a_plan_and_a_preview_know_two_texts(folder):
    plan = succeed("plan", "--model", folder / "t5" / "target", "--corpus", folder / "asked.jsonl", "--seconds", "0.01")
    assert plan["corpus"]["tokens"] == 162 and plan["coverage"] == 1
    spans = succeed("run", "--model", folder / "t5" / "target", "--corpus", folder / "asked.jsonl", "--show-spans", 1)
    assert [run["text"] for run in spans["spans"][""][0]] == ["what is two </s>", "five answer </s>"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--model", "t5/target", "--corpus", "texts.jsonl"), "line 1: the record has no source beside its answer"),
        (("evaluate", "--model", "t5/target", "--corpus", "asked.jsonl"), "an encoder with a decoder, and evaluation needs"),
        (("evaluate", "--model", "bert/target", "--corpus", "texts.jsonl"), "BertForMaskedLM is an encoder, and evaluation"),
        (("tune", "--model", "bert/target", "--corpus", "asked.jsonl", "--output", "tuned"), "tuning needs a causal"),
    ],
)  # fmt: skip
def test_what_needs_a_causal_model_says_so(folder, arguments, message):
    result = act_profile(*arguments, cwd=folder)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") < 3
