"""Model cards: what a model was made of and how, its figures with their errors, how to use it, under which licences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from act.core.places import without_folders
from act.data.records import is_hub_id
from act.editing.card_channels import how_found, texts_of
from act.editing.card_results import CARD, Figure, metadata_of, not_measured, results_section
from act.editing.card_texts import FOUND
from act.editing.provenance import TransferProvenance

TAGS = ("act-profile", "ability-transfer")
NOT_STATED = "not stated"
USAGE = "## How to use it"
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@[\w./-]+)?")
_IN_CACHE = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/[0-9a-f]{40}/?$")


@dataclass(frozen=True)
class Origin:
    """A model that another one was made of.

    Attributes:
        name: how it was given: a folder or a hub id.
        licence: what its own card states, or :data:`NOT_STATED`.
        hub_id: its name on the hub; None if it is not known to be there.
        bases: hub ids of what it was made of itself, as its own card states.
    """

    name: str
    licence: str
    hub_id: str | None
    bases: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its hub id, or the name of its folder."""
        return self.hub_id or Path(self.name).name

    @property
    def link(self) -> str:
        """Its title in Markdown, as a link where it is on the hub."""
        return f"[{self.hub_id}](https://huggingface.co/{self.hub_id})" if self.hub_id else self.title

    @classmethod
    def of(cls, name: str | Path) -> Origin:
        """The origin of that name, from what is here: nothing is asked of the hub."""
        data = _metadata_of(name)
        bases = data.get("base_model") or ()
        listed = [bases] if isinstance(bases, str) else [one for one in bases if isinstance(one, str)]
        return cls(str(name), licence_of(name), hub_id_of(name), tuple(listed))

    @property
    def on_hub(self) -> list[str]:
        """Its hub id; for a model that is not on the hub, those of what it was made of."""
        return [self.hub_id] if self.hub_id else list(self.bases)


def hub_id_of(name: str | Path) -> str | None:
    """The hub id of a model: its name, or that of the snapshot in the hub's cache; None for any other folder.

    >>> from act.editing.model_card import hub_id_of
    >>> hub_id_of("org/name@v1"), hub_id_of("/here/model")
    ('org/name', None)
    """
    if not Path(name).is_dir():
        found = _HUB_ID.fullmatch(str(name))
        return found["name"] if found else None
    cached = _IN_CACHE.search(str(name)) or _IN_CACHE.search(str(Path(name).resolve()))
    return f"{cached['org']}/{cached['name']}" if cached else None


def licence_of(model: str | Path) -> str:
    """The licence that a model's own card states; ``not stated`` if there is none here, in its folder or the cache."""
    data = _metadata_of(model)
    licence = data.get("license")
    return str(data.get("license_name") or licence) if licence else NOT_STATED


def _metadata_of(model: str | Path) -> Mapping[str, Any]:
    """The metadata of a model's own card, if there is one here, in its folder or the hub's cache."""
    card = card_of(model)
    if card is None or not card.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        found: Mapping[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError):
        return {}
    return found


def card_of(model: str | Path) -> Path | None:
    """Where a model's own card would be, in its folder or the hub's cache; None if the cache has none."""
    return Path(model, CARD) if Path(model).is_dir() else _cached_card(str(model))


