"""``act-profile tune``: a light fine-tune after a transfer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import console, options
from act.core.errors import ActError
from act.core.files import require_output
from act.core.inputs import require_not_input
from act.core.scratch import companion, reserve

if TYPE_CHECKING:
    from torch import nn


def command(
    model: Annotated[str, typer.Option(help="The model to tune; it is not changed on disk.")],
    corpus: options.CorpusPlace,
    output: Annotated[Path, typer.Option(help="Folder for the tuned model.")],
    replay: Annotated[str | None, typer.Option(help="Records of abilities to retain, mixed in.")] = None,
    replay_share: Annotated[
        float | None, typer.Option(help="Share of the records that come from --replay; 0.5 by default.")
    ] = None,
    mode: Annotated[str, typer.Option(help="full, rows (of --channels only) or lora.")] = "full",
    channels: Annotated[Path | None, typer.Option(help="Channel set whose rows are trained in mode rows.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; one pass over the corpus by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Records per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of AdamW; it falls linearly to 0.")] = 1e-4,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the adapters in mode lora; 8 by default.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter/--merge", help="Save the LoRA adapter, or merge it.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for the order of records, dropout and adapters.")] = 0,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    ignore_columns: options.IgnoreColumns = None,
    max_length: options.MaxLength = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Fine-tune on the answers of a corpus; after an interruption, the same command continues."""
    from act.data.corpus import Corpus
    from act.editing.trainer import remove_saved
    from act.editing.tune import TuneSettings, save_tuned, tune
    from act.models.loading import load_model, load_tokenizer
    from act.ranking.channel_set import ChannelSet

    given: dict[str, Any] = {"replay_share": replay_share, "lora_rank": lora_rank}
    given = {name: value for name, value in given.items() if value is not None}
    settings = TuneSettings(mode, steps, batch_size, learning_rate, seed=seed, save_steps=save_steps, **given)  # type: ignore[arg-type]
    console.quiet_transformers()
    checkpoints = companion(output.absolute().parent / f".{output.name}", ".tuning")
    reserve(output)
    if os.path.exists(output) and not force:
        remove_saved(checkpoints)
    inputs = [name for name in (model, corpus, replay, channels) if name]
    require_not_input(checkpoints, inputs)
    require_output(output, force, inputs)
    if channels and mode != "rows":
        raise ActError(f"--channels has no effect in mode {mode}; leave it out, or choose --mode rows")
    if adapter and mode != "lora":
        raise ActError(f"mode {mode} makes no adapter; leave --adapter out, or choose --mode lora")
    if lora_rank is not None and mode != "lora":
        raise ActError(f"--lora-rank has no effect in mode {mode}; leave it out, or choose --mode lora")
    if replay_share is not None and not replay:
        raise ActError("--replay-share has no effect without --replay; give the records to mix in, or leave it out")
    chosen = ChannelSet.load(channels) if channels else None
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    ignored = options.names(ignore_columns)
    text = Corpus.from_file(corpus, tokenizer, max_length=max_length, ignore_columns=ignored)
    kept = Corpus.from_file(replay, tokenizer, max_length=max_length, ignore_columns=ignored) if replay else None
    loaded: nn.Module = load_model(model, dtype="auto", device=device, trust_remote_code=trust_remote_code)
    stored = next(loaded.parameters()).dtype
    loaded = loaded.float() if stored.is_floating_point and mode != "rows" else loaded
    result = tune(loaded, text, settings, replay=kept, channels=chosen, keep_adapter=adapter, checkpoints=checkpoints)
    save_tuned(
        result.model,
        tokenizer,
        output,
        dtype=None if adapter else stored,
        source=None if adapter else model,
        checkpoints=checkpoints,
        force=force,
    )
    saved = {"full": "whole model", "rows": "whole model", "lora": "adapter" if adapter else "merged model"}[mode]
    summary = {"output": str(output), "saved": saved, "mode": mode, **result.summary()}
    if as_json:
        return console.print_json(summary)
    rows = [
        [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value] for name, value in summary.items()
    ]
    console.print_table(str(output), ["", ""], rows[1:])
