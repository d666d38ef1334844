"""Real prose: help pages in four languages, worked problems of mathematics, their tokens, and their bits per byte."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from act.data.corpus import Corpus
from act.data.encoded import Encoded
from act.evaluation.likelihoods import likelihoods

LANGUAGES = {"English": "en", "German": "de", "French": "fr", "Italian": "it"}
MATHEMATICS = "mathematics"
PAD, END = "<pad>", "</s>"
POSITIONS = 512


TextsOf = Callable[[str, str], list[str]]
"""The texts of an ability and a split: ``train``, ``validation`` or ``test``."""


class Texts:
    """The texts of each ability, by split.

    A language's are the help pages that all four languages have, in the same order and with the split of the data;
    those of mathematics are problems of GSM8K with their solutions: of ten rows, one is for tests and one for
    validation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, ability: str, split: str) -> list[str]:
        """The texts of a split."""
        if ability == MATHEMATICS:
            kinds = {0: "test", 1: "validation"}
            return [text for place, text in enumerate(self._problems) if kinds.get(place % 10, "train") == split]
        return [text for text, its_split in self._pages[ability] if its_split == split]

    @cached_property
    def _problems(self) -> list[str]:
        lines = (self.folder / "gsm8k_train_2k.jsonl").read_text(encoding="utf-8").splitlines()
        return ["\n".join(message["content"] for message in json.loads(line)["messages"]) for line in lines]

    @cached_property
    def _pages(self) -> dict[str, list[tuple[str, str]]]:
        by_page: dict[str, dict[str, tuple[str, str]]] = {}
        for language, code in LANGUAGES.items():
            with gzip.open(self.folder / f"help_{code}.jsonl.gz", "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            by_page[language] = {row["doc"]: (row["text"], row["split"]) for row in rows}
        common = sorted(set.intersection(*(set(pages) for pages in by_page.values())), key=_mixed)
        return {language: [pages[page] for page in common] for language, pages in by_page.items()}


def train_tokenizer(texts: TextsOf, size: int) -> PreTrainedTokenizerFast:
    """A byte BPE of all training texts, which puts :data:`END` before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    train = (text for ability in (*LANGUAGES, MATHEMATICS) for text in texts(ability, "train"))
    tokenizer.train_from_iterator(train, trainer)
    end = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


class Windows:
    """Windows of ``width`` tokens, and one more to predict, from texts packed one after the other.

    Each pass over the texts takes the windows in another order; which ones a step gets depends on its number alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], width: int, seed: int) -> None:
        stream = torch.tensor([token for ids in tokens_of(tokenizer, texts) for token in ids])
        if len(stream) <= width:
            raise ValueError(f"the texts have {len(stream)} tokens, fewer than one window of {width}")
        self._windows, self._seed = stream.unfold(0, width + 1, width), seed

    def __call__(self, step: int, count: int) -> torch.Tensor:
        """Token ids ``[count, width + 1]``."""
        numbers = range(step * count, (step + 1) * count)
        return torch.stack([self._windows[self._order(number)] for number in numbers])

    def _order(self, number: int) -> int:
        turn, place = divmod(number, len(self._windows))
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + turn)
        return int(torch.randperm(len(self._windows), generator=generator)[place])


class Reading:
    """How well a model reads texts, of each of which it gets the first ``width`` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], width: int) -> None:
        rows = [ids[: width + 1] for ids in tokens_of(tokenizer, texts)]
        self._encoded = [Encoded(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool)) for ids in rows]
        self._tokenizer, self._rows = tokenizer, rows

    @cached_property
    def bytes(self) -> torch.Tensor:
        """The bytes of each text, float64 ``[P]``; the tokenizer is a byte-level BPE."""
        sizes = _bytes_of_tokens(self._tokenizer)
        return torch.stack([sizes[ids[1:]].sum() for ids in self._rows])

    def bits(self, model: nn.Module) -> torch.Tensor:
        """The bits that each text takes, float64 ``[P]``."""
        return likelihoods(model, self._encoded).nll / math.log(2)

    def bits_per_byte(self, model: nn.Module) -> float:
        """The bits of all texts over their bytes."""
        return float(self.bits(model).sum() / self.bytes.sum())


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, behind the one that begins it."""
    ids: list[list[int]] = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def corpus_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], width: int, name: str) -> Corpus:
    """The first ``width`` tokens of each text, all of which count but the one that begins it."""
    rows = [ids[:width] for ids in tokens_of(tokenizer, texts)]
    records = [{"input_ids": ids, "loss_mask": [0] + [1] * (len(ids) - 1)} for ids in rows]
    return Corpus.from_records(records, tokenizer, count="answer", max_length=width, name=name)


def spread(figure: Callable[[torch.Tensor], torch.Tensor], pages: int, draws: int = 1000) -> float:
    """The bootstrap error of a figure: its standard deviation over pages drawn with replacement.

    ``figure`` gets how often each page was drawn, float64 ``[draws, pages]``, and gives ``[draws]``.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(pages, (draws, pages), generator=generator)
    times = torch.stack([torch.bincount(draw, minlength=pages) for draw in drawn]).double()
    return float(figure(times).std())


def _mixed(page: str) -> str:
    """A key that sorts pages in an order that has nothing to do with what they are about."""
    return hashlib.sha256(page.encode()).hexdigest()


def _bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The bytes of each token, float64: a byte-level BPE writes one character for each; special tokens have none."""
    special = set(tokenizer.all_special_ids)
    names: Iterator[str] = iter(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return torch.tensor([0.0 if place in special else len(name) for place, name in enumerate(names)]).double()
