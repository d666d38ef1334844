"""The model card of a light fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from act.core.counted import counted
from act.data.corpus import Corpus
from act.editing.card_history import History
from act.editing.card_results import not_measured, results_section
from act.editing.card_texts import fingerprints_said
from act.editing.model_card import NOT_STATED, Card, Origin, block
from act.editing.tune import Tuned, TuneSettings
from act.ranking.channel_set import ChannelSet

_TRAINED = {"full": "All weights", "rows": "The parameter rows of a channel set", "lora": "Low-rank adapters"}


_THEN = {
    "full": "all weights were tuned",
    "rows": "these rows were tuned",
    "lora": "low-rank adapters were trained and merged into it,",
}


def then_tuned(settings: TuneSettings, texts: Sequence[str]) -> str:
    """What was tuned after a transfer, as the end of a sentence; ``texts`` by name: what on, and what was mixed in.

    >>> from act.editing.tuned_card import then_tuned
    >>> then_tuned(TuneSettings("rows", steps=20), ["german", "english"])
    "these rows were tuned on german, with english mixed in, in 20 steps; everything else is the target's"
    """
    mixed = f", with {texts[1]} mixed in" if len(texts) > 1 else ""
    steps = counted(settings.steps, "step") if settings.steps else "one pass"
    rest = "; everything else is the target's" if settings.mode == "rows" else ""
    return f"{_THEN[settings.mode]} on {texts[0]}{mixed}, in {steps}{rest}"


def tuned_card(
    model: str,
    tuned: Tuned,
    settings: TuneSettings,
    corpora: Sequence[Corpus],
    channels: ChannelSet | None = None,
    adapter: bool = False,
    command: str = "act-profile tune",
    *,
    base: str | None = None,
    before: str | None = None,
) -> str:
    """The text of the card: what was trained on what, with which settings, to which loss.

    Args:
        model: the model that was tuned, by its folder or hub id.
        corpora: what it was trained on, and what was mixed in.
        channels: those whose rows were trained.
        adapter: whether the adapter was kept.
        command: what was typed.
        base: the model that ``model`` is an adapter of, which was merged into it first; None for any other model.
        before: the fingerprint of the model before the tune, by which a channel set is known to be of it.
    """
    origin = Origin.of(model)
    origins = [origin, *([Origin.of(base)] if base else [])]
    given = f"{origin.link}, an adapter merged into {origins[1].link} first," if base else origin.link
    history = History.of(model)
    kept = "kept beside it" if adapter else "merged into it"
    how = f", {kept}" if settings.mode == "lora" else ""
    rows = {
        "records drawn": f"{tuned.records:,} from {corpora[0].name}",
        **({"records mixed in": f"{tuned.replayed:,} from {corpora[1].name}"} if len(corpora) > 1 else {}),
        "steps": f"{tuned.steps:,}, of {counted(settings.batch_size, 'record')}",
        "values trained": f"{tuned.trained_values:,}",
        "loss per token": f"{tuned.loss_before:.3f} before, {tuned.loss_after:.3f} after, of the first records drawn",
        **_apart(tuned, corpora),
        **({"channels": f"{len(channels):,}, chosen by {channels.rule}"} if channels else {}),
    }
    said = _that_decide(settings, mixed=len(corpora) > 1)
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    known = fingerprints_said("trained", {corpus.name: [corpus.source.fingerprint] for corpus in corpora})
    licence = "" if origin.licence == NOT_STATED else f", under its licence, {origin.licence}"
    body = [
        f"{_TRAINED[settings.mode]} of {given} were trained lightly by act-profile{how}{licence}.",
        "",
        *table,
        "",
        "Made by:",
        "",
        block(command, "bash"),
        "",
        "Settings:",
        "",
        block("\n".join(f"{name}: {value}" for name, value in said.items()), "yaml"),
        "",
        *([known, ""] if known else []),
        *([f"Fingerprint before the tune: `{before}`.", ""] if before else []),
        *([f"## How {origin.title} was made", "", history.text, ""] if history.text else []),
        results_section(not_measured(model)),
    ]
    names = [*(corpus.name for corpus in corpora), *history.datasets]
    tags = dict.fromkeys([*history.tags, "fine-tune"])
    return str(Card(f"{origin.title}, tuned", origins, "\n".join(body), [*tags], names, adapter=adapter))


def _that_decide(settings: TuneSettings, *, mixed: bool) -> dict[str, Any]:
    """The settings that had a part in what was trained; ``mixed``: records of what to retain were mixed in."""
    idle = {"save_steps", *([] if mixed else ["replay_share"]), *([] if settings.mode == "lora" else ["lora_rank"])}
    return {name: value for name, value in asdict(settings).items() if name not in idle and value is not None}


def _apart(tuned: Tuned, corpora: Sequence[Corpus]) -> dict[str, str]:
    """The losses of what was trained on and of what was mixed in, where both are known."""
    pairs = (
        (tuned.corpus_loss_before, tuned.corpus_loss_after),
        (tuned.replay_loss_before, tuned.replay_loss_after),
    )
    known = {corpus.name: pair for corpus, pair in zip(corpora, pairs, strict=False)}
    return {
        f"of {name} alone": f"{before:.3f} before, {after:.3f} after"
        for name, (before, after) in known.items()
        if len(known) > 1 and before is not None and after is not None
    }
