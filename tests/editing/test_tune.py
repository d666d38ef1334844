"""Tuning: what moves, what does not, that it repeats, and that it goes on after a break."""

from __future__ import annotations

import copy
import os
import signal
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from support import tiny_model

import act
from act.core.errors import Interrupted
from act.editing.card_history import stranger
from act.editing.model_card import write_card
from act.editing.trainer import mark_saved, remove_saved, usable_checkpoint
from act.editing.tune import _identity, _order, save_tuned
from act.models.fingerprint import fingerprint
from act.ranking.rule import Rule

RECORDS = [{"prompt": f"a b {word}", "completion": f" {word} c d"} for word in ("one", "two", "three", "four")]
OTHERS = [{"prompt": "The answer", "completion": " is five."}]


def settings(**changed) -> act.TuneSettings:
    return act.TuneSettings(**{"steps": 4, "batch_size": 2, "learning_rate": 1e-2, **changed})


def corpus(tokenizer, records=RECORDS) -> act.Corpus:
    return act.Corpus.from_records(records, tokenizer)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def channels(tokenizer):
    donor, target = tiny_model("llama-tied-bias", 0), tiny_model("llama-tied-bias", 1)
    pair = act.profile_pair(donor, target, corpus(tokenizer))
    return act.rank(pair, top=0.05)


def test_full_tuning_lowers_the_loss_and_repeats_bit_for_bit(tokenizer):
    results = []
    for _ in range(2):
        model = tiny_model("llama")
        before = act.evaluate(model, corpus(tokenizer), "nll").nll.sum()
        tuned = act.tune(model, corpus(tokenizer), settings(steps=12), replay=corpus(tokenizer, OTHERS))
        assert tuned.model is model and not model.training
        assert act.evaluate(model, corpus(tokenizer), "nll").nll.sum() < 0.9 * before
        assert (tuned.records, tuned.replayed) == (12, 12)
        results.append((weights(model), tuned.summary()))
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    other = tiny_model("llama")
    act.tune(other, corpus(tokenizer), settings(steps=12, seed=1), replay=corpus(tokenizer, OTHERS))
    assert not same(weights(other), results[0][0])


def test_the_first_step_is_the_gradient_of_the_answer_tokens(tokenizer):
    model = tiny_model("llama")
    reference = copy.deepcopy(model)
    act.tune(model, corpus(tokenizer, RECORDS[:1]), settings(steps=1, batch_size=1, learning_rate=1e-3))
    encoded = next(corpus(tokenizer, RECORDS[:1]).encoded())
    logits = reference(input_ids=torch.tensor([encoded.input_ids])).logits[0, encoded.start - 1 : encoded.end - 1]
    loss = torch.nn.functional.cross_entropy(
        logits, torch.tensor(encoded.input_ids[encoded.start : encoded.end].tolist())
    )
    loss.backward()
    for (name, after), before in zip(model.named_parameters(), reference.parameters(), strict=True):
        clear = before.grad.abs() > 1e-4 * before.grad.abs().max()
        step = (after - before)[clear]
        torch.testing.assert_close(step, -1e-3 * before.grad[clear].sign(), rtol=0.05, atol=1e-6, msg=name)


def test_rows_change_alone_and_adam_holds_them_alone(tokenizer, channels, monkeypatch):
    model = tiny_model("llama-tied-bias", 1)
    before = weights(model)
    module, sizes = sys.modules["act.editing.tune"], {}
    real = module.train

    def spied(trained, *given, **named):
        sizes["parameters"] = sum(parameter.numel() for parameter in trained.parameters())
        sizes["state"] = sum(value.numel() for value in trained.state_dict().values())
        return real(trained, *given, **named)

    monkeypatch.setattr(module, "train", spied)
    tuned = act.tune(model, corpus(tokenizer), settings(mode="rows"), channels=channels)
    allowed = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in model.named_parameters()}
    for site, rows in channels.space.split(channels.index):
        for part in site.parameters:
            allowed[part.name].index_fill_(part.dim, rows, True)
    count = sum(int(mask.sum()) for mask in allowed.values())
    assert (
        tuned.trained_values
        == sizes["parameters"]
        == sizes["state"]
        == count
        < sum(p.numel() for p in model.parameters())
    )
    changed = 0
    for name, value in model.named_parameters():
        assert torch.equal(value[~allowed[name]], before[name][~allowed[name]]), name
        changed += int((value != before[name]).sum())
    assert changed > 0.5 * count
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rows_of_a_patch(tokenizer, channels):
    donor, target = tiny_model("llama-tied-bias", 0), tiny_model("llama-tied-bias", 1)
    channels.rule = Rule()
    patch = act.transfer(donor, target, channels, 0.5)
    other = copy.deepcopy(target)
    act.tune(target, corpus(tokenizer), settings(mode="rows"), channels=channels)
    act.tune(other, corpus(tokenizer), settings(mode="rows"), channels=patch)
    assert same(weights(target), weights(other))


