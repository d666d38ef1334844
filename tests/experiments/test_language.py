"""The experiment on prose: a short run of the whole on made-up pages, that it goes on, and what its figures mean."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from act.profiling.measure import profile_pair

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pages in four languages and problems, in the form of the real ones."""
    folder, draw = tmp_path_factory.mktemp("prose"), random.Random(0)
    words = {code: [f"{code}{draw.randrange(999)}" for _ in range(40)] for code in ("en", "de", "fr", "it")}
    for code, vocabulary in words.items():
        with gzip.open(folder / f"help_{code}.jsonl.gz", "wt") as file:
            for page in range(40):
                split = {0: "test", 1: "validation"}.get(page % 8, "train")
                text = " ".join(draw.choices(vocabulary, k=30))
                file.write(json.dumps({"text": text, "doc": f"{page:02}", "lang": code, "split": split}) + "\n")
    sums = [(draw.randrange(50), draw.randrange(50)) for _ in range(60)]
    rows = [[{"content": f"How much are {a} and {b} apples?"}, {"content": f"{a} + {b} = {a + b}"}] for a, b in sums]
    (folder / "gsm8k_train_2k.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return folder


@pytest.fixture
def experiment(monkeypatch):
    """The modules of the experiment, by the names that they have there."""
    for folder in ("benchmarks", "experiments"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def run(data, *arguments):
    return subprocess.run(
        [sys.executable, "experiments/language.py", "--quick", "--data", str(data), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_short_run_has_the_promised_fields_and_goes_on_from_its_cache(experiment, data, tmp_path):
    out, cache = tmp_path / "language.json", tmp_path / "cache"
    runs = ["0/mathematics", "0/German"]
    first = run(data, "--cache", cache, "--runs", *runs, "--json", out)
    assert first.returncode == 0, first.stderr
    found = json.loads(out.read_text())
    assert found["ours"] in found["area"] and set(found["controls"]) < set(found["area"]) == set(found["gain_at_95"])
    assert all(set(by_run) == set(runs) for by_run in found["area"].values())
    assert set(found["merged_worst"]) >= {
        found["ours"],
        "TIES",
        "DARE",
        "interpolation",
        "task arithmetic",
        "weight-diff",
    }
    assert set(found["claims"]) == {"concentration", "stability", "disentanglement", "sufficiency", "necessity"}
    assert all({"figure", "verdict"} == set(one) for by_run in found["claims"].values() for one in by_run.values())
    assert {"machine", "command", "settings", "tuned", "models", "verdict"} <= set(found)
    assert 0 < found["models"]["0"]["base"]["bits per byte"]["German"][0] < 20
    from language_page import SECTIONS

    assert all(section(found) for section in SECTIONS.values()), "every table can be made of it"
    again = run(data, "--cache", cache, "--runs", *runs, "--json", out)
    assert again.returncode == 0 and "area" not in again.stderr and "step" not in again.stderr, "nothing is made twice"
    assert json.loads(out.read_text())["area"] == found["area"]
    import language
    import stories

    for gone in cache.glob("0-German-*/recovery*"):
        if gone.stem in ("recovery", "recovery-TIES"):
            gone.unlink()
    parts = language.run_parts(language.QUICK, data, cache, runs, language.PARTS, stories.QUICK, made=True)
    partial = language.collect(parts, language.QUICK, runs)
    assert partial["area"] == {**found["area"], "TIES": {"0/mathematics": found["area"]["TIES"]["0/mathematics"]}}
    assert "recovery of 1 of 2 runs" in SECTIONS["state"](partial) and "1 of 2 runs" in SECTIONS["methods"](partial)
    assert "All 2 runs" in SECTIONS["state"](found)


def test_nothing_is_made_where_only_what_is_made_is_asked_for(experiment, data, tmp_path):
    import language
    import stories

    found = language.run_parts(language.QUICK, data, tmp_path, ["0/German"], language.PARTS, stories.QUICK, made=True)
    assert found == {part: {} for part in language.PARTS}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_page_of_some_runs_says_so(experiment):
    import language
    from language_page import SECTIONS, UNMADE

    figures = dict.fromkeys(
        ("area", "gain", "gain ±", "retained", "retained ±", "along", "specific", "specific ±"), 0.5
    )
    methods = {name: {**figures, "setting": [0.1], "frontier": []} for name in (language.OURS, "match", "random")}
    planned = ["0/German", "1/German"]
    nothing = {part: {} for part in language.PARTS}
    tables = {
        number: {
            name: section(language.collect(found, language.QUICK, planned))
            for name, section in SECTIONS.items()
            if name != "made_on"
        }
        for number, found in enumerate((nothing, {**nothing, "recovery": {"0/German": {"methods": methods}}}))
    }
    assert tables[0].pop("state").startswith("**Not finished**") and {*tables[0].values()} == {UNMADE}
    assert "recovery of 0 of 2 runs by all methods" in tables[1]["state"]
    assert "| match | 0.50 | 0.50 |" in tables[1]["methods"], "one run has no deviation"
    assert tables[1]["verdict"] == UNMADE, "the best control is not known before all have run"


@pytest.mark.slow
def test_claims_are_tried_on_stories260k(experiment, shared_data, tmp_path):
    import stories
    from claims import claims

    lab = stories.StoriesLab(stories.QUICK, shared_data, tmp_path)
    found = claims(lab)
    assert set(found["verdicts"]) == {"concentration", "stability", "disentanglement", "sufficiency", "necessity"}
    assert "problems of mathematics" in found["verdicts"]["necessity"][0]
    embedding = lab.space.site("model.embed_tokens")
    assert embedding.tied_to and not lab.top(found_scores(lab), 0.3)[embedding.channels].any()
    assert lab.point(lab.donor, "test") == pytest.approx((1, 0), abs=1e-6), "all weights are put into the model"


def found_scores(lab):
    from claims import _scores

    return _scores(lab, lab.texts()["forgotten"])["paired"]


def test_a_training_that_was_stopped_goes_on_to_the_same_model(experiment, data, tmp_path):
    from language import QUICK
    from prose import Texts
    from schooling import School, taught

    school = School(QUICK, Texts(data), tmp_path)
    windows, judge = school.windows("German", 0), school.reading("German", "validation").bits_per_byte

    def train(name, *stops):
        for stop in stops:
            model = school.blank(0)
            taught(
                model,
                lambda step: windows(step, 2),
                lambda step: 1e-2,
                judge,
                steps=stop,
                every=2,
                patience=0,
                state=tmp_path / name,
            )
        return torch.cat([each.flatten() for each in model.parameters()])

    assert torch.equal(train("whole", 6), train("stopped", 2, 6))


def test_training_stops_when_validation_does_not_improve(experiment):
    from schooling import _stopped

    assert not _stopped([3.0, 2.0, 1.0, 1.1], 2) and _stopped([3.0, 1.0, 1.1, 1.0], 2)
    assert not _stopped([1.0] * 9, 0)


def test_windows_take_every_token_once_a_turn(experiment, data):
    from prose import Texts, Windows, tokens_of, train_tokenizer

    texts = Texts(data)
    tokenizer = train_tokenizer(texts, 320)
    stream = [token for ids in tokens_of(tokenizer, texts("French", "train")) for token in ids]
    windows = Windows(tokenizer, texts("French", "train"), 10, seed=3)
    count = (len(stream) - 1) // 10
    turn = [tuple(row.tolist()) for step in range(count) for row in windows(step, 1)]
    assert sorted(turn) == sorted(tuple(stream[10 * place :][:11]) for place in range(count))
    assert torch.equal(windows(2, 3), torch.cat([windows(step, 1) for step in range(6, 9)]))


def test_bits_are_over_the_bytes_of_the_tokens_read(experiment, data):
    from prose import Reading, Texts, train_tokenizer

    tokenizer = train_tokenizer(Texts(data), 320)
    reading = Reading(tokenizer, ["größer als 3 €", "x" * 300], width=1000)
    assert reading.bytes.tolist() == [len("größer als 3 €".encode()), 300]


def test_a_match_is_what_moving_the_row_does(experiment, data, tmp_path):
    from language import QUICK
    from prose import Texts, corpus_of
    from schooling import School

    school = School(QUICK, Texts(data), tmp_path)
    donor, target = school.blank(0).eval(), school.blank(1).eval()
    corpus = corpus_of(school.tokenizer, Texts(data)("German", "train")[:2], 12, "German")
    pair = profile_pair(donor, target, corpus, swap=True)
    found = pair.product.mean, pair.swap.mean_square, pair.difference.mean_square
    site = pair.space.site("model.layers.0.mlp.gate_proj")

    def outputs(model):
        rows = []
        hook = model.get_submodule(site.name).register_forward_hook(
            lambda module, given, output: rows.append(output[0])
        )
        for sequence in corpus.sequences():
            model(input_ids=torch.as_tensor(sequence.input_ids).long()[None])
        hook.remove()
        return torch.cat([row[1:] for row in rows]).detach()  # the token that begins a text does not count

    before, wanted = outputs(target), outputs(donor)
    target.get_submodule(site.name).load_state_dict(donor.get_submodule(site.name).state_dict())
    delta = outputs(target) - before
    expected = [(delta * (wanted - before)).mean(0), delta.square().mean(0), (wanted - before).square().mean(0)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[site.channels], theirs.double(), rtol=1e-4, atol=1e-8)


def test_shares_are_none_at_the_specialist_and_all_at_the_base(experiment, data, tmp_path):
    from language import QUICK
    from prose import Texts
    from reading import ProseLab
    from schooling import School

    lab = ProseLab(QUICK, tmp_path, School(QUICK, Texts(data), tmp_path), 0, "mathematics")
    assert lab.point(lab.target, "test") == pytest.approx((0, 1), abs=1e-9)
    assert lab.point(lab.donor, "test") == pytest.approx((1, 0), abs=1e-9)
