from __future__ import annotations

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch
from support import batches_of, tiny_model, train_tokenizer
from tokenizers.processors import TemplateProcessing

from act import ActError, Corpus
from act.data.batching import LOOK_AHEAD
from act.data.records import Entry
from act.data.stream import Stream, require_counted
from act.lab.tokenizer import build_tokenizer

CHAT = {
    "messages": [
        {"role": "user", "content": "What is two plus three?"},
        {"role": "assistant", "content": "The answer is five."},
    ]
}
COMPLETION = {"prompt": "a b c", "completion": " d e"}


def encode(record, tokenizer, **options):
    return next(Corpus.from_records([record], tokenizer, **options).encoded())


def counted_text(record, tokenizer, **options):
    """What comes before the counted tokens, and those."""
    runs = next(Corpus.from_records([record], tokenizer, **options).spans(1))
    return tuple(text for text, _ in runs)


def positions(encoded, count):
    return np.flatnonzero(encoded.counted(count)).tolist()


def test_the_counted_tokens_of_a_chat_decode_to_the_answer(tokenizer):
    before, counted, _ = counted_text(CHAT, tokenizer)
    assert counted == "The answer is five.</s>"
    assert before == "<|user|>\nWhat is two plus three?</s>\n<|assistant|>\n"


def test_the_counted_tokens_of_a_completion_decode_to_it(tokenizer):
    assert counted_text(COMPLETION, tokenizer) == ("a b c", " d e</s>")


def test_predicting_positions_come_one_before_the_answer(tokenizer):
    encoded = encode(COMPLETION, tokenizer)
    own, predicting = positions(encoded, "answer"), positions(encoded, "predict")
    assert [position - 1 for position in own] == predicting
    assert encoded.counted("all").all()
    assert (encoded.counted("prompt") != encoded.counted("answer")).all()


def test_all_of_a_text_counts_and_its_first_token_is_not_predicted(tokenizer):
    encoded = encode({"text": "a b c d"}, tokenizer)
    assert encoded.counted("answer").all()
    assert positions(encoded, "predict") == list(range(len(encoded.input_ids) - 1))


def test_long_texts_are_cut_and_every_token_counts_once(tokenizer):
    corpus = Corpus.from_records([{"text": "a b c d e " * 30}], tokenizer, max_length=16)
    sequences = list(corpus.sequences())
    assert max(map(len, sequences)) == 16 and len(sequences) > 2
    assert sum(sequence.count_mask.sum() for sequence in sequences) == len(
        encode({"text": "a b c d e " * 30}, tokenizer).input_ids
    )


def test_a_model_s_positions_are_the_longest_sequence_where_nobody_says(tokenizer):
    texts = Corpus.from_records([{"text": "a b c d e " * 30}], tokenizer)
    answers = Corpus.from_records([{"prompt": "a " * 50, "completion": " b"}], tokenizer)
    model = tiny_model("llama")
    assert texts.for_models(model).max_length == 256
    model.config.max_position_embeddings = 16
    assert max(map(len, texts.for_models(model).sequences())) == 16
    with pytest.raises(ActError, match="the limit is 16; raise the maximum length"):
        list(answers.for_models(model).encoded())
    asked = Corpus.from_records([{"text": "a"}], tokenizer, max_length=100)
    assert asked.for_models(model).max_length == 100  # rotary positions have no end
    assert texts.for_models(tiny_model("llama"), model).max_length == 16
    model.config.max_position_embeddings = 1 << 20
    assert texts.for_models(model).max_length == 2048


def test_an_overlap_leaves_something_of_a_model_s_positions(tokenizer):
    corpus = Corpus.from_records([{"text": "a b c d e " * 300}], tokenizer, overlap=300)
    with pytest.raises(ActError, match=r"overlap is 300 tokens and the model has 256 positions; set it below 256"):
        corpus.for_models(tiny_model("gpt2"))


def test_a_template_that_rewrites_history_is_an_error_not_a_guess():
    tokenizer = train_tokenizer(["a b c"])
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ActError, match=r"record 0: the prompt's \d+ tokens are not the beginning"):
        encode(CHAT, tokenizer)