@pytest.mark.parametrize("keep", [False, True])
def test_lora(tokenizer, tmp_path, keep):
    pytest.importorskip("peft")
    model = tiny_model("llama")
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # which a user would see, with a place in somebody's source
        tuned = act.tune(model, corpus(tokenizer), settings(mode="lora", lora_rank=2), keep_adapter=keep)
    save_tuned(tuned.model, tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_config.json").exists() == keep
    if not keep:
        assert set(weights(tuned.model)) == set(before) and not same(before, weights(tuned.model))
        assert torch.equal(before["model.embed_tokens.weight"], tuned.model.state_dict()["model.embed_tokens.weight"])


def test_checkpoints_of_an_adapter_that_is_merged_ask_nobody_for_its_base(tokenizer, tmp_path):
    model = tiny_model("llama")
    model.name_or_path = "org/another"  # such as the adapter that was merged into it
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(fetch remote file|find a config file)")
        act.tune(model, corpus(tokenizer), settings(mode="lora", steps=1), checkpoints=tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("mode", ["full", "rows", "lora"])
def test_a_run_that_broke_off_goes_on_to_the_same_bits(tokenizer, tmp_path, monkeypatch, mode, channels):
    from transformers import Trainer

    options = {"settings": settings(mode=mode, steps=6, save_steps=2), "channels": channels if mode == "rows" else None}

    def fresh():
        return tiny_model("llama-tied-bias", 1)

    whole = act.tune(fresh(), corpus(tokenizer), **options)
    real = Trainer.training_step
    calls = []

    def breaking(self, *given, **named):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *given, **named)

    monkeypatch.setattr(Trainer, "training_step", breaking)
    with pytest.raises(KeyboardInterrupt):
        act.tune(fresh(), corpus(tokenizer), **options, checkpoints=tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir()  # one that was being written when the power went
    for file in (tmp_path / "checkpoints" / "checkpoint-2").iterdir():
        saved = file.read_bytes()
        file.write_bytes(bytes([*saved[:-1], saved[-1] ^ 1]))
        with pytest.raises(act.ActError, match="checkpoint-2 is not as it was saved; delete that folder"):
            act.tune(fresh(), corpus(tokenizer), **options, checkpoints=tmp_path / "checkpoints")
        file.write_bytes(saved)
    named = str(tmp_path / "checkpoints")
    oftener = {**options, "settings": replace(options["settings"], save_steps=1)}  # decides nothing about the result
    resumed = act.tune(fresh(), corpus(tokenizer), **oftener, checkpoints=named)
    assert resumed.resumed_from == 2 and len(calls) == 4 + 4
    assert same(weights(whole.model), weights(resumed.model))
    other = tiny_model("llama-tied-bias", 2)
    with pytest.raises(act.ActError, match=r"\(fingerprint of the model: .*, after 6 steps; .* \(restart=True\)"):
        act.tune(other, corpus(tokenizer), **options, checkpoints=tmp_path / "checkpoints")
    short = {**options, "settings": settings(mode=mode, steps=2, save_steps=2)}
    with pytest.raises(
        act.ActError, match=r"of another run \(steps: 6 there, 2 here\), after 6 steps; finish that run"
    ):
        act.tune(fresh(), corpus(tokenizer), **short, checkpoints=tmp_path / "checkpoints")
    again = act.tune(other, corpus(tokenizer), **options, checkpoints=tmp_path / "checkpoints", restart=True)
    assert again.resumed_from == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_its_step_and_nothing_of_it_is_lost(tokenizer, tmp_path, monkeypatch, number):
    from transformers import Trainer

    def tuned(**options):
        return act.tune(tiny_model("llama-tied-bias", 1), corpus(tokenizer), settings(steps=5), **options)

    real, calls, before = Trainer.training_step, [], signal.getsignal(number)

    def pressed(self, *given, **named):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(self, *given, **named)

    whole = tuned()
    monkeypatch.setattr(Trainer, "training_step", pressed)
    place = tmp_path / "checkpoints"
    with pytest.raises(Interrupted, match=r"after 3 of 5 steps, which are safe in .*checkpoints; run the same command"):
        tuned(checkpoints=place)
    assert signal.getsignal(number) is before
    resumed = tuned(checkpoints=place)
    assert resumed.resumed_from == 3 and len(calls) == 5
    assert same(weights(whole.model), weights(resumed.model))


def test_the_losses_of_the_corpus_and_of_the_replay_are_told_apart(tokenizer):
    def loss(model, *record):
        found = act.evaluate(model, corpus(tokenizer, record), "nll")
        return found.summary()["nll_per_token"]

    model = tiny_model("llama-tied-bias", 1)
    own, other = loss(model, RECORDS[0]), loss(model, *OTHERS)
    mixed = act.tune(model, corpus(tokenizer, RECORDS[:1]), settings(), replay=corpus(tokenizer, OTHERS))
    assert (mixed.corpus_loss_before, mixed.replay_loss_before) == pytest.approx((own, other), rel=1e-5)
    after = loss(model, RECORDS[0]), loss(model, *OTHERS)
    assert (mixed.corpus_loss_after, mixed.replay_loss_after) == pytest.approx(after, rel=1e-5)
    assert min(own, other) < mixed.loss_before < max(own, other)
    alone = act.tune(tiny_model("llama-tied-bias", 1), corpus(tokenizer), settings(steps=1))
    assert (alone.replay_loss_before, alone.replay_loss_after) == (None, None)
    assert alone.corpus_loss_before == alone.loss_before and alone.corpus_loss_after == alone.loss_after


def test_the_mix_has_its_share_and_goes_through_everything():
    order = _order(10, 4, settings(steps=None, batch_size=4, replay_share=0.5))
    assert sorted(at for at in order if at < 10) == list(range(10))
    assert sum(at >= 10 for at in order) == 10 and set(order) == set(range(14))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "half"}, "expected one of full, rows, lora"),
        ({"steps": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"replay_share": 1.0}, "less than 1"),
        ({"mode": "rows"}, "give a channel set"),
    ],
)
def test_settings_that_cannot_be(changed, message, tokenizer):
    with pytest.raises(act.ActError, match=message):
        act.tune(tiny_model("llama"), corpus(tokenizer), settings(**changed))


