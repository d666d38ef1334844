"""Tiny models of the real families, a tokenizer with a chat template, and the shared data folder where it exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from kernels.emulated import REASON as NOT_EMULATED
from kernels.emulated import emulate
from kernels.interpreter import INTERPRETED, correct_interpreter
from kernels.on_gpu import run_on_gpu
from kernels.oracle import ISAS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from act_kernels import backends, native

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **ATTENTION),
    "llama-tied-bias": lambda: transformers.LlamaConfig(
        **SMALL, **ATTENTION, tie_word_embeddings=True, attention_bias=True
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, **ATTENTION),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **ATTENTION, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SMALL, **ATTENTION),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, **ATTENTION, head_dim=8),
    "phi": lambda: transformers.PhiConfig(**SMALL, **{**ATTENTION, "num_key_value_heads": 4}, qk_layernorm=True),
    "phi3": lambda: transformers.Phi3Config(**SMALL, **ATTENTION, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=256),
}


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model of random weights, with norms and biases that are not trivial."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def random_batches(count: int = 3, seed: int = 0, vocabulary: int = 300) -> list[dict[str, torch.Tensor]]:
    """Right-padded batches of different shapes with a count mask."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for number in range(count):
        batch, length = 2 + number, 5 + 4 * number
        lengths = torch.randint(3, length + 1, (batch, 1), generator=generator)
        attention_mask = (torch.arange(length) < lengths).long()
        result.append(
            {
                "input_ids": torch.randint(0, vocabulary, (batch, length), generator=generator),
                "attention_mask": attention_mask,
                "count_mask": torch.rand(batch, length, generator=generator) < 0.6,
            }
        )
    return result


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts; tests that need it skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED_DATA


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer(texts, vocabulary: int = 300) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A small tokenizer with a chat template."""
    return train_tokenizer(["What is two plus three?", "The answer is five.", "a b c d e"])


EMULATED = pytest.param("cuda", marks=pytest.mark.skipif(NOT_EMULATED is not None, reason=str(NOT_EMULATED)))
ON_GPU = (
    ["cuda on the GPU", "reference on the GPU", "triton on the GPU"]
    if torch.cuda.is_available() and not INTERPRETED
    else []
)


@pytest.fixture(params=["triton"] if INTERPRETED else [*ISAS, EMULATED, "reference", *ON_GPU])
def backend(request, monkeypatch):
    """Runs each test on every instruction set of the native kernels, on emulated CUDA, on the reference, and on a GPU.

    In a process with TRITON_INTERPRET=1, on interpreted Triton alone.
    """
    name, _, place = request.param.partition(" ")
    monkeypatch.setenv("ACT_KERNELS_BACKEND", "native" if name in ISAS else name)
    if place:
        run_on_gpu(monkeypatch, name)
    elif name == "triton":
        correct_interpreter(monkeypatch)
    elif name == "cuda":
        emulate(monkeypatch)
    elif name in ISAS:
        native._native.use_instruction_set(name)
    yield request.param
    backends._choose.cache_clear()
    if ISAS:
        native._native.use_instruction_set(ISAS[0])
