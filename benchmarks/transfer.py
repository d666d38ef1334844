"""Does a transfer on disk run at the speed of copying the files, in the memory of a few tensors?

    python benchmarks/transfer.py --json OUT [--gigabytes 8]

Donor and target are synthetic sharded checkpoints (random bfloat16) with one tokenizer. ``act-profile transfer`` of 5 %
of the channels runs in a process of its own and takes turns with ``cp`` of the target; both end with ``sync``, and both
find the files as the previous round left them. The whole process counts: starting Python, headers, fingerprints, the
model card. ``cold`` finds no fingerprints from earlier runs, so every value of both models is read, and keeps them;
the others find those that one earlier transfer has kept, a minute after the models were written.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from measure import in_turns, medians, options, record, run_process, spread
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig

from act.editing.remembered import SETTLED, VARIABLE
from act.editing.stored import StoredModel
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.models.loading import empty_model
from act.profiles.provenance import ModelRead
from act.ranking.channel_set import ChannelSet
from act.ranking.rule import Rule

SHARD = 2 * 2**30
SHARE, STRENGTH = 0.05, 0.4


def config_of(gigabytes: float) -> LlamaConfig:
    """A Llama of width 4096 with as many layers as fit the size."""
    layer = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    ends = 2 * 2 * 32000 * 4096
    layers = max(1, round((gigabytes * 1e9 - ends) / layer))
    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, dtype="bfloat16",
    )  # fmt: skip


def write_checkpoint(folder: Path, config: LlamaConfig, seed: int) -> int:
    """Random bfloat16 weights in shards of about 2 GB with their index; returns the bytes of the tensors."""
    folder.mkdir()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    shapes = {name: p.to(torch.bfloat16) for name, p in empty_model(config).named_parameters()}
    shards = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(2**22, generator=generator).bfloat16()
    for file, names in shards.filename_to_tensors.items():
        tensors = {}
        for name in names:
            block = block.roll(int(torch.randint(1, 2**22, (1,), generator=generator)))
            shape = shapes[name].shape
            repeats = -(-shape.numel() // len(block))
            tensors[name] = block.repeat(repeats)[: shape.numel()].view(shape).clone()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    tokens = {f"token{number}": number for number in range(config.vocab_size)}
    Tokenizer(WordLevel(tokens, unk_token="token0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards.metadata["total_size"]


def timed(command: list[str], output: Path, forget: Path | None = None) -> tuple[float, float]:
    """Seconds of a process with the sync that follows, and its peak resident megabytes; its output is removed.

    Args:
        forget: a folder that is removed before.
    """
    if forget:
        shutil.rmtree(forget, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    _, peak = run_process(command)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds, peak


def figures(found: Mapping[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Medians of the rounds but the first, which warms the system's cache of files, and how they compare."""
    times = {name: [seconds for seconds, _ in each[1:]] for name, each in found.items()}
    middle = medians(times)
    return {
        "copy_seconds": round(middle["copy"], 2),
        "transfer_seconds": round(middle["transfer"], 2),
        "speed_of_copy": round(middle["copy"] / middle["transfer"], 3),
        "spread": {name: round(spread(values), 3) for name, values in times.items()},
        "seconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
    }


def main() -> None:
    """Print and write times and peaks."""
    parser = options(__doc__)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the temporary checkpoints go (needs three times the size of one)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        root = Path(scratch)
        config = config_of(given.gigabytes)
        kept = root / "fingerprints"
        os.environ[VARIABLE] = str(kept)
        sizes = [write_checkpoint(root / name, config, seed) for seed, name in enumerate(("donor", "target"))]
        written = time.time()
        space = ChannelSpace.from_model(empty_model(config))
        index = torch.randperm(len(space), generator=torch.Generator().manual_seed(0))[: int(SHARE * len(space))]
        models = {
            name: ModelRead(name, fingerprint(StoredModel(root / name).parameters(space)))
            for name in ("donor", "target")
        }
        ChannelSet(space, index, torch.zeros(len(index)), Rule(models=models)).save(root / "set.safetensors")
        output = root / "output"
        calls = {
            "copy": ["cp", "-r", str(root / "target"), str(output)],
            "transfer": [
                sys.executable, "-m", "act", "transfer", "--donor", str(root / "donor"), "--target",
                str(root / "target"), "--channels", str(root / "set.safetensors"), "--strength", str(STRENGTH),
                "--output", str(output), "--json",
            ],
        }  # fmt: skip
        copy, transfer = (partial(timed, call, output) for call in calls.values())
        rounds = given.rounds + 1
        cold = in_turns({"copy": copy, "transfer": partial(transfer, forget=kept)}, rounds)
        time.sleep(max(0, SETTLED / 1e9 - (time.time() - written)))
        transfer()
        found = in_turns({"copy": copy, "transfer": transfer}, rounds)
    result = {
        "gigabytes": round(sizes[0] / 1e9, 2),
        "share": SHARE,
        **figures(found),
        "peak_mb": round(max(peak for each in (cold, found) for _, peak in each["transfer"]), 1),
        **{f"{name}_cold": value for name, value in figures(cold).items()},
    }
    print(json.dumps(result))
    record(given.json, {"results": result})


if __name__ == "__main__":
    main()
