"""Does the memory of a run grow with the corpus?

    python benchmarks/memory.py --json OUT

Peak resident memory of ``act-profile run`` and ``pair``, each in its own process, on a corpus and on one ten
times as long.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import options, record, run_process
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from workloads import write_lines

WORDS = 500


def make_models(folder: Path) -> None:
    """Donor and target of 0.1 M random parameters, so that many tokens take minutes; one token per word."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=WORDS
    )
    vocabulary = {"<pad>": 0, **{f"w{i}": i for i in range(1, WORDS)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    for seed, name in enumerate(("donor", "target")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def texts(tokens: int) -> Iterator[dict[str, str]]:
    """Records of 20 to 119 tokens."""
    generator = torch.Generator().manual_seed(0)
    while tokens > 0:
        length = int(torch.randint(20, 120, (1,), generator=generator))
        words = torch.randint(1, WORDS, (length,), generator=generator).tolist()
        yield {"text": " ".join(f"w{word}" for word in words)}
        tokens -= length


def peak_of(command: str, tokens: int) -> float:
    """Peak resident megabytes of ``run`` or ``pair`` on a corpus of so many tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_models(folder)
        corpus = write_lines(folder / "corpus.jsonl", texts(tokens))
        donor, target = str(folder / "donor"), str(folder / "target")
        chosen = ["--model", target] if command == "run" else ["--donor", donor, "--target", target]
        rest = ["--corpus", str(corpus), "--output", str(folder / "profile"), "--json"]
        return run_process([sys.executable, "-m", "act", command, *chosen, *rest])[1]


def main() -> None:
    """Print and write the peaks and their ratio."""
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the smaller corpus")
    given = parser.parse_args()
    results = []
    for command in ("run", "pair"):
        peak, more = (peak_of(command, factor * given.tokens) for factor in (1, 10))
        results.append(
            {
                "command": command,
                "tokens": given.tokens,
                "peak_mb": peak,
                "peak_mb_at_10x": more,
                "ratio": round(more / peak, 4),
            }
        )
        print(results[-1])
    record(given.json, {"results": results})


if __name__ == "__main__":
    main()
