"""The guide to merging: its code runs on models as they are, and gives what its text says."""

from __future__ import annotations

import itertools
from pathlib import Path

from support import tiny_model
from test_documentation import blocks, commands

import act

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "merge.md"


def test_its_python_moves_rows_of_both_donors(tokenizer):
    base, maths, german = (tiny_model("llama", seed) for seed in range(3))
    texts = [
        act.Corpus.from_records([{"prompt": f"{asked} {n}", "completion": f" {n}"} for n in range(4)], tokenizer)
        for asked in ("What is", "The answer is")
    ]
    names = {"act": act, "base": base, "maths": maths, "german": german}
    names |= dict(zip(("maths_text", "german_text"), texts, strict=True))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    (code,) = blocks(GUIDE, "python")
    exec(code, names)
    patch = names["patch"]
    assert [donor.name for donor in patch.provenance.donors] == ["maths", "german"]
    assert any(not value.equal(before[name]) for name, value in base.state_dict().items())
    patch.revert(base)
    assert all(value.equal(before[name]) for name, value in base.state_dict().items())


def test_it_looks_at_each_donor_before_it_merges_and_beside_what_it_made():
    given = commands(GUIDE)
    names = [name for name, *_ in given]
    models = [[word for option, word in itertools.pairwise(one) if option == "--model"] for one in given]
    before = names.index("evaluate")
    assert names.index("tune") < before < names.index("attribute") and models[before] == ["maths/", "german/"]
    after = len(names) - 1 - names[::-1].index("evaluate")
    assert after > names.index("transfer") and models[after] == ["maths/", "german/", "merged/"]
