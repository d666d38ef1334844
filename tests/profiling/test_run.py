"""Streams, shards, abilities, out of memory, checkpoints: what a run counts never depends on how it got there."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import random_batches, tiny_model

import act
import act.core.tensor_files
from act.core.errors import ActError, Interrupted
from act.data.batching import batches, pieces, prefetched
from act.data.corpus import Corpus
from act.data.records import Entry
from act.data.stream import FIRST, Stream, require_first
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.profiling.checkpoint import Checkpoint
from act.profiling.job import Job
from act.profiling.measure import run_job
from act.profiling.observer import Observer
from act.profiling.run import Run
from act.taps.tapped import taps


def texts(count=60, ability="a"):
    return [{"text": f"{ability} b c d e " * (1 + 7 * number % 5)} for number in range(count)]


def corpus(tokenizer, count=60, ability="a", **options) -> Corpus:
    return Corpus.from_records(texts(count, ability), tokenizer, **options)


def fed(stream) -> list[tuple]:
    """The batches as plain values."""
    return [
        (batch.ability, batch.inputs["input_ids"].tolist(), batch.count_mask.tolist(), batch.documents.tolist())
        for batch in stream
    ]


def assert_same(first, second, rtol=1e-9) -> None:
    torch.testing.assert_close(first.moments.arena, second.moments.arena, rtol=rtol, atol=1e-6)


class After(Observer):
    """Calls a function after each batch with the number of batches so far."""

    def __init__(self, call):
        self.call, self.count = call, 0

    def after_batch(self, run, batch):
        self.count += 1
        self.call(self.count, run)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=30),
    max_length=st.integers(2, 20),
    overlap=st.integers(0, 30),
    budget=st.integers(1, 60),
    packing=st.booleans(),
)
def test_every_position_counts_once_however_it_is_cut_and_batched(lengths, max_length, overlap, budget, packing):
    overlap = min(overlap, max_length - 1)
    start, window = 1, []
    for document, length in enumerate(lengths):
        ids = np.arange(start, start + length, dtype=np.int32)  # every token of the corpus is another one
        window += pieces(ids, np.ones(length, dtype=bool), max_length, overlap, document, "ab"[document % 2])
        start += length
    counted, records = [], 0
    for batch in batches(window, budget, 0, packing):
        one_piece = batch.size <= max_length and len(batch.documents) == 1
        assert batch.size <= budget or one_piece
        assert len(set(batch.ability)) == 1 and {"ab"[d % 2] for d in batch.documents} == {batch.ability}
        counted += batch.inputs["input_ids"][batch.count_mask].tolist()
        records += batch.records
        halves = batch.halves()
        if halves:
            assert sum(half.size for half in halves) == batch.size
            assert np.array_equal(np.concatenate([half.documents for half in halves]), batch.documents)
            assert packing is False or all(half.inputs["position_ids"][0, 0] == 0 for half in halves)
        else:
            assert len(batch.documents) == 1
    assert sorted(counted) == list(range(1, start)) and records == len(lengths)


def test_a_piece_begins_with_the_end_of_the_one_before():
    ids = np.arange(25, dtype=np.int32)
    cut = list(pieces(ids, np.ones(25, dtype=bool), 10, 3))
    assert [piece.input_ids[0] for piece in cut] == [0, 7, 14, 21]
    assert [int(piece.count_mask.sum()) for piece in cut] == [10, 7, 7, 1]


def test_shards_together_are_the_corpus(tokenizer):
    whole = fed(Stream({"": corpus(tokenizer)}, token_budget=300))
    documents = sorted(d for _, _, _, ds in whole for d in ds)
    parts = [fed(Stream({"": corpus(tokenizer)}, token_budget=300, shard=(i, 3))) for i in range(3)]
    for i, part in enumerate(parts):
        assert all(d % 3 == i for _, _, _, ds in part for d in ds)
    assert sorted(d for part in parts for _, _, _, ds in part for d in ds) == documents == list(range(60))
    assert fed(Stream({"": corpus(tokenizer, 2)}, token_budget=300, shard=(2, 3))) == []


@pytest.mark.parametrize("look_ahead", [7, 2048])
def test_a_stream_goes_on_from_every_position(tokenizer, look_ahead):
    corpora = {"x": corpus(tokenizer, 30), "y": corpus(tokenizer, 20, "e")}
    options = {"token_budget": 150, "look_ahead": look_ahead, "shard": (1, 2)}
    stream = list(Stream(corpora, **options))
    whole = fed(stream)
    for number, batch in enumerate(stream, 1):
        assert fed(Stream(corpora, start=batch.after, **options)) == whole[number:]


def test_workers_give_the_same_batches(tokenizer):
    corpora = {"": corpus(tokenizer, 300)}
    assert fed(Stream(corpora, token_budget=300, workers=1)) == fed(Stream(corpora, token_budget=300))


def kill_worker(records):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_a_sentence(tokenizer, tmp_path):
    dying = corpus(tokenizer)
    dying.encoder = kill_worker
    with pytest.raises(ActError, match="a tokenizer worker died") as told:
        list(dying.numbered(workers=1))
    assert "checkpoint" not in str(told.value)  # which knows itself whether there is one


def test_several_abilities_in_one_pass_are_what_each_is_alone(tokenizer):
    model = tiny_model("llama")
    corpora = {"one": corpus(tokenizer, 30), "two": corpus(tokenizer, 20, "e")}
    together = act.profile(model, corpora, token_budget=200)
    for ability, alone in corpora.items():
        assert torch.equal(together[ability].moments.arena, act.profile(model, alone, token_budget=200).moments.arena)
        assert together[ability].provenance.corpora[0].ability == ability
    labelled = [{**record, "skill": "one"} for record in texts(30)] + [
        {**record, "skill": "two"} for record in texts(20, "e")
    ]
    mixed = act.profile(model, Corpus.from_records(labelled[::-1], tokenizer, ability_column="skill"), token_budget=200)
    for ability in corpora:
        assert_same(mixed[ability], together[ability], rtol=1e-6)


def test_labelled_rows_of_several_corpora_name_them_all_and_what_was_skipped(tokenizer):
    first = [{**record, "skill": "one"} for record in texts(5)]
    second = [
        {**record, "skill": skill} for record, skill in zip(texts(5, "e"), ["y", "x", "two", "two", 1.5], strict=True)
    ]
    corpora = {
        name: Corpus.from_records(records, tokenizer, ability_column="skill", name=f"{name}.jsonl")
        for name, records in (("x", first), ("y", second))
    }
    profiles = act.profile(tiny_model("llama"), corpora, skip_bad_records=1)
    assert set(profiles) == {"one", "two", "x", "y"}
    for profile in profiles.values():
        (read,) = profile.provenance.corpora
        assert (read.name, read.count) == ("x.jsonl, y.jsonl", "answer")
        assert [each.fingerprint for each in read.read] == [c.source.fingerprint for c in corpora.values()]
        assert [(each.ability, each.record) for each in read.skipped] == [("y", 4)]


def test_a_checkpoint_needs_a_fingerprint(tokenizer, tmp_path):
    model = tiny_model("llama")
    stream = datasets.Dataset.from_list(texts(5)).to_iterable_dataset()
    unknown = Corpus.from_dataset(stream, tokenizer)
    assert act.profile(model, unknown).provenance.job is None
    with pytest.raises(ActError, match="a stream without a fingerprint"):
        act.profile(model, unknown, checkpoint=Checkpoint(tmp_path / "c"))
    known = Corpus.from_dataset(stream, tokenizer, fingerprint="texts/1")
    assert act.profile(model, known, checkpoint=Checkpoint(tmp_path / "c")).provenance.job


@pytest.mark.parametrize("option", ["workers", "skip_bad_records"])
def test_numbers_below_zero_are_refused(tokenizer, option):
    with pytest.raises(ActError, match=r"is -1; expected 0 or more"):
        act.profile(tiny_model("llama"), corpus(tokenizer), **{option: -1})


def test_rows_of_a_mixed_batch_go_to_their_abilities():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    given = [{**batch, "ability": torch.arange(len(batch["input_ids"])) % 2} for batch in random_batches()]
    mixed = act.profile_pair(donor, target, given)
    for label in (0, 1):
        rows = [{name: x[batch["ability"] == label] for name, x in batch.items()} for batch in given]
        alone = act.profile_pair(donor, target, [{n: x for n, x in b.items() if n != "ability"} for b in rows])
        assert torch.equal(mixed[str(label)].moments.arena, alone.moments.arena)
    with pytest.raises(ActError, match="ability names 1 rows"):
        act.profile(target, [{**random_batches()[0], "ability": ["x"]}])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_packed_rows_give_the_same_statistics(family, tokenizer):
    model = tiny_model(family)
    padded, packed = (
        act.profile(model, corpus(tokenizer), token_budget=200, packing=packing) for packing in ("off", "on")
    )
    assert packed.provenance.corpora[0].padding == 0 < padded.provenance.corpora[0].padding
    assert torch.equal(packed.count, padded.count)
    for statistic in ("mean", "var", "mean_abs", "max_abs"):
        torch.testing.assert_close(getattr(packed, statistic), getattr(padded, statistic), rtol=1e-3, atol=1e-5)


def test_packing_is_chosen_only_where_attention_gains_and_refused_where_pieces_would_mix(tokenizer):
    model = tiny_model("llama")
    assert Job({"model": model}, corpus(tokenizer)).settings.packing is False
    model.forward = lambda original=model.forward, position_ids=None, **inputs: original(**inputs)
    with pytest.raises(ActError, match="lets packed pieces attend to each other"):
        Job({"model": model}, corpus(tokenizer), packing="on")


class RunsOut:
    """Taps that run out of memory above a number of tokens, after half of the model was counted."""

    def __init__(self, tapped, limit):
        self.tapped, self.limit, self.sizes = tapped, limit, []

    @property
    def moments(self):
        return self.tapped.moments

    @moments.setter
    def moments(self, moments):
        self.tapped.moments = moments

    def forward(self, inputs, count_mask, source_mask=None, prefix=None):
        self.tapped.forward(inputs, count_mask, source_mask, prefix)
        if count_mask.numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(count_mask.numel())


@pytest.mark.parametrize(("packing", "share"), [(False, False), (True, False), (False, True)])
def test_out_of_memory_loses_and_double_counts_nothing(tokenizer, packing, share):
    model = tiny_model("llama")
    space = ChannelSpace.from_model(model)
    expected = act.profile(model, corpus(tokenizer), token_budget=2000, packing="off")
    with taps(model, Moments(space)) as tapped:
        small = RunsOut(tapped, 200)
        run = Run(small, space, causal=True)
        run.over(Stream({"": corpus(tokenizer)}, token_budget=2000, packing=packing, share=share))
        assert max(small.sizes) <= 200 and run.max_tokens is not None
        assert torch.equal(run.moments[""].arena[0], expected.moments.arena[0])
        torch.testing.assert_close(run.moments[""].arena, expected.moments.arena, rtol=1e-3, atol=1e-3)
        hopeless = Run(RunsOut(tapped, 3), space)
        with pytest.raises(ActError, match=r"one sequence of \d+ tokens does not fit into the memory of cpu"):
            hopeless.over(Stream({"": corpus(tokenizer)}, token_budget=2000))
        assert not hopeless.moments[""].arena.any() and hopeless.position is None


def test_an_ability_that_is_stopped_is_read_no_further(tokenizer):
    def stop(count, run):
        if count == 2:
            run.stop("one")

    corpora = {"one": corpus(tokenizer, 50), "two": corpus(tokenizer, 50)}
    options = {"token_budget": 100, "look_ahead": 10}
    profiles = act.profile(tiny_model("llama"), corpora, observers=[After(stop)], **options)
    counted = {ability: profile.provenance.corpora[0].records for ability, profile in profiles.items()}
    assert 0 < counted["one"] < 20 and counted["two"] == 50
    end = After(lambda count, run: run.stop() if count == 2 else None)
    ended = act.profile(tiny_model("llama"), corpora["one"], observers=[end], **options)
    assert 0 < ended.provenance.corpora[0].records < 20


def test_prefetching_keeps_order_errors_and_ends_with_its_reader():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    stream = prefetched(endless(), lambda number: number + 1)
    assert [next(stream) for _ in range(5)] == [1, 2, 3, 4, 5]
    stream.close()

    def broken():
        yield 1
        raise ActError("no more")

    stream = prefetched(broken())
    assert next(stream) == 1
    with pytest.raises(ActError, match="no more"):
        next(stream)


def test_another_tokenizer_and_too_many_positions_are_refused(tokenizer):
    model = tiny_model("gpt2")
    with pytest.raises(ActError, match="learned 256 positions"):
        act.profile(model, corpus(tokenizer, max_length=300))
    act.profile(model, Corpus.from_records([{"text": "a b c d e " * 200}], tokenizer))
    foreign = [{"input_ids": [1, 2, 300], "loss_mask": [0, 1, 1]}]
    with pytest.raises(ActError, match="token 300 and the model's embedding has 300 rows"):
        act.profile(model, Corpus.from_records(foreign, tokenizer))


class Killed(Exception):
    pass


def stop_after(batches):
    def call(count, run):
        if count == batches:
            raise Killed

    return After(call)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_run_goes_on_to_the_same_bits(tokenizer, tmp_path, pair, at):
    models = (tiny_model("llama"), tiny_model("llama", seed=1))[: 1 + pair]
    corpora = {"one": corpus(tokenizer, 30), "two": corpus(tokenizer, 20, "e")}
    options = {"token_budget": 150, "look_ahead": 12}
    measure = partial(act.profile_pair, swap=True) if pair else act.profile
    whole = measure(*models, corpora, **options)
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):  # before the last batch was written: it is done again
        measure(*models, corpora, observers=[stop_after(at + 1)], checkpoint=Checkpoint(path, 0), **options)
    seen = After(lambda count, run: None)
    again = measure(*models, corpora, observers=[seen], checkpoint=Checkpoint(path, 0), **options)
    batches = list(Stream(corpora, share=True, **options))
    assert any(batch.shared for batch in batches)
    assert seen.count == len(batches) - at
    for ability in corpora:
        assert torch.equal(again[ability].moments.arena, whole[ability].moments.arena)
        for key in ("tokens", "counted", "padding", "records", "sequences", "shared"):
            assert getattr(again[ability].provenance.corpora[0], key) == getattr(
                whole[ability].provenance.corpora[0], key
            )


class Remembers(Observer):
    """An observer with state."""

    def __init__(self):
        self.batches = torch.zeros(1)

    def after_batch(self, run, batch):
        self.batches += 1

    def state(self):
        return {"batches": self.batches, "names": ["a", None, 1.5]}

    def restore(self, state):
        self.batches = state["batches"].clone()
        assert state["names"] == ["a", None, 1.5]


def test_observers_go_on_too(tokenizer, tmp_path):
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    with pytest.raises(Killed):
        act.profile(
            model,
            corpus(tokenizer),
            token_budget=150,
            observers=[Remembers(), stop_after(5)],
            checkpoint=Checkpoint(path, 0),
        )
    again = Remembers()
    act.profile(
        model, corpus(tokenizer), token_budget=150, observers=[again, Observer()], checkpoint=Checkpoint(path, 0)
    )
    assert int(again.batches) == len(list(Stream({"": corpus(tokenizer)}, token_budget=150, share=True)))


def test_a_checkpoint_of_another_run_is_refused(tokenizer, tmp_path):
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    with pytest.raises(Killed):
        act.profile(
            model, corpus(tokenizer), token_budget=150, observers=[stop_after(5)], checkpoint=Checkpoint(path, 0)
        )

    def again(model=model, count=60, restart=False, **options):
        options = {"token_budget": 150, **options}
        return act.profile(model, corpus(tokenizer, count), checkpoint=Checkpoint(path, 60, restart), **options)

    for options, message in (
        ({"count": 59}, "the text is another"),
        ({"model": tiny_model("llama", seed=3)}, "another model"),
        ({"token_budget": 151}, "token_budget: 150 there, 151 here"),
        ({"shard": (0, 2)}, "shard: 0/1 there, 0/2 here"),
        ({"include": "*.0.*"}, r"include: not given there, \*\.0\.\* here"),
    ):
        with pytest.raises(ActError, match=rf"checkpoint of another run \(.*{message}"):
            again(**options)
    whole = path.read_bytes()
    for damaged in (whole[:-50], b"hello", whole.replace(b"position", b"positiom")):
        path.write_bytes(damaged)
        with pytest.raises(
            ActError, match=r"damaged.*, so the run cannot continue from it; delete it, or pass restart=True"
        ):
            again()
    assert again(restart=True).provenance.corpora[0].records == 60
    with pytest.raises(ActError, match="needs a corpus"):
        act.profile(model, random_batches(), checkpoint=Checkpoint(tmp_path / "other"))


def test_a_full_disk_at_a_checkpoint_does_not_end_the_run(tokenizer, tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("act.core.tensor_files.save_file", full)
    path = tmp_path / "checkpoint"
    profile = act.profile(tiny_model("llama"), corpus(tokenizer), token_budget=150, checkpoint=Checkpoint(path, 0))
    assert profile.provenance.corpora[0].records == 60 and not path.exists()
    assert "the disk is full" in caplog.text and "the run continues" in caplog.text


class Lost:
    """Ranks of which one is lost while the moments are merged."""

    windows, leads = (0, 1), True

    def reduce(self, run, skipped, skip_bad_records):
        run.moments[""].arena.mul_(2)
        raise ActError("another rank was lost")


def test_half_merged_moments_are_never_written(tokenizer, tmp_path, monkeypatch):
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    tries = iter([True])

    def full_once(*arguments, save=act.core.tensor_files.save_file, **options):
        if next(tries, False):
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr("act.core.tensor_files.save_file", full_once)

    def lose(checkpoint):
        run_job(Job({"model": model}, corpus(tokenizer), ranks=Lost(), token_budget=150), checkpoint)

    with pytest.raises(
        ActError, match="was lost; there is no checkpoint, so the same command starts from the beginning"
    ):
        lose(Checkpoint(path, 1000))
    assert not path.exists()
    with pytest.raises(ActError, match=r"was lost; what came before \([\d,]+ tokens\) was counted and is safe in"):
        lose(Checkpoint(path, 1000))
    whole = act.profile(model, corpus(tokenizer), token_budget=150)
    assert torch.equal(load_file(path)["run.moments."], whole.moments.arena)


class Fails(Observer):
    def after_batch(self, run, batch):
        raise ActError("no more")


def test_an_error_on_the_way_keeps_what_was_counted(tokenizer, tmp_path):
    path = tmp_path / "checkpoint"
    records = [*texts(40), {"txt": "a"}, *texts(10)]
    options = {"token_budget": 150, "look_ahead": 10}
    model = tiny_model("llama")
    mixed = Corpus.from_records(records, tokenizer)
    with pytest.raises(
        ActError, match=r"record 40: expected .* \(skip_bad_records=N\); what came before .* is safe in"
    ):
        act.profile(model, mixed, checkpoint=Checkpoint(path), **options)
    with pytest.raises(ActError) as told:
        act.profile(
            tiny_model("llama"), mixed, observers=[Fails()], checkpoint=Checkpoint(tmp_path / "other"), **options
        )
    assert "is safe in" in str(told.value) and "bad record" not in str(told.value)
    seen = After(lambda count, run: None)
    again = act.profile(model, mixed, checkpoint=Checkpoint(path), skip_bad_records=1, observers=[seen], **options)
    whole = act.profile(model, mixed, skip_bad_records=1, **options)
    assert torch.equal(again.moments.arena, whole.moments.arena)
    assert seen.count < len(list(Stream({"": mixed}, skip_bad_records=1, **options)))
    (skipped,) = again.provenance.corpora[0].skipped
    assert skipped.record == 40 and "expected" in skipped.reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_two_batches(tokenizer, tmp_path, number):
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    before = signal.getsignal(number)
    interrupt = After(lambda count, run: os.kill(os.getpid(), number) if count == 3 else None)
    with pytest.raises(Interrupted, match="run the same command to continue"):
        act.profile(
            model, corpus(tokenizer), token_budget=150, observers=[interrupt], checkpoint=Checkpoint(path, 1000)
        )
    assert signal.getsignal(number) is before
    again = act.profile(model, corpus(tokenizer), token_budget=150, checkpoint=Checkpoint(path))
    whole = act.profile(model, corpus(tokenizer), token_budget=150)
    assert torch.equal(again.moments.arena, whole.moments.arena)


def test_the_first_records_of_every_text_are_encoded_before_the_first_batch(models, tokenizer, tmp_path):
    bare = copy.copy(tokenizer)
    bare.chat_template = None
    talks = tmp_path / "maths.jsonl"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talks.write_text(json.dumps({"text": "a b"}) + "\n" + json.dumps({"messages": talk}) + "\n")
    german, maths = Corpus.from_records(texts(40), bare, count="all"), Corpus.from_file(talks, bare, count="all")
    options = {"observers": [After(lambda count, run: pytest.fail("a batch was run"))]}
    for measured in (
        lambda: act.attribute(*models, german, keep=maths, **options),
        lambda: act.profile_pair(*models, {"german": german, "maths": maths}, **options),
        lambda: act.profile(models[0], {"german": german, "maths": maths}, **options),
    ):
        with pytest.raises(ActError, match=r"maths\.jsonl.*line 2.*chat template"):
            measured()
    skipping = {"german": german, "maths": maths}
    profiles = act.profile(models[0], skipping, skip_bad_records=1)
    assert profiles["maths"].provenance.corpora[0].skipped[0].record == 1


def test_no_more_than_the_first_records_are_read_to_try_them(tokenizer):
    read = []

    class Endless:
        name, place, fingerprint, size = "endless", None, "x", None

        def read(self, start=0, shard=(0, 1), wanted=None):
            for number in itertools.count(shard[0], shard[1]):
                read.append(number)
                yield Entry(number, f"record {number}", {"text": "a b"})

    require_first({"": Corpus(Endless(), tokenizer, count="all")}, (1, 3))
    assert read == [1 + 3 * place for place in range(FIRST)]
