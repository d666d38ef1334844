"""The tokenizer of the laboratory: one token per word of :mod:`act.lab.language`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from act.data.encode import Encoded
from act.lab.language import vocabulary

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fresh tokenizer; it adds no special token by itself, and ``save_pretrained`` writes it as usual."""
    ids = {word: index for index, word in enumerate([PAD, EOS, UNKNOWN, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, str]]) -> list[Encoded]:
    """Tokenise records as ``prompt + " " + completion`` and the end-of-sequence token, with the answer marked.

    Raises:
        ValueError: the tokens of a prompt are not the first tokens of its record, so the answer has no clear start.
    """
    if not records:
        return []
    prompts = _tokenize(tokenizer, [record["prompt"] for record in records])
    texts = _tokenize(tokenizer, [f"{record['prompt']} {record['completion']}" for record in records])
    for record, prompt, text in zip(records, prompts, texts, strict=True):
        if text[: len(prompt)] != prompt:
            raise ValueError(f"the tokens of the prompt are not a prefix of the tokens of the record: {record}")
    ended = [np.array([*text, tokenizer.eos_token_id], dtype=np.int32) for text in texts]
    return [Encoded(ids, np.arange(len(ids)) >= len(prompt)) for ids, prompt in zip(ended, prompts, strict=True)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, return_attention_mask=False, return_token_type_ids=False)["input_ids"]
