"""``act-profile pair``: profile donor and target on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from act.cli import console
from act.corpus import DEFAULT_TOKEN_BUDGET, Corpus
from act.files import require_output
from act.loading import load_model, load_tokenizer
from act.profile import profile_pair


def command(
    donor: Annotated[str, typer.Option(help="The model that still has the ability.")],
    target: Annotated[str, typer.Option(help="The model that lost it.")],
    corpus: console.CorpusFile,
    output: console.Output = Path("pair.safetensors"),
    count: console.Count = "answer",
    max_length: console.MaxLength = console.DEFAULT_MAX_LENGTH,
    token_budget: console.TokenBudget = DEFAULT_TOKEN_BUDGET,
    exclude: console.Exclude = None,
    fused: console.Fused = True,
    device: console.Device = "auto",
    dtype: console.Dtype = "auto",
    show_spans: console.ShowSpans = 0,
    force: console.Force = False,
    as_json: console.Json = False,
) -> None:
    """Profile donor and target in lockstep: both models' statistics and those of their difference."""
    console.quiet_transformers()
    require_output(output, force)
    text = Corpus.from_file(corpus, load_tokenizer(target), count=count, max_length=max_length)
    if show_spans:
        return console.print_spans(text, show_spans)
    donor_model, target_model = (load_model(name, dtype=dtype, device=device) for name in (donor, target))
    settings: dict[str, Any] = {"token_budget": token_budget, "exclude": exclude or (), "fused": fused}
    with console.progress_bar(text) as progress:
        result = profile_pair(donor_model, target_model, text, **settings, progress=progress)
    result.save(output, force=force)
    console.report_profile(result, output, as_json)
