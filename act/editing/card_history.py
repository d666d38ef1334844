"""What the card of a model says of how it was made, for the card of what is made of it, and for who asks what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from act.editing.card_results import without_results
from act.editing.earlier import earlier
from act.editing.model_card import TAGS, USAGE, Origin, card_of
from act.editing.stored import narrowed_digests
from act.models.placement import values
from act.models.views import language_view, original
from act.ranking.channel_set import ChannelSet

_PARENT = re.compile(
    r"^(?:\| target \| |[A-Z][\w -]+ of (?=.* were trained lightly))\[?(?P<name>.+?)(?:\]\(|,| \|| were )", re.MULTILINE
)
"""What a card says that a model was made of: in the table of a transfer, or in the sentence of a tune."""


@dataclass(frozen=True)
class History:
    """What was done to a model before, as its own card says; empty unless a command of ours has written that card.

    Attributes:
        text: Markdown without results, with headings one level further down.
        tags: those of the card beside :data:`act.editing.model_card.TAGS`.
        datasets: of the hub, that were used.
    """

    text: str = ""
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: str) -> History:
        """That of a model, by its folder or hub id, from what is here: nothing is asked of the hub."""
        from huggingface_hub import ModelCard

        path = card_of(model)
        if path is None or not path.is_file():
            return cls()
        try:
            card = ModelCard.load(path, ignore_metadata_errors=True)
            data = card.data.to_dict()
        except (ValueError, OSError):
            return cls()
        tags = [str(tag) for tag in _listed(data.get("tags"))]
        if TAGS[0] not in tags:
            return cls()
        body = without_results(card.text).partition(f"\n{USAGE}\n")[0]
        datasets = tuple(str(name) for name in _listed(data.get("datasets")))
        return cls("\n".join(_further_down(body)).strip(), tuple(tag for tag in tags if tag not in TAGS), datasets)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _further_down(text: str) -> Iterator[str]:
    """The lines without the title, and headings one level further down; what stands in blocks of code is none."""
    code = False
    for line in text.splitlines():
        code ^= line.startswith("```")
        heading = line.startswith("#") and not code
        if not (heading and line.startswith("# ")):
            yield f"#{line}" if heading and not line.startswith("######") else line


def other_parent(model: str, name: str, fingerprint: str) -> str | None:
    """What a model was made of, by its card, if that is not this model, nor one that this was made into on the way.

    Args:
        model: the folder or hub id of what was made.
        name, fingerprint: of the model in question, which is known by either: in a narrower type it has another
            fingerprint.
    """
    said = History.of(model).text
    parents = [one["name"] for one in _PARENT.finditer(said)]
    known = fingerprint in said or Origin.of(name).title in parents
    return parents[0] if parents and not known else None


def stranger(channels: ChannelSet, model: nn.Module, name: str, found: str) -> str | None:
    """Why a channel set seems to be of another model; None if it was chosen for this one, or one that this is made of.

    A set that moves channels from a donor to a target is of the target, not of the donor. What a transfer or a tune has
    made has other weights than the model that its channels were chosen for, but knows that model's fingerprint
    (:mod:`act.editing.earlier`), or has a card with it.

    Args:
        channels: the set.
        model: the model.
        name: its folder or hub id.
        found: its fingerprint.
    """
    models = channels.rule.models
    own = {side: one for side, one in models.items() if side != "donor"} or models
    expected = {one.fingerprint for one in own.values()}
    known, history = {found} | earlier(model), History.of(name).text
    if not expected or not expected.isdisjoint(known) or any(one in history for one in expected):
        return None
    known.update(narrowed_digests(dict(values(language_view(original(model))))))
    if not expected.isdisjoint(known):
        return None
    chosen_for = " and ".join(f"the {side} {one}" for side, one in own.items())
    donor = models["donor"].fingerprint if own != models else ""
    if donor and (donor in known or donor in history):
        return (
            f"the channels were chosen for {chosen_for}, and {name} is their donor, or made of it: the rows that are "
            "trained are those that the target lacked; tune the target, or what a transfer has made of it"
        )
    return (
        f"the channels were chosen for {chosen_for}; {name} has other weights ({found}), and no model card that says "
        "it was made of these, so rows of the same numbers may do other things in it; if it is another model, rank "
        "channels for it"
    )
