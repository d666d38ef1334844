"""Images of records: every way to give them, what they become, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from support import tiny_model
from vision import PLACES, model_of, picture, processor_of

import act
from act.core.errors import ActError
from act.data import batching, stream
from act.data.corpus import Corpus
from act.data.images import Vision
from act.data.stream import Stream

ASK = {"question": "What is in the picture?", "answer": "house"}


def encoded(records, family="llava", **options):
    return list(Corpus.from_records(records, processor_of(family), **options).with_images().encoded())


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "png")
    return file.getvalue()


def chat(*parts: object) -> list[dict]:
    return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": "house"}]


def test_every_way_to_give_an_image_means_the_same(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    text, place = {"type": "text", "text": ASK["question"]}, {"type": "image"}
    ways = [
        {**ASK, "image": picture(0)},
        {**ASK, "images": [picture(0)]},
        {**ASK, "images": [{"bytes": png(), "path": None}]},
        {**ASK, "images": [{"bytes": None, "path": "pictures/a.png"}]},
        {**ASK, "image": str(tmp_path / "pictures" / "a.png")},
        {**ASK, "question": f"<image>{ASK['question']}", "image": png()},
        {"instruction": ASK["question"], "output": "house", "images": "pictures/a.png"},
        {"messages": chat(place, text), "images": ["pictures/a.png"]},
        {"messages": chat({**place, "image": "pictures/a.png"}, text)},
        {"messages": chat({**place, "path": "pictures/a.png", "text": None}, text)},
        {"messages": chat({**place, "url": picture(0)}, text)},
    ]
    corpus = Corpus.from_records(ways, processor_of("llava"))
    plain = [json.loads(json.dumps(way)) for way in ways[3:5] + ways[6:10]]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, plain)))
    ways = [way for way in ways if way not in plain]
    found = [
        *encoded(ways),
        *Corpus.from_file(tmp_path / "corpus.jsonl", processor_of("llava")).with_images().encoded(),
    ]
    assert len(found) == 11 and corpus.source.size == 11
    first = found[0]
    for one in found[1:]:
        assert one.input_ids.tolist() == first.input_ids.tolist() and one.answer.tolist() == first.answer.tolist()
        assert (one.beside["pixel_values"] == first.beside["pixel_values"]).all() and one.images == 1


def test_images_in_parquet_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({**{k: [v] * 2 for k, v in ASK.items()}, "image": [picture(0), picture(1)]})
    table.to_parquet(tmp_path / "t.parquet")
    processor = processor_of("llava")
    found = list(Corpus.from_file(tmp_path / "t.parquet", processor).with_images().encoded())
    found += Corpus.from_dataset(table, processor).with_images().encoded()
    assert [one.images for one in found] == [1] * 4
    assert (found[1].beside["pixel_values"] == found[3].beside["pixel_values"]).all()


@pytest.mark.parametrize("family", PLACES)
def test_placeholders_are_tokens_of_the_prompt(family):
    processor = processor_of(family)
    image = processor.tokenizer.convert_tokens_to_ids(
        getattr(processor.tokenizer, "image_token", None) or processor.image_token
    )
    (one,) = encoded([{**ASK, "images": [picture(0), picture(1)]}], family)
    places = one.input_ids == image
    assert places.sum() >= 2 and not (one.answer & places).any() and one.answer.any()
    assert one.counted("prompt")[places].all() and one.counted("all")[places].all()
    (whole,) = encoded([{"text": f"{PLACES[family]} a house", "image": picture(0)}], family)
    assert not whole.answer[whole.input_ids == image].any() and whole.answer.any()


def test_batches_hold_to_the_budget_with_the_tokens_of_images():
    records = [{**ASK, "images": [picture(n, 30 + n)] * (1 + n % 2)} for n in range(6)] + [ASK] * 3
    corpus = Corpus.from_records(records, processor_of("llava")).with_images()
    batches = list(Stream({"": corpus}, token_budget=100))
    assert all(batch.size <= 100 for batch in batches) and sum(batch.images for batch in batches) == 9
    assert all(len(batch.arguments()["pixel_values"]) == batch.images for batch in batches if batch.images)
    assert [batch for batch in batches if not batch.images and "pixel_values" not in batch.arguments()]
    two = next(batch for batch in batches if len(batch.count_mask) == 2 and batch.images)
    first, second = two.halves()
    assert torch.equal(
        torch.cat([x.arguments()["pixel_values"] for x in (first, second)]), two.arguments()["pixel_values"]
    )


@pytest.mark.parametrize("family", ["idefics3", "qwen2_vl", "gemma3"])
def test_images_are_put_together_as_the_processor_does(family):
    processor = processor_of(family)
    sizes = ((20, 20), (60, 20)) if family == "qwen2_vl" else ((40, 20), (60, 30))
    records = [
        {"messages": chat({"type": "image"}, {"type": "text", "text": "a " * n}), "image": picture(n, *sizes[n - 1])}
        for n in (1, 2)
    ]
    (batch,) = Stream({"": Corpus.from_records(records, processor).with_images()}, token_budget=1 << 20)
    given = [records[number] for number in batch.documents]
    texts = [processor.tokenizer.apply_chat_template(one["messages"], tokenize=False) for one in given]
    expected = processor(text=texts, images=[[one["image"]] for one in given], padding=True, return_tensors="pt")
    found = batch.arguments()
    assert expected.keys() == found.keys()
    for name in expected.keys() - {"input_ids"}:  # padded with a token of the processor's
        assert torch.equal(found[name], expected[name]), name


def test_images_of_other_sizes_are_in_other_batches_so_that_none_is_padded():
    records = [{**ASK, "images": [picture(n, 40, 30)] * (1 + n % 2)} for n in range(6)]
    corpus = Corpus.from_records(records, processor_of("idefics3")).with_images()
    batches = list(Stream({"": corpus}, token_budget=1 << 20))
    assert [batch.images for batch in batches] == [3, 6]
    assert all(batch.arguments()["pixel_attention_mask"].all() for batch in batches)


def test_a_window_ends_where_its_images_would_fill_the_memory(monkeypatch):
    records = [{**ASK, "images": [picture(n)]} for n in range(6)]
    corpus = Corpus.from_records(records, processor_of("llava")).with_images()
    assert len(list(Stream({"": corpus}, token_budget=200))) == 1
    monkeypatch.setattr(stream, "LOOK_AHEAD_BYTES", 2 * 3 * 32 * 32 * 4)
    cut = list(Stream({"": corpus}, token_budget=200))
    assert [batch.after.record for batch in cut] == [2, 4, 6]
    for number in (1, 2):  # going on gives the same batches
        again = Stream({"": corpus}, token_budget=200, start=cut[number - 1].after)
        for one, other in zip(again, cut[number:], strict=True):
            assert all(torch.equal(x, other.arguments()[name]) for name, x in one.arguments().items())


def test_packed_rows_have_no_images():
    corpus = Corpus.from_records([{**ASK, "image": picture(0)}, ASK, ASK], processor_of("llava")).with_images()
    sequences = list(corpus.sequences())
    packed = list(batching.batches(sequences, 1 << 20, 0, packing=True))
    assert [(batch.packed, batch.images) for batch in packed] == [(True, 0), (False, 1)]


def test_an_encoder_can_be_sent_to_workers_and_a_processor_has_one_fingerprint(tmp_path):
    corpus = Corpus.from_records([{**ASK, "image": picture(0)}], processor_of("llava")).with_images()
    (here,), (there,) = (
        list(one([{**ASK, "image": picture(0)}]))
        for one in (corpus.encoder, pickle.loads(pickle.dumps(corpus.encoder)))
    )
    assert here.input_ids.tolist() == there.input_ids.tolist()
    processor_of("llava").save_pretrained(tmp_path)
    from transformers import AutoProcessor, AutoTokenizer

    loaded = Corpus.from_records([{**ASK, "image": picture(0)}], AutoTokenizer.from_pretrained(tmp_path)).with_images()
    again = Corpus.from_records([{**ASK, "image": picture(0)}], AutoProcessor.from_pretrained(tmp_path)).with_images()
    assert loaded.vision.fingerprint == again.vision.fingerprint
    assert loaded.identity()["fingerprint"] == again.identity()["fingerprint"]  # of pixels, not of where they lie
    assert "processor" not in Corpus.from_records([ASK], processor_of("llava")).with_images().identity()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**ASK, "image": "missing.png"}, "no such image: missing.png; a path is relative to the file of the corpus"),
        ({**ASK, "image": b"no image"}, "the image in the record is damaged or of an unknown format"),
        ({**ASK, "image": png()[:80]}, "is damaged or of an unknown format"),
        ({**ASK, "image": 3}, "an image is 3; expected a path"),
        ({**ASK, "image": "https://a.org/b.png"}, "https://a.org/b.png is an address, and images are read from files"),
        ({"prompt": "a", "completion": "b", "image": picture(0)}, r"1 image\(s\) and its text 0 place\(s\)"),
        ({"prompt": "<image>", "completion": "b", "images": [picture(0)] * 2}, r"2 image\(s\) and its text 1 place"),
        ({"prompt": "<image> a", "completion": "b"}, r"0 image\(s\) and its text 1 place"),
        ({"messages": chat({"type": "image"}, {"type": "text", "text": "a"})}, r"0 image\(s\) and its text 1 place"),
        ({"messages": chat({"type": "text", "text": "a"}), "image": picture(0)}, r"1 image\(s\) and its text 0 place"),
        (
            {**ASK, "image": picture(0), "video": "a.mp4"},
            "the column video is more than text, and only text and images",
        ),
        ({"input_ids": [1, 2], "image": picture(0)}, "images beside input_ids"),
        ({**ASK, "question": "a " * 3000, "image": picture(0)}, "tokens and the limit is 2048"),
        ({"text": "a " * 3000 + "<image>", "image": picture(0)}, "tokens and the limit is 2048"),
    ],
)
def test_bad_images_are_one_sentence(record, message):
    with pytest.raises(ActError, match=message):
        encoded([{**ASK, "image": picture(0)}, record])


def test_models_and_places_that_read_no_images_say_so(tmp_path):
    model, processor = model_of("llava"), processor_of("llava")
    records = [{**ASK, "image": picture(0)}]
    with pytest.raises(ActError, match="the column image is more than text, and LlamaForCausalLM reads text alone"):
        act.profile(tiny_model("llama"), Corpus.from_records(records, processor.tokenizer))
    processor.tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    bare = Corpus.from_records(records, AutoTokenizer.from_pretrained(tmp_path))
    with pytest.raises(ActError, match=r"the corpus has images, and .* has no processor for them"):
        act.profile(model, bare)
    with pytest.raises(ActError, match=r"none of the first 128 records has any \(let one that has come first\)"):
        act.profile(model, Corpus.from_records([*[ASK] * 128, *records], processor))
    with pytest.raises(ActError, match="records has images, which a token cache does not hold"):
        Corpus.from_records(records, processor).with_images().cached(tmp_path)
    with pytest.raises(ActError, match="records has images, which a token cache does not hold"):
        act.profile(model, Corpus.from_records(records, processor).cached(tmp_path))
    with pytest.raises(ActError, match="the column image is more than text, and only text is read here"):
        act.evaluate(model, Corpus.from_records(records, processor))
    alone = act.profile(model, Corpus.from_records(records, processor, ignore_columns=["image"]))
    assert not alone.provenance.corpora[0].images


def test_a_chat_template_that_was_set_takes_the_place_of_the_processors():
    processor = processor_of("llava")
    tokenizer = copy.copy(processor.tokenizer)
    assert Vision(processor, tokenizer).tokenizer.chat_template == Vision(processor).tokenizer.chat_template
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert Vision(processor, tokenizer).tokenizer.chat_template == tokenizer.chat_template
