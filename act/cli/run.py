"""``act-profile run``: profile one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.cli import console
from act.cli.measuring import Measuring, parsed_budget, parsed_memory, parsed_promise, parsed_shard
from act.profiling.checkpoint import EVERY


def command(
    model: Annotated[str, typer.Option(help="Folder in Hugging Face format, or hub id.")],
    corpus: console.CorpusNames,
    output: console.Output = Path("profile.safetensors"),
    count: console.Count = "answer",
    answer_turns: console.AnswerTurns = "last",
    ability_column: console.AbilityColumn = None,
    max_length: console.MaxLength = None,
    overlap: console.Overlap = None,
    token_budget: console.TokenBudget = None,
    packing: console.Packing = "auto",
    exclude: console.Exclude = None,
    fused: console.Fused = True,
    workers: console.Workers = 0,
    token_cache: console.TokenCacheFolder = None,
    skip_bad_records: console.SkipBadRecords = 0,
    look_ahead: console.LookAhead = None,
    shard: console.ShardOption = "0/1",
    until_stable: console.UntilStable = False,
    stable_score: console.StableScore = "mean-abs",
    stable_top: console.StableTop = "5%",
    stable_overlap: console.StableOverlap = 0.98,
    stable_confidence: console.StableConfidence = 0.95,
    device: console.Device = "auto",
    device_map: console.DeviceMap = None,
    max_memory: console.MaxMemory = None,
    dtype: console.Dtype = "auto",
    checkpoint_every: console.CheckpointEvery = EVERY,
    show_spans: console.ShowSpans = 0,
    log: console.LogFile = None,
    force: console.Force = False,
    as_json: console.Json = False,
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
