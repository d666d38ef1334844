"""Reports: their numbers and tables."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from support import tiny_model

import act
from act.core.errors import ActError
from act.report.build import build, measure
from act.report.verdict import verdict_of_profiles
from act.report.write import write


@pytest.fixture(scope="module")
def profiles(tokenizer):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    texts = {"one": ["a b c", "d e"], "more": ["e d", "c b a"], "other": ["What is two plus three?"]}
    return {
        name: act.profile_pair(
            donor, target, act.Corpus.from_records([{"text": t} for t in kept], tokenizer, count="all")
        )
        for name, kept in texts.items()
    }


def test_a_report_tells_stability_from_disentanglement(profiles, tmp_path):
    measured = measure(list(profiles.values()), ["letters", "letters", "words"], top=0.1)
    assert [one.name for one in measured] == ["letters", "letters 2", "words"]
    random = act.rank(profiles["one"], "random", 0.1)
    report = build(
        measured,
        top=0.1,
        sets={"random": random},
        model=tiny_model("llama"),
        losses={"text": lambda model: float(model(torch.arange(8)[None]).logits.detach().std())},
    )
    relations = {(row["relation"], row["first"], row["second"]) for row in report.data["overlaps"]}
    assert ("stability", "letters", "letters 2") in relations and ("disentanglement", "letters", "words") in relations
    assert ("set", "words", "random") in relations and len(relations) == 3 + 3
    assert [row["ablated"] for row in report.data["necessity"]] == ["letters", "letters 2", "words", "random"]
    assert len({row["channels"] for row in report.data["necessity"]}) == 1
    assert report.data["recovered"] == []
    names, matrix = report.matrix
    assert names[-1] == "random" and all(matrix[i][i] == 1 for i in range(4))

    files = write(report, tmp_path / "report")
    assert files == sorted(path.name for path in (tmp_path / "report").glob("[!.]*"))
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report.data
    with (tmp_path / "report" / "overlaps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["jaccard"]) for row in rows] == [row["jaccard"] for row in report.data["overlaps"]]
    with pytest.raises(ActError, match="exists already"):
        write(report, tmp_path / "report")


def test_shares_of_groups_add_up(profiles):
    (one,) = build(measure([profiles["one"]], top=0.1), top=0.1).data["concentration"]
    for by in ("kinds", "layers"):
        for share in ("channels", "score", "chosen"):
            assert sum(cell[share] for cell in one[by].values()) == pytest.approx(1)


def test_profiles_that_cannot_be_compared_are_refused(profiles, tokenizer):
    with pytest.raises(ActError, match="profiles 1 and 2 are of the same models and text"):
        measure([profiles["one"], profiles["one"]])
    with pytest.raises(ActError, match="2 abilities were named for 1 profiles"):
        measure([profiles["one"]], ["a", "b"])
    corpus = act.Corpus.from_records([{"text": "c c"}], tokenizer, count="all")
    with pytest.raises(ActError, match="give pair profiles"):
        measure([act.profile(tiny_model("llama"), corpus)])
    seed = act.profile_pair(tiny_model("llama", seed=3), tiny_model("llama", seed=4), corpus)
    across = build(measure([profiles["one"], seed], ["letters", "letters"])).data["overlaps"]
    assert {row["relation"] for row in across} == {"stability"}
    with pytest.raises(ActError, match="different models: the donor"):
        build(measure([profiles["one"], seed], ["letters", "words"]))
    wide = act.profile_pair(tiny_model("qwen2"), tiny_model("qwen2", seed=1), corpus)
    with pytest.raises(ActError, match="different architectures"):
        measure([profiles["one"], wide])


def test_an_attribution_stands_beside_activations_of_the_same_models(profiles, tokenizer):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    texts = {
        name: act.Corpus.from_records([{"text": text}], tokenizer, count="all")
        for name, text in (("x", "a b c"), ("y", "d e"))
    }
    by_loss = {name: act.attribute(donor, target, text) for name, text in texts.items()}
    by_value = {name: act.profile_pair(donor, target, text) for name, text in texts.items()}
    measured = measure([by_value["x"], by_loss["x"], by_value["y"]], ["x", "x", "y"], keep=[profiles["more"]], top=0.1)
    assert [one.name for one in measured] == ["x", "x (attribution)", "y"]
    assert [bool(one.top.rule.keep) for one in measured] == [True, False, True]
    report = build(
        measured,
        top=0.1,
        model=donor,
        losses={"t": lambda model: float(model(torch.arange(8)[None]).logits.detach().std())},
    )
    assert report.data["score"] == "paired, attribution"
    relations = {(row["relation"], row["first"], row["second"]) for row in report.data["overlaps"]}
    assert relations == {("scores", "x", "x (attribution)"), ("disentanglement", "x", "y")}  # not of what differs twice
    assert [row["ablated"] for row in report.data["necessity"]] == ["x", "x (attribution)", "y", "random"]
    named = build(
        measure([by_value["x"], by_loss["x"]], ["x", "by gradients"]), top=0.05
    )  # the text tells that it is one
    assert {row["relation"] for row in named.data["overlaps"]} == {"scores"}
    assert verdict_of_profiles(named).headline.startswith("Where x may live")
    other = act.attribute(donor, tiny_model("llama", seed=3), texts["x"])
    with pytest.raises(ActError, match="different models: the target is"):
        build(measure([by_value["x"], other], ["x", "x"]))
    with pytest.raises(ActError, match="holds no activations, so it can be ranked by attribution only"):
        measure([by_value["x"], by_loss["x"]], score="paired")
    with pytest.raises(ActError, match="of the same models and text"):
        measure([by_loss["x"], by_loss["x"]])
    with pytest.raises(ActError, match="attribution profiles do not hold"):
        build(measure([by_loss["x"]]), model=donor, losses={"t": float})


def test_moving_each_set_alone_is_measured_and_taken_back(profiles):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    before = target.lm_head.weight.clone()

    def loss(model):
        ids = torch.arange(8)[None]
        return float(model(ids, labels=ids).loss.detach())

    measured = measure([profiles["one"]], ["letters"], top=0.2)
    rows = build(measured, top=0.2, model=donor, target=target, losses={"text": loss}).data["recovered"]
    assert [row["moved"] for row in rows] == ["letters", "random"]
    assert torch.equal(target.lm_head.weight, before)
    for row in rows:
        assert (row["target"], row["donor"]) == (loss(target), loss(donor))
        assert row["loss"] != row["target"]
        lacked = row["target"] - row["donor"]
        assert row["share"] == (pytest.approx((row["target"] - row["loss"]) / lacked) if lacked > 0 else None)
