"""The ten kinds of files: a good one of each, how it is mutated, and what its readers make of it."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
import yaml
import zstandard
from pyarrow import parquet
from support import random_batches, tiny_model, train_tokenizer

import act
from act.data.token_cache import SCHEMA, _Group
from act.editing.stored import StoredModel
from act.editing.weight_files import INDEX
from act.models.loading import load_model
from act.profiles.profile import StoredProfile
from act.recipes.reading import read_recipe

from .mutations import HOSTILE, TEXTS, json_of, mutated_bytes, mutated_data, mutated_tensor_file

RECORDS = [
    {"prompt": f"{'a b ' * (number % 5)}c", "completion": " d e" * (1 + number % 3), "skill": f"s{number % 2}"}
    for number in range(24)
]
RECIPE = """\
merge_method: act
base_model: target
models:
- model: donor
  corpus: german.jsonl
  keep: [english.jsonl]
  parameters: {weight: {"*.mlp.*": 0.5, "*": 1.0}, top_p: 5%}
output: out
normalize: none
count: predict
max_length: 256
seed: 3
tune: {corpus: german.jsonl, steps: 2, learning_rate: 1.0e-5}
evaluate: {corpora: {forgotten: german.jsonl}, controls: [random]}
"""


@dataclass
class Kind:
    """One kind of file.

    Attributes:
        name: what it is called.
        path: where the file lies, which each mutation replaces.
        good: its good content.
        mutate: a mutated content, and whether it must be refused or mean what the good one does.
        read: what the readers make of the file at ``path``; raises ActError if they refuse it.
    """

    name: str
    path: Path
    good: bytes
    mutate: Callable[[Random, bytes], tuple[bytes, bool]]
    read: Callable[[], Any]

    def outcome(self, rng: Random, expected: Any) -> str | None:
        """``refused``, ``same`` or ``read``; ``different`` if a damaged file was read as something else."""
        content, strict = self.mutate(rng, self.good)
        self.path.write_bytes(content)
        try:
            found = self.read()
        except act.ActError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, f"no sentence: {error}"
            return "refused"
        finally:
            self.restore()
        return "same" if found == expected else "different" if strict else "read"

    def restore(self) -> None:
        """Put the good content back, and remove what a mutation wrote beside it."""
        self.path.write_bytes(self.good)
        for other in self.path.parent.glob(f"{self.path.stem}.?*.?*"):
            other.unlink()


def _hash(*tensors: torch.Tensor) -> str:
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Files:
    """One good file of each kind in a folder, made once; :attr:`kinds` by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.donor, self.target = tiny_model("llama"), tiny_model("llama", seed=1)
        self.tokenizer = train_tokenizer(["What is two plus three?", "a b c d e"])
        pair = act.profile_pair(self.donor, self.target, random_batches(), swap=True)
        pair.save(folder / "profile")
        kept = act.Corpus.from_records(RECORDS[:3], self.tokenizer)
        abilities = act.Corpus.from_records(RECORDS[3:9], self.tokenizer)
        act.attribute(self.donor, self.target, abilities, keep=kept).save(folder / "attribution")
        self.channels = act.rank(pair, top=0.05, granularity=("neuron", "head"))
        self.channels.save(folder / "channels")
        changed = copy.deepcopy(self.target)
        act.transfer(self.donor, changed, act.rank(pair, count=30)).save(folder / "patch")
        self._checkpoint()
        (folder / "tokens").mkdir()
        self._corpus().cached(folder / "tokens")
        (self.tokens,) = (folder / "tokens").iterdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        self.target.save_pretrained(folder / "model", max_shard_size="40kB")
        self.tokenizer.save_pretrained(folder / "model")
        (folder / "c.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS))
        tensor_file = mutated_tensor_file
        self.kinds = {
            name: Kind(name, path, path.read_bytes(), mutate, read)
            for name, path, mutate, read in (
                ("profile", folder / "profile", tensor_file, self._read_profile),
                ("attribution", folder / "attribution", tensor_file, self._read_attribution),
                ("channel set", folder / "channels", tensor_file, self._read_channels),
                ("patch", folder / "patch", tensor_file, self._read_patch),
                ("checkpoint", folder / "checkpoint", tensor_file, self._read_checkpoint),
                ("token cache", self.tokens, self._mutated_tokens, self._read_tokens),
                ("recipe", folder / "recipe.yaml", _mutated_recipe, self._read_recipe),
                ("index", folder / "model" / INDEX, _mutated_json, self._read_index),
                ("config", folder / "model" / "config.json", _lenient_json, self._read_config),
                ("corpus", folder / "c.jsonl", self._mutated_corpus, self._read_corpus),
            )
        }

    def _corpus(self) -> act.Corpus:
        return act.Corpus.from_records(RECORDS, self.tokenizer, ability_column="skill")

    def _checkpoint(self) -> None:
        class Stop(act.Observer):
            def after_batch(self, run: Any, batch: Any) -> None:
                if run.total.records > 12:
                    raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            self._run([Stop()], every=0)

    def _run(self, observers: list[Any], every: float = 1e9) -> Any:
        checkpoint = act.Checkpoint(self.folder / "checkpoint", every)
        options = {"token_budget": 64, "look_ahead": 6, "observers": observers}
        return act.profile(self.target, self._corpus(), checkpoint=checkpoint, **options)

    def _read_profile(self) -> Any:
        path = self.folder / "profile"
        stored, profile = StoredProfile(path), act.load(path)
        assert repr(profile) and profile._repr_html_() and stored.pair == profile.pair
        ranked = act.rank(profile, "paired" if profile.pair else "mean-abs", count=20)
        return _hash(profile.moments.arena, ranked.index), profile.space, profile.provenance

    def _read_attribution(self) -> Any:
        found = act.load(self.folder / "attribution")
        assert repr(found) and found._repr_html_()
        ranked = act.rank(found, "attribution", count=20)
        arenas = [each.moments.arena for each in (found, *found.kept)]
        return _hash(*arenas, found.distance, ranked.index), found.space, found.provenance

    def _read_channels(self) -> Any:
        channels = act.ChannelSet.load(self.folder / "channels")
        assert repr(channels) and channels._repr_html_()
        target = copy.deepcopy(self.target)
        patch = act.transfer(self.donor, target, channels, 0.5)
        return channels.space, channels.rule, _hash(channels.index, channels.scores, *target.parameters()), repr(patch)

    def _read_patch(self) -> Any:
        patch = act.Patch.load(self.folder / "patch")
        assert repr(patch) and patch._repr_html_()
        target = copy.deepcopy(self.target)
        patch.apply(target)
        return patch.provenance, _hash(*target.parameters())

    def _read_checkpoint(self) -> Any:
        found = self._run([])
        return {ability: _hash(profile.moments.arena) for ability, profile in found.items()}

    def _read_tokens(self) -> Any:
        return _records(self._corpus().cached(self.folder / "tokens"))

    def _read_recipe(self) -> Any:
        return read_recipe(self.folder / "recipe.yaml")

    def _read_index(self) -> Any:
        weights = StoredModel(self.folder / "model").parameters(self.channels.space)
        return {name: _hash(tensor) for name, tensor in weights.items()}

    def _read_config(self) -> Any:
        StoredModel(self.folder / "model")
        return _hash(*load_model(str(self.folder / "model")).parameters())

    def _read_corpus(self) -> Any:
        found = sorted(self.folder.glob("c.*"))
        return [_records(act.Corpus.from_file(path, self.tokenizer, ability_column="skill")) for path in found]

    def _mutated_tokens(self, rng: Random, good: bytes) -> tuple[bytes, bool]:
        if rng.random() < 0.6:
            return mutated_bytes(rng, good), True
        table = parquet.read_table(pa.BufferReader(good))
        metadata = parquet.read_metadata(pa.BufferReader(good)).metadata
        rows = table.to_pylist()
        which = rng.randrange(len(rows))
        match rng.randrange(6):
            case 0:
                rows.insert(which, rows[rng.randrange(len(rows))])
            case 1:
                del rows[which]
            case 2:
                rng.shuffle(rows)
            case 3:
                rows[which]["ability"] = rng.choice(TEXTS)
            case 4:
                rows[which]["input_ids"] = rng.choice([[], None, [-1], [2**31 - 1], [5] * 999])
            case _:
                rows[which]["answer"] = rng.choice([[], None, [True], [True] * 999])
        forged = rng.random() < 0.5
        with contextlib.suppress(ValueError):  # what the writer itself would refuse has no hash
            table = pa.Table.from_pylist(rows, table.schema)
            if forged:
                contents = json.loads(metadata[SCHEMA.encode()])
                contents |= {"records": len(rows), "groups": [_Group(table).hash]}
                metadata = {**metadata, SCHEMA.encode(): json.dumps(contents).encode()}
        sink = pa.BufferOutputStream()
        parquet.write_table(table.replace_schema_metadata(metadata), sink, row_group_size=1024)
        return sink.getvalue().to_pybytes(), not forged

    def _mutated_corpus(self, rng: Random, good: bytes) -> tuple[bytes, bool]:
        """The JSON lines themselves, and beside them, for one reading, other files made of them."""
        lines = good.decode().split("\n")
        if rng.random() < 0.6:
            which = rng.randrange(len(lines))
            lines[which] = json_of(mutated_data(rng, json.loads(lines[which])))
            text = "\n".join(lines).encode("utf-8", "surrogatepass")
        else:
            text = mutated_bytes(rng, good)
        match rng.randrange(6):
            case 0:
                (self.folder / "c.jsonl.gz").write_bytes(mutated_bytes(rng, gzip.compress(text, 1)))
            case 1:
                (self.folder / "c.jsonl.zst").write_bytes(mutated_bytes(rng, zstandard.compress(text)))
            case 2 if rng.random() < 0.3:
                sink = pa.BufferOutputStream()
                parquet.write_table(pa.Table.from_pylist(RECORDS), sink)
                (self.folder / "c.x.parquet").write_bytes(mutated_bytes(rng, sink.getvalue().to_pybytes()))
        return text, False


def _records(corpus: act.Corpus) -> list[Any]:
    return [
        (entry.number, entry.place, str(found))
        if isinstance(found, act.ActError)
        else (entry.number, entry.place, found.ability, found.input_ids.tolist(), np.flatnonzero(found.answer).tolist())
        for entry, found in corpus.numbered()
    ]


def _mutated_json(rng: Random, good: bytes) -> tuple[bytes, bool]:
    if rng.random() < 0.4:
        return mutated_bytes(rng, good), True
    return json_of(mutated_data(rng, json.loads(good))).encode("utf-8", "surrogatepass"), True


def _lenient_json(rng: Random, good: bytes) -> tuple[bytes, bool]:
    return _mutated_json(rng, good)[0], False


def _mutated_recipe(rng: Random, good: bytes) -> tuple[bytes, bool]:
    match rng.randrange(4):
        case 0:
            return mutated_bytes(rng, good), False
        case 1:
            lines = good.decode().split("\n")
            odd = [
                "? [a]",
                "- - - -",
                "a: &a [*a]",
                "<<: {seed: 4}",
                "seed: !!int x",
                "\tseed: 1",
                "--- ",
                "seed: 1:60",
                "%YAML 9",
                "a: |",
                "'",
            ]
            lines.insert(rng.randrange(len(lines)), rng.choice([*odd, f"seed: {rng.choice(HOSTILE)}"]))
            return "\n".join(lines).encode("utf-8", "surrogatepass"), False
        case _:
            return json_of(mutated_data(rng, yaml.safe_load(good))).encode("utf-8", "surrogatepass"), False


def files_in(folder: Path) -> Files:
    """The good files, in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Files(folder)
