"""Images of records: where they stand, and what a model's own processor makes of them and the text around them."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Many
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from act.core.errors import ActError, brief
from act.core.extras import optional
from act.data.batching import Sequence, batches
from act.data.columns import ignore_option

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

COLUMNS = ("image", "images")
"""Columns of images: a path, the bytes of a file, a dict of either (``bytes``, ``path``), a PIL image, or a list."""

_OF_A_PART = ("image", "url")
_SAMPLES = ((48, 80), (96, 40))  # pixels; of two shapes, so that a model that pads images must do so


def column_of(record: Mapping[str, Any], ignored: Collection[str] = ()) -> str | None:
    """The column that holds images, or messages with places for them; None if none does."""
    named = (name for name in COLUMNS if name not in ignored and images_in(record.get(name)))
    return next(named, "messages" if any(True for _ in _parts(record.get("messages"))) else None)


def images_in(value: Any) -> list[Any]:
    """The images in a column, as they are given."""
    if isinstance(value, list | tuple):
        return [each for each in value if each is not None]
    empty = value is None or (isinstance(value, str | bytes | Mapping) and not value)
    return [] if empty else [value]


def located(record: Mapping[str, Any], folder: PurePath) -> Mapping[str, Any]:
    """The record, with paths of images that are relative to a folder."""

    def found(image: Any) -> Any:
        if isinstance(image, str) and "://" not in image:
            return str(folder / image)
        if isinstance(image, Mapping) and isinstance(image.get("path"), str) and not image.get("bytes"):
            return {**image, "path": str(folder / image["path"])}
        return image

    def part(given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**found(given), **{key: found(given[key]) for key in _OF_A_PART if given.get(key)}}

    if column_of(record) is None:
        return record
    columns = {name: [*map(found, images_in(record[name]))] for name in COLUMNS if images_in(record.get(name))}
    return {**_with_parts(record, part), **columns}


def taken_out(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[Image]]:
    """A record with nothing but the places of its images, and these, opened: those of messages, then of columns.

    Raises:
        ActError: an image is missing or damaged, or no image.
    """
    given: list[Any] = []

    def place(part: Mapping[str, Any]) -> Mapping[str, Any]:
        held = next((part[key] for key in _OF_A_PART if part.get(key)), part)
        if held is not part or part.get("bytes") or part.get("path"):
            given.append(held)
        return {"type": "image"}

    rest = _with_parts(record, place)
    given += [image for name in COLUMNS for image in images_in(record.get(name))]
    return {name: value for name, value in rest.items() if name not in COLUMNS}, [*map(opened, given)]


def opened(given: Any) -> Image:
    """An image as processors take it: upright, in colours.

    Raises:
        ActError: the file is missing or damaged, or this is no image.
    """
    from transformers.image_utils import load_image

    pillow = optional("PIL.Image", "images", "a corpus with images")
    held = given.get("bytes") or given.get("path") if isinstance(given, Mapping) else given
    if isinstance(held, str):
        if "://" in held:
            raise ActError(f"the image {held:.100} is an address, and images are read from files; give its path")
        if not Path(held).is_file():
            raise ActError(f"no such image: {held}; a path is relative to the file of the corpus")
    elif not isinstance(held, bytes | pillow.Image):
        raise ActError(f"an image is {given!r:.100}; expected a path, a dict of bytes and path, or a PIL image")
    try:
        file = io.BytesIO(held) if isinstance(held, bytes) else held
        image: Image = load_image(file if isinstance(file, pillow.Image) else pillow.open(file))
    except Exception as error:  # the decoders of Pillow raise anything
        name = held if isinstance(held, str) else "in the record"
        raise ActError(f"the image {name} is damaged or of an unknown format ({brief(error)}); replace it") from error
    return image


class Vision:
    """The processor of a model of text and images: which tokens an image becomes, and what the model reads beside them.

    Args:
        processor: as ``AutoProcessor`` loads it.
        tokenizer: the model's; a chat template that was set on it takes the place of the processor's.
    """

    def __init__(self, processor: ProcessorMixin, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._processor: Any = processor
        self.tokenizer: PreTrainedTokenizerBase = copy.copy(self._processor.tokenizer)
        stored = self.tokenizer.chat_template
        if tokenizer is not None and tokenizer.chat_template != stored:
            self.tokenizer.chat_template = tokenizer.chat_template
        elif template := getattr(processor, "chat_template", None):
            self.tokenizer.chat_template = template

    @cached_property
    def place(self) -> str:
        """The text in whose place the processor puts the tokens of an image."""
        found = [getattr(self._processor, name, None) for name in ("image_token", "boi_token")]
        known = [str(token) for token in dict.fromkeys(found) if token] or ["<image>"]
        return next((place for place in known[:-1] if self._becomes_more(place)), known[-1])

    def _becomes_more(self, place: str) -> bool:
        """Whether the processor puts several tokens in place of a text; of some, it is what an image becomes."""
        try:
            given = self._processor(text=[place], images=[_random_image(0)], return_tensors="pt")
        except Exception:  # processors raise anything
            return False
        return bool(given["input_ids"].shape[1] > 2)

    @cached_property
    def tokens(self) -> list[int]:
        """The ids of the tokens that an image becomes, but for separators."""
        ids = getattr(self._processor, "image_token_ids", None) or [getattr(self._processor, "image_token_id", None)]
        return sorted({token for token in ids if token is not None})

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the settings of the processor, and of its chat template."""
        settings = json.dumps(self._processor.to_dict(), sort_keys=True, default=lambda other: type(other).__name__)
        return hashlib.sha256(f"{settings}{self.tokenizer.chat_template}".encode()).hexdigest()[:16]

    def require_places(self, text: str, images: Many[Image]) -> None:
        """Raise :class:`ActError` unless a text has a place for each image."""
        if (places := text.count(self.place)) != len(images):
            raise ActError(
                f"the record has {len(images)} image(s) and its text {places} place(s) for them; write each as "
                f"{self.place}, or as a part of type image in the content of a message"
            )

    def __call__(self, text: str, images: Many[Image]) -> tuple[list[int], dict[str, np.ndarray]]:
        """The token ids of a text with the images that it has places for, and what else the model reads, by argument.

        Raises:
            ActError: the processor does not take them.
        """
        shown = [*images[: text.count(self.place)]] or None
        try:
            # Tensors, because some image processors give nothing else.
            given = self._processor(text=[text], images=shown, return_tensors="pt", add_special_tokens=False)
        except Exception as error:  # processors raise anything
            raise ActError(f"the processor of the model does not take the record ({brief(error)})") from error
        held = {name: x.numpy() for name, x in given.items() if isinstance(x, torch.Tensor)}
        ids: list[int] = held.pop("input_ids")[0].tolist()
        held.pop("attention_mask", None)
        return ids, held

    def samples(self) -> tuple[dict[str, torch.Tensor], ...]:
        """Inputs that show a model random images: one, another of another shape, and both beside each other."""
        images = [*map(_random_image, range(len(_SAMPLES)))]
        one, other = (self._sample(f"{self.place} a", [image]) for image in images)
        try:
            rows = [self._sample(f"{self.place} a {self.place} b c d", images)]
        except ActError:  # some processors take one image for a text
            rows = [one, other]
        return tuple(next(batches(each, 1 << 30, 0)).arguments() for each in ([one], [other], rows))

    def _sample(self, text: str, images: Many[Image]) -> Sequence:
        ids, beside = self(text, images)
        return Sequence(np.asarray(ids), np.ones(len(ids), dtype=bool), images=len(images), beside=beside)


