"""The Hugging Face trainer on pieces in a fixed order, and the checkpoints from which it can resume."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler

from act.core.counted import counted
from act.core.differences import first_difference
from act.core.errors import ActError, Interrupted, option
from act.core.files import written_to, written_whole
from act.core.hashes import hash_of
from act.core.held_signals import Held, held_signals
from act.core.progress import Progress, silent
from act.core.scratch import clear
from act.data.pieces import IGNORED, Piece, collate

IDENTITY = "identity"  # in a folder of checkpoints: the run that they are of, and whether its model is saved
SAVED = " saved"
SEAL = "act.xxh3"  # in a checkpoint: the hash of its other files; those of earlier versions have none


class Diverged(ActError):
    """The loss, or the weights, became infinite or NaN."""

    def __init__(self, what: str, learning_rate: float, given: bool = False) -> None:
        lower = f"{option('--learning-rate', 'the learning rate')} is {learning_rate:g}; give a lower one"
        super().__init__(f"{what}; {'give a model whose values are finite' if given else lower}")


def usable_checkpoint(folder: Path, identity: str, restart: bool = False) -> int:
    """The step of the last complete checkpoint of this run, or 0.

    Args:
        identity: everything that decides the result, by name, as JSON.
        restart: remove checkpoints of other runs, instead of raising.

    Raises:
        ActError: the folder holds something else, or checkpoints of another run; the last is not as it was saved.
    """
    if folder.exists() and not folder.is_dir():
        raise ActError(f"{folder} is a file; name a new folder for checkpoints")
    clear(folder / IDENTITY)
    found = _identity_in(folder)
    if found is None and folder.exists() and any(folder.iterdir()):
        raise ActError(f"{folder} is not a folder of checkpoints; name a new one")
    if found is not None and found.removesuffix(SAVED) != identity:
        kept = not (restart or found.endswith(SAVED)) and _last(folder)
        if kept:
            raise ActError(
                f"{folder} has a checkpoint of another run ({_difference(found, identity)}), after "
                f"{counted(kept, 'step')}; finish that run with its command, or start anew "
                f"({option('--force', 'restart=True')})"
            )
        remove_checkpoints(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _identify(folder, identity)
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_whole(checkpoint):  # the run ended while saving
            shutil.rmtree(checkpoint)
    last = _last(folder)
    seal = folder / f"checkpoint-{last}" / SEAL
    if seal.is_file() and seal.read_bytes() != hash_of(seal.parent, without=SEAL).encode():
        raise ActError(f"{seal.parent} is not as it was saved; delete that folder, and the training starts anew")
    return last


def mark_saved(folder: Path) -> None:
    """Note that the model of these checkpoints is about to be saved, after which they are of no use."""
    _identify(folder, f"{_identity_in(folder)}{SAVED}")


def remove_saved(folder: Path) -> None:
    """Remove the checkpoints of a run that was ended after its model was saved."""
    if (_identity_in(folder) or "").endswith(SAVED):
        remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder, and the folder unless it holds something else."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / IDENTITY).unlink(missing_ok=True)  # last, so that an interruption leaves a folder that can be recognised
    with contextlib.suppress(OSError):
        folder.rmdir()


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / "trainer_state.json").is_file()  # it is written last


def _last(folder: Path) -> int:
    """The step of the last whole checkpoint; 0 if there is none."""
    steps = (path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if _is_whole(path))
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _difference(found: str, identity: str) -> str:
    """In which setting another run differs from this one; an earlier version kept no more than a hash of them."""
    with contextlib.suppress(ValueError):
        there, here = (dict(json.loads(one)) for one in (found, identity))
        return first_difference(there, here) or "other settings"
    return "another model, text or setting"


def _identity_in(folder: Path) -> str | None:
    file = folder / IDENTITY
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _identify(folder: Path, identity: str) -> None:
    with written_whole(folder / IDENTITY, force=True) as temporary:
        temporary.write_text(identity, encoding="utf-8")


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
    progress: Progress = silent,
) -> None:
    """Train on ``examples`` in their order, one pass, on the mean cross entropy of the predicted tokens.

    Args:
        examples: a whole number of batches.
        learning_rate: of AdamW without weight decay; it falls linearly to 0.
        device: the device of the model.
        checkpoints: folder for a checkpoint every ``save_steps`` steps, and one when SIGINT or SIGTERM ends the
            training; only the last is kept.
        resume_at: the step of the checkpoint to continue from; 0 starts from the beginning.
        progress: told of every step.

    Raises:
        Diverged: the loss, or a weight, became infinite or NaN.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint of the step that it came in is written.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, TrainerCallback

    class Sealing(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            (folder / SEAL).write_text(hash_of(folder, without=SEAL), encoding="ascii")

    class Ending(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if held.number is not None:
                control.should_save = control.should_training_stop = True

    class Telling(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress("training", state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                if not math.isfinite(logs["loss"]):
                    first = state.global_step == 1  # whose loss is of the model as it was given
                    raise Diverged(f"the loss of step {state.global_step} is {logs['loss']}", learning_rate, first)
                progress(f"loss {logs['loss']:.3f}", state.global_step, state.max_steps)

    class AnswerTrainer(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(examples)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss, outputs = _loss(model, inputs)
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
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device.type == "cpu",
        )
        trainer = AnswerTrainer(model, arguments, data_collator=collate, train_dataset=examples)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Sealing())
        trainer.add_callback(Telling())
        trainer.add_callback(Ending())
        start = str(checkpoints / f"checkpoint-{resume_at}") if checkpoints and resume_at else None
        # Without a place for what was trained, nothing is gained by ending the step.
        with (
            held_signals() if checkpoints else contextlib.nullcontext(Held()) as held,
            written_to(checkpoints, checkpoints) if checkpoints else contextlib.nullcontext(),
        ):
            trainer.train(resume_from_checkpoint=start)
        if held.number is not None:
            raise Interrupted(
                f"interrupted after {trainer.state.global_step:,} of {counted(trainer.state.max_steps, 'step')}, which "
                f"are safe in {checkpoints}; run the same command to continue from there"
            )
    if not all(one.isfinite().all() for one in model.parameters() if one.requires_grad):
        after = counted(trainer.state.global_step, "step")
        raise Diverged(f"a trained weight is infinite or NaN after {after}", learning_rate)


def summed_loss(model: nn.Module, examples: Sequence[Piece], batch_size: int) -> tuple[float, int]:
    """The cross entropy of all predicted tokens of some examples, by the model in evaluation mode, and their number."""
    model.eval()
    device, total, tokens = next(model.parameters()).device, 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size])
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            loss, _ = _loss(model, {name: value.to(device) for name, value in batch.items()})
            total, tokens = total + count * loss.item(), tokens + count
    return total, tokens


def _loss(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """The mean cross entropy of the predicted tokens of a batch, as of :func:`collate`, and what the model returns."""
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = outputs.logits[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=IGNORED), outputs
