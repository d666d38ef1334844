"""A tiny model of every family of causal language models that the installed transformers has."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

HEADS = 4
MASKED = " (masked)"
WITH_SOURCE = " (with a source)"
HEADLESS = """glm4v_moe_text glm5_next_text mistral4 mistral_large4_text muse_spark_text openai_privacy_filter
qwen3_omni_moe_thinker qwen3_vl_moe_text step3p7"""
"""Model types with experts that have no causal language model."""
WITH_EXPERTS = """afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32
deepseek_v4 dots1 ernie4_5_moe exaone_moe flex_olmo flint gemma4_text_moe glm4_moe glm4_moe_lite
glm4v_moe_text glm5_next_text glm_moe_dsa gpt_oss granitemoe granitemoe_swa granitemoehybrid
granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling2_text inkling_text jamba jetmoe kimi_linear
kolibri1 laguna lfm2_moe llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2
minimax_m3_vl_text mistral4 mistral_large4_text mixtral muse_spark_text nemotron_h olmoe
openai_privacy_filter phimoe qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next
qwen3_omni_moe_thinker qwen3_vl_moe_text qwen4_exp_text solar_open step3p7 zaya"""
"""The families, causal or not, whose tiny model has routed experts."""
SOME_WITH_EXPERTS = "dbrx deepseek_v3 gpt_oss jetmoe llama4_text longcat_flash mixtral nemotron_h qwen3_moe"
"""One of each way of holding and routing them."""
_MODEL_TYPES = {"gemma4_text_moe": "gemma4_text"}
MOST_PARAMETERS = 30_000_000
_WIDTHS = {
    32: """hidden_size d_model n_embd dim embedding_size input_embedding_size output_embedding_size word_embed_proj_dim
        attention_hidden_size lru_width hidden_size_per_layer_input mamba_d_ssm""",
    48: """intermediate_size ffn_dim n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim d_inner
        intermediate_size_mlp shared_expert_intermediate_size shared_intermediate_size feed_forward_size""",
    16: """moe_intermediate_size q_lora_rank kv_lora_rank o_lora_rank moe_shared_expert_intermediate_size
        expert_ffn_hidden_size index_head_dim embed_dim""",
    8: """head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim qk_head_dim d_kv attention_head_dim state_size
        mamba_d_state mamba_d_head mamba_head_dim ssm_state_size linear_key_head_dim linear_value_head_dim
        linear_head_dim swa_head_dim global_head_dim index_topk sliding_window attention_window""",
    HEADS: """num_attention_heads n_head num_heads decoder_attention_heads encoder_attention_heads num_experts
        num_local_experts n_routed_experts moe_num_experts index_n_heads time_step_rank mamba_n_heads
        linear_num_value_heads linear_num_heads mamba_num_heads num_memory_blocks""",
    2: """num_hidden_layers n_layer num_layers decoder_layers encoder_layers num_key_value_heads num_kv_heads n_head_kv
        num_experts_per_tok num_experts_per_token moe_k moe_topk top_k linear_num_key_heads num_hidden_groups o_groups
        num_decoder_layers""",
    1: """n_group topk_group n_groups mamba_n_groups num_nextn_predict_layers n_shared_experts first_k_dense_replace
        num_dense_layers moe_layer_start_index""",
    300: "vocab_size padded_vocab_size vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions max_seq_len n_ctx max_sequence_length context_length",
}
_SMALL = {name: size for size, names in _WIDTHS.items() for name in names.split()}
_MAMBA = {"mamba_n_heads": HEADS, "mamba_d_head": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GIVEN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 1},
    "bamba": _MAMBA,
    "codegen": {"rotary_dim": 4},
    "dbrx": {
        "n_heads": HEADS,
        "n_layers": 2,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": HEADS, "moe_top_k": 2},
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text_moe": {
        "enable_moe_block": True,
        "top_k_experts": 2,
        "num_experts": HEADS,
        "moe_intermediate_size": 16,
    },
    "glm4v_moe_text": {
        "head_dim": 8,
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]},
    },
    "glm5_next_text": {"index_kpool": 4, "index_topk": 16, "qk_rope_head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": _MAMBA,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": HEADS, "head_dim": 16, "n_groups": 1},
    "mistral4": {
        "head_dim": 8,
        "rope_parameters": {**_ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64},
    },
    "muse_spark_text": {"moe_hidden_size": 32},
    "pegasus_x": {"block_size": 8},
    "qwen4_exp_text": {
        "hc_lowrank": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_head_dim": 8,
        "indexer_kv_heads": 1,
        "indexer_n_heads": HEADS,
        "ngram_vocab_size_base": 300,
        "ple_embed_dim": 32,
        "split_ngram_parts": 2,
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 1},
    "zaya": {"num_experts_per_tok": 1},
}


def families() -> list[str]:
    """The model types with a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def encoders() -> list[str]:
    """The model types that fill masks; :func:`tiny` makes one of ``f"{name} (masked)"``."""
    return [f"{name}{MASKED}" for name in sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)]


