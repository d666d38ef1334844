"""Padding: tokens, mask and labels of rows of different lengths."""

from __future__ import annotations

from act.data.pieces import IGNORED, Piece, collate, padded


def test_rows_are_padded_on_either_side():
    ids, mask = padded([[1, 2, 3], [4]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = padded([[1, 2, 3], [4]], pad_id=9, side="left")
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_labels_are_the_predicted_tokens_alone():
    batch = collate([Piece(0, [1, 2, 3], 1), Piece(1, [4, 5], 1)])
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