def processor_beside(tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """The processor in the folder, or under the hub id, from which a tokenizer was loaded.

    Raises:
        ActError: there is none, or it cannot be loaded.
    """
    from transformers import AutoProcessor

    optional("PIL.Image", "images", "a corpus with images")
    name = str(tokenizer.name_or_path)
    try:
        found: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        reason = "" if hasattr(found, "image_processor") else "it has no preprocessor_config.json"
    except Exception as error:  # transformers and its backends raise anything
        reason = brief(error)
    if reason:
        raise ActError(
            f"the corpus has images, and {name or 'the tokenizer'} has no processor for them that can be loaded "
            f"({reason}); save the model's processor beside its tokenizer, or measure the text alone "
            f"({ignore_option(*COLUMNS)})"
        )
    processor: ProcessorMixin = found
    return processor


def _random_image(number: int) -> Image:
    from PIL import Image as pillow

    pixels = np.random.default_rng(number).integers(0, 256, (*_SAMPLES[number], 3), dtype=np.uint8)
    return pillow.fromarray(pixels)


def _parts(messages: Any) -> Iterator[Mapping[str, Any]]:
    """The parts of messages that are images."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        yield from filter(_is_image, content if isinstance(content, list) else ())


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _with_parts(record: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """The record with every part of its messages that is an image as ``change`` makes it."""
    if not any(True for _ in _parts(record.get("messages"))):
        return dict(record)
    messages = []
    for message in record["messages"]:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list):
            message = {**message, "content": [change(part) if _is_image(part) else part for part in content]}
        messages.append(message)
    return {**record, "messages": messages}
