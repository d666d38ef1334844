"""Records with images: every site of text and tower against float64 moments of what plain hooks saw, one by one."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from support import chosen
from vision import PLACES, model_of, picture, processor_of

import act
from act.models.channels import ChannelSpace
from act.models.views import language_view
from act.profiles.combine import combine
from act.profiles.moments import Moments
from act.profiles.profile import load
from act.profiling.checkpoint import Checkpoint
from act.profiling.observer import Observer
from act.taps.tapped import taps

UNREAD = {
    "llava": r"\.post_layernorm",
    "gemma3": r"\.head\.",
    "llava_next": r"\.post_layernorm|position_embedding",  # crops of which some are padding share the positions
    "mllama": r"^vision_model|^multi_modal_projector|^model\.layers\.1\.",  # tiles that are padding; across to them
}
OF_IMAGES = re.compile("vision|visual|connector|projector")


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
    read = functools.partial(processor, images=images) if images else processor.tokenizer
    prompt, whole = (read(text=[text], return_tensors="pt") for text in texts)
    start, length = prompt["input_ids"].shape[1], whole["input_ids"].shape[1]
    end = length if "prompt" in record else length - 1  # the template ends with a line break
    places = torch.arange(length)
    return dict(whole), (places >= start) & (places < end)


def reference(model, processor, family: str, corpus: list[dict], donor=None) -> dict[str, torch.Tensor]:
    """The counted rows of every module: of text those of answers, of a tower all.

    With a ``donor``, what its modules give on the inputs of the model's.
    """
    view = language_view(model)
    theirs = None if donor is None else dict(language_view(donor).named_modules())
    found: dict[str, list[torch.Tensor]] = {}
    mask, images = torch.zeros(0), 0

    def keep(name: str, width: int):
        def hook(module, args, output):
            if not isinstance(output, torch.Tensor):
                return
            output = output if theirs is None else theirs[name](*args)
            rows = rows_of(output, width)
            if name.endswith("position_embedding") and len(output) == 1:  # that all images share
                rows = rows.repeat(images, 1)
            if not OF_IMAGES.search(name) and len(rows) % len(mask) == 0:
                heads = len(rows) // len(mask)
                outer = output.dim() == 4 and output.shape[1] == heads
                rows = rows[mask.repeat(heads) if outer else mask.repeat_interleave(heads)]
            found.setdefault(name, []).append(rows)

        return hook

    widths = {site.module: 0 for site in ChannelSpace.from_model(model) if not site.scales}
    for site in ChannelSpace.from_model(model):
        if not site.scales:
            widths[site.module] += site.width
    modules = dict(view.named_modules())
    handles = [
        modules[name].register_forward_hook(keep(name, width)) for name, width in widths.items() if name in modules
    ]
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


def test_without_images_a_tower_stays_unread_and_says_so():
    model, processor = model_of("llava"), processor_of("llava")
    text = [{"question": "What is two plus three?", "answer": "five"}]
    profile = act.profile(model, act.Corpus.from_records(text, processor))
    tower = [site.name for site in profile.space if site.name.startswith(language_view(model).beside)]
    assert tower and not any(profile.site(name).count.any() for name in tower)
    assert {*tower} <= {*profile.provenance.corpora[0].irregular} and profile.provenance.corpora[0].processor is None
    with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        assert {tapped.unread[name] for name in tower} == {"it does not read text"}


def test_what_pools_an_image_is_left_out_by_name():
    model, processor = model_of("llava"), processor_of("llava")
    images = act.Corpus.from_records(records("llava"), processor).seen_by(model).vision.samples()
    with taps(model, Moments(ChannelSpace.from_model(model)), images=images) as tapped:
        ((name, reason),) = tapped.unread.items()
    assert re.search(UNREAD["llava"], name) and reason == "it has a row for each image, not for each patch"


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_a_pair_runs_in_lockstep_and_a_transfer_moves_channels_of_a_tower(family):
    donor, target = (model_of(family, seed) for seed in (0, 1))
    corpus = act.Corpus.from_records(records(family), processor_of(family))
    pair = act.profile_pair(donor, target, corpus)
    for side, model in ((pair.donor, donor), (pair.target, target)):
        alone = act.profile(model, corpus)
        assert torch.equal(side.count, alone.count)
        torch.testing.assert_close(side.mean, alone.mean, rtol=1e-5, atol=1e-6, equal_nan=True)
    ranked = act.rank(pair, score="paired", top=0.3)
    assert any(site.layouts[0].tokens == "patches" for site, _ in ranked.space.split(ranked.index))
    channels = chosen(pair.space, 0.3)
    before = {name: x.clone() for name, x in target.named_parameters()}
    patch = act.transfer(donor, target, channels, strength=1.0)
    theirs, ours = (dict(model.named_parameters()) for model in (donor, target))
    for site, rows in channels.space.split(channels.index):
        for part in site.parameters:
            assert torch.equal(part.part_of(ours[part.name])[rows], part.part_of(theirs[part.name])[rows])
    patch.revert(target)
    assert all(torch.equal(x, before[name]) for name, x in target.named_parameters())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_outputs_of_text_and_tower_are_swapped(family):
    donor, target = (model_of(family, seed) for seed in (0, 1))
    processor, given = processor_of(family), records(family)
    pair = act.profile_pair(donor, target, act.Corpus.from_records(given, processor), swap=True)
    mine, swapped = (reference(target, processor, family, given, model) for model in (None, donor))
    towers = 0
    for site in pair.space:
        found = pair.site(site.name)
        if site.scales or not found.target.count.any():
            continue
        delta = swapped[site.module] - mine[site.module]
        if site.name.endswith("]"):
            delta = delta.chunk(3, -1)["qkv".index(site.kind)]
        size = delta.square().mean(0).sqrt().clamp(min=1e-3)
        assert (found.swap.count == found.target.count).all() and found.product.count.any(), site.name
        assert ((found.swap.mean - delta.mean(0)).abs() / size).max() < 1e-4, site.name
        towers += bool(OF_IMAGES.search(site.name))
    assert towers and set(pair.provenance.corpora[0].unswapped.values()) <= {
        "it only scales or shifts what another site gives"
    }
    assert len(act.rank(pair, "match", 0.1))


class _Stops(Observer):
    def after_batch(self, run, batch):
        raise KeyboardInterrupt


def test_a_run_with_images_goes_on_to_the_same_bits_and_shards_add_up(tmp_path):
    model = model_of("llava")

    def profiled(**options):
        corpus = act.Corpus.from_records(records("llava"), processor_of("llava"))
        return act.profile(model, corpus, token_budget=60, **options)

    whole = profiled()
    with pytest.raises(KeyboardInterrupt):
        profiled(observers=[_Stops()], checkpoint=Checkpoint(tmp_path / "c", 0))
    again = profiled(checkpoint=Checkpoint(tmp_path / "c", 0))
    assert torch.equal(again.mean.nan_to_num(), whole.mean.nan_to_num()) and torch.equal(again.count, whole.count)
    assert again.provenance.corpora[0].images == whole.provenance.corpora[0].images == 5
    together = combine([profiled(shard=(number, 2)) for number in range(2)])
    assert torch.equal(together.count, whole.count) and together.provenance.corpora[0].images == 5
    together.save(tmp_path / "p.safetensors")
    loaded = load(tmp_path / "p.safetensors").provenance.corpora[0]
    assert loaded.images == 5 and loaded.processor == whole.provenance.corpora[0].processor


class _Padding(torch.nn.Module):
    """A tower that pads every image to the largest, and another part that reads a window over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.padded, self.apart = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)
        self.mixed, self.pooled = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)

    def forward(self, pixel_values: torch.Tensor, pixel_attention_mask: torch.Tensor) -> None:
        self.padded(pixel_values)
        self.apart(pixel_values[pixel_attention_mask.bool()])
        self.mixed(pixel_values - pixel_values.mean((0, 1)))
        self.pooled(pixel_values.sum(1))


