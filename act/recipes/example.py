"""Recipes to begin with, which run as they are: on the models that come with this package, without a network."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "examples"
SCHEMA = FOLDER / "recipe.schema.json"
MODELS = Path(__file__).parents[1] / "lab" / "checkpoints"
EXAMPLES = ("recover", "merge", "sweep")


def example(name: str) -> str:
    """One of :data:`EXAMPLES`, with comments and the places of models, texts and schema on this machine.

    >>> from act.recipes.example import example
    >>> print(example("recover").splitlines()[2])
    # Give a specialist back what it forgot. This runs as it is, in a minute, on two small models that come with
    """
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    for mark, place in (("<models>", MODELS), ("<texts>", FOLDER), ("<schema>", SCHEMA)):
        text = text.replace(mark, place.as_posix())
    return text
