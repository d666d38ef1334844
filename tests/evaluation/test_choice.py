"""Share and strength chosen on held-out records: the figures, what is refused, and ``transfer --auto``."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import shutil

import pytest
import torch
from command_line import act_profile, succeed
from support import state

import act
from act.data.mapped import Mapped
from act.evaluation import evaluations
from act.evaluation.choice import Candidate, Choice, _best, choose_controls, doubt_of_swap, figure, recovered
from act.evaluation.evaluate import Evaluation
from act.evaluation.held_out import held_out
from act.evaluation.kept import Keeping, Share, kept_of
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS
from act.models.loading import load_model, load_tokenizer
from act.ranking.channel_set import ChannelSet

KEPT_SKILLS = OLD_SKILLS + NEW_SKILLS


def evaluation(nll=None, right=None) -> Evaluation:
    values = torch.tensor(nll if nll is not None else [1.0] * len(right), dtype=torch.float64)
    tokens = torch.full((len(values),), 2)
    flags = None if right is None else torch.tensor(right)
    return Evaluation("m", "f", "text", "c", "nll" if right is None else "exact", values, tokens, flags)


def test_the_shares_are_ratios_with_paired_errors():
    target, donor, half = ([8.0, 4.0, 6.0], [4.0, 2.0, 3.0], [6.0, 3.0, 4.5])
    assert recovered(*map(evaluation, (target, donor, half))) == Share(0.5, 0.0)
    assert recovered(*map(evaluation, (target, donor, [4.0, 4.0, 6.0]))).error > 0.1
    gained = kept_of(*map(evaluation, ([2.0, 2.0, 3.0], [6.0, 6.0, 7.0], [3.0, 3.0, 4.0])))
    assert gained == Share(0.75, 0.0)  # a quarter of the four nats is lost
    target, donor, result = map(evaluation, ([2.0, 2.0, 3.0], [6.0, 6.0, 7.0], [3.0, 3.0, 4.0]))
    assert Keeping.of(target, donor).share(figure(result)) == pytest.approx(gained.value)
    worse = kept_of(*map(evaluation, ([2.0, 2.0, 2.0], [1.0, 3.0, 2.0], [2.2, 2.2, 2.2])))
    assert worse.value == pytest.approx(math.exp(-0.1))  # nothing was gained, so probabilities of a token
    right = [[True, True, False, True], [False] * 4, [True, False, False, True]]
    assert kept_of(*(evaluation(right=one) for one in right)).value == pytest.approx(2 / 3)
    assert recovered(*(evaluation(right=one) for one in (right[1], right[0], right[2]))).value == pytest.approx(2 / 3)
    with pytest.raises(act.ActError, match="nothing of text right"):
        kept_of(*(evaluation(right=one) for one in (right[1], right[0], right[2])))


def test_a_text_that_the_target_reads_better_is_doubted():
    better, worse = evaluation([2.0, 2.0, 3.0]), evaluation([6.0, 6.0, 7.0])
    doubt = doubt_of_swap(better, worse)
    assert doubt.startswith(
        "the target is better than the donor on text (log-likelihood per token: -1.167 against -3.167"
    )
    assert doubt.endswith("(are the two texts, or donor and target, swapped?)")
    assert doubt_of_swap(worse, better) is None and doubt_of_swap(better, better) is None
    assert doubt_of_swap(evaluation([2.0, 9.0, 3.0]), evaluation([6.0, 6.0, 7.0])) is None, "it may be chance"
    right = [[True] * 4, [False] * 4]
    assert "(right answers: 1.000 against 0.000)" in doubt_of_swap(*(evaluation(right=one) for one in right))


def candidate(back: float, kept: float, error: float = 0.01) -> Candidate:
    return Candidate(0.05, 0.4, 10, Share(back, error), (Share(1.0, error), Share(kept, error)))


def test_the_most_recovered_of_those_that_keep_enough():
    few, good, much = candidate(0.2, 0.99), candidate(0.6, 0.96), candidate(0.9, 0.8)
    records = {"german": 50, "english": 40}
    assert _best([few, good, much], 0.95, records) is good and _best([few, good, much], 0.5, records) is much
    with pytest.raises(act.ActError, match=r"no candidate keeps 90 %: .* keeps 80 ± 1 %; .*least_kept"):
        _best([much], 0.9, records)
    found = Choice(None, good, (few, good, much), 0.95, {"g": 50}, {"g": "nll"})
    assert found.frontier == [much, good, few][::-1] and "**chosen**" in found.card()
    assert found.card().count("%") == 1 + len(found.frontier)


@pytest.mark.parametrize(
    ("one", "least"),
    [
        (candidate(0.6, 0.96, 0.08), 0.95),
        (candidate(0.1, 0.99, 0.05), 0.95),
        (candidate(0.6, 0.96, math.nan), 0.95),
        (candidate(0.6, 0.94), 0.95),
        (candidate(0.6, 0.99, 0.02), 1.0),
    ],
)
def test_too_little_text_is_said_with_the_errors(one, least):
    message = (
        r"too little text to choose on: .* recovers 0\.\d\d.*on 12 of german and 11 of english.*; give more records"
    )
    with pytest.raises(act.ActError, match=message):
        _best([one], least, {"german": 12, "english": 11})
    with pytest.raises(act.ActError, match="on 9 of german"):
        _best([candidate(0.6, 0.97)], 0.9, {"german": 9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("choice")
    for name, language, skills, split in (
        ("german", "German", OLD_SKILLS, "train"),
        ("english", "English", KEPT_SKILLS, "train"),
        ("german test", "German", OLD_SKILLS, "validation"),
        ("english test", "English", KEPT_SKILLS, "validation"),
    ):
        with (path / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for record in examples(language, skills, 96, split=split):
                file.write(json.dumps({"prompt": record["prompt"], "completion": " " + record["completion"]}) + "\n")
    return path


@pytest.fixture(scope="module")
def measured(folder):
    """Donor, target, their profiles of both abilities, and a function that opens a corpus."""
    donor, target = (load_model(str(CHECKPOINTS / name)).float() for name in ("base", "target"))
    tokenizer = load_tokenizer(str(CHECKPOINTS / "target"))

    def text(name: str, **given) -> act.Corpus:
        return act.Corpus.from_file(folder / f"{name}.jsonl", tokenizer, **given)

    german, english = (act.profile_pair(donor, target, text(name, count="predict")) for name in ("german", "english"))
    return donor, target, german, english, text


def test_a_choice_recovers_on_text_it_has_not_seen(measured):
    donor, target, german, english, text = measured
    before = state(target)
    given = {"tops": [0.02, 0.05], "strengths": [0.7, 1.0], "metric": "nll", "least_kept": 0.6}
    found = act.choose(
        donor, target, german, text("german test"), [text("english test")], keep_profiles=english, **given
    )
    assert all(torch.equal(value, before[name]) for name, value in state(target).items())
    assert len(found.candidates) == 4 and found.chosen in found.frontier
    assert found.chosen.least_kept.value >= 0.6 and found.chosen.recovered.value > 0.1
    keeping = [one for one in found.candidates if one.least_kept.value >= 0.6]
    assert found.chosen.recovered.value == max(one.recovered.value for one in keeping)
    assert found.records == dict.fromkeys((text("german test").name, text("english test").name), 96)
    plain = act.rank(german, top=found.chosen.top, keep=english)
    assert torch.equal(found.channels.index, plain.index)
    wide = act.rank(german, top=0.05, keep=english)
    of_set = act.choose(donor, target, wide, text("german test"), text("english test"), **given)
    assert of_set.to_json() == found.to_json()
    assert torch.equal(wide.best(0.02).index, act.rank(german, top=0.02, keep=english).index)


def test_a_choice_evaluates_only_what_is_not_in_its_folder(measured, tmp_path, monkeypatch):
    donor, target, german, _, text = measured
    given = {"strengths": [0.7, 1.0], "metric": "nll", "least_kept": 0.5, "checkpoints": tmp_path / "kept"}
    texts = [act.Corpus.from_records(list(_first(24, text(f"{name} test"))), text("german").tokenizer, name=name)
             for name in ("german", "english")]  # fmt: skip
    whole = act.choose(donor, target, german, *texts, tops=[0.05], **{**given, "checkpoints": None})
    calls: list[str] = []
    monkeypatch.setattr(evaluations, "evaluate", lambda *of: (calls.append(of[1].name), act.evaluate(*of))[1])
    for tops, evaluated in (([0.05], 8), ([0.05], 8), ([0.02, 0.05], 12)):
        found = act.choose(donor, target, german, *texts, tops=tops, **given)
        assert found.candidates[-2:] == whole.candidates and len(found.candidates) == 2 * len(tops)
        assert len(calls) == len(list((tmp_path / "kept").iterdir())) == evaluated


def test_without_a_ranking_half_of_the_records_rank_and_the_others_choose(measured):
    donor, target, _, _, text = measured
    given = {"tops": [0.05], "strengths": [1.0], "metric": "nll", "least_kept": 0.5}
    records = {name: [entry.record for entry in text(name).source.read()] for name in ("german", "english")}
    german, english = (
        act.Corpus.from_records(each, text("german").tokenizer, count="predict", name=name)
        for name, each in records.items()
    )
    found = act.choose(donor, target, None, german, english, **given)
    assert found.records == {"german": 48, "english": 48} and not found.not_compared
    others = {name: one.part([1], 2).source.fingerprint for name, one in (("german", german), ("english", english))}
    listed = ", ".join(f"`{known}` ({name})" for name, known in others.items())
    assert f"\n\nFingerprints of these records: {listed}.\n\n" in found.card()
    pairs = [act.profile_pair(donor, target, one.part([0], 2)) for one in (german, english)]
    assert torch.equal(found.channels.index, act.rank(pairs[0], top=0.05, keep=pairs[1]).index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "nonsense"}, "scope is 'nonsense'; expected one of global"),
        ({"normalize": "nonsense"}, "normalize is 'nonsense'"),
        ({"granularity": ["neuron", "nonsense"]}, "granularity is 'nonsense'"),
        ({"cost": "nonsense"}, "cost is 'nonsense'"),
        ({"score": "nonsense"}, "score is 'nonsense'"),
        ({"score": torch.ones(3)}, "scores of your own are of the channels of a profile"),
        ({"cost": "distance"}, "no effect on score paired"),
        ({"include": "nonsense"}, "nonsense"),
        ({"keep_profiles": []}, "keep_profiles belong to a profile"),
    ],
)
def test_a_mistake_in_the_ranking_is_said_before_anything_is_measured(options, message, measured, monkeypatch):
    donor, target, _, _, text = measured
    for name in ("choice.measured_for", "evaluations.evaluate"):
        monkeypatch.setattr(f"act.evaluation.{name}", lambda *given: pytest.fail("it measured"))
    with pytest.raises(act.ActError, match=message):
        act.choose(donor, target, None, text("german"), text("english"), **options)


def test_a_mistake_in_the_ranking_of_a_profile_is_said_before_anything_is_evaluated(measured, monkeypatch):
    donor, target, german, _, text = measured
    monkeypatch.setattr("act.evaluation.evaluations.evaluate", lambda *given: pytest.fail("it evaluated"))
    with pytest.raises(act.ActError, match="nonsense"):
        act.choose(donor, target, german, text("german test"), text("english test"), exclude=["nonsense"])


def test_what_cannot_be_chosen_is_one_sentence(measured):
    donor, target, german, english, text = measured
    test, kept, tried = text("german test"), text("english test"), []
    for given, message in (
        ((german, test, test), "are the same text"),
        ((german, text("german"), kept), "is the text that the channels were ranked on"),
        ((german, test, []), "nothing is to be kept"),
        ((act.rank(german, top=0.05), text("german"), kept), "is the text that the channels were ranked on"),
        ((act.rank(german, top=0.05, granularity="neuron"), test, kept), "not one of single channels"),
        ((german, kept, test), r"the donor is not clearly better than the target on .*are donor and target swapped\?"),
    ):
        with pytest.raises(act.ActError, match=message):
            act.choose(donor, target, *given, metric="nll", tops=[0.05], strengths=[1.0], report=tried.append)
    assert not tried, "what can be known before any transfer is said before it"
    with pytest.raises(act.ActError, match="the share to keep is 2"):
        act.choose(donor, target, german, test, kept, least_kept=2)
    few = [act.Corpus.from_records(list(_first(3, one)), one.tokenizer) for one in (test, kept)]
    with pytest.raises(act.ActError, match=r"too little text to choose on: .* ± "):
        act.choose(donor, target, german, *few, metric="nll", tops=[0.02], strengths=[0.2], least_kept=0.95)
    few = [
        act.Corpus.from_records(list(_first(12, one)), one.tokenizer, name=f"few {one.name}") for one in (test, kept)
    ]
    with pytest.raises(act.ActError, match=r"^the donor is not clearly better .*are donor and target swapped\?"):
        act.choose(target, donor, None, *few, metric="nll")


def _first(count: int, corpus: act.Corpus):
    return (entry.record for entry in corpus.source.read() if entry.number < count)


def test_shards_that_were_not_read_are_held_out(measured):
    donor, target, _, _, text = measured
    first = act.profile_pair(donor, target, text("german"), shard=(0, 3))
    (left, other), not_compared = held_out([text("german"), text("english")], [first])
    assert left.source.size == 64 and other.source.size == 96 and not not_compared
    records = [entry.record for entry in text("german").source.read()]
    assert [entry.record for entry in left.source.read()] == [one for n, one in enumerate(records) if n % 3]


def test_what_the_cost_of_a_ranking_was_measured_on_is_not_held_out(measured):
    donor, target, _, _, text = measured
    few = text("english").part([0], 12)
    found = act.attribute(donor, target, text("german test").part([0], 12), keep=few)
    with pytest.raises(act.ActError, match="is the text that the channels were ranked on"):
        held_out([few], [found])
    (left,), not_compared = held_out([text("english test")], [found])
    assert left.source.size == 96 and not_compared == (text("german test").name, few.name)


def test_a_ranked_text_that_its_name_does_not_find_is_given(measured):
    donor, target, _, _, text = measured
    columns = {"prompt": "{prompt}", "completion": "{completion}"}
    mapped = act.Corpus(Mapped(text("english").source, columns), text("english").tokenizer, name="mapped")
    profile = act.profile_pair(donor, target, mapped.part([0], 4))
    assert held_out([mapped], [profile])[1] == ("mapped",)
    (left,), not_compared = held_out([mapped], [profile], [mapped.part([0], 4).source])
    assert left.source.size == 72 and not not_compared


def test_copies_and_parts_of_a_ranked_text_are_found(measured, folder, tmp_path):
    _, _, german, _, text = measured
    lines = (folder / "german.jsonl").read_text().splitlines()
    (tmp_path / "part.jsonl").write_text("\n".join(reversed(lines[:20])))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    fresh = (folder / "german test.jsonl").read_text().splitlines()
    (tmp_path / "mixed.jsonl").write_text("\n".join([*lines[:5], *fresh[:7], *lines[5:8]]))

    def opened(name: str) -> act.Corpus:
        return act.Corpus.from_file(tmp_path / name, text("german").tokenizer)

    for ranking in (german, act.rank(german, top=0.05)):
        for name in ("part.jsonl", "packed.jsonl.gz"):
            with pytest.raises(act.ActError, match="is the text that the channels were ranked on"):
                held_out([opened(name)], [ranking])
        (left,), not_compared = held_out([opened("mixed.jsonl")], [ranking])
        assert [entry.record for entry in left.source.read()] == [*map(json.loads, fresh[:7])] and not not_compared
        assert [entry.number for entry in left.source.read(start=2, shard=(1, 2))] == [3, 5]


def test_a_ranked_text_with_a_name_of_its_own_is_found_by_its_place(measured, folder, tmp_path):
    donor, target, _, _, text = measured
    path = folder / "german.jsonl"
    named = act.Corpus.from_file(path, text("german").tokenizer, name="german")
    act.profile_pair(donor, target, named.part([0], 2), include="head").save(tmp_path / "p.safetensors")
    profile = act.load(tmp_path / "p.safetensors")
    (read,) = profile.provenance.corpora
    assert (read.name, read.place) == ("german", str(path))
    act.rank(profile, top=0.5, include="head").save(tmp_path / "s.safetensors")
    ranked = act.ChannelSet.load(tmp_path / "s.safetensors")
    assert ranked.rule.corpora == ("german",) and ranked.rule.places == {"german": (str(path),)}
    (tmp_path / "copy.jsonl").write_text(path.read_text())
    copy = act.Corpus.from_file(tmp_path / "copy.jsonl", text("german").tokenizer)
    (left,), not_compared = held_out([copy], [profile])
    assert left.source.size == 48 and not not_compared
    with pytest.raises(act.ActError, match="is the text that the channels were ranked on"):
        held_out([copy], [ranked])


def test_what_could_not_be_compared_stands_on_the_card(measured, folder, tmp_path):
    donor, target, _, _, text = measured
    (tmp_path / "gone.jsonl").write_text((folder / "english.jsonl").read_text())
    gone = act.Corpus.from_file(tmp_path / "gone.jsonl", text("english").tokenizer)
    profile = act.profile_pair(donor, target, gone.part([0], 32))
    (tmp_path / "gone.jsonl").unlink()
    _, not_compared = held_out([text("german")], [profile])
    one = candidate(0.6, 0.96)
    card = Choice(None, one, (one,), 0.95, {"g": 50}, {"g": "nll"}, not_compared).card()
    assert f"The records of {gone.name} could not be compared one by one, so only whole texts were told apart." in card
    assert "could not be compared" not in Choice(None, one, (one,), 0.95, {"g": 50}, {"g": "nll"}).card()


@pytest.mark.slow
def test_transfer_auto_as_a_user_types_it(folder, tmp_path):
    models = tmp_path / "models"
    for name in ("base", "target"):
        shutil.copytree(CHECKPOINTS / name, models / name)
    given = ["transfer", "--donor", models / "base", "--target", models / "target", "--auto"]
    texts = ["--corpus", folder / "german.jsonl", "--keep", folder / "english.jsonl"]
    grid = ["--top", "5%", "--strength", "1", "--strength", "0.7", "--metric", "nll", "--least-kept", "0.5"]
    where = ["--device", "cpu", "--donor-device", "cpu", "--channels-output", tmp_path / "moved.safetensors"]
    made = succeed(*given, *texts, *grid, *where, "--count", "predict", "--output", tmp_path / "out")
    assert len(ChannelSet.load(tmp_path / "moved.safetensors")) == made["channels"]
    assert made["path"] == "disk" and made["strength"] == made["auto"]["chosen"]["strength"] in (0.7, 1.0)
    assert len(made["auto"]["candidates"]) == 2 and made["channels"] == made["auto"]["chosen"]["channels"]
    assert set(made["auto"]["records"].values()) == {48}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Share and strength were chosen among 2" in card and "**chosen**" in card
    assert "of the very records that the choice was made on" in card
    assert "act-profile pair" not in card and "It ranks the channels by half of the records" in card
    profile = tmp_path / "german.safetensors"
    pair = ["--donor", models / "base", "--target", models / "target", "--corpus", folder / "german.jsonl"]
    succeed("pair", *pair, "--dtype", "float32", "--output", profile)
    seen = act_profile(*given, *texts, "--profile", profile, "--output", tmp_path / "no")
    assert seen.returncode == 2 and "is the text that the channels were ranked on" in seen.stderr
    other = ["--corpus", folder / "german test.jsonl", "--keep", folder / "english test.jsonl"]
    shown = act_profile(*given, *other, *grid, "--profile", profile, "--output", tmp_path / "by profile")
    assert shown.returncode == 0 and "chosen" in shown.stdout
    card = (tmp_path / "by profile" / "README.md").read_text()
    assert "act-profile pair --donor base --target target --dtype float32 --corpus german.jsonl" in card
    assert "act-profile rank profile.safetensors --score paired --top 5%" in card and "It ranks" not in card
    assert "slightly optimistic; evaluate the result on records" in shown.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--auto"], "give --corpus for the ability"),
        (["--corpus", "a.jsonl", "--channels", "c"], "--corpus has no effect without --auto"),
        ([], "give one set for each donor"),
        (["--auto", "--corpus", "a", "--keep", "b", "--donor", "x/y"], "2 donors were given"),
        (["--auto", "--corpus", "a", "--keep", "b", "--strength-of", "*=1"], "leave --strength-of out"),
        (["--auto", "--corpus", "a", "--keep", "b", "--channels", "c", "--profile", "p"], "tries one ranking"),
        (["--auto", "--corpus", "a", "--keep", "b", "--channels", "c", "--score", "welch-t"], "ranked already"),
        (["--auto", "--corpus", "a", "--keep", "b", "--keep-profile", "p"], "belongs to a --profile"),
        (["--donor-device", "cpu", "--channels", "c"], "--donor-device has no effect without --auto"),
        (["--auto", "--corpus", "a", "--keep", "b", "--overlap", "most"], "overlap"),
        (["--auto", "--corpus", "a", "--keep", "b", "--metric", "most"], "metric"),
        (["--auto", "--corpus", "a", "--keep", "b", "--top", "500%"], "top is 500%"),
        (["--auto", "--corpus", "a", "--keep", "b", "--least-kept", "2"], "the share to keep is 2"),
        (["--auto", "--corpus", "a", "--keep", "b", "--scope", "nonsense"], "scope is 'nonsense'"),
        (["--auto", "--corpus", "a", "--keep", "b", "--normalize", "nonsense"], "normalize is 'nonsense'"),
        (["--auto", "--corpus", "a", "--keep", "b", "--cost", "nonsense"], "cost is 'nonsense'"),
        (["--auto", "--corpus", "a", "--keep", "b", "--device", "cpu"], "no such corpus: a"),
    ],
)
def test_options_that_do_not_go_together(more, message, tmp_path):
    given = ["--donor", CHECKPOINTS / "base", "--target", CHECKPOINTS / "target", "--output", tmp_path / "out"]
    result = act_profile("transfer", *given, *more)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_auto_with_equal_texts_is_one_sentence(folder, tmp_path):
    copy = tmp_path / "copy.jsonl.gz"
    copy.write_bytes(gzip.compress((folder / "german.jsonl").read_bytes().replace(b"\n", b"\r\n")))
    given = ["--donor", CHECKPOINTS / "base", "--target", CHECKPOINTS / "target", "--output", tmp_path / "out"]
    result = act_profile("transfer", *given, "--auto", "--corpus", folder / "german.jsonl", "--keep", copy)
    assert result.returncode == 2 and "are the same text" in result.stderr and result.stderr.count("\n") == 1
    profile = tmp_path / "p.safetensors"
    profile.touch()
    swept = act_profile("sweep", profile, *given[:4], "--corpus", folder / "german.jsonl", "--keep", copy)
    assert swept.returncode == 2 and "are the same text" in swept.stderr


def test_controls_are_judged_as_the_choice_is_at_the_same_settings(measured):
    donor, target, german, english, text = measured
    before = state(target)
    tests = text("german test"), [text("english test")]
    found = choose_controls(
        ["random", "interpolation"],
        donor,
        target,
        german,
        *tests,
        tops=["2%", "5%"],
        strengths=[1.0],
        metric="nll",
        keep_profiles=[english],
    )
    assert [(one.top, one.strength) for one in found["random"]] == [(0.02, 1.0), (0.05, 1.0)]
    given = {"tops": ["5%"], "strengths": [1.0], "metric": "nll", "keep_profiles": [english]}
    chosen = act.choose(donor, target, german, *tests, least_kept=0.5, **given)
    with pytest.MonkeyPatch.context() as patched:
        count = itertools.count()
        patched.setattr(evaluations, "evaluate", lambda *of: (next(count), act.evaluate(*of))[1])
        (again,) = choose_controls(["random"], donor, target, german, *tests, before=chosen.before, **given)["random"]
        assert next(count) == 2 and again == found["random"][1], "donor and target are not evaluated again"
    (whole,) = found["interpolation"]  # all the way to the donor
    assert whole.recovered.value == pytest.approx(1, abs=1e-3) and whole.least_kept.value < 0.5
    assert all(abs(one.recovered.value) < 0.5 for one in found["random"])
    assert all(torch.equal(value, before[name]) for name, value in state(target).items())
