"""Evaluations against one forward a record and stock generation."""

from __future__ import annotations

import copy
import json
import re
import sys

import pytest
import torch
from support import tiny_model, train_tokenizer
from tokenizers.processors import TemplateProcessing

import act
from act.evaluation.exercises import choices_of, exercises_of, fitting_metric
from act.evaluation.generation import Generated, generate
from act.evaluation.likelihoods import likelihoods
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS, load

CHOICE = [
    {"prompt": f"{question}\nA. one\nB. two\nC. three\nAnswer:", "completion": f" {letter}"}
    for question, letter in (("a b", "A"), ("What is c?", "C"), ("The d", "B"), ("e", "C"))
]


@pytest.fixture(scope="module")
def target():
    return load(CHECKPOINTS / "target")


@pytest.fixture(scope="module")
def base():
    return load(CHECKPOINTS / "base")


def lab_corpus(tokenizer, language: str = "English", count: int = 96) -> act.Corpus:
    records = [
        {"prompt": record["prompt"], "completion": " " + record["completion"]}
        for record in examples(
            language, OLD_SKILLS + NEW_SKILLS if language == "English" else OLD_SKILLS, count, split="test"
        )
    ]
    return act.Corpus.from_records(records, tokenizer)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_likelihoods_equal_one_plain_forward_a_record(family, tokenizer):
    model = tiny_model(family)
    corpus = act.Corpus.from_records([*CHOICE, {"text": "The answer is five."}], tokenizer)
    records = list(corpus.encoded())
    found = likelihoods(model, records, token_budget=60)
    for number, record in enumerate(records):
        ids = torch.tensor([record.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
        positions = range(max(1, record.start), record.end)
        expected = -sum(logits[i - 1, record.input_ids[i]].item() for i in positions)
        assert found.nll[number].item() == pytest.approx(expected, rel=1e-5)
        assert found.tokens[number] == len(positions)
        assert found.greedy[number] == all(logits[i - 1].argmax() == record.input_ids[i] for i in positions)


def test_a_long_text_is_cut_but_every_token_is_predicted(tokenizer):
    model = tiny_model("llama")
    corpus = act.Corpus.from_records([{"text": "What is two plus three? " * 8}], tokenizer, max_length=7)
    result = act.evaluate(model, corpus)
    assert result.metric == "nll" and result.right is None
    assert result.tokens.tolist() == [len(next(corpus.encoded()).input_ids) - 1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_generation_in_batches_equals_generation_alone(family, tokenizer):
    model = tiny_model(family)
    model.generation_config.do_sample = True  # a checkpoint's own sampling must not be used
    model.generation_config.repetition_penalty = 5.0
    prompts = [tokenizer(text)["input_ids"] for text in ("a b c d e", "What is", "The answer is five. a b", "c")]
    own = model.generation_config
    found = generate(model, prompts, limit=6, stop={1}, pad_id=0, token_budget=40)
    written = {answer.place: answer.tokens for answer in found}
    assert model.generation_config is own
    for at, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == 1:
                break
            ids.append(token)
        assert written[at] == ids[len(prompt) :]


def test_exact_match_equals_likelihood_where_a_word_is_a_token(target):
    corpus = lab_corpus(target[1])
    result = act.evaluate(target[0], corpus)
    greedy = likelihoods(target[0], list(corpus.encoded())).greedy
    assert result.metric == "exact" and 0 < int(greedy.sum()) < len(greedy)
    assert torch.equal(result.right, greedy)
    wrong = int((~greedy).nonzero()[0])
    assert result.outputs[wrong].strip() != list(corpus.spans(wrong + 1))[wrong][-1][0].strip()


def test_comparison_finds_what_was_forgotten(base, target):
    before, after = (act.evaluate(model, lab_corpus(tokenizer, "German", 24)) for model, tokenizer in (base, target))
    change = act.compare(before, after)
    assert change.match.difference == -1 and change.lost == 24 and change.match.p == 2 / 2**24
    assert change.nll.difference > 1 and change.nll.p < 0.001
    tokens = before.tokens.sum()
    assert change.nll.difference == pytest.approx(((after.nll.sum() - before.nll.sum()) / tokens).item())
    other = act.evaluate(base[0], lab_corpus(base[1], "Spanish", 24), metric="nll")
    with pytest.raises(act.ActError, match="same records"):
        act.compare(before, other)


def test_choice_is_the_likeliest_letter(tokenizer):
    model = tiny_model("llama", seed=3)
    corpus = act.Corpus.from_records(CHOICE, tokenizer)
    result = act.evaluate(model, corpus)
    assert result.metric == "choice" and result.summary()["chance"] == pytest.approx(1 / 3)
    for at, record in enumerate(CHOICE):
        scores = {}
        for letter in "ABC":
            changed = act.Corpus.from_records([{**record, "completion": f" {letter}"}], tokenizer)
            encoded = next(changed.encoded())
            first = next(
                i for i in range(encoded.start, encoded.end) if letter in tokenizer.decode(encoded.input_ids[i])
            )
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([encoded.input_ids])).logits[0, first - 1]
            scores[letter] = logits[encoded.input_ids[first]].item()
        best = max(scores, key=scores.get)
        assert result.outputs[at] == best
        assert bool(result.right[at]) == (best == record["completion"].strip())


def test_a_token_beyond_the_embedding_is_a_sentence(tokenizer):
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens([f"<new{number}>" for number in range(300)])
    grown.add_special_tokens({"pad_token": "<padding>"})  # padding is ours, and needs no row
    model = tiny_model("llama")
    good = act.Corpus.from_records(
        [{"prompt": "a", "completion": " b c"}, {"prompt": "a b c", "completion": " d"}], grown
    )
    assert act.profile(model, good).provenance.corpora[0].padding > 0
    assert act.evaluate(model, good).metric == "exact"
    bad = act.Corpus.from_records([{"prompt": "a <new299>", "completion": " b"}], grown)
    for use in (act.profile, act.evaluate, act.tune):
        with pytest.raises(act.ActError, match="model's embedding has 300 rows; use the tokenizer that belongs"):
            use(model, bad)


@pytest.mark.parametrize("thought", ["", "A or B? </think> B it is."])
def test_thoughts_that_a_template_writes_are_no_part_of_the_answer(thought, tokenizer):
    reasoning = copy.deepcopy(tokenizer)
    reasoning.chat_template = tokenizer.chat_template.replace(
        "{{ message.content }}",
        "{% if message.role == 'assistant' %}<think>{{ message.thinking or '' }}</think>\n{% endif %}{{ message.content }}",
    )
    corpora = [
        act.Corpus.from_records(
            [
                {
                    "messages": [
                        {"role": "user", "content": record["prompt"]},
                        {"role": "assistant", "content": answer, "thinking": thought},
                    ]
                }
                for record in CHOICE
            ],
            reasoning,
        )
        for answer in ("B", "#### 5")
    ]
    choices, numbers = map(exercises_of, corpora)
    assert (fitting_metric(choices), fitting_metric(numbers)) == ("choice", "number")
    for exercise, choice in zip(choices, choices_of(corpora[0], choices), strict=True):
        assert tokenizer.decode(exercise.record.input_ids[choice.place : exercise.record.end]) == "B</s>"
        assert exercise.solved_by("<think>A</think>B", "exact") and not exercise.solved_by("A", "exact")


def test_number_ignores_how_the_answer_is_worded(monkeypatch, tokenizer):
    model = tiny_model("llama")
    corpus = act.Corpus.from_records(
        [{"prompt": "two plus three", "completion": " 2+3\n#### 5"}, {"prompt": "a", "completion": " 1\n#### 7"}],
        tokenizer,
    )
    monkeypatch.setattr(
        sys.modules["act.evaluation.evaluate"],
        "generate",
        lambda model, prompts, **_: (
            Generated(at, tokenizer("it is 5.0")["input_ids"], True) for at in range(len(prompts))
        ),
    )
    result = act.evaluate(model, corpus)
    assert result.metric == "number" and result.right.tolist() == [True, False] and result.cut == 0


def test_answers_are_cut_at_the_limit_and_it_is_said(target):
    result = act.evaluate(target[0], lab_corpus(target[1], "German", 12), max_new_tokens=1)
    assert result.cut > 0 and not result.right.any()


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (CHOICE, {"metric": "blue"}, "expected one of auto, exact"),
        (CHOICE, {"max_new_tokens": 0}, "at least 1"),
        (CHOICE, {"token_budget": 0}, "token budget is 0; expected at least 1"),
        ([], {}, "no record"),
        ([{"text": "a b"}], {"metric": "exact"}, "metric='nll'"),
        (CHOICE, {"metric": "number"}, "no number in the answer"),
        ([{"prompt": "a", "completion": " b"}], {"metric": "choice"}, "expected options in the prompt"),
    ],
)
def test_what_cannot_be_evaluated_is_said(records, options, message, tokenizer):
    with pytest.raises(act.ActError, match=message):
        act.evaluate(tiny_model("llama"), act.Corpus.from_records(records, tokenizer), **options)


