"""What is required of the inputs of a recipe before anything is run; no weights are read."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from act.core.errors import ActError
from act.data.corpus import Corpus
from act.data.digests import same_text
from act.data.parts import Part
from act.data.records import is_hub_id
from act.data.stream import require_first
from act.evaluation.exercises import require_metric
from act.evaluation.harness import require_tasks
from act.models.loading import reading_named, token_difference
from act.recipes.corpora import SAMPLE, opened, require_first_records
from act.recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from act.models.calls import Reader


def require_decoder(recipe: Recipe, *, trust_remote_code: bool) -> None:
    """Raise :class:`ActError` for a target that cannot be tuned or evaluated, if it is to be."""
    if not (recipe.evaluate or recipe.tune):
        return
    name = recipe.target
    reader, _ = reading_named(recipe.at(name), trust_remote_code=trust_remote_code)
    if reader != "decoder":
        raise ActError(
            f"{name} is an {reader}, and tune and evaluate are for causal language models; leave them out of the "
            "recipe, and train and score the model that it writes by its own task"
        )


def require_tokens(recipe: Recipe, donor: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    """Raise :class:`ActError` for a donor whose tokenizer gives a token id to another token than the target's."""
    if difference := token_difference(theirs, ours):
        raise ActError(
            f"{donor} cannot be a donor for {recipe.target}: {difference}, so the models would read "
            "different texts; give models with one vocabulary"
        )


def require_other_models(recipe: Recipe) -> None:
    """Raise :class:`ActError` if a donor is the target, however its folder is written."""
    target = os.path.realpath(recipe.at(recipe.target))
    for donor in recipe.donor:
        if os.path.realpath(recipe.at(donor.model)) == target:
            raise ActError(f"donor {donor.model} is the target itself, which has nothing to give; give another model")


def require_other_texts(recipe: Recipe, contents: Mapping[str, str]) -> None:
    """Raise :class:`ActError` if a donor's ability and what to keep share text: one content, or rows of one place.

    Files are compared by their records, so that a compressed copy is the same text; what only the hub has is not read.
    """
    pairs = [(donor.corpus, kept) for donor in recipe.donor for kept in donor.kept]
    pairs += [(recipe.sweep.corpus, kept) for kept in recipe.sweep.kept] if recipe.sweep else []
    for ability, kept in pairs:
        if shared := _shared_rows(recipe, ability, kept):
            raise ActError(
                f"{ability} and {kept}, the ability to give and one to keep, share {shared}; give rows that only one "
                "of them has"
            )
        same = kept in contents and contents[kept] == contents.get(ability)
        if same or _alike(recipe, ability, kept):
            raise ActError(
                f"{ability} and {kept}, the ability to give and one to keep, are the same text; keep another"
            )


def _alike(recipe: Recipe, one: str, other: str) -> bool:
    """Whether two corpora of files on this machine hold the same records."""
    if any(not Path(recipe.at(recipe.records(name).place)).exists() for name in (one, other)):
        return False
    with contextlib.suppress(ActError):  # a file that cannot be read is reported by what reads it
        return same_text(opened(recipe, one), opened(recipe, other))
    return False


def _shared_rows(recipe: Recipe, one: str, other: str) -> str | None:
    """The rows that two corpora read alike from one place; None if there are none."""
    both = recipe.records(one), recipe.records(other)
    place, another = (os.path.realpath(recipe.at(records.place)) for records in both)
    if place != another or both[0].columns != both[1].columns:  # other columns, such as translations, are another text
        return None
    starts, ends = zip(*((records.rows or (0, math.inf)) for records in both), strict=True)
    first, stop = max(starts), min(ends)
    if first >= stop:
        return None
    return f"{f'rows [{first}, {stop}]' if stop < math.inf else f'the rows from {first} on'} of {both[0].place}"


def require_readable(recipe: Recipe, corpus: str) -> None:
    """Raise :class:`ActError` for a corpus without rows or columns that are named; the hub is not read."""
    place = recipe.records(corpus).place
    if is_hub_id(recipe.at(place)):
        return
    source = opened(recipe, corpus)
    try:
        require_first_records(source)
    except ActError as error:
        raise recipe.written.blamed(place, error, recipe.corpora) from error


def require_metrics(recipe: Recipe, corpus: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise :class:`ActError` for a metric of sweep or evaluate that a first record does not fit; no hub is read."""
    if is_hub_id(recipe.at(recipe.records(corpus).place)):
        return
    for metric in recipe.metrics(corpus):
        source = Part(opened(recipe, corpus), 0, SAMPLE)
        length, ignored = recipe.max_length, recipe.ignore_columns
        require_metric(Corpus(source, tokenizer, max_length=length, ignore_columns=ignored, name=corpus), metric)


def require_encodable(recipe: Recipe, corpus: Corpus, reader: Reader) -> None:
    """Raise :class:`ActError` where one of the first records of a text is none for the target; the hub is not read.

    Args:
        recipe: the recipe.
        corpus: one of its texts, by the name that it has there.
        reader: how the target reads.
    """
    place = recipe.records(corpus.name).place
    if is_hub_id(recipe.at(place)):
        return
    try:
        require_first({"": corpus.read_by(reader)})
    except ActError as error:
        raise recipe.written.blamed(place, error, recipe.corpora) from error


def require_known_tasks(recipe: Recipe) -> None:
    """Raise :class:`ActError` for a task that the installed lm-evaluation-harness does not know."""
    if recipe.evaluate and recipe.evaluate.tasks:
        folder = recipe.evaluate.task_folder
        require_tasks(recipe.evaluate.tasks, Path(recipe.at(folder)) if folder else None)
