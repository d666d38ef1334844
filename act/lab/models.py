"""The laboratory's models: their architecture, how they are stored, and the trained ones that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Where the shipped models are: ``base`` (the donor) and ``target`` (the specialist), Hugging Face directories."""


SHARD = "3MB"  # the largest file of a model


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    hidden: int = 128,
    inner: int = 256,
    layers: int = 3,
    heads: int = 4,
) -> LlamaForCausalLM:
    """A newly initialised Llama, float32, with untied embeddings; by default of about half a million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write model and tokenizer as a Hugging Face directory, in float16; ``model`` becomes float16 too."""
    model.half().save_pretrained(directory, max_shard_size=SHARD)
    tokenizer.save_pretrained(directory)
    settings_file = directory / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # Transformers 5 writes a class name that 4 does not know
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a model, in float32 and eval mode, and its tokenizer from a Hugging Face directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False)
    return model.eval(), AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
