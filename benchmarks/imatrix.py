"""How fast is a run beside llama.cpp's ``llama-imatrix``, which sums the squares of what each matrix is given?

    python benchmarks/imatrix.py --binary PATH/TO/llama-imatrix --json OUT

Needs ``pip install gguf``, and the binary, for example from the source of llama-cpp-python: ``pip download --no-deps
--no-binary :all: llama-cpp-python``, unpack it, and in its ``vendor/llama.cpp`` ``cmake -B build -G Ninja
-DLLAMA_CURL=OFF && cmake --build build --target llama-imatrix``.

Both read the same text with the same weights (the small model of ``overhead.py``) in pieces of the same length, on the
same threads: ``llama-imatrix`` from a GGUF file, ``act`` as ``act.profile`` of every token with all statistics of all
sites. Both compute the LM head for every token. Seconds are those of more pieces less those of fewer, so that loading
and starting do not count.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import DTYPES, in_turns, median, options, record, seconds_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from workloads import GSM8K, build, read_lines, train_tokenizer

import act

KINDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What llama.cpp calls the types."""
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    """The Qwen2 model and its byte-level BPE as llama.cpp reads them; matrices in ``kind``, vectors in float32."""
    try:
        gguf: Any = importlib.import_module("gguf")
    except ImportError:
        sys.exit("gguf is not installed, and writes the file for llama.cpp; run: pip install gguf")
    config, dtype = model.config, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}")])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(rules["vocab"], key=rules["vocab"].__getitem__)
    tokens += [f"<unused {number}>" for number in range(len(tokens), config.vocab_size)]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if one in special else gguf.TokenType.NORMAL for one in tokens])
    writer.add_token_merges([" ".join(pair) for pair in rules["merges"]])
    writer.add_eos_token_id(rules["vocab"]["</s>"])
    writer.add_add_bos_token(False)
    for name, parameter in model.named_parameters():
        module, _, which = name.rpartition(".")
        if module in OUTSIDE:
            module = OUTSIDE[module]
        else:
            layer, _, inner = module.removeprefix("model.layers.").partition(".")
            module = f"blk.{layer}.{NAMES[inner]}"
        values = parameter.detach().float().numpy()
        as_kind = dtype if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{module}.{which}", gguf.quantize(values, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(binary: Path, name: str, threads: int, length: int, pieces: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Tokens per second of both, medians over rounds in which they take turns."""
    torch.set_num_threads(threads)
    model = build("small", DTYPES[name])
    fewer, more = pieces
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = train_tokenizer(GSM8K, model.config.vocab_size)
        text = "\n".join(turn["content"] for row in read_lines(GSM8K) for turn in row["messages"])
        (folder / "corpus.txt").write_text(text, encoding="utf-8")
        write_gguf(folder / "model.gguf", model, tokenizer, KINDS[name])
        ids = torch.tensor(tokenizer(text)["input_ids"][: more * length]).view(more, length)
        rows = max(1, 2048 // length)

        def of_llama(count: int) -> float:
            command = [
                str(binary), "-m", "model.gguf", "-f", "corpus.txt", "-o", "imatrix.gguf", "--no-ppl",
                "--chunks", str(count), "-c", str(length), "-b", "2048", "-ub", "2048", "-t", str(threads),
            ]  # fmt: skip
            return seconds_of(lambda: subprocess.run(command, cwd=folder, capture_output=True, check=True))

        def of_act(count: int) -> float:
            batches = [{"input_ids": part} for part in ids[:count].split(rows)]
            return seconds_of(lambda: act.profile(model, batches))

        times = in_turns(
            {
                "act": lambda: of_act(more) - of_act(fewer),
                "llama-imatrix": lambda: of_llama(more) - of_llama(fewer),
            },
            rounds,
        )
    tokens = (more - fewer) * length
    speeds = {way: round(tokens / median(seconds), 1) for way, seconds in times.items()}
    return {
        "dtype": name,
        "threads": threads,
        "length": length,
        "tokens": tokens,
        "tokens_per_second": speeds,
        "ratio_over_imatrix": round(speeds["act"] / speeds["llama-imatrix"], 3),
    }


def main() -> None:
    """Print and write what was measured."""
    parser = options(__doc__)
    parser.add_argument("--binary", type=Path, required=True, help="llama-imatrix")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--length", type=int, default=512, help="tokens of a piece")
    parser.add_argument("--pieces", type=int, nargs=2, default=[4, 20], metavar=("FEWER", "MORE"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    binary = given.binary.resolve(strict=True)
    results = []
    for name in given.dtype:
        for threads in given.threads:
            results.append(measure(binary, name, threads, given.length, tuple(given.pieces), given.rounds))
            print(json.dumps(results[-1]), flush=True)
    record(given.json, {"results": results})


if __name__ == "__main__":
    main()
