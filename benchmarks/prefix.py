"""How much faster is a run whose texts begin alike, if what they begin with is computed once?

    python benchmarks/prefix.py --json OUT

From a file to a profile with the small model of ``overhead.py``, answers counted: ``shared`` and ``unshared`` are
``--shared-prefix auto`` and ``off``, ``script`` is what most people write (see ``corpus.py``).

- ``mgsm``: rows of MGSM behind the eight worked examples of their language.
- ``system``: GSM8K behind a template with a system text, as Llama 3.1 and Qwen have one.
- ``plain``: GSM8K behind a template that adds next to nothing.

``max_rel_difference`` compares the profiles of both: means as shares of the root mean square, variances relative.
``max_rel_difference_by_batches`` is that of two runs of the first rows that share nothing, in batches of other sizes:
what the order of sums in a forward in float32 makes of it.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from baselines import by_sums
from corpus import script
from measure import DTYPES, in_turns, medians, options, record, seconds_of
from transformers import PreTrainedModel
from workloads import DATA, GSM8K, build, read_lines, train_tokenizer, write_lines

import act

SYSTEM = (
    "{% if messages[0].role != 'system' %}<|system|>Cutting Knowledge Date: December 2023\nToday Date: 26 July 2024\n\n"
    "You are a helpful assistant. Solve the problem step by step, and write the answer after ####."
    "{{ eos_token }}{% endif %}"
)
POSITIONS = 4096
COMPARED = 24
"""Rows of the runs that differ by their batches alone."""


def examples(languages: list[str]) -> list[dict[str, Any]]:
    """Rows of MGSM, each a conversation that begins with the worked examples of its language."""
    worked = read_lines(DATA / "mgsm_cot_exemplars.jsonl")
    records = []
    for language in languages:
        shown = [turn for row in worked if row["meta"]["lang"] == language for turn in row["messages"]]
        rows = read_lines(DATA / f"mgsm_{language}.jsonl")
        records += [{"messages": [*shown, *row["messages"]]} for row in rows]
    return records


def model_of(dtype: torch.dtype) -> PreTrainedModel:
    """The small model, with positions for the worked examples (they are computed, so the weights are the same)."""
    model = build("small", dtype)
    model.config.max_position_embeddings = POSITIONS
    return model


def difference(one: act.Profile, other: act.Profile) -> float:
    """The largest difference of a mean, as a share of the root mean square, or of a variance; NaN if only one is."""
    size = (other.mean.square() + other.var).sqrt()
    means = (one.mean - other.mean).abs() / size
    variances = (one.var - other.var).abs() / other.var
    nothing = (one.count == 0) & (other.count == 0) | (one.var == 0) & (other.var == 0)
    return float(torch.cat([means.masked_fill(nothing, 0), variances.masked_fill(nothing, 0)]).max())


def measure(
    name: str, rows: int, batch: int, rounds: int, threads: int, dtype: torch.dtype, languages: list[str]
) -> dict[str, Any]:
    """Medians over rounds in which the ways take turns on the same file."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        records = examples(languages)[:rows] if name == "mgsm" else read_lines(GSM8K)[:rows]
        path = write_lines(folder / "corpus.jsonl", records)
        tokenizer = train_tokenizer(path, 8192)
        if name == "system":
            tokenizer.chat_template = SYSTEM + tokenizer.chat_template
        model, for_hooks = model_of(dtype), model_of(dtype)
        profiles: dict[str, act.Profile] = {}

        def profiled(way: Literal["auto", "off"]) -> None:
            corpus = act.Corpus.from_file(path, tokenizer, max_length=POSITIONS)
            profiles[way] = act.profile(model, corpus, shared_prefix=way)
            profiles[way].save(folder / f"{way}.safetensors", force=True)

        middle = medians(
            in_turns(
                {
                    "shared": partial(seconds_of, lambda: profiled("auto")),
                    "unshared": partial(seconds_of, lambda: profiled("off")),
                    "script": partial(
                        seconds_of, lambda: script(by_sums(for_hooks, head=True), path, tokenizer, batch)
                    ),
                },
                rounds,
            )
        )
        read = profiles["auto"].provenance.corpora[0]
        first = write_lines(folder / "first.jsonl", records[:COMPARED])
        by_batches = [
            act.profile(
                model,
                act.Corpus.from_file(first, tokenizer, max_length=POSITIONS),
                shared_prefix="off",
                token_budget=budget,
            )
            for budget in (2048, 1024)
        ]
        return {
            "corpus": name,
            "rows": len(records),
            "threads": threads,
            "dtype": str(dtype).removeprefix("torch."),
            "ratio_over_unshared": round(middle["unshared"] / middle["shared"], 3),
            "ratio_over_hook_script": round(middle["script"] / middle["shared"], 3),
            "tokens_seen": read.tokens,
            "tokens_computed": read.tokens - read.shared,
            "max_rel_difference": difference(profiles["auto"], profiles["off"]),
            "max_rel_difference_by_batches": difference(*by_batches),
            "seconds": {way: round(seconds, 3) for way, seconds in middle.items()},
        }


def main() -> None:
    """Print and write what was measured; the first corpus stands at the top."""
    parser = options(__doc__)
    parser.add_argument("--corpus", choices=("mgsm", "system", "plain"), nargs="+", default=["mgsm", "system", "plain"])
    parser.add_argument("--languages", nargs="+", default=["en"], help="of MGSM")
    parser.add_argument("--rows", type=int, default=250)
    parser.add_argument("--batch", type=int, default=16, help="rows per batch of the script")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    given = parser.parse_args()
    results = []
    for name in given.corpus:
        results.append(
            measure(name, given.rows, given.batch, given.rounds, given.threads, DTYPES[given.dtype], given.languages)
        )
        print(json.dumps(results[-1]), flush=True)
    record(given.json, {**results[0], "corpora": results})


if __name__ == "__main__":
    main()
