from __future__ import annotations

import pytest
import torch
import transformers
from multimodal import multimodal, require_stock_forward
from support import CONFIGS

from act.models.calls import without_cache
from act.models.views import language_view

CACHED = {"use_cache": False}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("LlamaForCausalLM", CONFIGS["llama"](), CACHED),
        ("BertModel", transformers.BertConfig(**SMALL), CACHED),
        ("ModernBertModel", transformers.ModernBertConfig(**SMALL, vocab_size=51000), {}),
        ("DistilBertModel", transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=48), {}),
    ],
)
def test_a_model_is_told_not_to_keep_its_cache_if_it_can_be(kind, config, expected):
    model = getattr(transformers, kind)(config).eval()
    assert without_cache(model) == expected
    model(torch.ones(1, 3, dtype=torch.long), **expected)


@pytest.mark.parametrize("family", ["llava", "gemma3", "llama4"])
def test_the_language_model_of_a_model_of_images_is_asked(family):
    require_stock_forward(family)
    for model in (multimodal(family), language_view(multimodal(family))):
        assert without_cache(model) == CACHED
        assert model(torch.ones(1, 3, dtype=torch.long), **CACHED).past_key_values is None


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