def test_the_token_that_begins_a_text_is_no_prompt(tokenizer):
    begins = copy.deepcopy(tokenizer)
    begins.add_special_tokens({"bos_token": "<s>"})
    begins._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begins.convert_tokens_to_ids("<s>"))]
    )
    texts = act.Corpus.from_records([{"text": "two plus three"}], begins)
    (exercise,) = exercises_of(texts)
    assert exercise.record.start == 1 and not exercise.prompted and fitting_metric([exercise]) == "nll"
    assert all(one.prompted for one in exercises_of(act.Corpus.from_records(CHOICE, begins)))


def test_a_model_is_called_by_the_name_that_was_given(tokenizer):
    model, corpus = tiny_model("llama"), act.Corpus.from_records(CHOICE, tokenizer)
    model.name_or_path = "its-base"
    before, after = (act.evaluate(model, corpus, "nll", name=name) for name in (None, "its-adapter"))
    assert (before.model, after.summary()["model"]) == ("its-base", "its-adapter")
    assert act.compare(before, after).summary()["after"] == "its-adapter"


def test_what_is_no_number_is_none_and_significant_of_nothing(tokenizer):
    whole, broken = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    corpus = act.Corpus.from_records(CHOICE, tokenizer)
    before, after = (act.evaluate(model, corpus, "nll") for model in (whole, broken))
    for found in (after.summary(), act.compare(before, after).summary()):
        json.dumps(found, allow_nan=False)
    assert after.summary()["nll_per_token"] is None and act.compare(before, after).summary()["nll_p"] is None


