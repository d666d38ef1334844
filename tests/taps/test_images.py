"""Records with images: every site of text and tower against float64 moments of what plain hooks saw, one by one."""

from __future__ import annotations

import re

import pytest
import torch
from vision import PLACES, model_of, picture, processor_of

import act
from act.models.channels import ChannelSpace
from act.models.views import language_view
from act.profiles.moments import Moments
from act.taps.tapped import taps

UNREAD = {"llava": "vision_tower.post_layernorm", "gemma3": "vision_tower.head.|mm_input_projection_weight"}


def user(text: str, images: int) -> list[dict]:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": "A small house"}]


def records(family: str) -> list[dict]:
    """Every form, with one image or two of several shapes."""
    return [
        {"messages": user("What is in the picture?", 1), "images": [picture(0, 40, 30)]},
        {"messages": user("What?", 2), "images": [picture(1, 30, 60), picture(2, 64, 20)]},
        {"question": "What is in the picture", "answer": "house", "image": picture(3, 33, 47)},
        {"prompt": f"a {PLACES[family]} What is", "completion": " two plus", "images": [picture(4, 20, 20)]},
        {"question": "What is two plus three?", "answer": "five"},
    ]


def rows_of(output: torch.Tensor, width: int) -> torch.Tensor:
    last = output if output.shape[-1] == width else output.movedim(1, -1)
    return last.reshape(-1, width).double()


def alone(model, processor, family: str, record: dict) -> tuple[dict, torch.Tensor]:
    """One record as the processor makes it, and the mask of its answer."""
    images = record.get("images") or [record[name] for name in ("image",) if name in record]
    if "prompt" in record:
        texts = [record["prompt"], record["prompt"] + record["completion"] + processor.tokenizer.eos_token]
    else:
        turns = record.get("messages") or user(record["question"], len(images))
        turns[1] = {"role": "assistant", "content": record.get("answer", "A small house")}
        write = processor.tokenizer.apply_chat_template
        texts = [write(turns[:1], tokenize=False, add_generation_prompt=True), write(turns, tokenize=False)]
    prompt, whole = (processor(text=[text], images=images or None, return_tensors="pt") for text in texts)
    start, length = prompt["input_ids"].shape[1], whole["input_ids"].shape[1]
    end = length if "prompt" in record else length - 1  # the template ends with a line break
    places = torch.arange(length)
    return dict(whole), (places >= start) & (places < end)


def reference(model, processor, family: str, corpus: list[dict]) -> dict[str, torch.Tensor]:
    """The counted rows of every module: of text those of answers, of a tower all."""
    view = language_view(model)
    beside = tuple(f"{name}." for name in view.beside)
    found: dict[str, list[torch.Tensor]] = {}
    mask, images = torch.zeros(0), 0

    def keep(name: str, width: int):
        def hook(module, args, output):
            if not isinstance(output, torch.Tensor):
                return
            rows = rows_of(output, width)
            if name.endswith("position_embedding") and len(output) == 1:  # that all images share
                rows = rows.repeat(images, 1)
            found.setdefault(name, []).append(rows if f"{name}.".startswith(beside) else rows[mask])

        return hook

    widths = {site.module: 0 for site in ChannelSpace.from_model(model) if not site.scales}
    for site in ChannelSpace.from_model(model):
        if not site.scales:
            widths[site.module] += site.width
    modules = dict(view.named_modules())
    handles = [modules[name].register_forward_hook(keep(name, width)) for name, width in widths.items() if name in modules]
    for record in corpus:
        inputs, mask = alone(model, processor, family, record)
        images = len(record.get("images", ())) or int("image" in record)
        with torch.no_grad():
            model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


@pytest.mark.parametrize("family", PLACES)
def test_every_site_agrees_with_float64(family):
    model, processor = model_of(family), processor_of(family)
    given = records(family)
    expected = reference(model, processor, family, given)
    profile = act.profile(model, act.Corpus.from_records(given, processor))
    unread = re.compile(UNREAD.get(family, "nothing"))
    for site in profile.space:
        found = profile.site(site.name)
        if site.scales or (unread.search(site.name) and not found.count.any()):
            continue
        rows = expected[site.module]
        if site.name.endswith("]"):
            rows = rows.chunk(3, -1)["qkv".index(site.kind)]
        size = rows.square().mean(0).sqrt().clamp(min=1e-3)
        assert found.count.unique().tolist() == [len(rows)], site.name
        assert ((found.mean - rows.mean(0)).abs() / size).max() < 1e-5, site.name
        assert ((found.var - rows.var(0, correction=0)).abs() / size.square()).max() < 1e-5, site.name
    read = profile.provenance.corpora[0]
    assert read.images == 5 and read.processor and read.counted == len(expected["lm_head"])