def test_padding_of_images_is_not_counted_and_what_depends_on_others_is_unread():
    from act.models.sites import Site
    from act.taps.layouts import Unread
    from act.taps.patches import counted, learn_patches

    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pixels = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)) * mask[..., None]
    both = {"pixel_values": pixels, "pixel_attention_mask": mask}
    apart = [
        {"pixel_values": pixels[n : n + 1, :m], "pixel_attention_mask": mask[n : n + 1, :m]}
        for n, m in ((0, 3), (1, 5))
    ]
    names = ("padded", "apart", "mixed", "pooled")
    found = learn_patches(_Padding(), {name: Site(name, "up", None, 0, 5, ()) for name in names}, [*apart, both])
    assert str(found["padded"][0]) == str(found["apart"][0]) == "[patches, channels]"
    assert counted(10, both).tolist() == mask.flatten().tolist() and counted(8, both) is None
    assert "depends on those beside it" in found["mixed"].reason
    assert "which of them are padding is not known" in found["pooled"].reason
    tiles = {**both, "aspect_ratio_mask": torch.tensor([[[1, 0]]])}
    with pytest.raises(Unread, match="aspect_ratio_mask marks some of its rows as padding"):
        counted(10, tiles)
    grid = torch.ones(1, 2, 4, 6)  # two images of 4 x 6 pixels, 2 x 3 patches, the second with two columns of padding
    grid[0, 1, :, 4:] = 0
    assert counted(12, {"pixel_attention_mask": grid}).tolist() == [True] * 8 + [False] + [True] * 2 + [False]