@pytest.mark.parametrize(
    ("name", "metric"), [("gsm8k_test_200", "number"), ("mgsm_de", "number"), ("science_en", "choice")]
)
def test_real_records_choose_their_metric(name, metric, shared_data):
    records = [json.loads(line) for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8")][:6]
    tokenizer = train_tokenizer([message["content"] for record in records for message in record["messages"]], 600)
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.config.max_position_embeddings = 4096
    result = act.evaluate(model, act.Corpus.from_records(records, tokenizer), max_new_tokens=4)
    assert result.metric == metric and result.right is not None and len(result.right) == 6


def test_what_is_printed_of_evaluations_and_comparisons(tokenizer):
    corpus = act.Corpus.from_records(CHOICE, tokenizer, name="<choices>")
    before, after = (act.evaluate(tiny_model("llama", seed), corpus, name=name) for seed, name in ((3, "a"), (4, "b")))
    assert re.fullmatch(
        r"<Evaluation of a on <choices>: 4 records, right choices \d+\.0 ± \d+\.\d % \(chance 33\.3 %, majority 50\.0 %\), NLL \d\.\d{3} ± \d\.\d{3} per token>",
        repr(before),
    )
    assert "<choices>" not in before._repr_html_() and "&lt;choices&gt;" in before._repr_html_()
    change = act.compare(before, after)
    assert re.match(
        r"<Comparison of b with a on <choices>: right answers [+-]\d+\.0 ± .* points \(\+\d -\d records", repr(change)
    )
    assert "<choices>" not in change._repr_html_() and change._repr_html_().count("<li>") == 2


def test_an_evaluation_is_read_back_from_its_plain_data(tokenizer):
    for metric in ("choice", "nll"):
        found = act.evaluate(tiny_model("llama"), act.Corpus.from_records(CHOICE, tokenizer), metric)
        read = act.Evaluation.from_json(json.loads(json.dumps(found.to_json())))
        assert read.summary() == found.summary() and torch.equal(read.nll, found.nll) and read.outputs == found.outputs
