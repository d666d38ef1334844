from __future__ import annotations

import pytest
import torch
import transformers
from support import CONFIGS

from act.models.calls import without_cache

CACHED = {"use_cache": False}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("LlamaForCausalLM", CONFIGS["llama"](), CACHED),
        ("BertForMaskedLM", transformers.BertConfig(**SMALL), CACHED),
        ("ModernBertModel", transformers.ModernBertConfig(**SMALL, vocab_size=51000), {}),
        ("DistilBertModel", transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=48), {}),
    ],
)
def test_a_model_is_told_not_to_keep_its_cache_if_it_can_be(kind, config, expected):
    model = getattr(transformers, kind)(config).eval()
    assert without_cache(model) == expected
    model(torch.ones(1, 3, dtype=torch.long), **expected)


def test_a_model_inside_another_is_asked():
    peft = pytest.importorskip("peft")
    for kind, target, expected in (("llama", "q_proj", CACHED), ("bert", "query", CACHED), ("distil", "q_lin", {})):
        model = {
            "llama": lambda: transformers.LlamaForCausalLM(CONFIGS["llama"]()),
            "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
            "distil": lambda: transformers.DistilBertModel(
                transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=4)
            ),
        }[kind]()
        assert without_cache(peft.get_peft_model(model, peft.LoraConfig(target_modules=[target]))) == expected
