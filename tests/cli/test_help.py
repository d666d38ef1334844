"""``--help`` of every command, completion, and what a person mistypes."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import textwrap
import typing

import pytest
import typer
import yaml
from command_line import act_profile

from act import cli
from act.cli import options
from act.cli.choosing import AUTO, Choosing
from act.data.encode import AnswerTurns
from act.data.encoded import Count
from act.editing.rows import Overlap
from act.editing.tune import Mode
from act.evaluation.exercises import Metric
from act.models.loading import DEVICE_MAPS, DTYPES
from act.ranking.attributed import Cost
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.selection import Scope
from act.recipes.schema import StageName

COMMANDS = [
    *cli.COMMANDS,
    *(f"patch {n}" for n in ("apply", "revert", "show", "compose")),
]
CHOICES = {
    options.COUNTS: Count,
    options.TURNS: AnswerTurns,
    options.METRICS: Metric,
    options.NORMALIZE: Normalize,
    options.SCOPES: Scope,
    options.UNITS: Granularity,
    options.COSTS: Cost,
    options.OVERLAPS: Overlap,
    options.MODES: Mode,
    options.STAGES: StageName,
}  # fmt: skip


def command_of(words: list[str]):
    """The command that words begin with, and the rest of them."""
    command = typer.main.get_command(cli.app)
    context = command.make_context("act-profile", [], resilient_parsing=True)
    while words and (found := getattr(command, "get_command", lambda *_: None)(context, words[0])):
        command, words = found, words[1:]
    return command, words


def shown(*words: str, columns: int = 80) -> str:
    return act_profile(*words, "-h", env={"COLUMNS": str(columns)}).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_two_examples_that_it_understands(name):
    command, _ = command_of(name.split())
    commands, _, _ = command.epilog.partition("\n\n")  # behind them, a file that they take
    examples = commands.replace("\\\n", " ").strip().splitlines()
    assert len(examples) >= 2 and max(map(len, command.epilog.splitlines())) <= 78
    for example in examples:
        for line in example.split(" > ")[0].split(" && "):
            called, words = command_of(shlex.split(line)[1:])
            called.make_context("x", words)  # raises for an option that is not there


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_has_groups_and_choices_and_keeps_to_the_width(columns):
    text = shown("pair", columns=columns)
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{name}:" for name in (*options.GROUPS, "Examples")]
    assert "--count answer|predict|all|prompt" in text and "--version" not in text
    prose = text.partition("Examples:")[0].splitlines()
    assert max(map(len, prose)) <= max(columns, 64)  # the longest name of an option with its choices
    assert max(map(len, prose)) > 80 or columns < 200
    assert act_profile("pair", "--help", env={"COLUMNS": str(columns)}).stdout == text


def test_the_choices_of_the_help_are_those_of_the_library():
    assert {choices: typing.get_args(known) for choices, known in CHOICES.items()} == {one: one for one in CHOICES}
    assert options.DTYPES == DTYPES and options.DEVICE_MAPS == DEVICE_MAPS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["act-profile", "eva"], {"evaluate"}),
        (["act-profile", "run", "--cou"], {"--count"}),
        (["act-profile", "run", "--count", "p"], {"predict", "prompt"}),
        (["act-profile", "plan", "--gpu", "h"], {"h100", "h100-pcie", "h200"}),
        (["act-profile", "patch", "co"], {"compose"}),
        (["act-profile", "recipe", "--example", "me"], {"merge"}),
        (["act-profile", "recipe", "me"], set()),
        (["act-profile", "report", "--score", "m"], {"mean-abs", "mean-shift", "match", "match-contrast"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words, expected):
    asked = {"_ACT_PROFILE_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    assert set(act_profile(env=asked).stdout.split()) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rnk"], "no command 'rnk'; see act-profile --help; did you mean rank or run?"),
        (["run", "--donor", "a"], "no such option: --donor, which pair, attribute, rank, report have; see act-profile run "),
        (["run", "--zzz", "a"], "no such option: --zzz; see act-profile run --help"),
        (["run", "--model", "m", "--corpus", *"abcde"], "unexpected b c d and 1 more; each option takes one value, so repeat it for"),
        (["rank", "x", "--scoer", "paired"], "no such option: --scoer; see act-profile rank --help; did you mean --score?"),
        (["tune", "--lr", "1"], "no such option: --lr; see act-profile tune --help; did you mean --learning-rate?"),
        (["tune", "--keep", "x"], "no such option: --keep; see act-profile tune --help; --replay mixes in records of what to"),
        (["evaluate", "--output", "x"], "no such option: --output; see act-profile evaluate --help; --details FILE.jsonl writes"),
        (["evaluate", "--out", "x"], "no such option: --out; see act-profile evaluate --help; --details FILE"),
        (["run", "--corpus", "x"], "missing option '--model'; see act-profile run --help"),
        (["run", "--model", "m"], "missing option '--corpus'"),
        (["patch", "show"], "missing argument"),
        (["patch", "compose", "p", "--output"], "option '--output' requires an argument; see act-profile patch compose --h"),
        (["sweep", "p", "--output"], "option '--output' requires an argument; see act-profile sweep --help"),
        (["plan", "my model/"], "missing option '--model'; did you mean --model 'my model/'?"),
        (["pair", "base", "specialist"], "missing option '--donor'; did you mean --donor base?"),
        (["tune", "--model", "m", "--corpus", "a", "--corpus", "b"], "--corpus is given 2 times, and takes one value; give it "),
        (["evaluate", "--model", "a", "--model", "b", "--before", "c", "--before=d"], "--before is given 2 times"),
        (["rank", "x", "--force", "--force", "--top", "5%", "--top", "5%", "--top", "6%"], "--top is given 3 times"),
        (["plan", "--model", "m", "--gpu-tflops", "many"], "--gpu-tflops is 'many'; expected a number; see act-profile plan"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_one_sentence(words, sentence):
    result = act_profile(*words)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: {sentence}") and result.stderr.count("\n") == 1, result.stderr
    as_json = act_profile(*words, "--json")
    assert json.loads(as_json.stdout) == {"error": as_json.stderr[len("error: ") : -1], "exit_code": 2}


def sections(*words: str) -> dict[str, str]:
    """The help of a command by heading."""
    parts = re.split(r"^(\S.*):$", shown(*words), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_help_of_a_group_and_of_mergekit_shows_what_to_type():
    assert "act-profile patch apply german.safetensors --model specialist/" in sections("patch")["Examples"]
    file = textwrap.dedent(sections("mergekit")["What the first of these writes"])
    assert yaml.safe_load(file)["models"][0]["parameters"] == {"channels": "channels.safetensors", "weight": 0.4}


def test_what_belongs_together_stands_together():
    only_auto = sections("transfer")[AUTO]
    names = {option.opts[0] for option in command_of(["transfer"])[0].params}
    ranking = {f"--{each.name.replace('_', '-')}" for each in dataclasses.fields(Choosing)}
    assert ranking < names and all(f"  {name} " in only_auto for name in {*ranking, "--auto"})
    others = "".join(text for title, text in sections("transfer").items() if title not in (AUTO, "Examples"))
    assert not any(f"  {name} " in others for name in ranking)
    for command in ("plan", "recipe"):
        (together,) = (text for text in sections(command).values() if "  --gpu " in text)
        assert "  --gpu-tflops " in together


EARLIER = {"rank": {"--keep": "keep_profile", "--count": "number"}, "report": {"--keep": "keep_profile"}} | {
    name: {"--overlap": "stride"} for name in ("run", "pair", "attribute", "plan")
}


def test_a_name_means_one_thing_and_the_earlier_ones_are_understood():
    kinds: dict[str, set[str]] = {}
    helps = {
        name: shown(*name.split(), columns=200).partition("Examples:")[0] for name in (*EARLIER, "transfer", "sweep")
    }
    for text in helps.values():
        for name, kind in re.findall(
            r"^  (--(?:keep|keep-profile|count|number|overlap|stride)) (\S+)", text, re.MULTILINE
        ):
            kinds.setdefault(name, set()).add(kind)
    assert len(kinds) == 6 and all(len(found) == 1 for found in kinds.values()), kinds
    for name, earlier in EARLIER.items():
        command, _ = command_of([name])
        for option, field in earlier.items():
            (found,) = (one for one in command.params if option in one.opts)
            assert found.name == field and f"{option} " not in helps[name]


def test_without_a_command_the_help_is_shown():
    result = act_profile()
    assert result.returncode == 2 and "Begin with:\n  act-profile demo\n" in result.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["plan", "--gpu-tflops", "1x"], "--gpu-tflops is '1x'; expected a number; see act-profile plan --help"),
        (["plan", "--gpus", "0"], "--gpus is 0; expected at least 1; see act-profile plan --help"),
        (["rank", "p", "--number", "2.5"], "--number is '2.5'; expected a whole number; see act-profile rank --help"),
        (["transfer", "--strength", "1", "--strength", "x"], "--strength is 'x'; expected a number; see"),
        (["prfile"], "no command 'prfile'; see act-profile --help; did you mean run or pair?"),
        (["patch", "shw"], "no command 'shw'; see act-profile patch --help; did you mean show?"),
        (["frobnicate"], "no command 'frobnicate'; see act-profile --help"),
        (
            ["sweep", "--strength", "0.4,1"],
            "--strength is '0.4,1'; expected a number; for several, repeat the option: --strength 0.4 --strength 1; see",
        ),
        (["tune", "--learning-rate", "1,2"], "--learning-rate is '1,2'; expected a number; see"),
        (["patch", "apply", "p", "--target", "t"], "no such option: --target; see act-profile patch apply --help; did you mean --model?"),
        (["patch", "apply", "p", "--targt", "t"], "no such option: --targt; see act-profile patch apply --help; did you mean --model?"),
        (["patch", "revert", "p", "--base", "t"], "no such option: --base; see act-profile patch revert --help; did you mean --model?"),
        (["patch", "apply", "p", "--out", "t"], "no such option: --out; see act-profile patch apply --help; did you mean --output?"),
        (
            ["patch", "apply", "p", "--donor", "d"],
            "no such option: --donor; see act-profile patch apply --help; a patch holds the donor's rows already: give the",
        ),
        (["sweep", "p", "--base", "b"], "no such option: --base; see act-profile sweep --help; did you mean --donor?"),
        (["sweep", "p", "--model", "b"], "no such option: --model; see act-profile sweep --help; did you mean --target?"),
        (["sweep", "--profile", "b"], "no such option: --profile; see act-profile sweep --help; PROFILE has no option before"),
        (["sweep", "p", "--shares", "1%"], "no such option: --shares; see act-profile sweep --help; did you mean --top?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_of_what_was_given_and_what_was_expected(given, said):
    assert mistaken(given).startswith(said)


@pytest.mark.parametrize(
    "command", [["sweep", "p", "--corpus", "t"], ["transfer", "--auto", "--corpus", "t", "--keep", "k"]]
)
def test_a_strength_that_is_none_is_told_before_models_are_looked_for(command):
    models = ["--donor", "d", "--target", "t", *(["--output", "o"] if command[0] == "transfer" else [])]
    assert mistaken([*command, *models, "--strength", "-1"]).startswith("strength is -1.0; expected 0 ")


def test_each_command_on_patches_says_what_it_does_in_one_whole_line():
    listed = sections("patch")["Commands"]
    assert "..." not in listed and "revert   Write a model as it was before a patch, bit for bit." in listed


@pytest.mark.parametrize(
    "command", [["sweep", "p", "--corpus", "t"], ["transfer", "--auto", "--corpus", "t", "--keep", "k"]]
)
def test_several_shares_in_one_are_told_apart(command):
    models = ["--donor", "d", "--target", "t", *(["--output", "o"] if command[0] == "transfer" else [])]
    said = mistaken([*command, *models, "--top", "5,10%"])
    assert said.endswith("such as 5% or 0.05; for several, repeat the option: --top 5% --top 10%")
    assert "repeat" not in mistaken([*command, *models, "--top", "five"])


def test_each_command_less_one_letter_is_still_meant():
    for name in cli.COMMANDS:
        for place in range(len(name)):
            offered = mistaken([name[:place] + name[place + 1 :]]).partition("did you mean ")[2]
            assert name in offered.rstrip("?").split(" or "), name


def mistaken(given: list[str]) -> str:
    with pytest.raises(Exception) as found:
        cli.app(given, standalone_mode=False, prog_name="act-profile")
    return cli._sentence(found.value) or ""
