"""Groups of sequences that begin alike: together they hold every token once, and what they share is shared."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import train_tokenizer

from act.data import prefixes
from act.data.batching import Sequence
from act.data.corpus import Corpus
from act.data.prefixes import LEAST, grouped
from act.data.stream import Stream

BEGINNINGS = [list(range(1, 1 + 3 * LEAST)), list(range(1, 1 + LEAST)), [7] * (2 * LEAST), []]


def sequence(ids, counted=(), document=0, **options) -> Sequence:
    mask = np.isin(np.arange(len(ids)), counted)
    return Sequence(np.array(ids, dtype=np.int32), mask, document, **options)


def whole(group, one) -> tuple[list[int], list[bool]]:
    """A sequence of a group as it was."""
    ids = np.concatenate([*(segment.input_ids for segment in group.shared), one.input_ids])
    counted = np.concatenate([*(segment.count_mask for segment in group.shared), one.count_mask])
    return ids.tolist(), counted.tolist()


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(
        st.tuples(st.sampled_from(BEGINNINGS), st.sampled_from(BEGINNINGS), st.lists(st.integers(0, 2), min_size=1)),
        min_size=1,
        max_size=40,
    ),
    counted=st.lists(st.integers(0, 30), max_size=3),
    budget=st.integers(1, 200),
)
def test_groups_hold_every_token_once(texts, counted, budget):
    given = [
        sequence(first + second + rest, counted, number, ability="ab"[number % 2])
        for number, (first, second, rest) in enumerate(texts)
    ]
    groups = list(grouped(given, budget))
    found = {one.document: (one.ability, *whole(group, one)) for group in groups for one in group.sequences}
    assert len(found) == sum(len(group.sequences) for group in groups) == len(given)
    assert all(
        found[each.document] == (each.ability, each.input_ids.tolist(), each.count_mask.tolist()) for each in given
    )
    assert all(len(one) >= 1 for group in groups for one in group.sequences)
    assert all(len({one.ability for one in group.sequences}) == 1 for group in groups)
    computed = sum(group.opened + sum(map(len, group.sequences)) for group in groups)
    assert computed + sum(group.spared for group in groups) == sum(map(len, given))
    segments = {id(segment): len(segment) for group in groups for segment in group.shared}
    assert sum(segments.values()) == sum(group.opened for group in groups)


def test_what_all_begin_with_and_what_some_go_on_with_are_two_pieces():
    system, one, other = list(range(50)), [60] * 40, [70] * 40
    texts = [[*system, *rest] for rest in ([*one, 1], [*one, 2], [*other, 1], [*other, 2], [9])]
    groups = list(grouped([sequence(ids, document=n) for n, ids in enumerate(texts)], 100))
    assert [[each.document for each in group.sequences] for group in groups] == [[4], [0, 1], [2, 3]]
    assert [[len(segment) for segment in group.shared] for group in groups] == [[50], [50, 40], [50, 40]]
    assert [group.opened for group in groups] == [50, 40, 40]
    assert groups[1].shared[0] is groups[2].shared[0]


def test_tokens_that_count_otherwise_are_not_alike():
    alike = [sequence([*range(40), end], counted=range(10), document=end) for end in (50, 51)]
    assert len(list(grouped(alike, 40))) == 1
    assert len(list(grouped([alike[0], sequence([*range(40), 51], counted=range(9))], 40))) == 2 - 1
    (group,) = grouped([alike[0], sequence([*range(40), 51], counted=[39], document=1)], 40)
    assert not group.shared  # the ninth token of one counts, that of the other does not


def test_equal_texts_and_texts_that_end_where_others_go_on_keep_a_token_of_their_own():
    text = list(range(40))
    groups = list(grouped([sequence(text), sequence(text, document=1), sequence([*text, 1], document=2)], 40))
    assert [(sum(map(len, group.shared)), [len(one) for one in group.sequences]) for group in groups] == [
        (39, [1, 1, 2])
    ]


def test_a_prefix_must_be_worth_its_forward():
    few = [sequence([*range(40), end], document=end) for end in (50, 51)]
    assert not any(group.shared for group in grouped(few, 2048))  # 40 tokens
    short = [sequence([*range(LEAST - 1), 100 + number], document=number) for number in range(2000)]
    assert not any(group.shared for group in grouped(short, 2048))
    many = [sequence([*range(40), 100 + number], document=number) for number in range(50)]
    assert [group.spared for group in grouped(many, 2048)] == [49 * 40]


def test_texts_for_an_encoder_and_a_decoder_share_nothing():
    two = [sequence([*range(60), end], document=end, source=55) for end in (70, 71)]
    assert [group.shared for group in grouped(two, 10)] == [()]


def test_a_chain_of_ever_longer_texts_is_no_deeper_than_memory(monkeypatch):
    monkeypatch.setattr(prefixes, "LEAST", 1)
    texts = [sequence([5] * length, document=length) for length in range(1, 600)]
    groups = list(grouped(texts, 1))
    assert sorted(one.document for group in groups for one in group.sequences) == list(range(1, 600))


def test_batches_behind_a_prefix_are_filled_by_what_is_computed_and_by_what_is_attended():
    tokenizer = train_tokenizer(["a b c d e"])
    begin = "a b c d e " * 50
    corpus = Corpus.from_records([{"text": f"{begin}{'abcde'[n % 5]}{n}"} for n in range(400)], tokenizer, count="all")
    shared, alone = (list(Stream({"": corpus}, token_budget=1000, share=share)) for share in (True, False))
    assert sum(batch.tokens for batch in shared) == sum(batch.tokens for batch in alone)
    assert sum(batch.counted for batch in shared) == sum(batch.counted for batch in alone)
    assert all(batch.size <= 1000 for batch in shared)
    before = sum(map(len, shared[0].shared))
    assert before > 100 and [batch.opened for batch in shared] == [before] + [0] * (len(shared) - 1)
    assert all(len(b.count_mask) * (before + b.count_mask.shape[1]) <= 16 * 1000 for b in shared)
    assert sum(batch.spared for batch in shared) == 399 * before
    assert sorted(n for b in shared for n in b.documents.tolist()) == list(range(400))
