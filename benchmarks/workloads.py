"""The models and texts that several benchmarks use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from act.lab.demo import FORGOTTEN
from act.lab.language import examples

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GSM8K = DATA / "gsm8k_train_2k.jsonl"
SHAPES = ("tiny", "small", "medium")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(name: str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model of random weights: ``tiny`` has the demo's shape, ``small`` and ``medium`` are Qwen2's."""
    torch.manual_seed(seed)
    if name == "tiny":
        llama = LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=101
        )
        return LlamaForCausalLM(llama).to(dtype).eval()  # type: ignore[arg-type]
    hidden, inner, layers = {"small": (512, 2048, 8), "medium": (1024, 4096, 6)}[name]
    qwen2 = Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=8192, max_position_embeddings=1024,
    )  # fmt: skip
    return Qwen2ForCausalLM(qwen2).to(dtype).eval()  # type: ignore[arg-type]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write a JSONL file; returns its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_conversations(folder: Path, corpus: str, rows: int) -> Path:
    """The first rows of GSM8K, or conversations of 8,000 words whose lengths are log-normal, as in GSM8K."""
    path = folder / f"{corpus}.jsonl"
    if corpus == "gsm8k":
        return write_lines(path, read_lines(GSM8K)[:rows])
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(8000)]

    def text() -> str:
        return " ".join(generator.choice(words, max(5, int(generator.lognormal(4.3, 0.45)))))

    roles = ("user", "assistant")
    return write_lines(path, ({"messages": [{"role": role, "content": text()} for role in roles]} for _ in range(rows)))


def write_german(folder: Path, records: int) -> Path:
    """German records of the demo, as text."""
    lines = examples(*FORGOTTEN, records)
    return write_lines(folder / "german.jsonl", ({"text": f"{line['prompt']} {line['completion']}"} for line in lines))


def train_tokenizer(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the conversations in a file, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((turn["content"] for row in read_lines(path) for turn in row["messages"]), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped
