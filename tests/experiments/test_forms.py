"""The forms of local match that were tried: each gives scores, and one of them is what ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from act.profiling.measure import profile_pair

TEXTS = ("forgotten", "retained")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """The pair that ships, with few records."""
    for folder in ("benchmarks", "experiments"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    from ability import QUICK
    from invented import InventedLab

    return InventedLab({**QUICK, "validation_records": 4}, tmp_path, seed=0)


def test_every_form_scores_all_channels_that_it_does_not_leave_out(lab):
    import forms

    forgotten, retained = forms.measured(lab)
    for name, form in forms.FORMS.items():
        scored = ~form.score(lab, forgotten, retained).isnan()
        left_out = [form.head == "left out" and "head", form.embedding == "left out" and "embed"]
        assert all(scored[site.channels].all() == (site.kind not in left_out) for site in lab.space), name
    pairs = [profile_pair(lab.donor_model, lab.target_model, lab.texts()[text], swap=True) for text in TEXTS]
    for score, form in (("match", forms.BEST), ("match-contrast", forms.CONTRAST)):
        torch.testing.assert_close(lab.ranked(score, *pairs), form.score(lab, forgotten, retained))
    found = forms.judged(lab, forms.METHOD.score(lab, forgotten, retained))
    assert 0 <= found["area"] <= 1 and sum(found["kinds"].values()) == round(0.1 * len(lab.space))
