"""Parts of sources, and columns put together from those that are there."""

from __future__ import annotations

import json

import pytest

import act
from act.data.mapped import Mapped, require_templates
from act.data.parts import Part
from act.data.records import Files, Memory


def numbers(source, **given) -> list[tuple[int, str]]:
    return [(entry.number, entry.record["text"]) for entry in source.read(**given)]


@pytest.fixture(params=["memory", "lines"])
def letters(request, tmp_path):
    records = [{"text": letter} for letter in "abcdefghij"]
    if request.param == "memory":
        return Memory(records)
    path = tmp_path / "letters.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return Files([path], "letters")


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("stop", [None, 8, 20])
@pytest.mark.parametrize(("residues", "of"), [([0], 1), ([1], 2), ([0, 2], 3)])
def test_a_part_is_what_it_names_and_reads_like_any_source(letters, first, stop, residues, of):
    expected = [letter for place, letter in enumerate("abcdefghij"[first:stop]) if place % of in residues]
    part = Part(letters, first, stop, residues=residues, of=of)
    assert numbers(part) == list(enumerate(expected)) and part.size == part.count() == len(expected)
    for start in range(len(expected) + 1):
        for shard in ((0, 1), (1, 2)):
            wanted = [(n, one) for n, one in enumerate(expected) if n >= start and n % shard[1] == shard[0] and n != 2]
            assert numbers(part, start=start, shard=shard, wanted=lambda n: n != 2) == wanted


def test_nothing_is_read_behind_the_last_row():
    class Endless:
        name, place, fingerprint, size = "endless", None, "x", None

        def count(self):
            return None

        def read(self, start=0, shard=(0, 1), wanted=None):
            from act.data.records import Entry

            number = start
            while number < 100:
                if wanted(number):
                    yield Entry(number, "", {"text": str(number)})
                number += 1
            raise AssertionError("read too far")

    assert len(numbers(Part(Endless(), 5, 9))) == 4 and Part(Endless(), 5, 9).size == 4


def test_parts_and_columns_have_fingerprints_of_their_own(letters):
    whole = letters.fingerprint
    found = {
        Part(letters, 0, 5).fingerprint,
        Part(letters, 0, 6).fingerprint,
        Part(letters, residues=[1], of=2).fingerprint,
    }
    found |= {Mapped(letters, {"prompt": "{text}"}).fingerprint, Mapped(letters, {"prompt": "{text}!"}).fingerprint}
    assert len(found | {whole}) == 6
    with pytest.raises(act.ActError, match=r"rows of .* are \[3, 3\]"):
        Part(letters, 3, 3)


ROW = {"q": {"stem": "Which?", "choices": {"text": ["x", "y"]}}, "n": 2, "messages": [{"role": "user"}], "none": None}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{q[stem]}", "Which?"),
        ("{q[choices][text]:options}", "A. x\nB. y"),
        ("{q[choices][text][1]}", "y"),
        (" {n:letter}", " B"),
        ("{n:letter0}", "C"),
        ("{n}", "2"),
        ("{messages}", [{"role": "user"}]),
        ("{{{n}}}", "{2}"),
    ],
)
def test_templates(template, value):
    (entry,) = Mapped(Memory([ROW]), {"prompt": template}).read()
    assert entry.record == {"prompt": value}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{passage}", "no column 'passage', of which prompt is to be made; there is q, n, messages, none"),
        ("{q[text]}", "no 'text' in the column q, of which prompt is to be made; there is stem, choices"),
        ("{n:options}", "the column n is 2; expected a list"),
        ("{q[stem]:letter}", "expected the number of an option"),
        ("{none:letter0}", "expected the number of an option, from 0"),
        (" {messages}", "expected a text or number"),
    ],
)
def test_a_record_that_does_not_fit_says_what_is_there(template, message):
    (entry,) = Mapped(Memory([ROW]), {"prompt": template}).read()
    assert isinstance(entry.record, act.ActError) and message in str(entry.record)


@pytest.mark.parametrize("template", ["", "no column", "{", "{q!r}", "{q:x}", "{}", "{q.__class__}"])
def test_what_is_no_template_is_refused(template):
    with pytest.raises(act.ActError, match="the template of prompt is"):
        require_templates({"prompt": template})
    with pytest.raises(act.ActError, match="no column 'promt' is read; expected one of prompt"):
        require_templates({"promt": "{q}"})
