"""Channel sets: their file and its rule, and how they show themselves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import act
from act.models.sites import ParameterSlice, Site
from act.profiles.provenance import ModelRead
from act.ranking.channel_set import ChannelSet
from act.ranking.rule import Rule

SPACE = act.ChannelSpace(
    (
        Site("embed", "embed", None, 0, 4, (), "head"),
        Site("layers.0.up", "<up>", 0, 4, 3, (ParameterSlice("layers.0.up.weight", 0),)),
        Site("head", "head", None, 7, 5, (ParameterSlice("head.weight", 0),)),
    )
)
RULE = Rule(
    "paired",
    top=0.05,
    normalize="std",
    scope="layer",
    granularity=("neuron", "head"),
    contrast=True,
    keep=(("english",),),
    corpora=("german",),
    exclude=("head",),
    ranked=7,
    not_positive=1,
    unmeasured={"up": 2},
    models={"donor": ModelRead("d", "12"), "target": ModelRead("t", "34")},
    tied={"embed": "head"},
)
WRITTEN_BEFORE = {  # the rule of a file of schema 2, as it was written when rules were plain dictionaries
    "score": "paired", "top": 0.05, "count": None, "mass": None, "normalize": "std", "scope": "layer",
    "granularity": ["neuron", "head"], "contrast": True, "keep": [["english"]], "corpora": ["german"], "include": [],
    "exclude": ["head"], "seed": None, "ranked": 7, "not_positive": 1, "unmeasured": {"up": 2},
    "models": {"donor": {"name": "d", "fingerprint": "12"}, "target": {"name": "t", "fingerprint": "34"}},
    "tied": {"embed": "head"},
}  # fmt: skip


def small(rule: Rule | None = None) -> ChannelSet:
    return ChannelSet(SPACE, torch.tensor([8, 5, 9]), torch.tensor([1.0, 2.0, 3.0]).double(), rule)


@pytest.mark.parametrize(("written", "rule"), [(WRITTEN_BEFORE, RULE), ({}, Rule())])
def test_files_written_before_load(tmp_path, written, rule):
    header = {"space": SPACE.to_json(), "rule": written}
    metadata = {"schema": "act-channels/2", "header": json.dumps(header)}
    save_file({"index": torch.tensor([5]), "scores": torch.ones(1).double()}, tmp_path / "set", metadata)
    assert ChannelSet.load(tmp_path / "set").rule == rule


def test_a_rule_is_written_as_before():
    assert json.loads(json.dumps(RULE.to_json())) == WRITTEN_BEFORE
    assert Rule.from_json(RULE.to_json()) == RULE


def test_a_rule_that_is_none_is_refused(tmp_path):
    header = {"space": SPACE.to_json(), "rule": ["paired"]}
    metadata = {"schema": "act-channels/2", "header": json.dumps(header)}
    save_file({"index": torch.tensor([5]), "scores": torch.ones(1).double()}, tmp_path / "set", metadata)
    with pytest.raises(act.ActError, match=r"set is damaged: it is .*paired"):
        ChannelSet.load(tmp_path / "set")


def test_a_set_that_is_read_as_a_profile_says_what_reads_it(tmp_path):
    small().save(tmp_path / "set")
    with pytest.raises(
        act.ActError, match=r"set is a channel set, expected a profile; act.ChannelSet.load reads this one"
    ):
        act.load(tmp_path / "set")


def test_a_set_is_shown_in_one_line():
    assert repr(small()) == "<ChannelSet: 3 of 12 channels by custom: head 2, <up> 1>"
    assert str(RULE) == (
        "paired, top 5%, normalized by std, in each layer, without head, by neuron and head, contrasted with what to keep"
    )
    empty = ChannelSet(SPACE, torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert repr(empty) == "<ChannelSet: 0 of 12 channels by custom>" and "0 of 12" in empty._repr_html_()


def test_a_set_is_shown_as_a_table_in_a_notebook():
    html = small()._repr_html_()
    assert "<td>&lt;up&gt;</td><td>1</td><td>3</td><td>33.3%</td>" in html and "<up>" not in html


def test_a_set_as_a_frame():
    pytest.importorskip("pandas")
    frame = small().to_frame()
    assert frame.columns.tolist() == ["site", "kind", "layer", "row", "score"]
    assert frame["site"].tolist() == ["layers.0.up", "head", "head"] and frame["row"].tolist() == [1, 1, 2]
    assert frame["score"].tolist() == [2.0, 1.0, 3.0]
    assert frame["layer"].isna().tolist() == [False, True, True] and frame["layer"][0] == 0
    empty = ChannelSet(SPACE, torch.empty(0, dtype=torch.int64), torch.empty(0)).to_frame()
    assert len(empty) == 0 and empty.columns.tolist() == frame.columns.tolist()
