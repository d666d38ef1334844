"""What would a run cost on GPUs that are not here? The tables of docs/scale.md, by the formulas of act-profile plan.

    python benchmarks/cluster.py --json OUT

Nothing is measured: the figures follow from configurations of three models and from the assumed rates of
:class:`act.profiling.cluster.Cluster`. Rows have 1,024 tokens, every token counts, and the LM head is measured.
"""

from __future__ import annotations

from typing import Any

from measure import options, record
from transformers import LlamaConfig, MixtralConfig, PretrainedConfig, Qwen2Config

from act.core.units import duration
from act.models.channels import ChannelSpace
from act.models.loading import empty_model
from act.profiling.cluster import Cluster, assumptions
from act.profiling.plan import Shape

LLAMA_2_7B = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
LLAMA_3_70B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=8192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
)
MIXTRAL = MixtralConfig(num_local_experts=8, num_experts_per_tok=2)
QWEN_7B = Qwen2Config(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
)
MODELS: dict[str, tuple[PretrainedConfig, int]] = {
    "7B (Llama-2 shape)": (LLAMA_2_7B, 1),
    "70B (Llama-3 shape)": (LLAMA_3_70B, 2),
    "MoE, 8 experts, 2 active (Mixtral shape)": (MIXTRAL, 2),
}
"""Each with the GPUs over which one copy of its weights is spread."""
TOKENS, GPUS = {"10⁹": 1e9, "10¹²": 1e12}, (1, 8, 512)


def shape_of(config: PretrainedConfig) -> Shape:
    """The figures of a model in bfloat16."""
    config.dtype = "bfloat16"
    empty = empty_model(config)
    return Shape.of(empty, ChannelSpace.from_model(empty))


def costs(name: str, shape: Shape, spread: int) -> list[dict[str, Any]]:
    """Wall time, in words, of each number of tokens and GPUs; and the parts on most GPUs."""
    rows = []
    for words, tokens in TOKENS.items():
        times = {
            gpus: Cluster().seconds(shape, tokens, gpus=gpus, gpus_a_model=spread) for gpus in GPUS if gpus >= spread
        }
        parts = ", ".join(duration(times[GPUS[-1]][part]) for part in ("load", "tokenise", "read", "reduce"))
        walls = {f"gpus_{gpus}": duration(times[gpus]["wall"]) if gpus in times else "" for gpus in GPUS}
        rows.append({"model": name.partition(" ")[0].rstrip(","), "tokens": words, **walls, "parts": parts})
    return rows


def main() -> None:
    """Compute and write."""
    given = options(__doc__).parse_args()
    models, runs = [], []
    for name, (config, spread) in MODELS.items():
        shape = shape_of(config)
        figures = {"parameters": shape.parameters, "a_token_meets": shape.active + shape.head}
        arenas = {"moments_mib": round(shape.arena() / 2**20), "pair_mib": round(shape.arena(pair=True) / 2**20)}
        models.append({"model": name, "channels": shape.channels, **figures, **arenas})
        runs += costs(name, shape, spread)
    memory = {
        name: round(sum(shape_of(config).attributing(4096).values()) / 2**30, 1)
        for name, config in {"Llama-2-7B": LLAMA_2_7B, "Qwen2.5-7B": QWEN_7B}.items()
    }
    rates = assumptions(Cluster())
    record(given.json, {"rates": rates, "models": models, "runs": runs, "attribute_gib": memory})


if __name__ == "__main__":
    main()
