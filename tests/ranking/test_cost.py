"""What the fall of a loss is divided by."""

from __future__ import annotations

import pytest
import torch
from pyarrow.parquet import read_table
from support import tiny_model

import act
from act.models.channels import ChannelSpace
from act.profiles.attribution import AttributionProfile
from act.profiles.moments import Moments
from act.profiles.provenance import CorpusRead, ModelRead, Provenance
from act.ranking.export import export
from act.report.build import measure
from act_kernels.statistics import COUNT, M2, MEAN

SPACE = ChannelSpace.from_model(tiny_model("llama"))


def profile(name: str, mean: torch.Tensor, kept=(), spread: float = 0.0) -> AttributionProfile:
    moments = Moments(SPACE)
    moments.arena[COUNT], moments.arena[MEAN], moments.arena[M2] = 4, mean, 4 * spread**2
    models = {side: ModelRead(side, side) for side in ("donor", "target")}
    corpus = CorpusRead(name, name, count="answer", counted=8)
    distance = torch.linspace(1, 2, len(SPACE), dtype=torch.float64)
    return AttributionProfile(moments, Provenance(models=models, corpora=(corpus,)), distance, kept)


def falls() -> torch.Tensor:
    return torch.randn(len(SPACE), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_each_cost_is_what_it_says():
    mean = falls()
    one, other = (profile(name, falls() * scale, spread=1.0) for name, scale in (("one", 1.0), ("other", 0.5)))
    found = profile("ability", mean, [one, other])
    torch.testing.assert_close(found.fall, -mean / 2)  # four documents of two tokens each
    expected = {
        "none": found.fall,
        "distance": found.fall / found.distance,
        "keep": found.fall / torch.maximum(one.rms, other.rms),
    }
    for cost, scores in expected.items():
        ranked = act.rank(found, "attribution", 1.0, cost=cost)
        torch.testing.assert_close(ranked.scores, scores[ranked.index])
        assert ranked.rule.cost == cost
    assert act.rank(found, "attribution").rule.cost == "keep"
    bare = profile("ability", mean)
    assert act.rank(bare, "attribution").rule.cost == "none"
    apart = act.rank(bare, "attribution", 1.0, keep=[one, other])
    assert torch.equal(apart.scores, act.rank(found, "attribution", 1.0).scores)
    assert "over the cost to what to keep" in str(apart.rule) and apart.rule.keep == (("one",), ("other",))


def test_the_error_is_that_of_the_mean_over_documents():
    found = profile("ability", falls(), spread=3.0)
    torch.testing.assert_close(found.error, torch.full((len(SPACE),), 3.0 * (4 / 3) ** 0.5 / 2 * 4 / 8).double())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score": "attribution", "cost": "keep"}, "there are none"),
        ({"score": "paired"}, "can be ranked by attribution only"),
        ({"score": "lape", "keep": profile("other", falls() / 2)}, "can be ranked by attribution only"),
        ({"score": "attribution", "keep": profile("ability", falls())}, "the ability's own text"),
        ({"score": "random", "cost": "none"}, "has no effect on score random"),
        ({"score": "attribution", "normalize": "channel"}, "use it with an activation score"),
    ],
)
def test_what_cannot_be_ranked(options, said):
    with pytest.raises(act.ActError, match=said):
        act.rank(profile("ability", falls()), **options)


def test_two_attributions_are_not_those_of_two_models():
    found = profile("ability", falls())
    with pytest.raises(act.ActError, match="of donor and target together; give one"):
        act.rank((found, found), "attribution")


def test_activations_cannot_be_ranked_by_attribution(pair):
    with pytest.raises(act.ActError, match="needs gradients"):
        act.rank(pair, "attribution")


def test_an_attribution_needs_no_name_of_its_score(pair):
    found = profile("ability", falls())
    assert act.rank(found, count=5).rule.score == "attribution" and act.rank(pair, count=5).rule.score == "paired"
    assert [one.top.rule.score for one in measure([found])] == ["attribution"]


def test_tables_have_the_error_of_each_channel(pair, tmp_path):
    found = profile("ability", falls(), [profile("other", falls(), spread=1.0)], spread=3.0)
    channels = act.rank(found, count=5)
    for held, measured in ((channels, found), (channels, pair), (found, None)):
        export(held, tmp_path / "table.parquet", measured=measured, force=True)
        table = read_table(tmp_path / "table.parquet").to_pydict()
        assert ("loss_fall_per_token_se" in table) == (measured is not pair)
        if measured is not pair:
            index = torch.tensor(table["channel"])
            assert table["loss_fall_per_token_se"] == found.error[index].tolist()
            assert table["loss_fall_per_token"] == found.fall[index].tolist() and set(table["documents"]) == {4}
