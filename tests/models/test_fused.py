"""Parts of fused projections against an unfused copy: the rows that the modelling code of each family takes apart."""

from __future__ import annotations

import pytest
import torch
import transformers
from support import random_batches
from tiny_families import HEADS, tiny

import act
from act.models.channels import ChannelSpace

FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "vocab_size": 300}
FALCONS = {
    "falcon, grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, one key": {"multi_query": True},
    "falcon, all keys": {"multi_query": False, "alibi": True},
}


def model_of(family: str, seed: int) -> torch.nn.Module:
    if family not in FALCONS:
        return tiny(family, seed)
    torch.manual_seed(seed)
    return transformers.FalconForCausalLM(transformers.FalconConfig(**FALCON, **FALCONS[family])).eval()


def by_head(row):
    """``[heads, 3, width]``, as GPT-NeoX, BLOOM, Persimmon and the first Falcon view it."""
    heads = row.view(HEADS, 3, -1)
    return {role: heads[:, place].flatten() for place, role in enumerate("qkv")}


def by_group(row, groups=2):
    """Query heads, a key and a value for each group of Falcon."""
    held = row.view(groups, HEADS // groups + 2, -1)
    return {"q": held[:, :-2].flatten(), "k": held[:, -2].flatten(), "v": held[:, -1].flatten()}


def one_key(row):
    held = row.view(HEADS + 2, -1)
    return {"q": held[:-2].flatten(), "k": held[-2], "v": held[-1]}


def thirds(row):
    return dict(zip("qkv", row.chunk(3), strict=True))


def fewer_keys(row):
    """Half as many keys and values as queries: Phi-3 and DBRX."""
    return dict(zip("qkv", row.split([len(row) // 2, len(row) // 4, len(row) // 4]), strict=True))


def codegen(row):
    q, v, k = row.view(4, -1).split(len(row) // 12, dim=1)
    return {"q": q.flatten(), "k": k.flatten(), "v": v.flatten()}


def halves(row):
    return dict(zip(("gate", "up"), row.chunk(2), strict=True))


def keys_and_values(row):
    """What latent attention expands, head by head: keys without position, then values, each 8 wide."""
    held = row.view(HEADS, 2, 8)
    return {"k": held[:, 0].flatten(), "v": held[:, 1].flatten()}


def gated_queries(row):
    """``[heads, 2 * 8]``: queries, then the gate of the output."""
    queries, gates = row.view(HEADS, 16).chunk(2, dim=1)
    return {"q": queries.flatten(), "attention_gate": gates.flatten()}


def gated_convolution(row):
    """The gate of what LFM2's convolution reads, that of what it gives, and what it reads."""
    return dict(zip("BCx", row.chunk(3), strict=True))


CASES = [
    ("gpt2", "c_attn", thirds),
    ("openai-gpt", "c_attn", thirds),
    ("mpt", "Wqkv", thirds),
    ("gpt_neox", "query_key_value", by_head),
    ("bloom", "query_key_value", by_head),
    ("persimmon", "query_key_value", by_head),
    ("minimax", "qkv_proj", by_head),
    ("falcon, grouped", "query_key_value", by_group),
    ("falcon, one key", "query_key_value", one_key),
    ("falcon, all keys", "query_key_value", by_head),
    ("phi3", "qkv_proj", fewer_keys),
    ("phi3", "gate_up_proj", halves),
    ("dbrx", "Wqkv", fewer_keys),
    ("glm", "gate_up_proj", halves),
    ("modernbert-decoder", "Wi", halves),
    ("codegen", "qkv_proj", codegen),
    ("deepseek_v3", "kv_b_proj", keys_and_values),
    ("qwen3_next", "q_proj", gated_queries),
    ("lfm2_moe", "in_proj", gated_convolution),
    ("qwen3_5_text", "q_proj", gated_queries),
]


@pytest.mark.parametrize("family, leaf, apart", CASES, ids=[f"{family}-{leaf}" for family, leaf, _ in CASES])
def test_parts_are_measured_and_moved_as_if_they_were_linears_of_their_own(family, leaf, apart):
    donor, target = model_of(family, 1), model_of(family, 0)
    batches = random_batches(1, vocabulary=290)
    paths = [name for name, _ in target.named_modules() if name.endswith(f".{leaf}")]
    outputs = {}
    handles = [
        target.get_submodule(path).register_forward_hook(
            lambda _, args, output, path=path: outputs.update({path: output})
        )
        for path in paths
    ]
    with torch.no_grad():
        target(input_ids=batches[0]["input_ids"], attention_mask=batches[0]["attention_mask"])
    for handle in handles:
        handle.remove()
    counted = batches[0]["count_mask"] & batches[0]["attention_mask"].bool()
    profile = act.profile(target, batches)
    for path in paths:
        rows = outputs[path].reshape(*counted.shape, -1)[counted].double()
        for role, columns in apart(torch.arange(rows.shape[1])).items():
            found = profile.site(f"{path}[{role}]")
            assert (found.mean - rows[:, columns].mean(0)).abs().max() <= 1e-5 * rows.abs().max()
            assert profile.space.site(f"{path}[{role}]").kind == role

    space = ChannelSpace.from_model(target)
    roles = [site for site in space if site.module in paths and site.kind in ("v", "up", "attention_gate", "x")]
    chosen = torch.cat([torch.arange(site.offset, site.offset + site.width, 3) for site in roles])
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    theirs = donor.state_dict()
    patch = act.transfer(donor, target, act.ChannelSet(space, chosen, torch.ones(len(chosen))), 1.0)
    for name, tensor in target.state_dict().items():
        expected = before[name].clone()
        path, _, own = name.rpartition(".")
        if path in paths:
            dim = 1 if own == "weight" and leaf == "c_attn" else 0
            parts = apart(torch.arange(expected.shape[dim]))
            moved = parts[roles[0].kind][::3]
            expected.index_copy_(dim, moved, theirs[name].index_select(dim, moved))
        assert torch.equal(tensor, expected), name
    patch.revert(target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
