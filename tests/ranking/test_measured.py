"""What is measured for a score is what it needs."""

from __future__ import annotations

import pytest

import act
from act.lab.language import OLD_SKILLS, examples
from act.lab.models import tiny_llama
from act.lab.tokenizer import build_tokenizer, corpus_of
from act.ranking.measured import measured_for


@pytest.mark.parametrize("score", ["paired", "match", "attribution", "weight-diff"])
def test_what_is_measured_for_a_score_is_ranked_by_it(score):
    tokenizer = build_tokenizer()
    donor, target = (tiny_llama(tokenizer, seed).eval() for seed in range(2))
    corpus = corpus_of(examples("German", OLD_SKILLS, 8), tokenizer, "German")
    found = measured_for(score, donor, target, corpus, token_budget=64)
    assert act.rank(found, score, count=10, donor=donor, target=target).rule.score == score
    with pytest.raises(act.ActError, match="score"):
        measured_for("matched", donor, target, corpus)