def test_a_prompt_that_ends_inside_a_token_is_an_error():
    tokenizer = train_tokenizer(["banana banana banana banana"], vocabulary=290)
    with pytest.raises(ActError, match="end the prompt where a token ends"):
        encode({"prompt": "ban", "completion": "ana"}, tokenizer)
    with pytest.raises(ActError, match="begin the completion with the white space that ends the prompt"):
        encode({"prompt": "banana ", "completion": "banana"}, tokenizer)
    encode({"prompt": "banana", "completion": " banana"}, tokenizer)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": CHAT["messages"][:1]}, "last message is by 'user'"),
        ({"messages": [CHAT["messages"][0], {"role": "assistant", "content": " "}]}, "has no answer"),
        ({"messages": []}, "messages must be a list"),
        ({"prompt": "a", "completion": ""}, "has no answer: completion"),
        ({"text": ""}, "has no answer: text"),
        ({"question": "a"}, r"beside its question it has nothing; add one, or count the tokens of prompts"),
        (
            {"prompt": "a", "chosen": "b"},
            r"it has chosen, one of which may be it \(columns=\{'prompt': '\{prompt\}', 'completion': '\{chosen\}'\}\)",
        ),
        (
            {"instruction": "a", "response": "b"},
            r"\(columns=\{'question': '\{instruction\}', 'answer': '\{response\}'\}\); add one",
        ),
        ({"input": "a", "output": "b"}, r"\(columns=\{'prompt': '\{input\}', 'completion': '\{output\}'\}\)"),
        (
            {"instruction": "a", "response": "b", "context": "c"},
            r"'question': '\{context\} \{instruction\}', 'answer': '\{response\}'",
        ),
        ({"body": "a", "heading": "b"}, r"\(columns=\{'prompt': '\{NAME\}', 'completion': '\{NAME\}'\}\)"),
        ({"messages": [{"role": "user", "text": "a"}]}, "has the content None, and beside it text; expected text"),
        ({"content": "a"}, r"\(columns=\{'text': '\{content\}'\}\)"),
        (
            {"question": "a", "answer": "b", "context": "words"},
            r"into it \(columns=\{'question': '\{context\} \{question\}', 'answer': '\{answer\}'\}\), or ignore",
        ),
        ({"prompt": "a", "completon": " b"}, "completon may belong to the prompt"),
        ({"promt": "a"}, r"got the keys \['promt'\].*columns=\{'prompt': '\{promt\}'\}"),
        ({"data": [{"text": "a"}]}, r"the records seem to be those in 'data'; .*\(jq .data\)"),
        ({"prompt": "a", "completion": 5}, "completion is 5; expected a text, which stands in quotes"),
        ([1, 2], "expected a JSON object"),
        (
            {"prompt": "a " * 50, "completion": " b"},
            r"the limit is 32; raise the maximum length \(max_length\), or shorten the record; leave up to N",
        ),
    ],
)
def test_bad_records_are_named_with_their_line(record, message, tokenizer, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps(COMPLETION) + "\n" + json.dumps(record) + "\n")
    corpus = Corpus.from_file(path, tokenizer, max_length=32)
    with pytest.raises(ActError, match=rf"{re.escape(str(path))}, line 2: .*{message}"):
        list(batches_of(corpus))


def test_malformed_json_and_bytes_are_named_with_their_line(tokenizer, tmp_path):
    path = tmp_path / "corpus.jsonl"
    for content, message in (
        (b'{"text": "a"}\n{"text":\n', "line 2: not JSON"),
        (b'{"text": "\xff"}', "line 1: not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ActError, match=message):
            list(batches_of(Corpus.from_file(path, tokenizer)))


def test_missing_empty_and_unknown_files(tokenizer, tmp_path):
    with pytest.raises(ActError, match="no such corpus"):
        Corpus.from_file(tmp_path / "none.jsonl", tokenizer)
    (tmp_path / "corpus.docx").write_text("a")
    with pytest.raises(ActError, match=r"expected a JSONL, JSON, CSV, TSV or text"):
        Corpus.from_file(tmp_path / "corpus.docx", tokenizer)
    (tmp_path / "corpus.jsonl").write_text("\n\n")
    with pytest.raises(ActError, match="no token was counted"):
        list(batches_of(Corpus.from_file(tmp_path / "corpus.jsonl", tokenizer)))


def test_batches_keep_to_the_budget_and_lose_nothing(tokenizer):
    records = [{"text": "a b c d e " * (1 + 7 * i % 23)} for i in range(2000)]
    corpus = Corpus.from_records(records, tokenizer)
    expected = sorted(tuple(sequence.input_ids) for sequence in corpus.sequences())
    found = []
    padding = total = 0
    for batch in batches_of(corpus, 2000):
        assert batch["input_ids"].numel() <= 2000
        assert not batch["count_mask"][batch["attention_mask"] == 0].any()
        padding += int((batch["attention_mask"] == 0).sum())
        total += batch["attention_mask"].numel()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            found.append(tuple(ids[mask].tolist()))
    assert sorted(found) == expected
    assert padding / total < 0.05


class Endless:
    """A source that counts what is read of it."""

    name, place, fingerprint, size, taken = "endless", None, "", None, 0

    def read(self, start=0, shard=(0, 1), wanted=lambda number: True):
        for number in filter(wanted, itertools.count(start)):
            self.taken += 1
            yield Entry(number, f"record {number}", COMPLETION)


def test_a_stream_is_read_no_further_than_the_look_ahead(tokenizer):
    source = Endless()
    next(iter(Stream({"": Corpus(source, tokenizer)}, token_budget=100)))
    assert source.taken == LOOK_AHEAD


def test_the_same_file_gives_the_same_batches(tokenizer, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join("a b c d e " * (1 + i % 7) for i in range(50)))
    first, second = (list(batches_of(Corpus.from_file(path, tokenizer), 200)) for _ in range(2))
    assert len(first) == len(second)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))


