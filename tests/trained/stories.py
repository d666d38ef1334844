"""The really trained stories260K model (llama2.c format) as an ordinary Hugging Face Llama with a tokenizer."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PUBLISHED_SAMPLE = (  # karpathy/llama2.c, doc/stories260K.md, temperature 0
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
    "red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" Lily was "
    "sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\n"
)


def load_model(folder: Path) -> LlamaForCausalLM:
    """Float32, eval mode; q and k rows are permuted from interleaved to half-split rotary pairs."""
    raw = (folder / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", raw[:28])
    values = np.frombuffer(raw, dtype=np.float32, offset=28)
    head_dim = dim // heads
    position = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        size = int(np.prod(shape))
        position += size
        return torch.from_numpy(values[position - size : position].reshape(shape).copy())

    def half_split(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(-1, head_dim // 2, 2, dim).transpose(1, 2).reshape(-1, dim)

    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    state = {"model.embed_tokens.weight": take(vocabulary, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_heads * head_dim, dim),
        "self_attn.v_proj": take(layers, kv_heads * head_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for name, weights in stacked.items():
        for layer, weight in enumerate(weights):
            rotated = half_split(weight) if name in ("self_attn.q_proj", "self_attn.k_proj") else weight
            state[f"model.layers.{layer}.{name}.weight"] = rotated
    state["model.norm.weight"] = take(dim)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The 512-token SentencePiece BPE, with its merges rebuilt from the scores."""
    raw = (folder / "tok512.bin").read_bytes()
    pieces, scores, at = [], [], 4
    while at < len(raw):
        score, size = struct.unpack("fi", raw[at : at + 8])
        pieces.append(raw[at + 8 : at + 8 + size].decode())
        scores.append(score)
        at += 8 + size
    # llama2.c writes the word boundary as a space and wraps BOS and EOS in newlines.
    special = ["<unk>", "<s>", "</s>"]
    pieces = special + [piece.replace(" ", "▁") for piece in pieces[3:]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces[259:], key=lambda piece: -scores[vocabulary[piece]])
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
