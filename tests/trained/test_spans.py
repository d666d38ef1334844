"""GSM8K and MGSM rows through a chat template, with a tokenizer trained on them."""

from __future__ import annotations

import json

import pytest
from support import batches_of, train_tokenizer

from act import Corpus

FILES = ["gsm8k_train_2k", "mgsm_de", "mgsm_zh", "mgsm_th", "science_en"]


@pytest.fixture(scope="module")
def real_tokenizer(shared_data):
    texts = []
    for name in FILES:
        with (shared_data / f"{name}.jsonl").open(encoding="utf-8") as file:
            texts += [message["content"] for line in file for message in json.loads(line)["messages"]]
    return train_tokenizer(texts, vocabulary=4000)


@pytest.mark.parametrize("name", FILES)
def test_counted_tokens_are_the_answers(name, real_tokenizer, shared_data):
    path = shared_data / f"{name}.jsonl"
    answers = [json.loads(line)["messages"][-1]["content"] for line in path.open(encoding="utf-8")]
    corpus = Corpus.from_file(path, real_tokenizer)
    spans = list(corpus.spans(10**6))
    counted = [[text for text, counts in runs if counts] for runs in spans]
    assert counted == [[answer + "</s>"] for answer in answers]
    expected = sum(len(real_tokenizer(answer)["input_ids"]) + 1 for answer in answers)
    assert sum(int(batch["count_mask"].sum()) for batch in batches_of(corpus)) == expected
