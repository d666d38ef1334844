"""``--stable-score match``: what is certified is what ``rank`` gives, its errors are true, and they bound what changes."""

from __future__ import annotations

import pytest
import tiny_families
import torch
from support import CONFIGS, random_batches, tiny_model

import act
from act.core.errors import ActError
from act.data.corpus import Corpus
from act.models.loading import empty_model
from act.models.sites import ParameterSlice
from act.profiles.moments import Moments
from act.profiles.statistics import DONOR, PRODUCT, TARGET, Statistics
from act.profiling import benefits
from act.profiling.benefits import GroupedBenefits
from act.profiling.checkpoint import Checkpoint
from act.profiling.job import Job
from act.profiling.measure import run_job
from act.profiling.observer import Observer
from act.profiling.plan import Shape
from act.profiling.stability import GROUPS, Criterion, SequentialTest, StableScore
from act.profiling.until_stable import UntilStable, rankable
from act.ranking.activations import Activations
from act.ranking.match import benefit
from act_kernels import pair_moments

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "phi3", "llama-tied-bias", "mixtral"])
def test_the_score_is_that_of_a_ranking(family, monkeypatch):
    monkeypatch.setattr(benefits, "_PIECE", 100)
    made = (tiny_model(family), tiny_model(family, 1)) if family in CONFIGS else tiny_families.pair_of(family)
    pair = act.profile_pair(*made, random_batches(), swap=True)
    ranked = rankable(pair.space)
    found = GroupedBenefits(pair.space, CPU, ranked)
    assert found.take(pair.moments)
    expected = act.rank(pair, "match", 1.0)
    assert torch.equal(found.scored, expected.index) and found.ranked == len(expected.index)
    torch.testing.assert_close(found.means(), expected.scores, rtol=1e-10, atol=1e-14)
    some = GroupedBenefits(pair.space, CPU, ranked[::7].clone(), len(ranked))
    assert some.take(pair.moments), "the rest of a module tells how large its outputs are"
    torch.testing.assert_close(some.means(), found.means()[torch.isin(found.scored, ranked[::7])])


def test_what_has_no_benefit_is_left_out():
    made = tiny_model("llama"), tiny_model("llama", 1)
    made[0].model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)  # so it is not swapped
    pair = act.profile_pair(*made, random_batches(), swap=True, exclude=["norm"])
    arena, head = pair.moments.arena, pair.space.site("lm_head").channels
    arena[:, :3, [head.start, 40]] = 0.0  # never counted, as a token that is masked is not
    ranked = rankable(pair.space, [site.name for site in pair.space if site.kind == "norm"])
    found = GroupedBenefits(pair.space, CPU, ranked)
    assert found.take(pair.moments)
    expected = benefit(Activations.of(pair))[ranked]
    assert torch.equal(found.scored, ranked[expected.isfinite()]) and len(found) == len(ranked) - 48 - 2
    torch.testing.assert_close(found.means(), expected[expected.isfinite()])
    nothing = Moments(pair.space, pair=True, swap=True)
    assert not GroupedBenefits(pair.space, CPU, ranked).take(nothing)


def test_an_expert_that_too_few_tokens_reached_in_both_models_is_left_out():
    space = space_of()
    moments, g = Moments(space, pair=True, swap=True), torch.Generator().manual_seed(0)
    groups = GroupedBenefits(space, CPU, torch.arange(len(space)))
    for expected, tokens in ((len(space) - 12, 20), (len(space), 12)):
        for site in space:
            x = torch.randn(3, tokens, site.width, generator=g)
            pair_moments(x[0], x[1], moments.block(site.name), None, x[2])
        assert groups.take(moments) and len(groups) == expected
    again = GroupedBenefits(space, CPU, torch.arange(len(space)))
    again.restore(groups.state())
    assert torch.equal(again.scored, groups.scored)


@pytest.mark.parametrize("vocabulary", [300, 30_000])
def test_a_plan_counts_the_sums_of_logits(vocabulary):
    config = CONFIGS["llama"]()
    config.vocab_size = vocabulary
    model = empty_model(config)
    space = act.ChannelSpace.from_model(model)
    groups = GroupedBenefits(space, CPU, rankable(space))
    kept = sum(x.nbytes for x in groups.state().values() if isinstance(x, torch.Tensor))
    shape = Shape.of(model, space)
    swapped, plain = (shape.afterwards(space, pair=True, swap=swap)["until-stable"] for swap in (True, False))
    assert kept <= swapped <= 4 * kept and swapped - plain > 3 * 4 * 2 * GROUPS * vocabulary


def space_of(up: int = 24, expert: int = 12, head: int = 20) -> act.ChannelSpace:
    weight = (ParameterSlice("x", 0),)
    return act.ChannelSpace(
        (
            act.Site("up", "up", 0, 0, up, weight),
            act.Site("experts[0].up", "up", 0, up, expert, weight, expert=0),
            act.Site("head", "head", None, up + expert, head, weight),
        )
    )


