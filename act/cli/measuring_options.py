"""The options of ``run``, ``pair`` and ``attribute``, and their translation to arguments of the library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from act.cli import console, options
from act.cli.reading import Reading
from act.core.errors import ActError, require_choice
from act.core.names import names_in
from act.profiling.defaults import CHECKPOINT_EVERY, KEPT, STABLE_TOP

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from act.data.corpus import Corpus
    from act.data.encode import AnswerTurns
    from act.data.encoded import Count
    from act.data.records import Shard
    from act.profiling.job import Packing, PairJobOptions, SharedPrefix, TokenBudget
    from act.profiling.observer import Observer
    from act.profiling.stability import StableScore
    from act.profiling.until_stable import UntilStable


@dataclass(frozen=True, kw_only=True)
class TextOptions(Reading):
    """The options of every command that streams texts through a model; :mod:`act.cli.options` has names and help."""

    stem: ClassVar[str] = "profile"
    """The default output, without an ending; in the plural, the folder for several abilities."""

    corpus: options.CorpusNames
    output: options.ProfileOutput = None
    count: options.Count = "answer"
    answer_turns: options.AnswerTurns = "last"
    ability_column: options.AbilityColumn = None
    stride: options.Stride = None
    token_budget: options.TokenBudget = None
    include: options.Include = None
    exclude: options.Exclude = None
    strict: options.Strict = False
    workers: options.Workers = 0
    token_cache: options.TokenCacheFolder = None
    skip_bad_records: options.SkipBadRecords = 0
    look_ahead: options.LookAhead = None
    shard: options.ShardOption = "0/1"
    device: options.Device = "auto"
    device_map: options.DeviceMap = None
    max_memory: options.MaxMemory = None
    dtype: options.Dtype = "auto"
    merge: options.MergeAdapters = False
    trust_remote_code: options.TrustRemoteCode = False
    checkpoint_every: options.CheckpointEvery = CHECKPOINT_EVERY
    until_stable: options.UntilStable = False
    stable_top: options.StableTop = None
    stable_overlap: options.StableOverlap = None
    stable_confidence: options.StableConfidence = None
    show_spans: options.ShowSpans = 0
    log: options.LogFile = None
    force: options.Force = False
    as_json: options.Json = False

    @property
    def several(self) -> bool:
        """Whether there may be several abilities, each with a profile of its own."""
        return len(self.corpus) > 1 or self.ability_column is not None

    @property
    def place(self) -> Path:
        """Where the profile is written, or the folder for several."""
        return self.output or Path(f"{self.stem}s" if self.several else f"{self.stem}.safetensors")

    @property
    def in_folder(self) -> bool:
        """Whether the place is a folder: for several abilities, or for a named one unless a file is asked for."""
        named = "" not in console.places_of(self.corpus)
        return self.several or (named and self.place.suffix != ".safetensors")

    def known(self, corpora: Mapping[str, Corpus]) -> dict[str, Any]:
        """What is known of the identity of the job before there are models (:meth:`act.profiling.job.Job.identity`).

        Args:
            corpora: as :meth:`open_corpora` gives them.
        """
        feeding = self.for_job()
        cuts = {"max_length": self.max_length, "overlap": self.stride}  # where not given, models decide
        names = ["fingerprint", "tokenizer", "vocabulary", "count", "answer_turns", "ability_column", "ignore_columns"]
        names += [name for name, given in cuts.items() if given is not None]
        texts: dict[str, Any] = {}
        kept = 0
        for name, corpus in corpora.items():
            identity = corpus.identity()
            key = f"{KEPT}{kept}" if name.startswith(KEPT) else name
            kept += name.startswith(KEPT)
            texts[key] = {name: identity[name] for name in names}
        settings: dict[str, Any] = {
            "measured": None,
            "include": sorted(names_in(self.include or ())) or None,
            "exclude": sorted(names_in(self.exclude or ())),
            "fused": feeding.get("fused", True),
            "moe_all_experts": feeding.get("moe_all_experts") or None,
            "swap": feeding.get("swap") or None,
        }
        for name, given in (("token_budget", feeding["token_budget"]), ("look_ahead", feeding["look_ahead"])):
            if isinstance(given, int):
                settings[name] = given
        if not self.until_stable:
            settings["until_stable"] = None
        return {"corpora": texts, "settings": settings, "shard": list(feeding["shard"])}

    @property
    def texts(self) -> dict[str, str]:
        """The places of all texts by name; the name of a single one may be empty."""
        return console.places_of(self.corpus)

    def open_corpora(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Corpus]:
        """The corpora of all texts; the ability column is not that of a text to keep."""
        called = {
            name: (name.partition(" ")[2] if name.startswith(KEPT) else name) or place
            for name, place in self.texts.items()
        }
        columns = self.columns_of(called.values())
        corpora = {
            name: self.open(
                place,
                tokenizer,
                columns=columns.get(called[name]),
                count=cast("Count", self.count),
                answer_turns=cast("AnswerTurns", self.answer_turns),
                overlap=self.stride,
                ability_column=None if name.startswith(KEPT) else self.ability_column,
            )
            for name, place in self.texts.items()
        }
        self.look(corpora)
        return corpora

    def load(self, name: str, device: str | None = None, *, spread: bool = True) -> nn.Module:
        """Load a model; ``device`` replaces the one in the options, and without ``spread`` it stays on that one."""
        from act.models.loading import load_model

        return load_model(
            name,
            device=device or self.device,
            device_map=self.device_map if spread else None,
            max_memory=parsed_memory(self.max_memory or []) if spread else {},
            dtype=self.dtype,
            merge=self.merge,
            trust_remote_code=self.trust_remote_code,
        )

    def for_job(self) -> PairJobOptions:
        """The keywords of :class:`act.profiling.job.Job`.

        Raises:
            ActError: a malformed token budget or shard.
        """
        return {
            "token_budget": parsed_budget(self.token_budget),
            "include": self.include or (),
            "exclude": self.exclude or (),
            "workers": self.workers,
            "skip_bad_records": self.skip_bad_records,
            "look_ahead": self.look_ahead,
            "shard": parsed_shard(self.shard),
        }

    def stopping(self) -> UntilStable | None:
        """The observer of ``--until-stable``, if that is given.

        Raises:
            ActError: an unknown score, or a share, overlap or confidence out of range; one of them without
                ``--until-stable``.
        """
        if not self.until_stable:
            for each in fields(self):
                if each.name.startswith("stable_") and getattr(self, each.name) is not None:
                    name = f"--{each.name.replace('_', '-')}"
                    raise ActError(f"{name} has no effect without --until-stable; leave it out, or give both")
            return None
        from act.profiling.until_stable import UntilStable
        from act.ranking.selection import parse_top

        given = {"overlap": self.stable_overlap, "confidence": self.stable_confidence}
        top = STABLE_TOP if self.stable_top is None else parse_top(self.stable_top, "--stable-top")
        return UntilStable(
            self._stable_by(), top, **{name: value for name, value in given.items() if value is not None}
        )

    def _stable_by(self) -> StableScore | None:
        """The score of ``--until-stable``; None: that of the run."""
        return None

    def strict_observers(self) -> list[Observer]:
        """The observer of ``--strict``, if that is given."""
        if not self.strict:
            return []
        from act.profiling.strict import Strict

        return [Strict()]


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions(TextOptions):
    """Every option of ``run`` and ``pair`` except the models."""

    packing: options.Packing = "auto"
    shared_prefix: options.SharedPrefix = "auto"
    fused: options.Fused = True
    moe_all_experts: options.MoeAllExperts = False
    stable_score: options.StableScore = None

    def for_job(self) -> PairJobOptions:
        """The keywords of :class:`act.profiling.job.Job`.

        Raises:
            ActError: a malformed token budget or shard.
        """
        return {
            **super().for_job(),
            "packing": cast("Packing", self.packing),
            "shared_prefix": cast("SharedPrefix", self.shared_prefix),
            "fused": self.fused,
            "moe_all_experts": self.moe_all_experts,
        }

    def _stable_by(self) -> StableScore | None:
        if self.stable_score is not None:
            require_choice("stable score", self.stable_score, self._stable_scores)
        return cast("StableScore | None", self.stable_score)

    @property
    def _stable_scores(self) -> tuple[str, ...]:
        """The scores that such a run can be certain of."""
        return options.STABLE_OF_ONE


@dataclass(frozen=True, kw_only=True)
class PairOptions(MeasuringOptions):
    """The options of ``pair``: those of ``run``, of which two have other defaults, and two more."""

    stem: ClassVar[str] = "pair"
    output: options.PairOutput = None
    swap: options.Swap = False
    match_experts: options.MatchExperts = False
    stable_score: options.StablePairScore = None

    @property
    def _stable_scores(self) -> tuple[str, ...]:
        return options.STABLE_OF_SWAPPED

    def _stable_by(self) -> StableScore | None:
        if self.stable_score == "match" and not self.swap:
            raise ActError("stable score match needs swapped outputs; add --swap, or choose another (--stable-score)")
        return super()._stable_by()

    def for_job(self) -> PairJobOptions:
        """As for ``run``, and whether outputs are swapped."""
        return {**super().for_job(), "swap": self.swap}


@dataclass(frozen=True, kw_only=True)
class AttributeOptions(TextOptions):
    """The options of ``attribute`` except the models."""

    stem: ClassVar[str] = "attribution"
    output: options.AttributionOutput = None
    keep: options.KeepTexts = None
    match_experts: options.MatchExperts = False
    token_budget: options.AttributionBudget = None
    donor_device: options.DonorDevice = "cpu"
    recompute: options.Recompute = True

    @property
    def kept(self) -> dict[str, str]:
        """The places of the texts to keep, by :data:`KEPT` and their number and name."""
        found: dict[str, str] = {}
        names = set[str]()
        for number, given in enumerate(self.keep or []):
            ((name, place),) = console.places_of([given]).items()
            if name and name in names:
                raise ActError(f"two texts to keep are named {name}; give each a name of its own (--keep NAME=PLACE)")
            names.add(name)
            found[f"{KEPT}{number} {name}".rstrip()] = place
        return found

    def known(self, corpora: Mapping[str, Corpus]) -> dict[str, Any]:
        """As for ``run``, and that gradients are measured."""
        known = super().known(corpora)
        return {**known, "settings": {**known["settings"], "measured": "attribution"}}

    @property
    def texts(self) -> dict[str, str]:
        """The places of all texts by name, of those to keep by number and name."""
        return {**super().texts, **self.kept}


def parsed_budget(budget: str | None) -> TokenBudget:
    """Parse a token budget: a number, ``auto``, or None if it is not given."""
    if budget is None or budget == "auto":
        return cast("TokenBudget", budget)
    if not budget.isdecimal() or int(budget) < 1:
        raise ActError(f"token budget is {budget!r}; expected a number of tokens, from 1, or auto")
    return int(budget)


def parsed_memory(given: list[str]) -> dict[str, str]:
    """Parse memory limits, each given as ``PLACE=SIZE``."""
    return {place: size for place, _, size in (each.partition("=") for each in given)}


def parsed_shard(shard: str) -> Shard:
    """Parse a shard: ``i/n`` with 0 <= i < n."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not int(found[1]) < int(found[2]):
        raise ActError(f"shard is {shard!r}; expected i/n with 0 <= i < n, such as 0/4")
    return int(found[1]), int(found[2])
