"""Lightweight fine-tuning after a transfer: all weights, the transferred rows only, or LoRA; with replay and resume."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import SequentialSampler

from act.core.errors import ActError, require_choice
from act.core.extras import optional
from act.core.files import written_whole
from act.data.corpus import Corpus
from act.data.pieces import IGNORED, Piece, collate, pieces
from act.editing.patch import Patch
from act.models.fingerprint import fingerprint
from act.ranking.channel_set import ChannelSet

Mode = Literal["full", "rows", "lora"]
"""What is trained: every weight, the rows of a channel set or patch, or low-rank adapters of every linear (peft)."""


@dataclass(frozen=True)
class TuneSettings:
    """How to tune.

    Attributes:
        mode: see :data:`Mode`.
        steps: optimiser steps; None: one pass over the corpus.
        batch_size: records a step.
        learning_rate: of AdamW without weight decay; falls linearly to 0.
        replay_share: share of the records drawn from the replay corpus, if one is given.
        lora_rank: rank of the adapters; their scale is 2.
        seed: of the order of records, dropout and adapters; on a CPU the same seed gives the same bits.
        save_steps: steps between checkpoints.
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
        for name in ("batch_size", "lora_rank", "save_steps"):
            if getattr(self, name) < 1:
                raise ActError(f"{name.replace('_', ' ')} is {getattr(self, name)}; expected at least 1")
        if self.steps is not None and self.steps < 1:
            raise ActError(f"steps is {self.steps}; expected at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ActError(f"learning rate is {self.learning_rate}; expected a number above 0, such as 1e-4")
        if not 0 <= self.replay_share < 1:
            raise ActError(f"replay share is {self.replay_share}; expected 0 or more and less than 1")


@dataclass(frozen=True)
class Tuned:
    """What a tuning did. ``model`` is the tuned model (with its adapter, where that was kept)."""

    model: nn.Module
    steps: int
    resumed_from: int
    records: int
    replayed: int
    trained_values: int
    loss: float

    def summary(self) -> dict[str, Any]:
        """The figures, as plain data."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def tune(
    model: nn.Module,
    corpus: Corpus,
    settings: TuneSettings | None = None,
    *,
    replay: Corpus | None = None,
    channels: ChannelSet | Patch | None = None,
    keep_adapter: bool = False,
    checkpoints: Path | None = None,
) -> Tuned:
    """Train ``model`` in place on the answers of ``corpus`` (all tokens of its texts), mean loss a token.

    Args:
        replay: records of what is to be retained, mixed in at ``settings.replay_share``.
        channels: for ``rows``: whose parameter rows (and columns) are trained. Nothing else changes by a bit, and the
            optimiser holds its moments for these rows only.
        keep_adapter: for ``lora``: return the model with its adapter instead of merging it into the weights.
        checkpoints: folder for checkpoints. Called again with the same model, data and settings, training goes on
            from the last; after other settings it begins anew.

    Raises:
        ActError: a setting out of range; no record; quantised weights; a missing package; rows without channels.
    """
    settings = settings or TuneSettings()
    optional("accelerate", "tune", "act-profile tune")
    _require_trainable(model, settings.mode, keep_adapter)
    own = _records(corpus.for_models(model))
    other = _records(replay.for_models(model)) if replay is not None else []
    order = _order(len(own), len(other), settings)
    examples = [own[at] if at < len(own) else other[at - len(own)] for at in order]
    transformers = optional("transformers", "tune", "act-profile tune")
    transformers.set_seed(settings.seed)
    before = fingerprint(model)
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trained = _trained(model, settings, channels)
    values = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    resumed = 0
    if checkpoints:
        rows = _rows(channels) if settings.mode == "rows" and channels is not None else {}
        chosen = {f"{name}:{dim}": index.tolist() for (name, dim), index in rows.items()}
        data = [corpus.source.fingerprint, replay.source.fingerprint if replay else None]
        state = json.dumps([asdict(settings), before, data, chosen, keep_adapter])
        resumed = _usable_checkpoint(checkpoints, hashlib.sha256(state.encode()).hexdigest()[:16])
    try:
        loss = _train(trained, examples, settings, model, checkpoints, resumed)
    finally:
        if isinstance(trained, _RowTuned):
            trained.write()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen.get(name, True))
    result = trained if settings.mode == "lora" else model
    if settings.mode == "lora" and not keep_adapter:
        result = trained.merge_and_unload()  # type: ignore[operator]
    model.eval()
    replayed = sum(at >= len(own) for at in order)
    steps = len(order) // settings.batch_size
    return Tuned(result.eval(), steps, resumed, len(order) - replayed, replayed, values, loss)


class _RowTuned(nn.Module):
    """A model of which only some rows are trained: its parameters are the changes of these rows, float32.

    The model itself is no submodule, so optimiser and checkpoints hold the rows alone.
    """

    def __init__(self, model: nn.Module, rows: dict[tuple[str, int], torch.Tensor]) -> None:
        super().__init__()
        self._held = [model]
        named = dict(model.named_parameters())
        self.config = model.config
        self._keys = list(rows)
        self.changes = nn.ParameterList()
        for number, ((name, dim), index) in enumerate(rows.items()):
            parameter = named[name]
            shape = [*parameter.shape]
            shape[dim] = len(index)
            self.changes.append(nn.Parameter(torch.zeros(shape, device=parameter.device)))
            self.register_buffer(f"index_{number}", index.to(parameter.device), persistent=False)
        model.requires_grad_(False)

    def _changed(self) -> dict[str, torch.Tensor]:
        named = dict(self._held[0].named_parameters())
        result: dict[str, torch.Tensor] = {}
        for number, (name, dim) in enumerate(self._keys):
            weight = result.get(name, named[name])
            change = self.changes[number].to(weight.dtype)
            result[name] = weight.index_add(dim, getattr(self, f"index_{number}"), change)
        return result

    def train(self, mode: bool = True) -> _RowTuned:
        self._held[0].train(mode)
        return super().train(mode)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        return torch.func.functional_call(self._held[0], self._changed(), (), inputs)

    @torch.no_grad()
    def write(self) -> None:
        """Add the changes to the model's rows."""
        named = dict(self._held[0].named_parameters())
        for name, weight in self._changed().items():
            named[name].copy_(weight)


def _require_trainable(model: nn.Module, mode: str, keep_adapter: bool) -> None:
    for name, parameter in model.named_parameters():
        plain = parameter.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if not plain and not (mode == "lora" and keep_adapter):
            raise ActError(
                f"{name} is quantised ({parameter.dtype}) and cannot be trained; load the model unquantised, or train "
                "an adapter beside it (mode lora, adapter kept)"
            )
        if parameter.dtype == torch.float16 and mode == "full":
            raise ActError(f"{name} is float16, too narrow for training; load the model as float32 or bfloat16")


def _trained(model: nn.Module, settings: TuneSettings, channels: ChannelSet | Patch | None) -> nn.Module:
    if settings.mode == "rows":
        if channels is None:
            raise ActError("mode rows needs to know which rows: give a channel set (--channels)")
        rows = _rows(channels)
        named = dict(model.named_parameters())
        for (name, dim), index in rows.items():
            if name not in named or named[name].shape[dim] <= int(index.max()):
                raise ActError(f"the channels are of another model: it has no such rows of {name}")
        return _RowTuned(model, rows)
    if settings.mode == "lora":
        peft = optional("peft", "tune", "mode lora")
        config = peft.LoraConfig(
            r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, config)
    model.requires_grad_(True)
    return model


def _rows(channels: ChannelSet | Patch) -> dict[tuple[str, int], torch.Tensor]:
    """Rows to train, by parameter name and dimension."""
    found: dict[tuple[str, int], list[torch.Tensor]] = {}
    if isinstance(channels, Patch):
        for change in channels.changes:
            found.setdefault((change.parameter.name, change.parameter.dim), []).append(change.rows)
    else:
        for chosen in channels.rows():
            found.setdefault((chosen.parameter.name, chosen.parameter.dim), []).append(chosen.rows)
    return {key: torch.cat(parts).unique() for key, parts in found.items()}


def _records(corpus: Corpus) -> list[Piece]:
    found = list(pieces(list(corpus.encoded()), corpus.max_length, every_answer=True))
    if not found:
        raise ActError(f"{corpus.name}: no record to train on")
    return found


def _order(own: int, other: int, settings: TuneSettings) -> list[int]:
    """Which record is seen when: numbers below ``own`` are the corpus's, the rest the replay's.

    Each is gone through in shuffled passes; whole batches only.
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


def _usable_checkpoint(folder: Path, identity: str) -> int:
    """The step of the last whole checkpoint of this very run; checkpoints of another are removed."""
    identity_file = folder / "identity"
    if folder.exists() and (not identity_file.is_file() or identity_file.read_text() != identity):
        if not identity_file.is_file() and any(folder.iterdir()):
            raise ActError(f"{folder} is no folder of checkpoints; name a new one")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity_file.write_text(identity)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():  # written last: the run ended while saving
            shutil.rmtree(checkpoint)
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def _train(
    trained: nn.Module,
    examples: list[Piece],
    settings: TuneSettings,
    model: nn.Module,
    checkpoints: Path | None,
    resumed: int,
) -> float:
    """Run the Hugging Face trainer over ``examples`` in their order; the mean loss of the last steps."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class AnswerTrainer(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(examples)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")[:, 1:]
            outputs = model(**inputs)
            logits = outputs.logits[:, :-1].float().flatten(0, 1)
            loss = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED)
            return (loss, outputs) if return_outputs else loss

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=str(checkpoints or scratch),
            max_steps=len(examples) // settings.batch_size,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            save_strategy="steps" if checkpoints else "no",
            save_steps=settings.save_steps,
            save_total_limit=1,
            logging_strategy="steps",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )
        trainer = AnswerTrainer(trained, arguments, data_collator=collate, train_dataset=examples)
        trainer.remove_callback(PrinterCallback)
        start = str(checkpoints / f"checkpoint-{resumed}") if checkpoints and resumed else None
        trainer.train(resume_from_checkpoint=start)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(losses[-10:]) / len(losses[-10:])


def save_tuned(
    model: nn.Module, tokenizer: Any, output: Path, *, dtype: torch.dtype | None = None, force: bool = False
) -> None:
    """Write a model (or adapter) folder with its tokenizer, whole or not at all; ``dtype`` None keeps the model's."""
    with written_whole(output, force=force, directory=True) as folder:
        if dtype is not None:
            model = model.to(dtype)
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
