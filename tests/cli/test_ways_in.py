"""Models of text and images, and adapters, as a user types them."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import act_profile, succeed
from multimodal import multimodal, of_text
from support import tiny_model
from vision import model_of, picture, processor_of

from act.models.loading import load_model
from act.models.views import language_view
from act.profiles.profile import load
from act.ranking.channel_set import ChannelSet


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("ways")
    for name, model in (("text", of_text("gemma3")), ("images", multimodal("gemma3", 1))):
        model.save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    (path / "corpus.jsonl").write_text(json.dumps({"prompt": "a b", "completion": " c d e"}) + "\n")
    return path


def ranked(path, donor, target, output, *more):
    """The channels of a pair run."""
    pair = succeed(
        "pair", "--donor", donor, "--target", target, "--corpus", path / "corpus.jsonl", "--output", output, *more
    )
    succeed("rank", output, "--top", "20%", "--output", f"{output}.set")
    return pair, f"{output}.set"


def test_a_text_donor_gives_to_a_model_of_images_on_disk(folder, tmp_path):
    donor, target = folder / "text", folder / "images"
    pair, channels = ranked(folder, donor, target, tmp_path / "pair")
    assert 0 < pair["coverage"] < 1
    chosen = ("--donor", donor, "--target", target, "--channels", channels, "--strength", "1")
    done = succeed("transfer", *chosen, "--output", tmp_path / "out")
    assert done["path"] == "disk" and "vision_tower" in done["notes"][-1]
    theirs, ours, result = (load_model(str(place)) for place in (donor, target, tmp_path / "out"))
    wanted = dict(language_view(ours).named_parameters())
    found = ChannelSet.load(channels)
    with torch.no_grad():
        for site, rows in found.space.split(found.index):
            for part in site.parameters:
                part.part_of(wanted[part.key])[rows] = part.part_of(theirs.get_parameter(part.key))[rows]
    assert all(torch.equal(wanted[name], held) for name, held in language_view(result).named_parameters())
    succeed("transfer", *chosen, "--output", tmp_path / "patch.safetensors")
    patch = (tmp_path / "patch.safetensors", "--model", tmp_path / "out", "--output", tmp_path / "back")
    succeed("patch", "revert", *patch)
    weights = [place / "model.safetensors" for place in (target, tmp_path / "back")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_vision_tower_is_said_to_be_unread(folder, tmp_path):
    result = act_profile(
        "run", "--model", folder / "images", "--corpus", folder / "corpus.jsonl", "--output", tmp_path / "p"
    )
    assert result.returncode == 0 and "vision_tower" in result.stderr and "it does not read text" in result.stderr
    planned = succeed("plan", "--model", folder / "images", "--seconds", "0.1")
    assert planned["channels"] > 0
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "a b", "images": ["a.png"]}) + "\n")
    refused = act_profile(
        "run", "--model", folder / "images", "--corpus", tmp_path / "corpus.jsonl", "--output", tmp_path / "q"
    )
    assert refused.returncode == 2 and "has no processor for them" in refused.stderr


def test_an_adapter_gives_what_it_learnt_once_it_is_merged(folder, tmp_path, tokenizer):
    peft = pytest.importorskip("peft")
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model("llama"), config)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    donor, target = tmp_path / "adapter", tmp_path / "base"
    pair = act_profile(
        "pair", "--donor", donor, "--target", target, "--corpus", folder / "corpus.jsonl", "--output", tmp_path / "p"
    )
    assert pair.returncode == 2 and "adapted in one model only" in pair.stderr
    _, channels = ranked(folder, donor, target, tmp_path / "merged", "--merge")
    transfer = ("transfer", "--donor", donor, "--target", target, "--channels", channels, "--strength", "1")
    refused = act_profile(*transfer, "--output", tmp_path / "no")
    assert refused.returncode == 2 and "(--merge)" in refused.stderr
    done = succeed(*transfer, "--merge", "--output", tmp_path / "out")
    assert done["path"] == "memory"
    merged, result, base = (load_model(str(place), merge=True) for place in (donor, tmp_path / "out", target))
    moved = [name for name, held in result.named_parameters() if not torch.equal(held, base.get_parameter(name))]
    assert moved and not all(torch.equal(held, merged.get_parameter(name)) for name, held in result.named_parameters())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for seed, side in enumerate(("donor", "target")):
        model_of("llava", seed).save_pretrained(path / side)
        processor_of("llava").save_pretrained(path / side)
    (path / "corpus").mkdir()
    lines = []
    for number in range(4):
        picture(number, 30 + 5 * number).save(path / "corpus" / f"{number}.png")
        lines.append({"question": "What is it?", "answer": "house", "images": [f"{number}.png"]})
    (path / "corpus" / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_tower_gives_its_channels_on_disk(pictures, tmp_path):
    donor, target, corpus = pictures / "donor", pictures / "target", pictures / "corpus" / "text.jsonl"
    named = ("--donor", donor, "--target", target)
    succeed("pair", *named, "--corpus", corpus, "--output", tmp_path / "pair")
    read = load(tmp_path / "pair").provenance.corpora[0]
    assert read.images == 4 and read.processor
    ranked = ("rank", tmp_path / "pair", "--top", "40%", "--include", "vision_tower.*", "--output", tmp_path / "set")
    assert succeed(*ranked)
    succeed("transfer", *named, "--channels", tmp_path / "set", "--strength", "1", "--output", tmp_path / "out")
    theirs, ours, result = (dict(load_model(str(p)).named_parameters()) for p in (donor, target, tmp_path / "out"))
    moved = [name for name in ours if not torch.equal(ours[name], result[name])]
    assert moved and all("vision_tower" in name for name in moved)
    assert all(((result[name] == theirs[name]) | (result[name] == ours[name])).all() for name in moved)


def test_a_plan_of_images_says_what_reads_them(pictures):
    corpus = pictures / "corpus" / "text.jsonl"
    with_images = succeed("plan", "--model", pictures / "donor", "--corpus", corpus, "--seconds", "0.1")
    assert with_images["corpus"]["images"] == 4 and with_images["corpus"]["tokens"] > 4 * 16
    tower = [site for site in with_images["sites"] if site["name"].startswith("vision_tower.encoder")]
    assert tower and {site["path"] for site in tower} == {"column_moments"}
    alone = succeed("plan", "--model", pictures / "donor", "--tokens", "100", "--seconds", "0.1")
    tower = [site for site in alone["sites"] if site["name"].startswith("vision_tower.encoder")]
    assert {site["path"] for site in tower} == {"not measured"}
    shown = act_profile("run", "--model", pictures / "donor", "--corpus", corpus, "--show-spans", "1")
    assert shown.returncode == 0 and 16 * "<image>" in shown.stdout and "[[house" in shown.stdout
