"""What several test files need: tiny models of the real families, batches, a tokenizer with a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from act.data.corpus import Corpus
from act.data.stream import Stream
from act.models.channels import ChannelSpace
from act.ranking.channel_set import ChannelSet

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


def save_models(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase, *names: str) -> None:
    """Save tiny Llamas of the seeds 0, 1, … by their names, each with the tokenizer."""
    for seed, name in enumerate(names):
        tiny_model("llama", seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


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


def word_tokenizer(like: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts special tokens around a text as BERT does, or behind it as T5 does."""
    words = ["what", "is", "two", "plus", "three", "five", "the", "answer", "a", "b", "c", "d", "e"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = {"bert": ("[CLS] $A [SEP]", special[2:4]), "t5": ("$A </s>", special[4:])}[like]
    named = [(token, special.index(token)) for token in around[1]]
    tokenizer.post_processor = processors.TemplateProcessing(single=around[0], special_tokens=named)
    own = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if like == "bert" else {"eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **own)


def tiny_encoder(like: str, seed: int = 0) -> torch.nn.Module:
    """A BERT, or a T5 with encoder and decoder, of random weights."""
    torch.manual_seed(seed)
    if like == "bert":
        body = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        made = transformers.BertForMaskedLM(transformers.BertConfig(**body, vocab_size=40, max_position_embeddings=40))
    else:
        body = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
        made = transformers.T5ForConditionalGeneration(transformers.T5Config(**body, vocab_size=40))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def batches_of(corpus: Corpus, token_budget: int = 8192) -> Iterator[dict[str, torch.Tensor]]:
    """The padded batches of a corpus as a model takes them, with ``count_mask``."""
    for batch in Stream({"": corpus}, token_budget=token_budget):
        yield {**batch.inputs, "count_mask": batch.count_mask}


def chosen(space: ChannelSpace, share: float, seed: int = 0) -> ChannelSet:
    """A random share of all channels."""
    index = torch.randperm(len(space), generator=torch.Generator().manual_seed(seed))[: max(1, int(share * len(space)))]
    return ChannelSet(space, index, torch.zeros(len(index)))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
