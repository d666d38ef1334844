"""How profiles show themselves: one line, a small table, a data frame."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support import random_batches, tiny_model

import act
from act.profiles import tables
from act.profiles.moments import Moments
from act.profiles.provenance import CorpusRead, ModelRead, Provenance


@pytest.fixture(scope="module")
def profile(models):
    return act.profile(models[0], random_batches())


def odd_profile() -> act.Profile:
    """Of nothing, with names that are markup."""
    space = act.ChannelSpace((act.Site("x", "up", None, 0, 2, ()),))
    provenance = Provenance({"model": ModelRead("<b>[red]m</b>", "f")}, corpora=(CorpusRead("a&b", counted=1200),))
    return act.Profile(Moments(space), provenance)


def test_a_profile_is_one_line(profile, pair):
    counted = profile.provenance.corpora[0].counted
    rest = f"over batches: 940 channels at 21 sites, {counted} tokens counted>"
    assert repr(profile) == f"<Profile of LlamaForCausalLM {rest}"
    assert repr(pair).startswith("<PairProfile of LlamaForCausalLM and LlamaForCausalLM over batches: ")
    assert repr(profile + profile).count("batches") == 2
    assert repr(pair.site("lm_head")) == "<PairStatistics of 300 channels>"
    assert repr(act.Profile(odd_profile().moments, Provenance())) == (
        "<Profile of an unknown model over no text: 2 channels at 1 site, 0 tokens counted>"
    )


def test_tables_escape_names(pair):
    html = odd_profile()._repr_html_()
    assert "&lt;b&gt;[red]m&lt;/b&gt; (f)" in html and "a&amp;b" in html and "<b>" not in html
    console = Console(file=io.StringIO(), width=200)
    console.print(odd_profile(), pair)
    printed = console.file.getvalue()
    assert "<b>[red]m</b> (f)" in printed and "donor" in printed and "1,200 counted" in printed


def test_a_pairs_site_has_both_sides_and_their_difference(pair):
    site, space = pair.site("model.layers.1.mlp.up_proj"), pair.space.site("model.layers.1.mlp.up_proj")
    for name in tables.VECTORS:
        for side in (site, site.target):
            assert torch.equal(getattr(side, name), getattr(pair.target, name)[space.channels])
        assert torch.equal(getattr(site.donor, name), getattr(pair.donor, name)[space.channels])
    for name in tables.DIFFERENCES:
        assert torch.equal(getattr(site, name), getattr(pair, name)[space.channels])
    assert not torch.equal(site.donor.mean, site.target.mean) and isinstance(site, act.Statistics)
    with pytest.raises(act.ActError, match="no site called nothing; the first of"):
        pair.site("nothing")
    with pytest.raises(act.ActError, match=r"no site called .*; did you mean model\.layers\.1\.mlp\.up_proj\?$"):
        pair.site("model.layer.1.mlp.up_proj")


def test_a_frame_has_a_row_for_each_channel(profile, pair):
    pytest.importorskip("pandas")
    frame = profile.to_frame()
    assert list(frame.columns) == ["site", "kind", "layer", "row", *tables.VECTORS]
    assert len(frame) == len(profile.space)
    for channel in (0, 100, len(frame) - 1):
        site, row = profile.space.locate(channel)
        found = frame.loc[channel]
        assert (found.site, found.kind, found.row) == (site.name, site.kind, row)
        assert found.layer == site.layer if site.layer is not None else found.isna().layer
        assert found["var"] == profile.var[channel] and found.positive_rate == profile.positive_rate[channel]
    frame = pair.to_frame()
    sides = [f"{side}_{name}" for side in ("donor", "target") for name in tables.VECTORS]
    assert list(frame.columns) == ["site", "kind", "layer", "row", *sides, *tables.DIFFERENCES]
    assert torch.equal(torch.from_numpy(frame.mean_abs_diff.to_numpy().copy()), pair.mean_abs_diff)
    assert torch.equal(torch.from_numpy(frame.donor_mean.to_numpy().copy()), pair.donor.mean)


def test_columns_of_attributions_say_what_they_are(tokenizer):
    donor, target = tiny_model("llama"), tiny_model("llama", 1)
    german, maths, code = (
        act.Corpus.from_records([{"prompt": "a", "completion": text} for text in texts], tokenizer, name=name)
        for name, texts in {"german": (" b c", " d"), "maths": (" c", " d e"), "code": (" e", " f")}.items()
    )
    one, two = (act.attribute(donor, target, german, keep=keep) for keep in (maths, {"maths": maths, "code": code}))
    found = tables.vectors_of(one)
    assert [*found] == [*tables.ATTRIBUTED, *(f"keep_{name}" for name in tables.ATTRIBUTED), "distance"]
    assert torch.equal(found["loss_fall_per_token"], one.fall) and torch.equal(found["loss_change_mean"], one.mean)
    assert torch.equal(found["keep_loss_fall_per_token_se"], one.kept[0].error) and found["documents"].max() == 2
    assert torch.equal(tables.vectors_of(two)["keep_2_loss_change_rms"], two.kept[1].rms)
    page = (Path(__file__).parents[2] / "docs" / "guides" / "report.md").read_text(encoding="utf-8")
    assert [
        name for name in (*tables.ATTRIBUTED, *tables.VECTORS, *tables.DIFFERENCES) if f"`{name}`" not in page
    ] == []


def test_some_channels_have_places_too(profile):
    pandas = pytest.importorskip("pandas")
    chosen = torch.tensor([3, 40, 41, len(profile.space) - 1])
    some = act.ChannelSet(profile.space, chosen, profile.mean_abs[chosen]).to_frame()
    assert some.pop("score").tolist() == profile.mean_abs[chosen].tolist()
    every = profile.to_frame().loc[chosen.tolist(), ["site", "kind", "layer", "row"]]
    assert some.astype(object).values.tolist() == every.astype(object).values.tolist()
    assert len(pandas.DataFrame(tables.places(profile.space, chosen[:0]))) == 0


def test_a_frame_without_pandas_is_one_sentence(profile, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(act.ActError, match=r"pip install 'act-profile\[frame\]'"):
        profile.to_frame()