def test_quantised_and_narrow_weights_are_refused(tokenizer):
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(48, 32, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(act.ActError, match=r"up_proj\.weight is quantised"):
        act.tune(model, corpus(tokenizer), settings())
    with pytest.raises(act.ActError, match=r"float16, too narrow .* as float32 or bfloat16$"):
        act.tune(tiny_model("llama", dtype=torch.float16), corpus(tokenizer), settings())
    with pytest.raises(act.ActError, match="no record"):
        act.tune(tiny_model("llama"), corpus(tokenizer, []), settings())


def test_a_missing_package_is_one_sentence(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(act.ActError, match=r"pip install 'act-profile\[tune\]'"):
        act.tune(tiny_model("llama"), corpus(tokenizer), settings())


def test_checkpoints_of_a_run_that_died_are_recognised_and_other_files_are_left(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / ".identity.act-tmp-abcd1234").mkdir(parents=True)  # it died while it wrote the first file
    (folder / ".identity.act-lock").touch()
    assert usable_checkpoint(folder, "one") == 0
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").touch()
    (folder / "checkpoint-6").mkdir()  # not complete
    assert usable_checkpoint(folder, "one") == 3
    remove_saved(folder)
    assert usable_checkpoint(folder, "one") == 3  # nothing was saved yet
    mark_saved(folder)
    (folder / "thesis.tex").touch()
    remove_saved(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(act.ActError, match="is not a folder of checkpoints"):
        usable_checkpoint(folder, "one")


def test_checkpoints_of_other_settings_are_not_removed_unless_asked(tmp_path):
    folder = tmp_path / "checkpoints"
    assert usable_checkpoint(folder, "one") == 0 == usable_checkpoint(folder, "two")  # nothing would be lost
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").touch()
    with pytest.raises(
        act.ActError, match=r"another model, text or setting\), after 3 steps; finish .*\(restart=True\)"
    ):
        usable_checkpoint(folder, "one")
    assert usable_checkpoint(folder, "two") == 3
    assert usable_checkpoint(folder, "one", restart=True) == 0 == len([*folder.glob("checkpoint-*")])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_became_infinite_is_no_result(tokenizer, tmp_path, mode):
    given = act.TuneSettings(mode, steps=3, batch_size=2, learning_rate=1e30, save_steps=1)
    with pytest.raises(act.ActError, match=r"(loss of step \d is|a trained weight is) .*; the learning rate is 1e\+30"):
        act.tune(tiny_model("llama"), corpus(tokenizer), given, checkpoints=tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
    broken = tiny_model("llama")
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(act.ActError, match="loss of step 1 is nan; give a model whose values are finite"):
        act.tune(broken, corpus(tokenizer), act.TuneSettings(mode, steps=3, batch_size=2))


def test_what_the_type_of_the_checkpoint_cannot_hold_is_not_saved(tokenizer, tmp_path):
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = 1e5  # finite in float32, in which it was trained
    assert usable_checkpoint(tmp_path / "checkpoints", "one") == 0
    given = {"dtype": torch.float16, "checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(
        act.ActError, match=r"model.norm.weight has values .* infinite in float16, .* the learning rate"
    ):
        save_tuned(model, tokenizer, tmp_path / "out", **given)
    assert not [*tmp_path.iterdir()]
    save_tuned(model, tokenizer, tmp_path / "out", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_adapter_is_merged_before_it_is_tuned(tokenizer, mode):
    given = act.TuneSettings("lora", steps=1, batch_size=2)
    adapted = act.tune(tiny_model("llama"), corpus(tokenizer), given, keep_adapter=True).model
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(act.ActError, match=r"q_proj has an adapter beside it, .* merge the adapter"):
            act.tune(model, corpus(tokenizer), act.TuneSettings(mode, steps=1, batch_size=2))


def test_channels_are_known_to_be_of_what_was_made_of_their_models(tokenizer, tmp_path, channels):
    donor, target, other = (tiny_model("llama-tied-bias", seed) for seed in range(3))

    def doubt(model, chosen=channels):
        return stranger(chosen, model, str(tmp_path), fingerprint(model))

    assert doubt(target) is None and doubt(donor).startswith("the channels were chosen for the target ")
    assert "is their donor" in doubt(donor) and "is their donor" not in doubt(other)
    assert "and no model card that says it was made of these" in doubt(other)
    narrow = act.rank(
        act.profile_pair(
            copy.deepcopy(donor).bfloat16(), tiny_model("llama-tied-bias", 1).bfloat16(), corpus(tokenizer)
        ),
        top=0.05,
    )
    assert doubt(target, narrow) is None and doubt(other, narrow)
    patch = act.transfer(donor, target, channels, strength=0.5)
    assert doubt(target) is None
    moved, target = target, tiny_model("llama-tied-bias", 1)
    target.load_state_dict(moved.state_dict())  # as it is read from a folder
    assert doubt(target)
    write_card(tmp_path, "org/target", patch.provenance)
    assert doubt(target) is None and doubt(target, narrow)
    chosen = replace(patch.provenance, donors=tuple(replace(d, rule=narrow.rule) for d in patch.provenance.donors))
    write_card(tmp_path, "org/target", chosen)  # as a transfer of the same weights in a wider type writes it
    assert doubt(target, narrow) is None
    act.tune(target, corpus(tokenizer), settings(steps=1))
    assert doubt(target) is None and doubt(moved) is None


def test_a_tune_warns_of_rows_that_were_chosen_for_another_model(tokenizer, channels, caplog):
    donor, target, other = (tiny_model("llama-tied-bias", seed) for seed in range(3))
    given = {"settings": settings(mode="rows", steps=1, learning_rate=1e-4), "channels": channels}
    act.transfer(donor, target, channels)
    act.tune(copy.deepcopy(target), corpus(tokenizer), **given)
    assert not caplog.messages
    act.tune(other, corpus(tokenizer), **given)
    assert "; if it is another model, rank channels for it" in caplog.text


def test_a_loss_that_went_up_is_told(tokenizer, caplog):
    worse = act.tune(tiny_model("llama"), corpus(tokenizer), settings(steps=1, learning_rate=2.0))
    assert worse.is_worse
    told = f"went up, from {worse.loss_before:.3f} to {worse.loss_after:.3f}, even on records that were trained on"
    assert told in caplog.text and "lower the learning rate, which was 2" in caplog.text
    caplog.clear()
    model, (text,) = tiny_model("llama"), corpus(tokenizer, RECORDS[:1]).encoded()
    one = act.tune(model, corpus(tokenizer, RECORDS[:1]), settings(steps=1, batch_size=1))
    answer = act.evaluate(model, corpus(tokenizer, RECORDS[:1]), "nll").nll / (text.end - text.start)
    assert one.loss_before > one.loss_after == pytest.approx(answer.item(), rel=1e-5) and not caplog.messages


def test_a_loss_of_what_is_to_be_retained_that_went_up_is_told_though_the_whole_fell(tokenizer, caplog):
    model, others = tiny_model("llama"), corpus(tokenizer, OTHERS)
    act.tune(model, others, settings(steps=8))
    against = corpus(tokenizer, [{**OTHERS[0], "completion": " one c d"}])
    assert not caplog.messages
    tuned = act.tune(model, against, settings(batch_size=8, replay_share=0.1), replay=others)
    assert not tuned.is_worse and tuned.replay_loss_after > 1.01 * tuned.replay_loss_before
    told = f"retained went up, from {tuned.replay_loss_before:.3f} to {tuned.replay_loss_after:.3f}, while that of the"
    assert told in caplog.text and "or raise the replay share, which was 0.1" in caplog.text


def test_a_run_in_another_type_does_not_go_on_from_these_checkpoints(tokenizer):
    model = tiny_model("llama").bfloat16()
    given = fingerprint(model), act.TuneSettings(), [], {}, False
    narrow = _identity(model, *given)
    assert narrow == _identity(model, *given) != _identity(model.float(), *given)  # of the same values
