"""``act-profile run``: profile one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.cli import options
from act.cli.measuring import Measuring, parsed_budget, parsed_memory, parsed_promise, parsed_shard
from act.profiling.checkpoint import EVERY


def command(
    model: Annotated[str, typer.Option(help="Folder in Hugging Face format, or hub id.")],
    corpus: options.CorpusNames,
    output: options.Output = Path("profile.safetensors"),
    count: options.Count = "answer",
    answer_turns: options.AnswerTurns = "last",
    ability_column: options.AbilityColumn = None,
    max_length: options.MaxLength = None,
    overlap: options.Overlap = None,
    token_budget: options.TokenBudget = None,
    packing: options.Packing = "auto",
    exclude: options.Exclude = None,
    fused: options.Fused = True,
    workers: options.Workers = 0,
    token_cache: options.TokenCacheFolder = None,
    skip_bad_records: options.SkipBadRecords = 0,
    look_ahead: options.LookAhead = None,
    shard: options.ShardOption = "0/1",
    until_stable: options.UntilStable = False,
    stable_score: options.StableScore = "mean-abs",
    stable_top: options.StableTop = "5%",
    stable_overlap: options.StableOverlap = 0.98,
    stable_confidence: options.StableConfidence = 0.95,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    dtype: options.Dtype = "auto",
    checkpoint_every: options.CheckpointEvery = EVERY,
    show_spans: options.ShowSpans = 0,
    log: options.LogFile = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Profile one model: the statistics of every channel over the counted tokens of a corpus."""
    Measuring(
        models={"model": model},
        corpora=corpus,
        output=output,
        reading={
            "count": count,
            "answer_turns": answer_turns,
            "ability_column": ability_column,
            "max_length": max_length,
            "overlap": overlap,
        },
        feeding={
            "token_budget": parsed_budget(token_budget),
            "packing": packing,
            "exclude": exclude or (),
            "fused": fused,
            "workers": workers,
            "skip_bad_records": skip_bad_records,
            "shard": parsed_shard(shard),
            **({"look_ahead": look_ahead} if look_ahead else {}),
        },
        loading={
            "device": device,
            "device_map": device_map,
            "max_memory": parsed_memory(max_memory or []),
            "dtype": dtype,
        },
        stable=parsed_promise(until_stable, stable_score, stable_top, stable_overlap, stable_confidence),
        token_cache=token_cache,
        show_spans=show_spans,
        checkpoint_every=checkpoint_every,
        log=log,
        force=force,
        as_json=as_json,
    ).run()
