"""The results on a model card: the place that every card has for them, and how it is filled once they are known."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act.core.errors import ActError
from act.core.files import written_whole
from act.core.places import without_folders
from act.editing.card_tables import cell, measured_whole, merged, replaces

CARD = "README.md"
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Figure:
    """A figure of the model for the card's metadata, which has no place for errors and chance: ``text`` names them."""

    corpus: str
    metric: str
    value: float
    text: str


def results_section(results: str) -> str:
    """The section of results in Markdown, between marks by which :func:`put_results` finds it again."""
    return f"{_BEGIN}\n\n## Results\n\n{results.strip()}\n\n{_END}"


def without_results(text: str) -> str:
    """The text of a card without that section.

    >>> from act.editing.card_results import results_section, without_results
    >>> without_results(f"before, {results_section('figures')}and after")
    'before, and after'
    """
    before, _, rest = text.partition(_BEGIN)
    return before.rstrip("\n") + rest.partition(_END)[2]


def not_measured(before: str | Path) -> str:
    """What the section says as long as nothing was measured: by which command that is done.

    Args:
        before: the model that it is to be compared with.
    """
    given = f"--before {shlex.quote(str(before))} --model FOLDER --corpus NAME=RECORDS"
    return (
        f"Not yet measured on records that were used for nothing else: `act-profile evaluate {given} --card` does so, "
        "and puts the figures here."
    )


def metadata_of(figures: Sequence[Figure], title: str) -> dict[str, Any]:
    """The figures as the metadata of a model card has them; empty if there are none."""
    from huggingface_hub.repocard_data import EvalResult  # half a second less than the package's name

    found = []
    for one in figures:
        name = f"{one.metric} ({one.text})"
        found.append(EvalResult("text-generation", one.corpus, one.corpus, one.metric, one.value, metric_name=name))
    return {"model_name": title, "eval_results": found} if found else {}


def require_place(model: str | Path) -> None:
    """Raise :class:`ActError` unless a model is a folder whose card has a place for results."""
    card = Path(model, CARD)
    if not Path(model).is_dir():
        raise ActError(f"{model} is no folder, so it has no model card to write to; leave --card out")
    if not card.is_file() or _BEGIN.encode() not in card.read_bytes():
        raise ActError(
            f"{card} has no place for results, as a card that transfer, tune or a recipe has written; leave --card out"
        )


def has_whole(folder: Path, corpora: Sequence[str]) -> list[str]:
    """Those texts of which the model card in a folder has results on all records."""
    _, _, rest = (folder / CARD).read_text(encoding="utf-8").partition(_BEGIN)
    known = measured_whole(rest.partition(_END)[0])
    return [name for name in corpora if without_folders(cell(name)) in known]


def put_results(folder: Path, results: str, figures: Sequence[Figure]) -> bool:
    """Put results into the model card in a folder, and its metadata.

    They take the place of figures of the same text, model and metric; all others that the card has are kept.

    Returns:
        Whether there were such figures, of which the new ones took the place.

    Raises:
        ActError: as :func:`require_place`; the card cannot be written.
    """
    from huggingface_hub import ModelCard

    require_place(folder)
    path = folder / CARD
    first, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    old, _, after = rest.partition(_END)
    new = without_folders(results)
    card = ModelCard(first + results_section(merged(old, new)) + after, ignore_metadata_errors=True)
    title = next((line.removeprefix("# ") for line in card.text.splitlines() if line.startswith("# ")), folder.name)
    for name, value in metadata_of(figures, title).items():
        if name == "eval_results":
            measured = {(one.dataset_name, one.metric_type) for one in value}
            value = [
                one
                for one in getattr(card.data, "eval_results", None) or ()
                if (one.dataset_name, one.metric_type) not in measured
            ] + value
        card.data[name] = value
    with written_whole(path, force=True) as temporary:
        temporary.write_bytes(without_folders(str(card)).encode("utf-8", "backslashreplace"))
    return replaces(old, new)
