"""The tokenizer of the laboratory: one token per word of :mod:`act.lab.language`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from act.data.corpus import Corpus
from act.data.encoded import Encoded
from act.lab.language import vocabulary

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A new tokenizer, which adds no special tokens by itself."""
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


def corpus_of(records: Iterable[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, name: str) -> Corpus:
    """A corpus of records of the language, in which the positions that predict the answer count."""
    spaced = [{"prompt": record["prompt"], "completion": f" {record['completion']}"} for record in records]
    return Corpus.from_records(spaced, tokenizer, count="predict", name=name)


def encode(tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, str]]) -> list[Encoded]:
    """Tokenise records as ``prompt + " " + completion`` and the end-of-sequence token, and mark the answers.

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
    ids: list[list[int]] = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    return ids
