"""``--until-stable``: the criterion holds, over repeated checks, and a stopped run resumes to the same bits."""

from __future__ import annotations

import pytest
import torch
from support import tiny_model

import act
from act.core.errors import ActError
from act.data.corpus import Corpus
from act.models.sites import ParameterSlice
from act.profiles.moments import Moments
from act.profiling import stability, until_stable
from act.profiling.checkpoint import Checkpoint
from act.profiling.job import Job
from act.profiling.measure import run_job
from act.profiling.observer import Observer
from act.profiling.stability import (
    GROUPS,
    GROWTH,
    Check,
    Criterion,
    GroupedSums,
    SequentialTest,
    check,
    error_of,
    growth,
    sample,
)
from act.profiling.until_stable import GroupedMeans, Looks, UntilStable, look_ahead
from act_kernels import column_moments

CHANNELS, DOCUMENTS, CHUNK = 1000, 4000, 16


def population(kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums a document ``[documents, channels]`` and its tokens ``[documents]``."""
    g = torch.Generator().manual_seed(seed)
    centre = (torch.rand(CHANNELS, generator=g) + 0.01).pow(-0.5)
    noise = torch.randn(DOCUMENTS, CHANNELS, generator=g)
    scale = 0.5
    if kind == "heavy":  # t with three degrees of freedom
        squares = sum(torch.randn(DOCUMENTS, CHANNELS, generator=g).square() for _ in range(3))
        noise = noise / (squares / 3).sqrt()
    elif kind == "correlated":
        noise = noise + torch.randn(DOCUMENTS, 2, generator=g) @ torch.randn(2, CHANNELS, generator=g)
    elif kind == "ties":
        centre = torch.where(torch.arange(CHANNELS) < CHANNELS // 2, 1.0, 1.0 + 0.001 * centre)
    tokens = torch.randint(1, 9, (DOCUMENTS,), generator=g).double()
    return (centre * (1 + scale * noise)).double() * tokens[:, None], tokens


def stopped(kind: str, seed: int, criterion: Criterion) -> tuple[float, float]:
    """Share read and true overlap of a stopped reading."""
    sums, tokens = population(kind, seed)
    size = round(criterion.top * CHANNELS)
    whole = set((sums.sum(0) / tokens.sum()).topk(size).indices.tolist())
    total, count = sums.cumsum(0)[CHUNK - 1 :: CHUNK], tokens.cumsum(0)[CHUNK - 1 :: CHUNK]
    groups, test = GroupedSums(torch.tensor([CHANNELS])), SequentialTest()
    for chunk in range(len(total)):
        documents, read = (chunk + 1) * CHUNK, (chunk + 1) / len(total)
        ended = groups.add(total[chunk], count[chunk : chunk + 1]) and test.is_due(groups, documents)
        if ended and test.certain(groups, criterion, documents, read):
            mine = set((total[chunk] / count[chunk]).topk(size).indices.tolist())
            return read, len(mine & whole) / size
    return 1.0, 1.0


@pytest.mark.parametrize("kind", ["plain", "heavy", "correlated", "ties"])
def test_the_criterion_holds_as_often_as_stated(kind):
    criterion = Criterion(top=0.1, overlap=0.97, confidence=0.9)  # most take several checks
    runs = [stopped(kind, seed, criterion) for seed in range(20)]
    assert sum(overlap >= criterion.overlap for _, overlap in runs) >= 18, runs
    if kind == "plain":
        assert sum(read for read, _ in runs) / len(runs) < 0.6, "it must also stop"


def test_groups_keep_sums_and_memory():
    groups = GroupedSums(torch.tensor([3, 2]))
    totals = torch.rand(200, 5, dtype=torch.float64).cumsum(0)
    counts = torch.tensor([[4.0, 2.0]], dtype=torch.float64) * torch.arange(1, 201)[:, None]
    for total, count in zip(totals, counts, strict=True):
        groups.add(total, count)
    assert GROUPS <= groups.groups < 2 * GROUPS + 1 and groups.sums.shape == (2 * GROUPS, 5)
    last = groups.groups * 8  # 200 chunks in groups of 8
    torch.testing.assert_close(groups.sums.sum(0).double(), totals[last - 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        groups.means(), totals[last - 1] / counts[last - 1].repeat_interleave(torch.tensor([3, 2]))
    )
    torch.testing.assert_close(groups.errors(torch.arange(5)).sum(0), torch.zeros(5), rtol=0, atol=1e-5)
    other = GroupedSums(torch.tensor([3, 2]))
    other.restore(groups.state())
    assert torch.equal(other.sums, groups.sums) and torch.equal(other.means(), groups.means())


def test_a_constant_score_is_stable_at_the_first_check_and_the_error_is_shared():
    groups = GroupedSums(torch.tensor([50]))
    for chunk in range(1, GROUPS + 1):
        groups.add(chunk * torch.arange(50.0, dtype=torch.float64), torch.tensor([float(chunk)], dtype=torch.float64))
    assert check(groups, Criterion(top=0.1, overlap=1.0)).stable
    assert sum(error_of(number, 0.05) for number in range(1, 1000)) <= 0.05


@pytest.mark.parametrize("shared", [0.0, 0.5], ids=["independent", "correlated"])
def test_a_sample_of_the_channels_bounds_what_all_of_them_lose(shared, monkeypatch):
    monkeypatch.setattr(stability, "SAMPLE", 10_000)
    monkeypatch.setattr(stability, "LOST", 50)
    channels, criterion, orders = 40_000, Criterion(top=0.2, overlap=0.9, confidence=0.9), 10
    ranked = torch.arange(0, 2 * channels, 2)
    chosen = sample(ranked, criterion)
    assert len(chosen) == 10_000 and (chosen.diff() > 0).all() and torch.isin(chosen, ranked).all()
    assert torch.equal(sample(ranked, criterion), chosen)
    assert sample(ranked, Criterion(top=0.2, overlap=1.0)) is ranked, "none may be replaced, so all are looked at"
    ratios, held = [], []
    for seed in range(orders):
        g = torch.Generator().manual_seed(seed)
        truth = (torch.rand(channels, generator=g, dtype=torch.float64) + 0.01).pow(-0.5)
        noise = torch.randn(GROUPS, channels, generator=g, dtype=torch.float64)
        noise += shared * torch.randn(GROUPS, 2, generator=g).double() @ torch.randn(2, channels, generator=g).double()
        sums = (truth * (1 + 0.08 * noise)).cumsum(0)
        every, some = GroupedSums(torch.tensor([channels])), GroupedSums(torch.tensor([2 * channels]), chosen, channels)
        for number, total in enumerate(sums, start=1):
            count = torch.tensor([float(number)], dtype=torch.float64)
            every.add(total, count)
            some.add(total[chosen // 2], count)
        size = round(criterion.top * channels)
        true = set(truth.topk(size).indices.tolist())
        lost = size - len(true & set(sums[-1].topk(size).indices.tolist()))
        whole, part = check(every, criterion, seed=seed), check(some, criterion, seed=seed)
        assert part.allowed == whole.allowed and part.size == whole.size
        ratios.append(part.bound / whole.bound)
        held.append((lost <= part.bound, lost <= whole.bound))
    by_part, by_whole = map(sum, zip(*held, strict=True))
    assert by_part >= by_whole >= 0.7 * orders and 0.98 < sum(ratios) / orders < 1.2, (held, ratios)


def test_only_checks_that_may_succeed_are_planned():
    hopeless, near, sure = (
        Check(size=200, allowed=4, expected=expected, variance=expected) for expected in (40, 1.55, 0.5)
    )
    assert growth(hopeless, 0.05, 0.025) == GROWTH[1]
    assert GROWTH[0] < growth(near, 0.05, 0.025) < GROWTH[1]
    assert growth(near, 0.5, 0.025) < growth(near, 0.05, 0.025), "what is left shrinks faster the more is read"
    assert growth(sure, 0.0, 0.025) == GROWTH[0]


@pytest.mark.parametrize("bad", [{"top": 0.0}, {"overlap": 1.5}, {"confidence": 1.0}, {"score": "median"}])
def test_bad_criteria(bad):
    with pytest.raises(ActError, match="expected"):
        Criterion(**bad)


def test_chunks_grow_with_the_corpus(tokenizer):
    small, large = (Corpus.from_records([{"text": "a"}] * size, tokenizer) for size in (1000, 100_000))
    assert look_ahead([small]) == look_ahead([small, large]) == 128 and look_ahead([large]) == 200


def make(tokenizer, *more: Observer) -> tuple[Job, UntilStable]:
    texts = [{"text": f"a b c d e {number * 7919 % 1000} " * (1 + number % 3)} for number in range(600)]
    until = UntilStable(top=0.2, overlap=0.8, confidence=0.9)
    corpora = {"one": Corpus.from_records(texts, tokenizer), "two": Corpus.from_records(texts[:40], tokenizer)}
    job = Job({"model": tiny_model("llama")}, corpora, observers=[until, *more], look_ahead=8, token_budget=512)
    return job, until


class Failing(Observer):
    """Ends the run at a batch."""

    def __init__(self, at: int) -> None:
        self.left = at

    def after_batch(self, run, batch) -> None:
        self.left -= 1
        if not self.left:
            raise ActError("enough")


def test_a_run_stops_with_a_certificate_and_resumes_to_the_same_bits(tokenizer, tmp_path):
    job, _ = make(tokenizer)
    profiles = run_job(job)
    corpus = profiles["one"].provenance.corpora[0]
    certificate = corpus.extra["stable"]
    assert certificate["certain_overlap"] >= 0.8 and certificate["corpus_share"] < 1
    assert corpus.records == certificate["documents"] < 600 and corpus.counted == certificate["tokens"]
    assert profiles["two"].provenance.corpora[0].extra["stable"] is None  # five chunks are too few to tell
    checkpoint = Checkpoint(tmp_path / "c", every=0)
    cut, _ = make(tokenizer, Failing(7))
    with pytest.raises(ActError, match="continues from there"):
        run_job(cut, checkpoint)
    resumed, _ = make(tokenizer, Observer())
    again = run_job(resumed, Checkpoint(tmp_path / "c"))
    assert torch.equal(again["one"].moments.arena, profiles["one"].moments.arena)
    assert again["one"].provenance.corpora[0].extra["stable"] == certificate


def test_looks_wait_until_they_are_a_small_part_of_the_run(tokenizer, monkeypatch):
    job, until = make(tokenizer)
    seconds = iter(range(0, 100_000, 50))
    monkeypatch.setattr(until_stable.time, "monotonic", lambda: float(next(seconds)))  # a window's sums take 50 s
    profiles = run_job(job)
    assert until.looks.longest == 50 and until.stability is None
    assert profiles["one"].provenance.corpora[0].extra["stable"] is None and profiles["one"].provenance
    assert Looks(1.5, 0.5).affordable(100) and not Looks(1.6, 0.5).affordable(100)
    assert Looks(0.5, 0.5).affordable(0.1), "in a short run the clock decides nothing"
    again = UntilStable()
    again.restore(until.state())
    assert again.looks == until.looks
    with pytest.raises(ValueError, match="greater"):
        again.restore({**until.state(), "looks": {"seconds": -1.0}})


def test_any_chain_of_interruptions_gives_the_same_profiles_and_certificates(tokenizer, tmp_path):
    whole = run_job(make(tokenizer)[0])
    batches = Counted()
    run_job(make(tokenizer, batches)[0])
    # A batch after each resume: checkpoints in the middle of a window; the last ones after "one" was certain.
    for number, chain in enumerate([(9, 1, 1), (5, 1, 5, 1), (batches.seen - 2,), (batches.seen - 3, 1)]):
        path = tmp_path / str(number)
        for batch in chain:
            with pytest.raises(ActError, match="continues from there"):
                run_job(make(tokenizer, Failing(batch))[0], Checkpoint(path, every=0))
        resumed = run_job(make(tokenizer, Observer())[0], Checkpoint(path))
        for ability, profile in whole.items():
            assert torch.equal(resumed[ability].moments.arena, profile.moments.arena)
            found, expected = (each.provenance.corpora[0] for each in (resumed[ability], profile))
            assert found.extra["stable"] == expected.extra["stable"] and found.records == expected.records


class Counted(Observer):
    """Counts batches."""

    seen = 0

    def after_batch(self, run, batch) -> None:
        self.seen += 1


def test_the_share_read_of_labelled_rows_is_of_all_corpora(tokenizer):
    def corpus(number: int) -> Corpus:
        texts = [{"text": f"a b c {row * 7919 % 1000}", "skill": "one"} for row in range(number)]
        return Corpus.from_records(texts, tokenizer, ability_column="skill")

    until = UntilStable("mean-abs", top=0.2, overlap=0.5, confidence=0.5)
    corpora = {"x": corpus(200), "y": corpus(400)}
    job = Job({"model": tiny_model("llama")}, corpora, observers=[until], look_ahead=8, token_budget=512)
    found = run_job(job)["one"].provenance.corpora[0]
    assert found.extra["stable"]["corpus_share"] == pytest.approx(found.records / 600, abs=1e-6)
    assert "all corpora" in found.extra["stable"]["assumes"]


def test_swapped_outputs_do_not_change_where_a_pair_ends(tokenizer):
    models = tiny_model("llama"), tiny_model("llama", seed=1)
    corpora = {
        name: Corpus.from_records([{"text": f"{name} b {number * 7919 % 1000}"} for number in range(count)], tokenizer)
        for name, count in (("a", 500), ("c", 300))
    }
    plain, swapped = (
        act.profile_pair(*models, corpora, swap=swap, look_ahead=8, observers=[UntilStable(top=0.2, overlap=0.7)])
        for swap in (False, True)
    )
    for name, pair in plain.items():
        other = swapped[name]
        found = other.provenance.corpora[0]
        assert found.extra["stable"] == pair.provenance.corpora[0].extra["stable"] and found.extra["stable"]
        assert found.records == found.extra["stable"]["documents"] < corpora[name].source.size
        assert torch.equal(other.moments.arena[: len(pair.moments.arena)], pair.moments.arena)
        assert (other.swap.count == pair.target.count).all()


def test_what_cannot_be_stable(tokenizer):
    corpus, model = Corpus.from_records([{"text": "a b c"}], tokenizer), {"model": tiny_model("llama")}
    for arguments, options, message in (
        ((corpus,), {"observers": [UntilStable("paired")]}, "needs a pair run; use mean-abs"),
        ((corpus,), {"observers": [UntilStable("attribution")]}, "needs an attribution run"),
        (
            (corpus,),
            {"observers": [UntilStable("match")]},
            r"needs a pair run with swapped outputs \(--swap, swap=True\)",
        ),
        (([],), {"observers": [UntilStable()]}, "documents"),
        ((corpus,), {"observers": [UntilStable()], "shard": (0, 2)}, "needs the whole corpus"),
    ):
        with pytest.raises(ActError, match=message):
            Job(model, *arguments, **options)


def test_it_needs_no_settings_and_can_be_used_again(tokenizer):
    texts = [{"text": f"a b c d e {number * 7919 % 1000}"} for number in range(2600)]
    corpus, until = Corpus.from_records(texts, tokenizer), UntilStable(overlap=0.5, confidence=0.5)
    first = act.profile(tiny_model("llama"), corpus, observers=[until])
    assert first.provenance.settings.look_ahead == 128 and until.criterion.score == "mean-abs"
    assert (
        first.provenance.corpora[0].extra["stable"] == until.certificates[""]
        and until.certificates[""]["documents"] < 2600
    )
    pair = act.profile_pair(tiny_model("llama"), tiny_model("llama", seed=1), corpus, observers=[until])
    assert pair.provenance.settings.extra["until_stable"]["score"] == "paired"
    assert pair.provenance.corpora[0].extra["stable"]["score"] == "paired"


def test_what_only_one_group_tells_of_is_not_certain():
    groups = GroupedSums(torch.tensor([3, 2]))
    totals, counts = torch.zeros(5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for number in range(GROUPS):
        seen = torch.tensor([4.0, 40.0 * (number == 3) + (number == 9)], dtype=torch.float64)
        value = 3.0 if number == 9 else 2 + 0.1 * (number % 3)
        totals = totals + seen.repeat_interleave(torch.tensor([3, 2])) * value
        counts = counts + seen
        groups.add(totals, counts)
        if number == 3:
            alone = groups.errors(slice(None)).square().sum(0).sqrt()
    torch.testing.assert_close(alone[3:], torch.full((2,), 2.0 * 3 / 4), rtol=1e-5, atol=0)  # of four groups
    both = groups.errors(torch.arange(5)).square().sum(0).sqrt()
    assert (both[:3] < 0.1).all() and (both[3:] > 0.8).all()  # residuals would say 0.03: one group makes the mean


@pytest.mark.parametrize("score", ["mean-abs", "attribution"])
def test_experts_that_too_few_tokens_reached_are_not_in_the_top_set(score):
    weight = (ParameterSlice("x", 0),)
    space = act.ChannelSpace(
        (
            act.Site("up", "up", 0, 0, 10, weight),
            *(act.Site(f"experts[{n}].up", "up", 0, 10 * n + 10, 10, weight, expert=n) for n in range(3)),
        )
    )
    groups = GroupedMeans(space, torch.device("cpu"), torch.arange(40), score=score)
    moments, draw = Moments(space), torch.Generator().manual_seed(0)
    for number in range(GROUPS):
        for site, rows in zip(space, (4, 4, number == 5, 0), strict=True):
            if rows:  # the few tokens of one expert are large
                x = torch.randn(int(rows), 10, generator=draw) * (100 if rows == 1 else 1)
                column_moments(x, moments.block(site.name))
        moments.fill_scaled()
        groups.take(moments)
    expected = 20 if score == "mean-abs" else 40  # the loss of documents that an expert never saw would not fall
    assert (len(groups), groups.ranked, groups.left_out) == (expected, expected, 40 - expected)
    assert len(groups.means()) == groups.errors(slice(None)).shape[1] == expected and groups.means().isfinite().all()
    assert check(groups, Criterion(score, top=0.5, overlap=0.5, confidence=0.5)).size == expected // 2
    again = GroupedMeans(space, torch.device("cpu"), torch.arange(40), score=score)
    again.restore(groups.state())
    assert torch.equal(again.means(), groups.means())