class Population:
    """Documents whose outputs vary in size, direction and tokens, at three sites; an expert sees some of the tokens."""

    def __init__(self, space: act.ChannelSpace, seed: int) -> None:
        self.space, self._g = space, torch.Generator().manual_seed(seed)
        self._base = torch.randn(3, len(space), generator=torch.Generator().manual_seed(99))

    def read(self, moments: Moments, documents: int) -> None:
        """Add so many documents."""
        tokens = torch.randint(1, 6, (documents,), generator=self._g)
        size = (0.4 * torch.randn(documents, generator=self._g)).exp()
        topic = 0.7 * torch.randn(documents, len(self.space), generator=self._g)
        rows = torch.arange(documents).repeat_interleave(tokens)
        noise = torch.randn(3, len(rows), len(self.space), generator=self._g)
        donor, target, swapped = size[rows, None] * (self._base[:, None] + topic[rows] + 0.5 * noise)
        routed = (topic[:, 0] > 0)[rows]
        for site in self.space:
            mask = routed if site.expert is not None else None
            outputs = (x[:, site.channels].contiguous() for x in (donor, target, swapped))
            d, t, s = outputs
            pair_moments(d, t, moments.block(site.name), mask, s)


def test_the_errors_are_those_of_repeated_corpora():
    space, found, spreads = space_of(), [], []
    for seed in range(60):
        documents, moments = Population(space, seed), Moments(space, pair=True, swap=True)
        groups = GroupedBenefits(space, CPU, torch.arange(len(space)))
        for _ in range(GROUPS):
            documents.read(moments, 12)
            groups.take(moments)
        found.append(groups.means())
        errors = groups.errors(slice(None))
        assert errors.dtype == torch.float32 and errors.sum(0).abs().max() < 1e-4 * errors.abs().max()
        spreads.append(errors.double().square().sum(0))
    true, drawn = torch.stack(found).std(0), torch.stack(spreads).mean(0).sqrt()
    for site in space:
        ratio = (drawn / true)[site.channels].log().mean().exp()
        assert 0.85 < ratio < 1.18, (site.name, ratio)


def stopped(seed: int, criterion: Criterion, space: act.ChannelSpace, chunks: int = 64) -> tuple[float, float]:
    """Share read and true overlap of a stopped reading."""
    documents, moments = Population(space, seed), Moments(space, pair=True, swap=True)
    groups, test = GroupedBenefits(space, CPU, torch.arange(len(space))), SequentialTest()
    found: set[int] = set()
    read = 1.0
    size = round(criterion.top * len(space))
    for chunk in range(1, chunks + 1):
        documents.read(moments, 4)
        ended = groups.take(moments) and test.is_due(groups, chunk)
        if not found and ended and test.certain(groups, criterion, chunk, chunk / chunks):
            found, read = set(groups.means().topk(size).indices.tolist()), chunk / chunks
    whole = set(benefit_of(moments).topk(size).indices.tolist())
    return read, len(found & whole) / size if found else 1.0


def benefit_of(moments: Moments) -> torch.Tensor:
    product, donor, target = (Statistics(moments.arena[side]) for side in (PRODUCT, DONOR, TARGET))
    return benefit(Activations(moments.space, donor, target, None, product, product))


def test_the_criterion_holds_as_often_as_stated():
    criterion, space = Criterion("match", top=0.2, overlap=0.94, confidence=0.8), space_of(80, 40, 60)
    runs = [stopped(seed, criterion, space) for seed in range(15)]
    assert sum(overlap >= criterion.overlap for _, overlap in runs) >= 12, runs
    assert sum(read for read, _ in runs) / len(runs) < 0.9, "it must also stop"


class Failing(Observer):
    """Ends the run at a batch."""

    def __init__(self, at: int) -> None:
        self.left = at

    def after_batch(self, run, batch) -> None:
        self.left -= 1
        if not self.left:
            raise ActError("enough")


def test_each_ability_stops_with_a_certificate_and_resumes_to_the_same_bits(tokenizer, tmp_path):
    texts = [{"text": f"a b c d e {number * 7919 % 1000} " * (1 + number % 3)} for number in range(400)]
    corpora = {
        "one": Corpus.from_records(texts[:300], tokenizer),
        "two": Corpus.from_records([{"text": f"c {one['text']}"} for one in texts], tokenizer),
    }
    models = {"donor": tiny_model("llama"), "target": tiny_model("llama", 1)}

    def job(*more: Observer, score: StableScore = "match") -> Job:
        until = UntilStable(score, top=0.2, overlap=0.8, confidence=0.9)
        return Job(models, corpora, swap=True, observers=[until, *more], look_ahead=8, token_budget=512)

    whole = run_job(job())
    for name, pair in whole.items():
        found = pair.provenance.corpora[0]
        assert found.extra["stable"]["score"] == "match" and found.extra["stable"]["certain_overlap"] >= 0.8
        assert found.extra["stable"]["assumes"].endswith("; ranked without what is to be kept")
        assert found.records == found.extra["stable"]["documents"] < corpora[name].source.size
    path = tmp_path / "checkpoint"
    for batch in (5, 9, 1):
        with pytest.raises(ActError, match="continues from there"):
            run_job(job(Failing(batch)), Checkpoint(path, every=0))
    with pytest.raises(ActError, match="its score is match there, paired here"):
        run_job(job(Observer(), score="paired"), Checkpoint(path))
    resumed = run_job(job(Observer()), Checkpoint(path))
    for name, pair in whole.items():
        assert torch.equal(resumed[name].moments.arena, pair.moments.arena)
        assert resumed[name].provenance.corpora[0].extra["stable"] == pair.provenance.corpora[0].extra["stable"]