def encoder_decoders() -> list[str]:
    """The model types that read a source; :func:`tiny` makes one of ``f"{name} (with a source)"``."""
    return [f"{name}{WITH_SOURCE}" for name in sorted(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)]


def expert_families() -> list[str]:
    """The families of :data:`WITH_EXPERTS`, as far as the installed transformers has them."""
    return [name for name in WITH_EXPERTS.split() if _MODEL_TYPES.get(name, name) in CONFIG_MAPPING]


def shapes(family: str) -> torch.nn.Module:
    """The model of :func:`tiny` on the meta device."""
    with torch.device("meta"):
        return _make(family)


def _make(family: str) -> torch.nn.Module:
    name = family.removesuffix(MASKED).removesuffix(WITH_SOURCE)
    config = small(CONFIG_MAPPING[_MODEL_TYPES.get(name, name)], _GIVEN.get(name, {}))
    auto = transformers.AutoModel if family in HEADLESS.split() else transformers.AutoModelForCausalLM
    if family.endswith((MASKED, WITH_SOURCE)):
        auto = transformers.AutoModelForMaskedLM if family.endswith(MASKED) else transformers.AutoModelForSeq2SeqLM
    return auto.from_config(config)


def pair_of(family: str, seed: int = 1, share: float = 0.1) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A donor and a target of a family; the parameters of the donor differ by normal noise, times ``share``."""
    target = tiny(family)
    donor = copy.deepcopy(target)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(share * torch.randn(parameter.shape, generator=generator))
    return donor, target


def tiny(family: str, seed: int = 0) -> torch.nn.Module:
    """A float32 model of a family with random weights and :data:`HEADS` heads; raises if it cannot be made."""
    size = sum(parameter.numel() for parameter in shapes(family).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(seed)
    model = _make(family).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # the experts of each token id; all are the first one before they are loaded
                table.copy_(torch.rand(len(table), HEADS).argsort(1)[:, : table.shape[1]])
    return model


def small(config_class: type, given: dict[str, Any]) -> Any:
    """A configuration of this class with small sizes, but for what is ``given``."""
    plain = config_class()
    values: dict[str, Any] = {}
    for name, value in plain.to_dict().items():
        if name in _SMALL and (isinstance(value, int) or value is None) and not isinstance(value, bool):
            values[name] = _SMALL[name]
        elif name.endswith("token_id") and isinstance(value, int):
            values[name] = min(value, 299)
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type") and isinstance(value, list):
            values[name] = (list(dict.fromkeys(value)) * 2)[:2]
    if values.keys() >= {"kv_lora_rank", "num_key_value_heads"}:
        values["num_key_value_heads"] = HEADS  # latent attention has no groups of queries
    for name in getattr(config_class, "sub_configs", {}):
        if (inner := getattr(plain, name, None)) is not None:
            values[name] = small(type(inner), {}).to_dict()
    return config_class(**{**values, **given})
