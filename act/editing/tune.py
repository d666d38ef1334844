"""Lightweight fine-tuning after a transfer: all weights, the transferred rows only, or LoRA; with replay and resume."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, option, require_choice, require_number, require_type
from act.core.extras import optional
from act.core.files import written_whole
from act.core.progress import Progress, silent
from act.data.corpus import Corpus, require_corpus
from act.data.pieces import Piece, pieces
from act.editing.card_history import stranger
from act.editing.copies import copy_companions
from act.editing.earlier import remember_earlier
from act.editing.model_card import put_card
from act.editing.patch import Patch
from act.editing.row_tuning import RowTuned, rows_to_train
from act.editing.trainer import Diverged, mark_saved, remove_checkpoints, summed_loss, train, usable_checkpoint
from act.models.adapters import adapted, quiet_peft
from act.models.calls import require_decoder
from act.models.fingerprint import fingerprint
from act.models.limits import require_known_token, vocabulary
from act.models.loading import name_of, require_model
from act.models.sites import ParameterSlice
from act.ranking.channel_set import ChannelSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mode = Literal["full", "rows", "lora"]
"""What is trained: every weight, the rows of a channel set or patch, or low-rank adapters of every linear (peft)."""


COMPARED = 32
"""Records of which the losses before and after are compared: the same ones, so chance in drawing them has no part."""

log = logging.getLogger(__name__)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class TuneSettings:
    """How to tune.

    Attributes:
        mode: what is trained: all weights (``full``), the ``rows`` of a channel set or patch, or low-rank adapters of
            every linear (``lora``).
        steps: optimiser steps; by default, as many as one pass over the corpus takes.
        batch_size: records per step.
        learning_rate: of AdamW without weight decay; it falls linearly to 0.
        replay_share: share of the records drawn from the replay corpus, if one is given.
        lora_rank: rank of the adapters; their scale is 2.
        seed: decides the order of records, dropout and adapters; on a CPU the same seed gives the same bits.
        save_steps: steps between checkpoints.

    Raises:
        ActError: a setting out of range.

    >>> act.TuneSettings(mode="lora", steps=100, lora_rank=4).learning_rate
    0.0001
    """

    mode: Mode = "full"
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 1e-4
    replay_share: float = 0.5
    lora_rank: int = 8
    seed: int = 0
    save_steps: int = 50

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, get_args(Mode))
        for name in ("steps", "batch_size", "lora_rank", "save_steps"):
            number, called = getattr(self, name), name.replace("_", " ")
            if name == "steps" and number is None:
                continue
            require_number(called, number, whole=True)
            if number < 1:
                raise ActError(f"{called} is {number}; expected at least 1")
        require_number("seed", self.seed, whole=True)
        require_number("learning rate", self.learning_rate)
        require_number("replay share", self.replay_share)
        if not 0 < self.learning_rate < math.inf:
            raise ActError(f"learning rate is {self.learning_rate}; expected a number above 0, such as 1e-4")
        if not 0 <= self.replay_share < 1:
            raise ActError(f"replay share is {self.replay_share}; expected 0 or more and less than 1")


@dataclass(frozen=True, repr=False)
class Tuned:
    """What a fine-tune did.

    Attributes:
        model: the tuned model, with its adapter if that was kept.
        steps: optimiser steps, including those before an interruption.
        resumed_from: the step of the checkpoint that training continued from; 0 if it started from the beginning.
        records, replayed: how many records of the corpus and of the replay corpus were trained on.
        trained_values: how many values the optimiser trained.
        loss_before, loss_after: the mean loss per predicted token of the first records that are trained on, at least
            32 if there are so many, by the model as it was given and as it is now.
        corpus_loss_before, corpus_loss_after, replay_loss_before, replay_loss_after: the same of those of them alone
            that are of the corpus, and of the replay corpus; None where there are none.

    >>> tuned = act.tune(model, corpus, act.TuneSettings(steps=2, batch_size=4, learning_rate=1e-3))
    >>> tuned
    <Tuned: 2 steps on 8 records; loss per token ... before, ... after>
    >>> tuned.records, tuned.replayed
    (8, 0)
    """

    model: nn.Module
    steps: int
    resumed_from: int
    records: int
    replayed: int
    trained_values: int
    loss_before: float
    loss_after: float
    corpus_loss_before: float | None
    corpus_loss_after: float | None
    replay_loss_before: float | None
    replay_loss_after: float | None

    @property
    def is_worse(self) -> bool:
        """Whether the loss became larger, even of records that were trained on.

        >>> act.tune(model, corpus, act.TuneSettings(steps=2, batch_size=4, learning_rate=1e-3)).is_worse
        False
        """
        return self.loss_after > self.loss_before

    def __repr__(self) -> str:
        read = f"{counted(self.steps, 'step')} on {counted(self.records + self.replayed, 'record')}"
        return f"<Tuned: {read}; loss per token {self.loss_before:.3f} before, {self.loss_after:.3f} after>"

    def summary(self) -> dict[str, int | float | None]:
        """The figures, as plain data.

        >>> act.tune(model, corpus, act.TuneSettings(steps=1, batch_size=4)).summary()["records"]
        4
        """
        return {name: value for name, value in vars(self).items() if name != "model"}


def tune(
    model: nn.Module,
    corpus: Corpus,
    settings: TuneSettings | None = None,
    *,
    replay: Corpus | None = None,
    channels: ChannelSet | Patch | None = None,
    keep_adapter: bool = False,
    checkpoints: str | Path | None = None,
    restart: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Fine-tune a model in place on the answers of a corpus (on all tokens of its texts).

    Args:
        model: a Hugging Face causal language model.
        corpus: what to train on.
        settings: how; by default one pass that trains every weight.
        replay: records of what the model should retain, mixed in at ``settings.replay_share``.
        channels: for ``rows``: the channels whose parameter rows (and columns) are trained. Everything else stays the
            same to the bit, and the optimiser holds its moments for these rows only.
        keep_adapter: for ``lora``: return the model with its adapter instead of merging it into the weights.
        checkpoints: folder for checkpoints: every ``settings.save_steps`` steps, and after the step in which SIGINT or
            SIGTERM comes. Called again with the same model, data and settings, training continues from the last one.
        restart: start from the beginning, instead of raising, where the checkpoints are of other settings.
        progress: told of every step.

    Raises:
        ActError: a setting out of range; no records; quantised weights, or an adapter beside them; a missing package;
            rows without channels; a loss, or weights, that became infinite or NaN; checkpoints of another run; as
            Interrupted: a signal ended the training, once its checkpoint is written.

    >>> tuned = act.tune(model, corpus, act.TuneSettings(steps=2, batch_size=4, learning_rate=1e-3))
    >>> tuned.model is model
    True
    """
    settings = TuneSettings() if settings is None else settings
    require_model("the model", model)
    require_corpus("the corpus", corpus)
    require_type("settings", settings, TuneSettings, "an act.TuneSettings")
    if replay is not None:
        require_corpus("the replay corpus", replay)
    if channels is not None:
        require_type(
            "the channel set", channels, (ChannelSet, Patch), "an act.ChannelSet or act.Patch; read it with load"
        )
    require_decoder(model, "tuning", "train it with a Trainer of transformers, and go on with the folder that it saves")
    if (name := adapted(model)) is not None:
        raise ActError(
            f"{name} has an adapter beside it, so its own weights are only a part of what would be trained; merge the "
            "adapter (merge_and_unload of peft; on the command line, give the folder of the adapter alone, without a "
            "config.json), and tune what comes of it"
        )
    optional("accelerate", "tune", "act-profile tune")
    _require_trainable(model, settings.mode, keep_adapter)
    if settings.mode == "rows" and channels is None:
        raise ActError(f"mode rows needs to know which rows; give a channel set ({option('--channels', 'channels=')})")
    own = _records(corpus.for_models(model), vocabulary(model))
    other = _records(replay.for_models(model), vocabulary(model)) if replay is not None else []
    order = _order(len(own), len(other), settings)
    examples = [own[at] if at < len(own) else other[at - len(own)] for at in order]
    rows = rows_to_train(channels) if settings.mode == "rows" and channels is not None else {}
    found = fingerprint(model)
    if isinstance(channels, ChannelSet) and rows and (doubt := stranger(channels, model, name_of(model), found)):
        log.warning("%s", doubt)
    remember_earlier(model, [found])
    folder = Path(checkpoints) if checkpoints else None
    identity = _identity(model, found, settings, [corpus, replay], rows, keep_adapter) if folder else ""
    resumed = usable_checkpoint(folder, identity, restart) if folder else 0
    optional("transformers", "tune", "act-profile tune").set_seed(settings.seed)
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trained = _trained(model, settings, rows)
    if settings.mode == "lora" and not keep_adapter:
        # Of no use once merged; with a name, peft asks the hub for the base at every checkpoint.
        trained.peft_config["default"].base_model_name_or_path = ""  # type: ignore[index,union-attr]
    values = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    batch = settings.batch_size
    compared = order[: -(-COMPARED // batch) * batch]
    apart = [own[at] for at in compared if at < len(own)], [other[at - len(own)] for at in compared if at >= len(own)]
    before = _mean_losses(trained, apart, batch)
    try:
        train(
            trained,
            examples,
            batch_size=batch,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            device=next(model.parameters()).device,
            checkpoints=folder,
            save_steps=settings.save_steps,
            resume_at=resumed,
            progress=progress,
        )
        after = _mean_losses(trained, apart, batch)
        if not math.isfinite(after.of_all):
            raise Diverged(f"the loss after the last step is {after.of_all}", settings.learning_rate)
    except Diverged:
        if folder:
            remove_checkpoints(folder)  # of no use to a run with another learning rate
        raise
    finally:
        if isinstance(trained, RowTuned):
            trained.write()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen.get(name, True))
    result = trained if settings.mode == "lora" else model
    if settings.mode == "lora" and not keep_adapter:
        result = trained.merge_and_unload()  # type: ignore[operator]
    model.eval()
    replayed = sum(at >= len(own) for at in order)
    tuned = Tuned(
        result.eval(),
        len(order) // batch,
        resumed,
        len(order) - replayed,
        replayed,
        values,
        before.of_all,
        after.of_all,
        before.of_corpus,
        after.of_corpus,
        before.of_replay,
        after.of_replay,
    )
    if tuned.is_worse:
        log.warning(
            "the loss per token went up, from %.3f to %.3f, even on records that were trained on: the model is worse "
            "than before; lower %s, which was %g",
            before.of_all,
            after.of_all,
            option("--learning-rate", "the learning rate"),
            settings.learning_rate,
        )
    elif before.of_replay and after.of_replay and after.of_replay > 1.01 * before.of_replay:
        log.warning(
            "the loss per token of what is mixed in to be retained went up, from %.3f to %.3f, while that of the whole "
            "fell: lower %s, which was %g, or raise %s, which was %g",
            before.of_replay,
            after.of_replay,
            option("--learning-rate", "the learning rate"),
            settings.learning_rate,
            option("--replay-share", "the replay share"),
            settings.replay_share,
        )
    return tuned


class _Losses(NamedTuple):
    """Mean losses per predicted token."""

    of_all: float
    of_corpus: float | None
    of_replay: float | None


def _mean_losses(model: nn.Module, apart: tuple[Sequence[Piece], Sequence[Piece]], batch_size: int) -> _Losses:
    """Of some records of the corpus and of the replay corpus, together and apart."""
    sums = [summed_loss(model, part, batch_size) for part in apart]
    of_corpus, of_replay = (total / tokens if tokens else None for total, tokens in sums)
    return _Losses(sum(total for total, _ in sums) / sum(tokens for _, tokens in sums), of_corpus, of_replay)


def adapter_of(tuned: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the adapter of a model that :func:`tune` returned with ``keep_adapter``, by name."""
    peft = optional("peft", "tune", "mode lora")
    found = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)  # of which a base model is looked up
    return {name: value.contiguous() for name, value in found.items()}


def with_adapter(model: nn.Module, settings: TuneSettings, adapter: Mapping[str, torch.Tensor]) -> nn.Module:
    """A model with the adapter of an earlier tune merged into its weights, in place: the result of that tune.

    Merged in float32, as that tune trained it; the weights have their own types afterwards.
    """
    peft = optional("peft", "tune", "mode lora")
    stored = {name: parameter.dtype for name, parameter in model.named_parameters()}
    adapted = _trained(model.float(), settings, {})
    peft.set_peft_model_state_dict(adapted, dict(adapter))
    merged: nn.Module = adapted.merge_and_unload()  # type: ignore[operator]
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(stored[name])
        parameter.requires_grad_(False)
    return merged.eval()


def _require_trainable(model: nn.Module, mode: str, keep_adapter: bool) -> None:
    for name, parameter in model.named_parameters():
        plain = parameter.dtype in _FLOATS
        if not plain and not (mode == "lora" and keep_adapter):
            raise ActError(
                f"{name} is quantised ({parameter.dtype}) and cannot be trained; load the model unquantised, or train "
                "an adapter beside it (mode lora, adapter kept)"
            )
        if parameter.dtype == torch.float16 and mode == "full":
            raise ActError(
                f"{name} is float16, too narrow for training; load the model as float32 or "
                f"bfloat16{option(' (--dtype)', '')}"
            )


def _trained(model: nn.Module, settings: TuneSettings, rows: Mapping[ParameterSlice, torch.Tensor]) -> nn.Module:
    """The module whose parameters are trained."""
    if settings.mode == "rows":
        return RowTuned(model, rows)
    if settings.mode == "lora":
        peft = optional("peft", "tune", "mode lora")
        rank = settings.lora_rank
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with quiet_peft():
            adapted: nn.Module = peft.get_peft_model(model, config)
        return adapted
    model.requires_grad_(True)
    return model


def _identity(
    model: nn.Module,
    found: str,
    settings: TuneSettings,
    corpora: Sequence[Corpus | None],
    rows: Mapping[ParameterSlice, torch.Tensor],
    keep_adapter: bool,
) -> str:
    """Everything that decides the result, by the names that users know; checkpoints of any other cannot be used."""
    data = [corpus.source.fingerprint if corpus else None for corpus in corpora]
    chosen = json.dumps({str(place): index.tolist() for place, index in rows.items()})
    state = {
        **{name.replace("_", " "): value for name, value in asdict(settings).items() if name != "save_steps"},
        "fingerprint of the model": found,
        "type of the weights": str(next(model.parameters()).dtype),  # which a fingerprint does not see
        **{f"fingerprint of the {what}": one for what, one in zip(("corpus", "replay"), data, strict=False)},
        "channels": hashlib.sha256(chosen.encode()).hexdigest()[:16] if rows else None,
        "adapter kept": keep_adapter,
    }
    return json.dumps(state)


def _records(corpus: Corpus, rows: int | None) -> list[Piece]:
    found = list(pieces(list(corpus.encoded()), corpus.max_length, every_answer=True))
    if not found:
        raise ActError(f"{corpus.name}: no record to train on")
    require_known_token(max(max(piece.ids) for piece in found), rows)
    return found


def _order(own: int, other: int, settings: TuneSettings) -> list[int]:
    """The records in training order: numbers below ``own`` are the corpus's, the others the replay corpus's.

    Both are read in shuffled passes, in whole batches only.
    """
    share = settings.replay_share if other else 0.0
    steps = settings.steps or max(1, round(own / (1 - share) / settings.batch_size))
    total = steps * settings.batch_size
    replayed = round(total * share)
    generator = torch.Generator().manual_seed(settings.seed)

    def passes(count: int, wanted: int) -> Iterator[int]:
        for _ in range(-(-wanted // max(count, 1))):
            yield from torch.randperm(count, generator=generator).tolist()

    chosen = [*passes(own, total - replayed)][: total - replayed]
    chosen += [own + at for at in [*passes(other, replayed)][:replayed]]
    return [chosen[at] for at in torch.randperm(total, generator=generator).tolist()]


def save_tuned(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    source: str | None = None,
    checkpoints: Path | None = None,
    card: str | None = None,
    force: bool = False,
) -> None:
    """Write a model (or adapter) folder with its tokenizer, whole or not at all; by default in the model's dtype.

    Args:
        source: the model that was changed; if it is a folder, what lies beside its weights is written, too
            (:func:`act.editing.copies.companions`).
        checkpoints: those of the training, which are removed when the model is saved.
        card: the text of its model card.

    Raises:
        ActError: ``output`` exists and ``force`` is False, or the disk is full; a value is infinite in ``dtype``.
    """
    if dtype is not None and (name := _overflowing(model, dtype)) is not None:
        if checkpoints:
            remove_checkpoints(checkpoints)  # of no use to a run with another learning rate
        raise ActError(
            f"{name} has values that are infinite in {str(dtype).removeprefix('torch.')}, the type of the checkpoint; "
            f"lower {option('--learning-rate', 'the learning rate')}, or tune a checkpoint in a type of a wider range"
        )
    with written_whole(output, force=force, directory=True) as folder:
        write_model(model if dtype is None else model.to(dtype), tokenizer, folder, source=source)
        if card is not None:
            put_card(folder, card)
        if checkpoints:
            mark_saved(checkpoints)
    if checkpoints:
        remove_checkpoints(checkpoints)


def _overflowing(model: nn.Module, dtype: torch.dtype) -> str | None:
    """The first parameter with a value that is finite, but not in this type."""
    wide = ((name, one) for name, one in model.named_parameters() if one.dtype in _FLOATS and one.dtype != dtype)
    return next((name for name, one in wide if (one.isfinite() & ~one.to(dtype).isfinite()).any()), None)


def write_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, *, source: str | None = None
) -> None:
    """Write a changed model into a folder, with what lies beside the weights of its ``source`` if that is a folder."""
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    if source and Path(source).is_dir():
        copy_companions(Path(source), folder)
        (folder / "adapter_config.json").unlink(missing_ok=True)  # of an adapter that is merged
