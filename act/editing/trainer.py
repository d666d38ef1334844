"""The Hugging Face trainer on pieces in a fixed order, and the checkpoints from which it can resume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler

from act.core.errors import ActError
from act.data.pieces import IGNORED, Piece, collate


def usable_checkpoint(folder: Path, identity: str) -> int:
    """The step of the last complete checkpoint of this run, or 0; checkpoints of other runs are removed.

    Raises:
        ActError: the folder holds something else.
    """
    identity_file = folder / "identity"
    if folder.exists() and (not identity_file.is_file() or identity_file.read_text() != identity):
        if not identity_file.is_file() and any(folder.iterdir()):
            raise ActError(f"{folder} is not a folder of checkpoints; name a new one")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity_file.write_text(identity)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():  # it is written last, so the run ended while saving
            shutil.rmtree(checkpoint)
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def train(
    model: nn.Module,
    examples: Sequence[Piece],
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    checkpoints: Path | None = None,
    save_steps: int = 50,
    resume_at: int = 0,
) -> float:
    """Train on ``examples`` in their order, one pass, on the mean cross entropy of the predicted tokens.

    Args:
        examples: a whole number of batches.
        learning_rate: of AdamW without weight decay; it falls linearly to 0.
        device: the device of the model.
        checkpoints: folder for a checkpoint every ``save_steps`` steps; only the last is kept.
        resume_at: the step of the checkpoint to continue from; 0 starts from the beginning.

    Returns:
        The mean loss of the last ten steps.
    """
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
            max_steps=len(examples) // batch_size,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            save_strategy="steps" if checkpoints else "no",
            save_steps=save_steps,
            save_total_limit=1,
            logging_strategy="steps",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device.type == "cpu",
        )
        trainer = AnswerTrainer(model, arguments, data_collator=collate, train_dataset=examples)
        trainer.remove_callback(PrinterCallback)
        start = str(checkpoints / f"checkpoint-{resume_at}") if checkpoints and resume_at else None
        trainer.train(resume_from_checkpoint=start)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(sum(losses[-10:]) / len(losses[-10:]))
