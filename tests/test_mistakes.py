"""Mistakes that people make in Python: each is one sentence that says what was given, and what to give."""

from __future__ import annotations

import re

import pytest
from support import tiny_model

import act

RECORDS = [{"prompt": f"{a} + {a} =", "completion": f" {a + a}"} for a in range(4)]


@pytest.fixture(scope="module")
def given(models, pair, tokenizer):
    """What the lines below may use."""
    donor, target = models
    corpus = act.Corpus.from_records(RECORDS, tokenizer)
    channels = act.rank(pair, top=0.1)
    patch = act.transfer(donor, target, channels, 0.5)
    patch.revert(target)
    names = {"act": act, "donor": donor, "target": target, "pair": pair, "tokenizer": tokenizer, "corpus": corpus}
    half = tiny_model("llama").half()
    return names | {"channels": channels, "patch": patch, "half": half, "records": RECORDS}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("act.Corpus('german.jsonl', tokenizer)", "the source is of type str; make a corpus of a file with"),
        ("act.Corpus(records, tokenizer)", "the source is of type list; make a corpus"),
        ("act.Corpus.from_records('german.jsonl', tokenizer)", "records are of type str; expected a list of dicts"),
        ("act.Corpus.from_records({'text': ['a']}, tokenizer)", "records are of type dict; expected a list of dicts"),
        ("act.Corpus.from_dataset('german.jsonl', tokenizer)", "the dataset is of type str; expected one as"),
        (
            "act.Corpus.from_dataset({'train': records}, tokenizer)",
            "1 split, 'train'; give one, such as dataset['train']",
        ),
        ("corpus.part(2, 2)", "the remainders are [2], of a division by 2; expected a list of 0 to 1"),
        ("act.profile(target, corpus, shard='0/2')", "shard is '0/2'; expected two whole numbers, such as (0, 2)"),
        (
            "act.profile(target, corpus, checkpoint='run')",
            "expected an act.Checkpoint, such as act.Checkpoint('run.check",
        ),
        ("act.profile_pair(half, target, corpus)", "load both in one type (dtype)"),
        ("act.align_experts(donor, target, corpus)", "the space is of type Corpus; expected an act.ChannelSpace"),
        ("act.rank(pair, keep=corpus)", "keep is of type Corpus; expected a profile of what to keep"),
        ("channels.best('200%')", "the share is 200%; expected a share of the channels"),
        ("act.transfer(donor, target, pair)", "of type PairProfile; expected an act.ChannelSet; make one of a profile"),
        (
            "act.transfer(donor, target, patch)",
            "of type Patch; expected an act.ChannelSet; read a file with act.ChannelSet",
        ),
        ("act.compose(patch)", "the patches are one act.Patch; expected a list of them"),
        ("act.sweep(donor, target, pair, len, tops=0.05)", "tops is 0.05; expected a list, such as [0.05]"),
        ("act.sweep(donor, target, pair, len, strengths=1)", "strengths is 1; expected a list, such as [1]"),
        ("act.choose(donor, target, pair, corpus, pair)", "keep is of type PairProfile; expected an act.Corpus"),
        ("act.choose(donor, target, pair, corpus, corpus, tops='5%')", "tops is '5%'; expected a list, such as ['5%']"),
        ("act.choose(donor, target, pair, corpus, corpus, strengths=1.0)", "strengths is 1.0; expected a list"),
        (
            "act.recipe.check('my.yaml')",
            "the recipe is of type str; expected a recipe; read a file with act.recipe.read",
        ),
        ("act.recipe.room_for('my.yaml')", "the recipe is of type str"),
        ("act.recipe.run('my.yaml')", "the recipe is of type str"),
        ("act.recipe.clean('my.yaml')", "the recipe is of type str"),
        ("act.recipe.stages_of('my.yaml')", "the recipe is of type str"),
    ],
)
def test_a_mistake_is_one_sentence(line, said, given):
    with pytest.raises(act.ActError, match=re.escape(said)) as error:
        eval(line, given)
    assert "--" not in str(error.value), "an option of the command line"


def test_the_channels_of_a_choice_are_named(given, models):
    class Choice:
        channels = given["channels"]

    with pytest.raises(
        act.ActError, match=r"type Choice; expected an act.ChannelSet; give its channels \(choice.channels"
    ):
        act.transfer(*models, Choice())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "act.choose(donor, target, corpus, corpus)",
            "act.choose: missing a required argument: 'keep'; it takes donor, target, ranking, corpus, keep, and more",
        ),
        (
            "act.choose(donor, target, None, corpus, corpus, top=0.1)",
            "act.choose: got an unexpected keyword argument 'top'; did you mean tops?",
        ),
    ],
)
def test_a_call_that_does_not_fit_names_the_function(line, said, given):
    with pytest.raises(TypeError, match=re.escape(said)):
        eval(line, given)


def test_tuning_does_not_take_a_file_for_a_folder_of_checkpoints(tmp_path, tokenizer):
    pytest.importorskip("accelerate")
    (tmp_path / "german.jsonl").write_text("{}")
    corpus = act.Corpus.from_records(RECORDS, tokenizer)
    with pytest.raises(act.ActError, match=r"german.jsonl is a file; name a new folder for checkpoints"):
        act.tune(tiny_model("llama"), corpus, act.TuneSettings(steps=1), checkpoints=tmp_path / "german.jsonl")


def test_the_best_of_a_set_may_be_asked_for_in_percent(given):
    assert given["channels"].best("5%").index.tolist() == given["channels"].best(0.05).index.tolist()
