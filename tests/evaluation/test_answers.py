"""Numbers, options and letters as they occur in real answers."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from act.evaluation.answers import is_number, letter, number, options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She earned 0.2 x 50 = $10.\n#### 10", "10"),
        ("#### 1,234,567\nand 3 more", "1234567"),
        ("#### $-7.50", "-7.5"),
        ("#### -3", "-3"),
        ("That makes 5 - 3 = 2.", "2"),
        ("from 3-5", "5"),
        ("es sind 3,5 Liter", "3.5"),
        ("il y en a 12\u202f500", "12500"),
        ("উত্তর হল ১৮।", "18"),
        ("答案是18。", "18"),
        ("no digits at all", None),
        ("18.00", "18"),
        ("version 1,2,3", "123"),
    ],
)
def test_number(text, expected):
    assert number(text) == (None if expected is None else Decimal(expected))


def test_is_number():
    assert is_number(" 1,200 ") and is_number("so 3\n#### 4") and not is_number("4 apples")


def test_options_are_those_of_the_last_list():
    assert options("Q\nA. one\nB. two\n\nQ2\nA. x\nB. y\nC. z") == "ABC"
    assert options("(A) one\n(B) two") == "AB"
    assert options("A. only one") == "" and options("C. x\nD. y") == "" and options("A.B. test") == ""


def test_letter():
    assert [letter(text) for text in ("B. text", " C", "(D) x", "Apples", "b", "É")] == [
        "B",
        "C",
        "D",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("name", ["gsm8k_test_200", "mgsm_bn", "mgsm_th", "mgsm_de", "mgsm_cot_exemplars"])
def test_numbers_of_real_answers(name, shared_data):
    records = [json.loads(line) for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8")]
    wrong = [
        r for r in records if number(r["messages"][-1]["content"]) != Decimal(r["meta"]["answer"].replace(",", ""))
    ]
    assert not wrong


@pytest.mark.parametrize("name", ["science_de", "science_ar", "science_zh", "science_fr"])
def test_letters_of_real_choices(name, shared_data):
    for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8"):
        record = json.loads(line)
        assert letter(record["messages"][-1]["content"]) == record["meta"]["answer"]
        assert len(options(record["messages"][0]["content"])) == record["meta"]["n_choices"]
