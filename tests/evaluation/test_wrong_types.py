"""A path or a name where an object is expected: one sentence says what was given and what to give."""

from __future__ import annotations

import pytest
import torch
from support import chosen, tiny_model

import act
from act.models.channels import ChannelSpace

MODEL = "expected a PyTorch model, as from_pretrained returns"
CORPUS = "the corpus is of type str; expected an act.Corpus; make one with from_file or from_records"
SET = "the channel set is of type str; expected an act.ChannelSet"
PROFILE = "of type str; expected a profile, as act.profile_pair or act.load returns"


@pytest.fixture(scope="module")
def given(models, pair, tokenizer):
    corpus = act.Corpus.from_records([{"question": "What is 1 plus 1?", "answer": "2"}], tokenizer)
    result = act.evaluate(models[1], corpus, "nll")
    return {
        "donor": models[0],
        "target": models[1],
        "pair": pair,
        "corpus": corpus,
        "channels": chosen(ChannelSpace.from_model(models[1]), 0.1),
        "result": result,
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: act.rank("german.safetensors"), f"the profile is {PROFILE}"),
        (lambda g: act.rank((g["pair"], "german.safetensors")), f"the profile is {PROFILE}"),
        (lambda g: act.rank(g["pair"], keep="english.safetensors"), f"keep is {PROFILE}"),
        (lambda g: act.rank(g["pair"], keep=["english.safetensors"]), f"keep is {PROFILE}"),
        (lambda g: act.rank(g["pair"], "weight-diff", donor="a", target="b"), f"the donor is of type str; {MODEL}"),
        (lambda g: act.transfer(g["donor"], g["target"], "channels.safetensors"), SET),
        (lambda g: act.transfer("base", "specialist", g["channels"]), f"the target is of type str; {MODEL}, or its"),
        (lambda g: act.transfer(3, g["target"], g["channels"]), f"the donor is of type int; {MODEL}.*, or a folder"),
        (lambda g: act.transfer(g["donor"], g["target"], g["channels"], "0.4"), "strength is '0.4'; expected a number"),
        (lambda g: act.transfer_many([g["donor"]], g["target"]), "a donor is of type .*; expected an act.Donor"),
        (lambda g: act.Patch([], None).apply("target"), f"the model is of type str; {MODEL}"),
        (lambda g: act.compose(["patch.safetensors"]), "a patch is of type str; expected an act.Patch"),
        (
            lambda g: act.transfer_many(act.Donor(g["donor"], g["channels"]), g["target"]),
            "one act.Donor; expected a list",
        ),
        (
            lambda g: act.profile(g["target"], g["corpus"], checkpoint="folder"),
            "of type str; expected an act.Checkpoint",
        ),
        (
            lambda g: act.sweep(g["donor"], g["target"], g["pair"], lambda model: -1.0),
            "type float; expected figures by",
        ),
        (
            lambda g: act.evaluate(g["target"], g["corpus"], token_budget="auto"),
            "token budget is 'auto'; expected a whole",
        ),
        (
            lambda g: act.evaluate(g["target"], g["corpus"], max_new_tokens=2.5),
            "max new tokens is 2.5; expected a whole",
        ),
        (lambda g: act.TuneSettings(learning_rate="1e-4"), "learning rate is '1e-4'; expected a number, such as 0.1"),
        (lambda g: act.TuneSettings(steps=1.5), "steps is 1.5; expected a whole number"),
        (lambda g: act.TuneSettings(batch_size="8"), "batch size is '8'; expected a whole number"),
        (lambda g: act.evaluate("base", g["corpus"]), f"the model is of type str; {MODEL}"),
        (lambda g: act.evaluate(g["target"], "german.jsonl"), CORPUS),
        (lambda g: act.compare("before.json", g["result"]), "before is of type str; expected an act.Evaluation"),
        (lambda g: act.compare(g["result"], None), "after is of type NoneType; expected an act.Evaluation"),
        (lambda g: act.sweep("base", g["target"], g["pair"], len), f"the donor is of type str; {MODEL}"),
        (lambda g: act.sweep(g["donor"], g["target"], "pair.safetensors", len), PROFILE),
        (lambda g: act.sweep(g["donor"], g["target"], g["pair"], "exact"), "evaluate is 'exact'; expected a function"),
        (lambda g: act.sweep(g["donor"], g["target"], g["pair"], len, strengths=["0.4"]), "strength is '0.4'"),
        (
            lambda g: act.choose(g["donor"], g["target"], "pair.safetensors", g["corpus"], g["corpus"]),
            f"the ranking is {PROFILE}",
        ),
        (lambda g: act.tune("base", g["corpus"]), f"the model is of type str; {MODEL}"),
        (lambda g: act.tune(g["target"], "german.jsonl"), CORPUS),
        (lambda g: act.tune(g["target"], g["corpus"], "rows"), "settings is of type str; expected an act.TuneSettings"),
        (lambda g: act.tune(g["target"], g["corpus"], replay="x"), "the replay corpus is of type str"),
        (lambda g: act.tune(g["target"], g["corpus"], channels="channels.safetensors"), SET),
        (lambda g: act.attribution.attribution("a", g["target"], g["corpus"]), f"the donor is of type str; {MODEL}"),
        (lambda g: act.attribution.attribution(g["donor"], g["target"], "german.jsonl"), CORPUS),
    ],
)
def test_a_path_or_name_instead_of_an_object_is_refused(call, message, given):
    with pytest.raises(act.ActError, match=message):
        call(given)


def test_one_name_need_not_stand_in_a_list(pair):
    for option in ("include", "exclude"):
        one, listed = (act.rank(pair, **{option: names}) for names in ("head", ["head"]))
        assert torch.equal(one.index, listed.index) and one.rule == listed.rule


def test_the_refusal_to_replace_a_file_names_the_option_of_python(tmp_path):
    channels = chosen(ChannelSpace.from_model(tiny_model("llama")), 0.1)
    channels.save(tmp_path / "channels.safetensors")
    with pytest.raises(act.ActError, match=r"pass force=True to replace it"):
        channels.save(tmp_path / "channels.safetensors")
