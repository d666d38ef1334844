"""Every family that transformers has, against plain float64 hooks where batch = length = heads.

The reference sees one sequence at a time and makes it longer than any other size of the model, so that its outputs show
by themselves which of their dimensions runs over tokens. A model that looks ahead cannot be given longer sequences;
there every token counts, so that the order of rows does not matter.
"""

from __future__ import annotations

import pytest
import torch
from tiny_families import HEADS, families, tiny

import act

LONGER = 7
EVERY_COMMIT = """bert bloom deepseek_v3 deepseek_v4 falcon gemma4_text glm gpt2 gpt_neox jamba llama4_text mamba2
megatron-bert mixtral modernbert-decoder opt phi qwen3_5_text qwen3_moe qwen3_next roberta rwkv xlnet zaya"""
OTHER_LENGTHS = ("cpmant",)
"""Families whose forward has more positions than tokens, which is refused."""
POOLER = "pooler"
"""Part of the name of sites that read one token of a sequence."""


def outputs(model, ids, names):
    """What each site returned, call by call."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if name in names:

            def keep(module, args, output, name=name):
                if isinstance(module, torch.nn.Conv1d):  # which pads at the end, or is given what is padded before
                    tokens = slice(ids.shape[1]) if module.padding[0] else slice(-ids.shape[1], None)
                    output = output[..., tokens].transpose(1, 2)
                copy = output.double() if isinstance(output, torch.Tensor) else None
                found.setdefault(name, []).append(copy)

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def by_token(output, length):
    """The output for one sequence as ``[length, rows per token, C]``; None if it has no row for each token."""
    lead = output.shape[:-1]
    for dim, size in enumerate(lead):
        if size == length:
            return output.movedim(dim, 0).reshape(length, -1, output.shape[-1])
    flat = any(size % length == 0 for size in lead)
    return output.reshape(length, -1, output.shape[-1]) if flat else None


def reference(model, space, longer, count_mask, causal):
    """Float64 rows ``[R, C]`` of every site that gives tensors; None where none of these has a row for each token."""
    rows = {}
    for row in range(len(longer)) if causal else (slice(None),):
        ids = longer[row][None] if causal else longer[:, :HEADS]
        common = [site for site in space if site.columns or site.module == site.name]
        by_module = outputs(model, ids, {site.module for site in common})
        for site in common:
            for whole in (each for each in by_module.get(site.module, ()) if each is not None):
                name, found = site.name, rows.setdefault(site.name, [])
                parts = site.columns is not None
                output = whole[..., site.outputs(torch.arange(site.width))] if parts else whole
                if output.shape[-1] != site.width:
                    output = output.flatten(-2)
                if causal:
                    tokens = by_token(output, LONGER)
                    found.append(None if tokens is None else tokens[:HEADS][count_mask[row]].flatten(0, 1))
                elif POOLER not in name:
                    shared = output.dim() < 3 or output.shape[0] == 1
                    found.append((output.expand(HEADS, -1, -1) if shared else output).flatten(0, -2))
    over_tokens = {name: [each for each in found if each is not None] for name, found in rows.items()}
    return {name: torch.cat(found) if found else None for name, found in over_tokens.items()}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in EVERY_COMMIT.split() else [pytest.mark.slow, pytest.mark.thorough])
        for name in families()
    ],
)
def test_moments_where_batch_length_and_heads_are_the_same(family):
    generator = torch.Generator().manual_seed(1)
    longer = torch.randint(10, 200, (HEADS, LONGER), generator=generator)
    ids = longer[:, :HEADS].contiguous()
    try:
        model = tiny(family)
        with torch.no_grad():
            short, long = (model(input_ids=x, use_cache=False).logits[:, :HEADS] for x in (ids, longer))
    except Exception as error:
        pytest.skip(f"no tiny {family}: {type(error).__name__}: {str(error)[:100]}")
    causal = bool((short - long).abs().max() < 1e-3 * short.abs().max())
    count_mask = torch.rand(HEADS, HEADS, generator=generator) < 0.5 if causal else torch.ones_like(ids).bool()
    count_mask[0, 0] = True
    space = act.ChannelSpace.from_model(model)
    expected = reference(model, space, longer, count_mask, causal)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "count_mask": count_mask}
    for fused in (True, False):
        try:
            profile = act.profile(model, [batch], fused=fused)
        except act.ActError as error:
            assert family in OTHER_LENGTHS and "positions, so its outputs have no row for each token" in str(error)
            return
        for name, rows in expected.items():
            found = profile.site(name)
            if rows is None:
                assert (found.count == 0).all(), name
                continue
            assert int(found.count.min()) == int(found.count.max()) == len(rows), name
            largest = rows.abs().max()
            assert (found.mean - rows.mean(0)).abs().max() <= 1e-5 * largest, name
            assert (found.var - rows.var(0, correction=0)).abs().max() <= 1e-5 * largest**2, name


@pytest.mark.slow
@pytest.mark.thorough
def test_most_families_can_be_built():
    built = 0
    for family in families():
        try:
            tiny(family)
        except Exception:
            continue
        built += 1
    assert built >= 0.8 * len(families())