def _cached_card(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    identifier = hub_id_of(name)
    found = try_to_load_from_cache(identifier, CARD) if identifier else None
    return Path(found) if isinstance(found, str) else None


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        title: its heading.
        origins: what the model was made of; the one that was changed first.
        body: Markdown, below the heading.
        tags: beside :data:`TAGS`.
        corpora: names of the texts that were used, of which those of the hub are listed as data sets.
        figures: those of the model itself.
        adapter: whether it is an adapter, which its base model is loaded with.
        architecture: the class of the model, by which it is loaded; see :func:`loaded_by`.
    """

    title: str
    origins: Sequence[Origin]
    body: str
    tags: Sequence[str] = ()
    corpora: Iterable[str] = ()
    figures: Sequence[Figure] = field(default_factory=tuple)
    adapter: bool = False
    architecture: str = "ForCausalLM"

    def __str__(self) -> str:
        """The whole card, with its metadata."""
        return f"---\n{self._metadata()}\n---\n# {self.title}\n\n{self.body.strip()}\n\n{self._usage()}\n"

    def _metadata(self) -> str:
        from huggingface_hub.repocard_data import ModelCardData  # half a second less than the package's name

        first, *others = (origin.licence for origin in self.origins)
        licence = first if {*others} <= {first, NOT_STATED} else NOT_STATED
        named: dict[str, Any] = {}
        if licence != NOT_STATED:
            named = {"license": licence} if _is_known(licence) else {"license": "other", "license_name": licence}
        named |= metadata_of(self.figures, self.title)
        data = ModelCardData(
            base_model=list(dict.fromkeys(base for origin in self.origins for base in origin.on_hub)) or None,
            datasets=sorted({name for corpus in self.corpora if (name := data_set_of(corpus))}) or None,
            library_name="peft" if self.adapter else "transformers",
            pipeline_tag=loaded_by(self.architecture)[1],
            tags=[*TAGS, *self.tags],
            **named,
        )
        return str(data.to_yaml())

    def _usage(self) -> str:
        kind = "AutoPeftModelForCausalLM" if self.adapter else loaded_by(self.architecture)[0]
        names = f"from transformers import {kind}, AutoTokenizer"
        if self.adapter:
            names = f"from peft import {kind}\nfrom transformers import AutoTokenizer"
        return "\n".join(
            [
                USAGE,
                "",
                "```python",
                names,
                "",
                'name = "."  # this folder, or its name on the hub',
                f'model = {kind}.from_pretrained(name, dtype="auto")',
                "tokenizer = AutoTokenizer.from_pretrained(name)",
                "```",
            ]
        )


def loaded_by(architecture: str) -> tuple[str, str | None]:
    """The class of transformers that loads a model by the class in its configuration, and the hub's word for its task.

    >>> from act.editing.model_card import loaded_by
    >>> loaded_by("LlamaForCausalLM"), loaded_by("BertModel")
    (('AutoModelForCausalLM', 'text-generation'), ('AutoModel', None))
    """
    for ending, found in _LOADED_BY.items():
        if architecture.endswith(ending):
            return found
    return "AutoModel", None


_LOADED_BY: dict[str, tuple[str, str | None]] = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}


def architecture_in(folder: Path) -> str:
    """The class that the configuration in a model's folder names; empty if it names none."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        return str(named[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""


def data_set_of(corpus: str) -> str | None:
    """The data set of the hub that the name of a corpus is of; None for a file, or any other name.

    >>> from act.editing.model_card import data_set_of
    >>> data_set_of("org/texts:de:train"), data_set_of("texts/german.jsonl")
    ('org/texts', None)
    """
    return corpus.partition(":")[0] if is_hub_id(corpus) else None


def _is_known(licence: str) -> bool:
    """Whether the hub knows a licence by this name: all of those have one of small letters, digits, dots and dashes."""
    return bool(re.fullmatch(r"[a-z0-9.-]+", licence))


def licences(origins: Sequence[Origin]) -> str:
    """What the card says of the licences of all origins, where they are not one."""
    found = {origin.licence for origin in origins}
    if len(found) == 1 and NOT_STATED not in found:
        return ""
    return "The licences of what it was made of differ, or are not stated: all of them hold for it, so read them first."


def put_card(folder: Path, text: str) -> None:
    """Write the text of a card into the folder of its model; names of files in it may be no text.

    Cards are for others, so absolute paths of this machine are their last parts.
    """
    (folder / CARD).write_bytes(without_folders(text).encode("utf-8", "backslashreplace"))


def block(text: str, language: str) -> str:
    """Text as a block of code."""
    return f"```{language}\n{text.strip()}\n```"


def write_card(
    folder: Path,
    target: str | Path,
    transfer: TransferProvenance,
    *,
    command: str = "act-profile transfer",
    afterwards: str = "",
    results: str | None = None,
    corpora: Iterable[str] = (),
    figures: Sequence[Figure] = (),
    tuned: str = "",
    commands: bool = True,
) -> None:
    """Write ``README.md`` for a model made by a transfer.

    Args:
        folder: the folder of the new model.
        target: the model that was changed: a folder or a hub id, as the donors' names in ``transfer`` are.
        command: the command that made it.
        afterwards: sections in Markdown on what was done besides the transfer.
        results: Markdown, with the figures of the model; None: the card says how they are measured.
        corpora: names of texts that were used beside those that the channels were ranked on.
        figures: those of the model, for the metadata.
        tuned: what was tuned after the transfer, as the end of a sentence; empty: nothing.
        commands: whether the channels are found again by ranking alone, and not with what ``afterwards`` says.
    """
    target_of = Origin.of(target)
    donors = [(donor, Origin.of(donor.name or "unnamed")) for donor in transfer.donors]
    origins = [target_of, *(origin for _, origin in donors)]
    rest = f", and then {tuned}" if tuned else "; everything else is the target's"
    lines = [
        f"Made with act-profile (`{command}`), by the method of [arXiv 2601.09398](https://arxiv.org/abs/2601.09398): "
        f"the parameter rows of the chosen channels were blended, `target += strength * (donor - target)`{rest}.",
        "",
        "| | model | licence | channels | strength | chosen by |",
        "|---|---|---|---|---|---|",
        f"| target | {target_of.link} | {target_of.licence} | | | |",
    ]
    for donor, origin in donors:
        strength = json.dumps(donor.strength) if isinstance(donor.strength, dict) else f"{donor.strength:g}"
        lines.append(f"| donor | {origin.link} | {origin.licence} | {donor.channels:,} | {strength} | {donor.rule} |")
    lines += ["", f"Rows that several donors give: {transfer.overlap}."] if len(donors) > 1 and transfer.overlap else []
    lines += ["", *(f"- {note}" for note in transfer.notes)] if transfer.notes else []
    lines += ["", said] if (said := licences(origins)) else []
    after = f", after it: `{transfer.after}`" if transfer.after else ""
    lines += ["", f"Fingerprint before the transfer: `{transfer.before}`{after}{', before the tune' if tuned else ''}."]
    expected = {one.rule.models["target"].fingerprint for one in transfer.donors if "target" in one.rule.models}
    if others := sorted(expected - {transfer.before}):  # such as that of the same weights in a narrower type
        lines += [
            "",
            f"Channels were chosen for a target of the fingerprint {', '.join(f'`{one}`' for one in others)}.",
        ]
    lines += ["", FOUND]
    for donor, origin in donors:
        found = how_found(donor.rule, origin.title, target_of.title, commands=commands)
        lines += ["", f"Those of {origin.title}: {found}" if len(donors) > 1 else found]
    lines += ["", results_section(not_measured(target_of.hub_id or target) if results is None else results)]
    lines += ["", afterwards] if afterwards else []
    ranked = [place for donor, _ in donors for place in texts_of(donor.rule)]
    card = Card(
        f"{target_of.title} with rows of {', '.join(origin.title for _, origin in donors)}{', tuned' if tuned else ''}",
        origins,
        "\n".join(lines),
        ["merge", *(["fine-tune"] if tuned else [])],
        [*ranked, *corpora],
        figures,
        architecture=architecture_in(folder),
    )
    put_card(folder, str(card))
