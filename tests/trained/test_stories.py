"""A really trained model on real text, through the command a user types."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import act
from act.cli import app
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps.tapped import taps
from trained.stories import PUBLISHED_SAMPLE, load_model, load_tokenizer


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "stories260K"


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def exported(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def generate(model, tokenizer, length: int) -> str:
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=length, do_sample=False, pad_token_id=0)
    return tokenizer.decode(written[0], skip_special_tokens=True)


def test_greedy_text_equals_the_published_sample(model, tokenizer):
    text = generate(model, tokenizer, 200)
    assert text.startswith(PUBLISHED_SAMPLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_taps_leave_text_and_perplexity_alone(dtype, model, tokenizer, shared_data):
    model = copy.deepcopy(model).to(dtype)
    wiki = (shared_data / "corpus_wiki_en.txt").read_text()[:3000]
    for text in (PUBLISHED_SAMPLE, wiki):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :500]
        with torch.inference_mode():
            stock = model(input_ids=ids).logits
            with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
                tapped.start(torch.ones_like(ids, dtype=torch.bool))
                found = model(input_ids=ids).logits
        assert set(tapped.paths.values()) == {"add_norm", "column_moments", "gated_mlp", "rotary"}
        assert torch.equal(found.argmax(-1), stock.argmax(-1))
        losses = [cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item() for logits in (found, stock)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def independent_statistics(
    model, tokenizer, texts: list[str], length: int, overlap: int
) -> dict[str, dict[str, torch.Tensor]]:
    """Float64 mean and variance of every site by storing all its activations, one unpadded sequence at a time.

    A piece of a long text repeats the last ``overlap`` tokens of the one before, which count there.
    """
    repeated = 0
    stored: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: stored.setdefault(name, []).append(out[0, repeated:].double())
        )
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter)
    ]
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            for start in range(0, max(1, ids.shape[1] - overlap), length - overlap):
                repeated = overlap if start else 1  # <s>, which is no text
                model(input_ids=ids[:, start : start + length])
    for handle in handles:
        handle.remove()
    joined = {name: torch.cat(parts) for name, parts in stored.items()}
    return {
        name: {"mean": rows.mean(0), "var": rows.var(0, correction=0), "rows": rows} for name, rows in joined.items()
    }


@pytest.mark.parametrize("source", ["wikipedia", "its own stories"])
def test_means_and_variances_equal_float64_over_stored_activations(
    source, exported, model, tokenizer, shared_data, tmp_path
):
    if source == "wikipedia":
        texts = [line for line in (shared_data / "corpus_wiki_en.txt").read_text().splitlines() if line.strip()]
        texts = [text[:2000] for text in texts[:6]]
    else:
        texts = generate(model, tokenizer, 400).split("\n")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts))
    output = tmp_path / "profile.safetensors"
    arguments = ["run", "--model", exported, "--corpus", corpus, "--output", output, "--max-length", "256", "--json"]
    arguments += ["--overlap", "20"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    profile = act.load(output)
    expected = independent_statistics(model, tokenizer, [text.strip() for text in texts if text.strip()], 256, 20)
    assert json.loads(result.stdout)["counted"] == len(expected["model.norm"]["rows"])
    # The oracle runs unpadded, so the forward itself differs in the last float32 bits.
    for site in profile.space:
        found, truth = profile.site(site.name), expected[site.name]
        scale = truth["rows"].square().mean(0).sqrt()
        assert ((found.mean - truth["mean"]).abs() <= 2e-6 * scale).all(), site.name
        torch.testing.assert_close(found.var, truth["var"], rtol=5e-6, atol=1e-12)
        assert (found.count == len(truth["rows"])).all()
