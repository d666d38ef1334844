"""``act-profile tune``: a light fine-tune after a transfer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import console, next_step, options
from act.cli.going_on import noted_at_the_end
from act.cli.grouped import with_options
from act.cli.progress import counter
from act.cli.reading import ReadingRecords
from act.core.errors import ActError, require_choice
from act.core.files import require_folder_name, require_output
from act.core.inputs import require_not_input
from act.core.scratch import companion, reserve

if TYPE_CHECKING:
    from torch import nn


_CALLED = {
    "resumed_from": "went on from step",
    "records": "records drawn",
    "replayed": "records mixed in",
}
_LOSSES = {
    "loss": "loss per token",
    "corpus_loss": "of --corpus alone",
    "replay_loss": "of --replay alone",
}
EXAMPLES = """
act-profile tune --model mended/ --corpus german.jsonl \\
    --replay maths.jsonl --output tuned/
act-profile tune --model mended/ --corpus german.jsonl --mode rows \\
    --channels channels.safetensors --steps 100 --output tuned/
"""


@with_options
def command(
    model: options.Model,
    corpus: Annotated[
        str,
        typer.Option(
            rich_help_panel=options.TEXT,
            help="Records to train on: a file, folder or data set of the hub, as for act-profile run; of records with "
            "an answer, that is learnt alone.",
        ),
    ],
    output: options.Output,
    reading: ReadingRecords,
    revision: options.Revision = None,
    replay: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=options.TEXT,
            help="Records of abilities to retain, mixed in; half of those drawn, or --replay-share.",
        ),
    ] = None,
    replay_share: Annotated[
        float | None, typer.Option(help="Share of the records that come from --replay; 0.5 by default.")
    ] = None,
    mode: Annotated[
        str, options.choice(None, options.MODES, "What is trained: all weights, the rows of --channels, or adapters.")
    ] = "full",
    channels: Annotated[Path | None, typer.Option(help="Channel set whose rows are trained in mode rows.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; one pass over the corpus by default.")] = None,
    batch_size: Annotated[
        int,
        typer.Option(help="Records per step, in one batch. There is no --token-budget: a step is a number of records."),
    ] = 8,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of AdamW; it falls linearly to 0.")] = 1e-4,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the adapters in mode lora; 8 by default.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter/--merge", help="In mode lora: save the adapter, or merge it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed for the order of records, dropout and adapters.")] = 0,
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints, from which the same command goes on; Ctrl-C makes one.")
    ] = 50,
    push_to_hub: options.PushToHub = None,
    device: Annotated[
        str,
        typer.Option(
            rich_help_panel=options.MODELS,
            help="Torch device, such as cpu or cuda:1; auto: the first GPU, or CPU. There is no --device-map: what is "
            "spread over GPUs is not trained here; --mode lora or rows, or --dtype bfloat16, need less memory.",
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        options.choice(
            options.MODELS,
            options.DTYPES,
            "Type of the weights while they are trained; auto: float32, in mode rows the checkpoint's. The result is "
            "saved in the checkpoint's.",
        ),
    ] = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Fine-tune on the answers of a corpus; after an interruption, the same command continues.

    --model, --corpus and --output are all it needs: a new model folder is written, with the loss before and after,
    and --model is only read. If the loss goes up, lower --learning-rate.
    """
    import torch

    from act.editing import publishing
    from act.editing.earlier import remember_earlier
    from act.editing.trainer import remove_saved
    from act.editing.tune import TuneSettings, save_tuned, tune
    from act.editing.tuned_card import tuned_card
    from act.models.fingerprint import fingerprint
    from act.models.hub import at_revision
    from act.models.loading import base_to_merge, load_model
    from act.profiling.dtype_speed import warn_of_half
    from act.ranking.channel_set import ChannelSet

    require_choice("dtype", dtype, options.DTYPES)
    given: dict[str, Any] = {"replay_share": replay_share, "lora_rank": lora_rank}
    given = {name: value for name, value in given.items() if value is not None}
    settings = TuneSettings(mode, steps, batch_size, learning_rate, seed=seed, save_steps=save_steps, **given)  # type: ignore[arg-type]
    console.quiet_transformers()
    checkpoints = companion(output, ".tuning", hidden=True)
    require_folder_name(output)
    reserve(output)
    if os.path.exists(output) and not force:
        remove_saved(checkpoints)
    model = at_revision(model, revision)
    given_texts = [corpus, *([replay] if replay else [])]
    places = console.named(given_texts).values()
    console.require_models([model])
    inputs = [name for name in (model, *places, channels) if name]
    if push_to_hub:
        publishing.require_repository(push_to_hub)
    require_not_input(checkpoints, inputs)
    require_output(output, force, inputs)
    if channels and mode != "rows":
        raise ActError(f"--channels has no effect in mode {mode}; leave it out, or choose --mode rows")
    if mode == "rows" and not channels:
        raise ActError("mode rows trains the rows of a channel set; give it with --channels, or choose another mode")
    if adapter and mode != "lora":
        raise ActError(f"mode {mode} makes no adapter; leave --adapter out, or choose --mode lora")
    if lora_rank is not None and mode != "lora":
        raise ActError(f"--lora-rank has no effect in mode {mode}; leave it out, or choose --mode lora")
    if replay_share is not None and not replay:
        raise ActError("--replay-share has no effect without --replay; give the records to mix in, or leave it out")
    base = base_to_merge(model)
    if adapter and base != model:
        raise ActError(
            f"{model} is an adapter, and another one beside it would be of no use without it; leave --adapter out, "
            "and the whole model is saved"
        )
    chosen = ChannelSet.load(channels) if channels else None
    tokenizer = reading.tokenizer_of(model, trust_remote_code=trust_remote_code)
    opened = reading.open_all(given_texts, {model: tokenizer}, trust_remote_code=trust_remote_code)
    texts = [*opened[model].values()]
    if base != model:
        console.note(f"{model} is an adapter: it is merged into its base model, {base}, and the whole model is saved")
    loaded: nn.Module = load_model(model, device=device, merge=True, trust_remote_code=trust_remote_code)
    stored, before = next(loaded.parameters()).dtype, fingerprint(loaded)
    remember_earlier(loaded, [before])  # of which channels may be, whatever type it is trained in
    if dtype != "auto" and not stored.is_floating_point:
        raise ActError(f"--dtype has no effect on {model}, whose weights are quantised ({stored}); leave it out")
    if stored.is_floating_point and (dtype != "auto" or mode != "rows"):
        loaded = loaded.to(getattr(torch, "float32" if dtype == "auto" else dtype))
    warn_of_half(loaded)
    with counter("tuning", as_json) as progress, noted_at_the_end(lambda: _kept(checkpoints)):
        result = tune(
            loaded,
            texts[0],
            settings,
            replay=texts[1] if replay else None,
            channels=chosen,
            keep_adapter=adapter,
            checkpoints=checkpoints,
            restart=force,
            progress=progress,
        )
    save_tuned(
        result.model,
        tokenizer,
        output,
        dtype=None if adapter else stored,
        source=None if adapter else model,
        checkpoints=checkpoints,
        force=force,
        card=tuned_card(
            model,
            result,
            settings,
            texts,
            chosen,
            adapter,
            console.command_for_others(),
            base=None if base == model else base,
            before=before,
        ),
    )
    saved = {"full": "whole model", "rows": "whole model", "lora": "adapter" if adapter else "merged model"}[mode]
    summary = {"output": str(output), "saved": saved, "mode": mode, **result.summary()}
    if push_to_hub:
        summary["pushed_to"] = publishing.push(output, push_to_hub)
    if as_json:
        return console.print_json(summary)
    for name in ("resumed_from", "replayed"):
        if not summary[name]:
            del summary[name]
    for prefix, called in _LOSSES.items():
        first, last = summary.pop(f"{prefix}_before"), summary.pop(f"{prefix}_after")
        if first is not None and (replay or prefix == "loss"):
            summary[called] = f"{first:.3f} before, {last:.3f} after"
    rows = [
        [
            _CALLED.get(name, name.replace("_", " ")),
            f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value,
        ]
        for name, value in summary.items()
    ]
    console.print_table(str(output), ["", ""], rows[1:])
    print("loss: of the first records drawn, on which it was trained, too; other text tells whether it is better")
    next_step.after_change(model, output, kept=bool(replay))


def _kept(checkpoints: Path) -> str:
    """What an interruption has left."""
    kept = "the training so far is kept: the same command goes on from its last checkpoint"
    return kept if any(checkpoints.glob("checkpoint-*")) else ""
