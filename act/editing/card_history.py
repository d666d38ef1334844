"""What the card of a model says of how it was made, for the card of what is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from act.editing.card_results import without_results
from act.editing.model_card import TAGS, USAGE, card_of


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
