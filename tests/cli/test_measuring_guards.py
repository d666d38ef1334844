"""What makes a measuring command pointless is found before models are loaded, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import save_models, tiny_model

import act
from act.cli.attribute import Attributing
from act.cli.measuring import Measuring
from act.cli.measuring_options import AttributeOptions, MeasuringOptions, PairOptions
from act.core.errors import ActError
from act.core.scratch import release_all
from act.profiling.checkpoint import Checkpoint

TEXTS = {
    "good": [{"prompt": f"a b {word}", "completion": f" {word} c"} for word in ("one", "two", "three")],
    "other": [{"prompt": f"c b {word}", "completion": f" {word} a"} for word in ("one", "two", "three")],
    "unanswered": [{"messages": [{"role": "user", "content": "a b"}]}] * 2,
    "first": [{"input_ids": [5, 6, 7], "labels": [5, -100, -100]}] * 10,  # nothing comes before what counts
    "nothing": [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 10,
    "late": [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 10 + [{"input_ids": [5, 6, 7]}],
    "labelled": [{"text": f"a b {word}", "skill": "x"} for word in ("one", "two")],
    "relabelled": [{"text": f"a b {word}", "skill": "x"} for word in ("two", "three")],
    "empty": [],
}
OPTIONS = {"run": MeasuringOptions, "pair": PairOptions, "attribute": AttributeOptions}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("guards")
    save_models(path, tokenizer, "donor", "target")
    for name, records in TEXTS.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def measure(folder, tmp_path, monkeypatch):
    """Runs a command in an empty folder; texts are named without their ending, models by side."""

    def run(command: str, corpus: str, swapped: bool = False, **given: object) -> None:
        monkeypatch.chdir(tmp_path)
        texts = [_placed(one, folder) for one in corpus.split()]
        if "keep" in given:
            given["keep"] = [_placed(one, folder) for one in str(given["keep"]).split()]
        sides = dict(zip(("donor", "target"), ("target", "donor") if swapped else ("donor", "target"), strict=True))
        names = {side: str(folder / name) for side, name in sides.items()}
        names = {"model": str(folder / "target")} if command == "run" else names
        kind = Attributing if command == "attribute" else Measuring
        try:
            kind(names, OPTIONS[command](corpus=texts, **given)).run()
        finally:
            release_all()  # as when the process ends

    return run


@pytest.fixture
def refuse(measure, monkeypatch):
    """Runs a command that must end with a message before it loads a model; returns the message."""

    def run(*given: object, **options: object) -> str:
        def load(*given: object, **options: object) -> None:
            raise AssertionError("a model was loaded")

        with monkeypatch.context() as patched:
            patched.setattr("act.models.loading.load_model", load)
            with pytest.raises(ActError) as raised:
                measure(*given, **options)
        return str(raised.value)

    return run


def _placed(text: str, folder: Path) -> str:
    name, _, place = text.rpartition("=")
    return f"{name}={folder / place}.jsonl" if name else f"{folder / place}.jsonl"


def left(path: Path) -> list[str]:
    return sorted(os.listdir(path))


@pytest.mark.parametrize(
    ("command", "corpus", "more", "message"),
    [
        ("attribute", "good", {"keep": "empty"}, "empty.jsonl: no token was counted; it is empty or"),
        ("attribute", "good", {"keep": "other nothing"}, "nothing.jsonl: no token was counted"),
        ("attribute", "good", {"keep": "first"}, "first.jsonl: no counted token has another before it"),
        ("attribute", "first", {}, "first.jsonl: no counted token has another before it"),
        ("attribute", "good", {"keep": "unanswered"}, "unanswered.jsonl, line 1: "),
        ("run", "a=good b=empty", {}, "empty.jsonl: no token was counted"),
        ("pair", "a=good b=nothing", {}, "nothing.jsonl: no token was counted"),
        ("run", "unanswered", {"skip_bad_records": 2}, "its bad records aside "),
        ("run", "a=good b=good", {}, "a and b are the same text, "),
        ("attribute", "good", {"keep": "good"}, "good.jsonl is given twice, as a text to keep and before"),
        ("run", "good", {"token_budget": "0"}, "token budget is '0'; expected a number of tokens, from 1, or auto"),
        ("run", "good", {"include": ["mpl"]}, "no module kind mpl; this model has down"),
        ("attribute", "good", {"exclude": ["heads"]}, "no module kind heads; this model has down"),
        ("run", "good", {"output": Path("x.csv")}, "x.csv ends with .csv; expected .safetensors"),
    ],
)
def test_what_makes_a_run_pointless_is_refused(refuse, tmp_path, command, corpus, more, message):
    assert message in refuse(command, corpus, **more)
    assert left(tmp_path) == []


def test_the_first_token_that_counts_may_come_late(measure, tmp_path):
    measure("attribute", "good", keep="late")
    measure("run", "first")  # a profile needs none before it
    assert left(tmp_path) == ["attribution.safetensors", "profile.safetensors"]
    kept = act.load(tmp_path / "attribution.safetensors").kept[0].provenance.corpora[0]
    assert (kept.records, kept.counted, kept.ability) == (11, 2, "late.jsonl")


def test_the_library_refuses_it_too_and_writes_no_checkpoint(tokenizer, tmp_path):
    good, nothing = (act.Corpus.from_records(TEXTS[name], tokenizer) for name in ("good", "nothing"))
    checkpoint = Checkpoint(tmp_path / "checkpoint", 0)
    with pytest.raises(ActError, match="no token was counted"):
        act.profile(tiny_model("llama"), {"a": good, "b": nothing}, checkpoint=checkpoint)
    with pytest.raises(ActError, match="no token was counted"):
        act.attribute(tiny_model("llama"), tiny_model("llama", 1), good, keep=nothing, checkpoint=checkpoint)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "corpus", "more", "expected"),
    [
        ("run", "good", {}, "profile.safetensors"),
        ("run", "a=good", {}, "profile.safetensors"),
        ("pair", "a=good", {"output": Path("x.safetensors")}, "x.safetensors"),
        ("run", "a=good", {"output": Path("x")}, "x/a.safetensors"),
        ("run", "a=good b=other", {}, "profiles/b.safetensors"),
        ("pair", "a=good b=other", {}, "pairs/b.safetensors"),
        ("attribute", "a=good b=other", {"keep": "late"}, "attributions/b.safetensors"),
    ],
)
def test_several_texts_make_a_folder(measure, tmp_path, command, corpus, more, expected):
    measure(command, corpus, **more)
    assert (tmp_path / expected).is_file() and len(left(tmp_path)) == 1


@pytest.mark.parametrize("more", [{"corpus": "a=good b=other"}, {"corpus": "good", "ability_column": "prompt"}])
def test_a_folder_is_not_named_like_a_file(refuse, more):
    said = refuse("run", output=Path("x.safetensors"), **more)
    assert said.startswith("the output x.safetensors ends with .safetensors like a file; expected the name of a folder")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": "other"}, "(the text is another)"),
        ({"corpus": "a=other"}, "(without the text a)"),
        ({"swapped": True}, "(its donor is "),
        ({"count": "predict"}, "(the text: count: answer there, predict here)"),
        ({"exclude": ["head"]}, "(exclude: none there, head here)"),
        ({"swap": True}, "(swap: not given there, on here)"),
        ({"shard": "0/2"}, "(shard: 0/1 there, 0/2 here)"),
    ],
)
def test_another_run_does_not_replace_an_output(refuse, measure, tmp_path, capsys, changed, message):
    measure("pair", "good", output=Path("x.safetensors"))
    before = (tmp_path / "x.safetensors").read_bytes()
    said = refuse(**{"command": "pair", "corpus": "good", "output": Path("x.safetensors"), **changed})
    assert "x.safetensors exists already, from another run " in said and message in said
    assert (tmp_path / "x.safetensors").read_bytes() == before and left(tmp_path) == ["x.safetensors"]


def test_a_text_to_keep_and_another_command_are_another_run(refuse, measure):
    measure("attribute", "good", keep="other", output=Path("x"))
    for given, message in (
        ({"keep": "late"}, "(text 1 to keep is another)"),
        ({}, "(with text 1 to keep, which is not given here)"),
        ({"keep": "other late"}, "(without text 2 to keep)"),
    ):
        assert message in refuse("attribute", "good", output=Path("x"), **given)
    assert "(of attribute, which measures something else)" in refuse("pair", "good", output=Path("x"))
    assert "(of a donor and a target, not of one model)" in refuse("run", "good", output=Path("x"))


def test_the_same_run_is_finished_and_several_are_replaced_only_with_force(measure, refuse, capsys, tmp_path):
    measure("run", "a=good b=other", token_budget="64", include=["up"])
    capsys.readouterr()
    measure("run", "a=good b=other", token_budget="64", include=["up"])
    assert "profiles is finished already" in capsys.readouterr().out
    assert "(token_budget: 64 there, 32 here)" in refuse("run", "a=good b=other", token_budget="32", include=["up"])
    assert "(with the text b, which is not given here)" in refuse("run", "a=good", output=Path("profiles"))
    measure("run", "a=other", output=Path("profiles"), force=True)
    assert left(tmp_path / "profiles") == [".act-profile", "a.safetensors"]


def test_labelled_records_are_told_from_others_by_their_text(measure, refuse, capsys):
    measure("run", "labelled", ability_column="skill")
    assert "(the text: count: answer there, all here)" in refuse("run", "labelled", ability_column="skill", count="all")
    assert "(the text is another)" in refuse("run", "relabelled", ability_column="skill")
    capsys.readouterr()
    measure("run", "labelled", ability_column="skill")
    assert "profiles is finished already" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused_with_words_and_the_way_out(refuse, measure, tmp_path, monkeypatch):
    def full(*given: object, **options: object) -> None:
        raise ActError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("act.profiles.profile.Profile.save", full)
        with pytest.raises(ActError, match="the disk is full"):
            measure("run", "good")
    assert left(tmp_path) == ["profile.safetensors.checkpoint"]
    said = refuse("run", "other")
    assert "is the checkpoint of another run (the text is another); finish that run with its command, or pass" in said
    with pytest.raises(ActError, match=r"of another run \(the model as float32 there, as bfloat16 here \(dtype\)\)"):
        measure("run", "good", dtype="bfloat16")
    measure("run", "other", force=True)
    assert left(tmp_path) == ["profile.safetensors"]


def test_the_same_run_in_another_type_is_told_by_the_type(measure, tmp_path):
    measure("pair", "good", output=Path("x.safetensors"))
    with pytest.raises(ActError, match=r"another run \(the donor as float32 there, as bfloat16 here \(dtype\)\)"):
        measure("pair", "good", output=Path("x.safetensors"), dtype="bfloat16")
