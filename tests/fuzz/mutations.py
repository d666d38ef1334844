"""Mutations of bytes, of plain data and of files of tensors, all from one random generator."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from act.core import tensor_files

DIGITS, DEEP, DEEP_OBJECT = "@DIGITS@", "@DEEP@", "@DEEPER@"
EXPANDED = {DIGITS: "9" * 5000, DEEP: "[" * 50_000 + "]" * 50_000, DEEP_OBJECT: '{"a":' * 300 + "1" + "}" * 300}
TEXTS = [
    "",
    "x",
    " ",
    ".",
    "..",
    "../../evil",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\nb",
    "\0",
    "\ud800",
    "é" * 200,
    "x" * 3000,
    "nan",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    40,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**12,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
]
HOSTILE: list[Any] = [None, True, False, *TEXTS, *NUMBERS, [], {}, [[]], [None], {"a": 1}, DIGITS, DEEP, DEEP_OBJECT]


def mutated_bytes(rng: Random, blob: bytes) -> bytes:
    """The bytes with some bits turned over, or with a part cut, doubled, overwritten, inserted or moved."""
    data = bytearray(blob)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not data:
            return b"\xff"
        at, length = rng.randrange(len(data)), rng.choice([1, 1, 2, 8, 64, 1000])
        if rng.random() < 0.3:  # headers and footers are small, and decide most
            at = min(at, rng.randrange(200)) if rng.random() < 0.5 else max(at, len(data) - 1 - rng.randrange(200), 0)
        match rng.randrange(8):
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + length] = rng.randbytes(len(data[at : at + length]))
            case 3:
                data[at:at] = rng.randbytes(length)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                del data[at:]
            case _:
                data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1]))
    return bytes(data)


def mutated_data(rng: Random, data: Any) -> Any:
    """Plain data with some values replaced, dropped, doubled, swapped or renamed."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = [*_places(data)]
        if not places:
            return copy.deepcopy(rng.choice(HOSTILE))
        holder, key = rng.choice(places)
        value = holder[key]
        match rng.randrange(8):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(HOSTILE))
            case 3:
                del holder[key]
            case 4:
                other, its_key = rng.choice(places)
                holder[key] = copy.deepcopy(other[its_key])
            case 5 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(value))
            case 6 if isinstance(holder, dict):
                holder[rng.choice(TEXTS)] = holder.pop(key)
            case 7 if isinstance(value, int):
                holder[key] = value + rng.choice([-1, 1])
            case 7 if isinstance(value, list):
                rng.shuffle(value)
            case _:
                holder[key] = [value] if rng.random() < 0.5 else {"a": value}
    return data


def json_of(data: Any) -> str:
    """JSON, in which some values stand for what Python cannot write."""
    text = json.dumps(data)
    for mark, meant in EXPANDED.items():
        text = text.replace(f'"{mark}"', meant)
    return text


def _places(data: Any) -> list[tuple[Any, Any]]:
    found = []
    waiting = [data]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in items:
            found.append((holder, key))
            waiting.append(value)
    return found


def mutated_tensor_file(rng: Random, blob: bytes) -> tuple[bytes, bool]:
    """A mutated safetensors file, and whether its hash still tells what was written.

    If not, the hash was left out, or forged for the new content.
    """
    size = struct.unpack("<Q", blob[:8])[0]
    outer = json.loads(blob[8 : 8 + size])
    metadata = outer["__metadata__"]
    what = rng.randrange(6)
    if what < 2:
        return mutated_bytes(rng, blob), True
    if what == 2:
        text = json_of(mutated_data(rng, outer)).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + blob[8 + size :], True
    tensors = load(blob)
    text = metadata[tensor_files.HEADER_KEY]
    if what == 3:
        text = json_of(mutated_data(rng, json.loads(text)))
    else:
        _mutate_tensors(rng, tensors)
    new = {tensor_files.SCHEMA_KEY: metadata[tensor_files.SCHEMA_KEY], tensor_files.HEADER_KEY: text}
    if rng.random() < 0.6:
        hashes = tensor_files._hash_of_text(new["schema"], text), tensor_files._hash_of_tensors(tensors)
        new[tensor_files.HASH_KEY] = " ".join(hashes)
    return save(tensors, new), False


def _mutate_tensors(rng: Random, tensors: dict[str, torch.Tensor]) -> None:
    name = rng.choice(sorted(tensors))
    one = tensors[name]
    flat = one.reshape(-1)
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: one.to(rng.choice([torch.float32, torch.int32, torch.bool, torch.float64, torch.int64])),
        lambda: flat[: rng.randrange(len(flat) + 1)],
        lambda: torch.cat([flat, flat[-1:]]),
        lambda: one[None],
        lambda: flat.flip(0),
        lambda: flat[
            torch.randint(len(flat), (len(flat),), generator=torch.Generator().manual_seed(rng.randrange(99)))
        ],
    ]
    what = rng.randrange(9)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[rng.choice(["x", "0.rows", "inputs.x", f"{name}.x", "../x"])] = one.clone()
    elif what < 4 and flat.numel():
        tensors[name] = rng.choice(changes)().contiguous().clone()
    elif flat.numel():
        real = [float("nan"), float("inf"), 0.5, -1e30] if one.is_floating_point() else []
        value = torch.tensor(rng.choice([-1, 0, 1, 2**31, 2**40, 2**62, -(2**62), *real])).to(one.dtype)
        flat = flat.clone()
        flat[slice(None) if rng.random() < 0.3 else rng.randrange(len(flat))] = value
        tensors[name] = flat.view(one.shape)