def test_what_the_tokenizer_puts_in_front_of_a_text_does_not_count():
    tokenizer = train_tokenizer(["a b c d e"])
    bos = tokenizer.convert_tokens_to_ids("</s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", bos)])
    record = {"text": "a b c d e " * 20}
    encoded = encode(record, tokenizer)
    assert encoded.input_ids[0] == bos and not encoded.answer[0] and encoded.answer[1:].all()
    assert positions(encoded, "all")[0] == positions(encoded, "prompt")[0] == positions(encoded, "predict")[0] == 0
    cut = list(Corpus.from_records([record], tokenizer, max_length=30).sequences())  # still a text
    assert len(cut) > 1 and sum(piece.count_mask.sum() for piece in cut) == len(encoded.input_ids) - 1


@pytest.mark.parametrize("column", ["image", "images", "video"])
def test_records_with_images_are_refused_unless_their_text_is_wanted_alone(tokenizer, column):
    for record in (
        {"text": "see a.png", column: ["a.png"]},
        {"prompt": "see", "completion": "it", column: {"bytes": b"PNG", "path": None}},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], column: "a.png"},
    ):
        with pytest.raises(ActError, match=rf"the column {column} is more than text, .*ignore_columns=\['{column}'\]"):
            list(Corpus.from_records([record], tokenizer).encoded())
        assert list(Corpus.from_records([record], tokenizer, ignore_columns=[column]).encoded())
        empty = {**record, column: []}
        assert list(Corpus.from_records([empty], tokenizer).encoded())


def test_text_that_the_tokenizer_does_not_know_is_told_once_with_its_share(tokenizer, caplog):
    words = build_tokenizer()
    records = [{"prompt": "asdf qwer", "completion": " zwei"}, {"prompt": "yxcv", "completion": " drei"}] * 90
    for corpus in (Corpus.from_records(records, words, name="noise"), Corpus.from_records(records, words)):
        assert len(list(corpus.encoded())) == len(list(corpus.encoded())) == 180
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("noise: 43 % of the tokens are <unk>, for text that the tokenizer does not know")
    caplog.clear()
    list(Corpus.from_records([{"prompt": "zwei drei", "completion": " vier"}], words).encoded())
    tokenizer = copy.copy(tokenizer)
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2 has it: it says nothing of the text
    list(Corpus.from_records([COMPLETION] * 4, tokenizer).encoded())
    assert not caplog.records


def test_a_prompt_of_plain_text_is_warned_of_once(tokenizer, caplog):
    begun = train_tokenizer(["zwei und drei", "What is two plus three?"])
    bos = begun.convert_tokens_to_ids("</s>")
    begun.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", bos)])

    def told(record, count="prompt", tokenizer=begun):
        caplog.clear()
        text = Corpus.from_records([record] * 3, tokenizer, name="german", count=count)
        for _ in range(2):
            require_counted({"german": text})
        return [record.getMessage() for record in caplog.records]

    (said,) = told({"text": "zwei und drei"})
    assert said.startswith("german: its first records are all answer, as plain text is") and 'count="answer"' in said
    assert not told(COMPLETION) and not told({"text": "zwei und drei"}, "answer")
    with pytest.raises(ActError, match="its records are all answer, as plain text is, and a prompt was to count"):
        told({"text": "zwei und drei"}, tokenizer=tokenizer)
