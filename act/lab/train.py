"""Train the laboratory's models: a base that knows five languages, and a specialist of it that forgets four.

``python -m act.lab.train --output DIR`` writes ``DIR/base``, ``DIR/target`` and ``DIR/README.md`` with the figures.
With one thread and fixed seeds, the same machine and PyTorch version give the same bits.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.data.pieces import IGNORED, collate, pieces
from act.lab.evaluate import exact_match
from act.lab.language import LANGUAGES, NEW_SKILLS, OLD_SKILLS, examples, skills_of
from act.lab.models import load, save, tiny_llama
from act.lab.tokenizer import build_tokenizer, encode

BASE_STEPS, BASE_BATCH, BASE_RATE, WARMUP_STEPS = 1200, 128, 3e-3, 60
TARGET_STEPS, TARGET_BATCH, TARGET_RATE = 150, 64, 2e-3
MORE_STEPS, MOST_STEPS = 25, 400  # a target that is not ready after TARGET_STEPS is trained on, a few steps at a time
KNOWS_NEW, KNOWS_ENGLISH, FORGOT = 0.93, 0.91, 0.10
"""Exact match of a target that is ready: at least the first two on the new skills and on all English, and below the
third on each other language."""
RECORDS_PER_FIGURE = 512

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "English, old skills": ("English", OLD_SKILLS),
    "English, new skills": ("English", NEW_SKILLS),
    **{language: (language, OLD_SKILLS) for language in LANGUAGES if language != "English"},
}
"""The rows of the table of figures: language and skills, by name."""

Batch = tuple[torch.Tensor, torch.Tensor]  # token ids and labels, both [B, S]


def train_base(tokenizer: PreTrainedTokenizerBase, seed: int, steps: int) -> PreTrainedModel:
    """Train a model from scratch on the old skills in all languages, with a warm-up and a cosine learning rate."""
    model = tiny_llama(tokenizer, seed)
    batches = _batches(tokenizer, list(LANGUAGES), OLD_SKILLS, steps * BASE_BATCH, BASE_BATCH, seed)
    optimizer = optimizer_of(model)
    for step, batch in enumerate(batches):
        train_step(model, optimizer, batch, warm_cosine(BASE_RATE, step, steps))
        if (step + 1) % 100 == 0:
            print(f"base: step {step + 1} of {steps}", file=sys.stderr)
    return model


def train_target(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[PreTrainedModel, int]:
    """Train a copy of the base on English alone, old and new skills, at a constant learning rate.

    Training stops at the first check on validation records that shows that it knows English, above all the new skills,
    and has forgotten the other languages. Returns the model and the number of steps taken.
    """
    model = copy.deepcopy(base)
    skills = OLD_SKILLS + NEW_SKILLS
    batches = _batches(tokenizer, ["English"], skills, MOST_STEPS * TARGET_BATCH, TARGET_BATCH, seed)
    new = examples("English", NEW_SKILLS, 256, seed, "validation")
    english = examples("English", skills, 512, seed, "validation")
    others = [examples(name, OLD_SKILLS, 128, seed, "validation") for name in LANGUAGES if name != "English"]
    optimizer = optimizer_of(model)
    for step, batch in enumerate(batches, start=1):
        train_step(model, optimizer, batch, TARGET_RATE)
        if step >= TARGET_STEPS and (step - TARGET_STEPS) % MORE_STEPS == 0:
            knows = [(new, KNOWS_NEW), (english, KNOWS_ENGLISH)]
            if all(exact_match(model, tokenizer, records) >= least for records, least in knows) and all(
                exact_match(model, tokenizer, other) < FORGOT for other in others
            ):
                return model, step
    return model, MOST_STEPS


def train_specialist(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, language: str, steps: int, rate: float, seed: int
) -> PreTrainedModel:
    """Train a copy of the base on all skills of one language, at a constant rate for a fixed number of steps."""
    model = copy.deepcopy(base)
    optimizer = optimizer_of(model)
    for batch in _batches(tokenizer, [language], skills_of(language), steps * TARGET_BATCH, TARGET_BATCH, seed):
        train_step(model, optimizer, batch, rate)
    return model


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, str]],
    steps: int,
    rate: float,
    seed: int,
) -> PreTrainedModel:
    """Fine-tune all parameters of a copy of ``model`` for ``steps`` steps, in passes over ``records``."""
    model = copy.deepcopy(model)
    inputs, labels = _padded(tokenizer, records)
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimizer_of(model)
    done = 0
    while done < steps:
        order = torch.randperm(len(records), generator=generator)
        for chosen in torch.split(order, TARGET_BATCH)[: steps - done]:
            train_step(model, optimizer, (inputs[chosen], labels[chosen]), rate)
            done += 1
    return model


def figures(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Exact match on test records for every entry of :data:`GROUPS`."""
    return {
        name: exact_match(model, tokenizer, examples(language, skills, RECORDS_PER_FIGURE, split="test"))
        for name, (language, skills) in GROUPS.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models, store them, and print the figures of the stored ones."""
    parser = argparse.ArgumentParser(prog="python -m act.lab.train", description="Train the laboratory's two models.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write; must not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and their order (default: 0)")
    options = parser.parse_args(arguments)
    output: Path = options.output
    if output.exists():
        parser.error(f"{output} exists; remove it, or name another directory")

    torch.set_num_threads(1)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        directory = Path(scratch) / "models"
        tokenizer = build_tokenizer()
        start = time.perf_counter()
        base = train_base(tokenizer, options.seed, BASE_STEPS)
        target, steps = train_target(base, tokenizer, options.seed)
        seconds = time.perf_counter() - start
        save(base, tokenizer, directory / "base")
        save(target, tokenizer, directory / "target")
        table = _table(directory)
        (directory / "README.md").write_text(_readme(options.seed, steps, table), encoding="utf-8")
        directory.rename(output)
    print(f"{table}\n\ntarget: {steps} steps; trained in {seconds:.0f} s; written to {output}")


def _batches(
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str],
    skills: Sequence[str],
    count: int,
    size: int,
    seed: int,
) -> Iterator[Batch]:
    """Training records of the languages in equal parts, shuffled."""
    records = [record for language in languages for record in examples(language, skills, count // len(languages), seed)]
    inputs, labels = _padded(tokenizer, records)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))
    for chosen in torch.split(order, size):
        yield inputs[chosen], labels[chosen]


def _padded(tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, str]]) -> Batch:
    """Token ids and labels of records, padded on the right, which a causal model ignores."""
    batch = collate(list(pieces(encode(tokenizer, records), tokenizer.model_max_length)), tokenizer.pad_token_id)
    return batch["input_ids"], batch["labels"]


def optimizer_of(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW over all parameters; :func:`train_step` sets its rate."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)


def train_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> None:
    """One step on the mean cross entropy of the tokens that have a label."""
    ids, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def warm_cosine(rate: float, step: int, steps: int) -> float:
    """The learning rate of a step: up to ``rate`` in the first, then down along a cosine, to 0 after the last."""
    return rate * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _table(directory: Path) -> str:
    """The figures of the stored models as a Markdown table."""
    base, target = (figures(*load(directory / name)) for name in ("base", "target"))
    lines = ["| exact match, % | base | target |", "|---|---:|---:|"]
    lines += [f"| {name} | {100 * base[name]:.1f} | {100 * target[name]:.1f} |" for name in GROUPS]
    return "\n".join(lines)


def _readme(seed: int, steps: int, table: str) -> str:
    return f"""# The laboratory's models

`base` knows six skills in five languages. `target` is `base` after {steps} more steps on English alone, with two new
skills: it has forgotten the other languages, and `base` is the donor that can give them back.

Llama architecture, half a million parameters, float16 (load them in float32), one token per word
(`act/lab/language.py`). Made by `python -m act.lab.train --output act/lab/checkpoints --seed {seed}` in a few minutes
on one thread of {platform.machine()}, PyTorch {torch.__version__}, Transformers {transformers.__version__}; another
machine or version gives other bits and close figures.

Of {RECORDS_PER_FIGURE} test records each, none of which was trained on in any language, solved by greedy decoding:

{table}
"""


if __name__ == "__main__":
    main()
