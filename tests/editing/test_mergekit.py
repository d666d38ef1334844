from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import chosen, state, tiny_model
from tiny_families import tiny
from typer.testing import CliRunner

import act
from act.cli import app
from act.cli.mergekit import EXAMPLE
from act.models.channels import ChannelSpace
from act.profiles.provenance import ModelRead
from act.ranking.rule import Rule

RUNNER = CliRunner()


@pytest.fixture
def models(tmp_path):
    pytest.importorskip("mergekit")
    held = {}
    for seed, name in enumerate(("target", "one", "two")):
        held[name] = tiny_model("llama", seed, torch.bfloat16)
        held[name].save_pretrained(tmp_path / name)
    for seed, name in enumerate(("one", "two")):
        chosen(ChannelSpace.from_model(held["target"]), 0.3, seed).save(tmp_path / f"{name}.set")
    return held


def configured(folder, donors, **parameters):
    entries = [
        {
            "model": str(folder / name),
            "parameters": {"channels": str(folder / f"{name}.set"), "weight": weight},
        }
        for name, weight in donors.items()
    ]
    config = {"merge_method": "act", "base_model": str(folder / "target"), "models": entries, "parameters": parameters}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("overlap", ["sum", "first"])
def test_mergekit_gives_the_bytes_of_our_transfer(models, tmp_path, overlap):
    config = configured(tmp_path, {"one": 0.4, "two": 0.7}, overlap=overlap)
    from act.editing.mergekit import merge

    merge(config, tmp_path / "out")
    sets = {name: act.ChannelSet.load(tmp_path / f"{name}.set") for name in ("one", "two")}
    donors = [act.Donor(models[name], sets[name], weight) for name, weight in (("one", 0.4), ("two", 0.7))]
    before = state(models["target"])
    act.transfer_many(donors, models["target"], overlap)
    expected = state(models["target"])
    assert not torch.equal(expected["lm_head.weight"], before["lm_head.weight"])
    merged = {name: t for path in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(path).items()}
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_a_set_ranked_by_attribution_merges_like_any(models, tmp_path, tokenizer):
    from act.editing.mergekit import merge

    corpus = act.Corpus.from_records([{"prompt": "What is", "completion": " the answer"}], tokenizer)
    donor, target = models["one"], models["target"]
    act.rank(act.attribute(donor, target, corpus), "attribution", count=9).save(tmp_path / "one.set", force=True)
    merge(configured(tmp_path, {"one": 0.4}), tmp_path / "out")
    act.transfer(donor, target, act.ChannelSet.load(tmp_path / "one.set"), 0.4)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(merged[name], value) for name, value in state(target).items())


def test_bare_relative_names_need_no_hub(models, tmp_path, monkeypatch):
    from mergekit import card

    from act.editing.mergekit import merge

    monkeypatch.setattr(
        card.huggingface_hub, "repo_exists", lambda name, **_: pytest.fail(f"the hub was asked: {name}")
    )
    config = configured(tmp_path, {"one": 0.4})
    merge(config, tmp_path / "absolute")
    expected = load_file(tmp_path / "absolute" / "model.safetensors")
    config.write_text(config.read_text().replace(f"{tmp_path}/", ""))
    monkeypatch.chdir(tmp_path)
    merge("config.yml", "relative")
    found = load_file("relative/model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    def offline(*_, **__):
        raise OSError("the hub does not answer")

    monkeypatch.setattr("mergekit.merge.run_merge", offline)
    with pytest.raises(act.ActError, match=r"mergekit cannot merge by config.yml: the hub does not answer"):
        merge("config.yml", "none")
    assert not (tmp_path / "none").exists()


def test_names_that_are_words_of_mergekit_stay(tmp_path, monkeypatch):
    from act.editing.mergekit import _absolute

    monkeypatch.chdir(tmp_path)
    for name in ("base", "donor", "a+b"):
        (tmp_path / name).mkdir()
    given = {
        "merge_method": "donor",
        "base_model": "base",
        "models": [{"model": "donor+base", "parameters": {"weight": 0.4}}, {"model": "org/base"}, {"model": "a+b"}],
        "tokenizer_source": "base",
    }
    root = str(tmp_path)
    assert _absolute(given) == {
        "merge_method": "donor",
        "base_model": f"{root}/base",
        "models": [
            {"model": f"{root}/donor+{root}/base", "parameters": {"weight": 0.4}},
            {"model": "org/base"},
            {"model": "a+b"},
        ],
        "tokenizer_source": "base",
    }


def test_rows_that_cross_columns_and_other_tokens_are_refused(models, tmp_path, tokenizer):
    from act.editing.mergekit import merge

    space = ChannelSpace.from_model(models["target"])
    down = space.site("model.layers.0.mlp.down_proj")
    up = space.site("model.layers.0.mlp.up_proj")
    rows, units = (torch.tensor([site.offset + 1]) for site in (down, up))
    one = torch.ones(1, dtype=torch.float64)
    act.ChannelSet(space, rows, one).save(tmp_path / "one.set", force=True)
    act.ChannelSet(space, units, one, inputs={down.name: torch.tensor([1])}).save(tmp_path / "two.set", force=True)
    with pytest.raises(act.ActError, match=r"cross columns of another in model.layers.0.mlp.down_proj.weight; exclude"):
        merge(configured(tmp_path, {"one": 0.4, "two": 0.4}), tmp_path / "out")

    tokenizer.save_pretrained(tmp_path / "target")
    swapped = json.loads((tmp_path / "target" / "tokenizer.json").read_text())
    words = swapped["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    tokenizer.save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps(swapped))
    merge(configured(tmp_path, {"one": 0.4}), tmp_path / "out")  # no row of a token moves
    chosen(space, 1.0).save(tmp_path / "one.set", force=True)
    with pytest.raises(act.ActError, match=r"cannot give embedding or LM head .*: token \d+ is '[ab]' to the donor's"):
        merge(configured(tmp_path, {"one": 0.4}), tmp_path / "none")


def test_what_cannot_be_merged_is_one_sentence(models, tmp_path, monkeypatch):
    from act.editing.mergekit import merge

    for donors, parameters, message in (
        ({"one": -1.0}, {}, "strength is -1.0"),
        ({"one": 0.4}, {"overlap": "most"}, "overlap is 'most'"),
    ):
        with pytest.raises(act.ActError, match=message):
            merge(configured(tmp_path, donors, **parameters), tmp_path / "out")
    config = configured(tmp_path, {"one": 0.4})
    plain = config.read_text()
    for old, new, message in (
        (
            "weight: 0.4",
            "strength: 0.9",
            r"no key 'strength' here; expected one of channels, weight; did you mean weig",
        ),
        ("parameters: {}", "parameters: {overlop: mean}", r"no key 'overlop' here; .*did you mean overlap\?"),
        (
            f"{tmp_path}/one\n",
            f"{tmp_path}/onne\n",
            rf"no such model: .*onne; .*\(looked at {tmp_path}/onne\); did you mean",
        ),
        (f"{tmp_path}/one\n", "donors\n", r"no such model: donors; .*relative paths start at the working directory"),
        (
            f"{tmp_path}/one.set",
            "one.st",
            r"no such file: one.st; expected a channel set \(looked at .*working directory",
        ),
    ):
        assert old in plain
        config.write_text(plain.replace(old, new))
        with pytest.raises(act.ActError, match=message):
            merge(config, tmp_path / "out")
    rule = Rule(models={"target": ModelRead("another", "0")})
    held = act.ChannelSet.load(tmp_path / "one.set")
    act.ChannelSet(held.space, held.index, held.scores, rule).save(tmp_path / "one.set", force=True)
    with pytest.raises(act.ActError, match="chosen for the target another"):
        merge(configured(tmp_path, {"one": 0.4}), tmp_path / "out")
    with pytest.raises(act.ActError, match="would overwrite the input"):
        merge(configured(tmp_path, {"one": 0.4}), tmp_path / "target", force=True)
    with pytest.raises(act.ActError, match=r"names none beside base_model, .*; add the donors"):
        merge(configured(tmp_path, {"target": 0.4}), tmp_path / "out")
    with pytest.raises(act.ActError, match=r"no such file: \S*confg.yml; .* did you mean \S*config.yml\?"):
        merge(tmp_path / "confg.yml", tmp_path / "out")
    config.write_text(plain.replace("merge_method: act", "merge_method: ACT"))
    with pytest.raises(act.ActError, match=r"merge_method is ACT in .*; did you mean act\?"):
        merge(config, tmp_path / "out")
    config.write_text(plain.replace("merge_method: act", "merge_method: atc"))
    with pytest.raises(act.ActError, match=r"merge_method is atc in .*; did you mean act\?"):
        merge(config, tmp_path / "out")
    config.write_text("")
    with pytest.raises(act.ActError, match=r"config.yml holds no mergekit configuration; .* --example prints one"):
        merge(config, tmp_path / "out")
    config.write_text("".join(line for line in plain.splitlines(True) if not line.startswith("base_model:")))
    with pytest.raises(act.ActError, match=r"needs base_model \(the target\) beside it; give it$"):
        merge(config, tmp_path / "out")
    (tmp_path / "config.yml").write_text("merge_method: act\nmodles: []\n")
    with pytest.raises(act.ActError, match=r"has the key 'modles', .*; did you mean modules or models\?"):
        merge(tmp_path / "config.yml", tmp_path / "out")
    (tmp_path / "config.yml").write_text("merge_method: act\n")
    with pytest.raises(act.ActError, match="mergekit cannot use"):
        merge(tmp_path / "config.yml", tmp_path / "out")
    (tmp_path / "config.yml").write_text('{"rows": []}')
    with pytest.raises(act.ActError, match=r"cannot use \S*: merge_method: Field required; act-profile .* prints one$"):
        merge(tmp_path / "config.yml", tmp_path / "out")
    with pytest.raises(act.ActError, match=r"is not YAML: it is no text in UTF-8; expected a mergekit configuration"):
        merge(tmp_path / "one.set", tmp_path / "out")
    settings = yaml.safe_load(plain)
    config.write_text(yaml.safe_dump({**settings, "models": settings["models"] * 2}))
    with pytest.raises(act.ActError, match=r"models names \S*one twice, .* to act-profile transfer, with --donor and"):
        merge(config, tmp_path / "out")
    settings["models"][0]["parameters"]["weight"] = True
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(act.ActError, match=r"weight of \S*one is True; merge_method act takes one number"):
        merge(config, tmp_path / "out")
    sources = [{"model": str(tmp_path / "one"), "layer_range": [0, 1]}]
    config.write_text(yaml.safe_dump({"merge_method": "act", "slices": [{"sources": sources}]}))
    with pytest.raises(act.ActError, match=r"between whole models, not slices; give the donors as models; act-profile"):
        merge(config, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    settings["models"][0]["parameters"] = {}
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(act.ActError, match=r"^one has no parameter channels; give the file"):
        merge(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_runs_it(models, tmp_path):
    for name in ("target", "one"):
        (tmp_path / name / "README.md").write_text("---\nlicense: mit\n---\n")
    result = RUNNER.invoke(app, ["mergekit", str(configured(tmp_path, {"one": 0.4})), str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "config.json").is_file() and (tmp_path / "out" / "mergekit_config.yml").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "Made with act-profile (`act-profile mergekit`)" in card
        and "license: mit" in card
        and "| donor | one |" in card
    )
    assert "weight: 0.4" in card and str(tmp_path) not in card and "- merge" in card
    printed = RUNNER.invoke(app, ["mergekit", "--example"])
    assert yaml.safe_load(printed.stdout)["models"][0]["parameters"] == {
        "channels": "channels.safetensors",
        "weight": 0.4,
    }
    assert "no folder for the result was given" in str(RUNNER.invoke(app, ["mergekit", "config.yml"]).exception)
    named = ["mergekit", str(tmp_path / "config.yml"), str(tmp_path / "out.txt")]
    assert "ends with .txt like a file" in str(RUNNER.invoke(app, named).exception)


def test_without_mergekit_the_way_to_install_it_is_named(tmp_path, monkeypatch):
    from act.editing.mergekit import merge

    monkeypatch.setitem(sys.modules, "mergekit", None)
    with pytest.raises(act.ActError, match=r"act-profile\[mergekit\]"):
        merge(tmp_path / "config.yml", tmp_path / "out")


def test_experts_that_are_stored_one_by_one_are_left_to_our_own_transfer(tmp_path):
    pytest.importorskip("mergekit")
    from act.editing.mergekit import merge

    model = tiny("mixtral")
    for name in ("target", "one"):
        model.save_pretrained(tmp_path / name)
    chosen(ChannelSpace.from_model(model), 0.3).save(tmp_path / "one.set")
    with pytest.raises(act.ActError, match=r"target stores .*experts.* under other names; use act-profile transfer"):
        merge(configured(tmp_path, {"one": 0.4}), tmp_path / "out")


@pytest.fixture
def on_the_hub(models, tmp_path, monkeypatch, tokenizer):
    """The models under hub ids, in a cache whose hub cannot be reached; a configuration that names them."""
    commit = "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    address = "http://127.0.0.1:9"  # where nobody answers
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name in ("target", "one"):
        place = tmp_path / "hub" / f"models--org--{name}"
        models[name].save_pretrained(place / "snapshots" / commit)
        tokenizer.save_pretrained(place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    config = configured(tmp_path, {"one": 0.4})
    config.write_text(
        config.read_text().replace(f"{tmp_path}/one\n", "org/one\n").replace(f"{tmp_path}/target", "org/target")
    )
    return config


def test_models_of_the_hub_have_a_card_too_and_are_asked_for_once(on_the_hub, models, tmp_path):
    from act.editing.mergekit import merge

    made = merge(on_the_hub, tmp_path / "out")
    assert made is not None and [used.name for used in made.donors] == ["org/one"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| donor | [org/one](https://huggingface.co/org/one) |" in card and "- org/target" in card
    assert "<!-- results -->" in card and "model: org/one" in card and str(tmp_path) not in card
    act.transfer(models["one"], models["target"], act.ChannelSet.load(tmp_path / "one.set"), 0.4)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(merged[name], value) for name, value in state(models["target"]).items())
    result = RUNNER.invoke(app, ["mergekit", str(on_the_hub), str(tmp_path / "again")])
    assert f"{made.donors[0].channels:,} channels of org/one at strength 0.4" in " ".join(result.stdout.split())


def test_a_tokenizer_of_mergekit_has_a_card_too_and_gives_no_row_of_a_token_to_another(models, tmp_path, tokenizer):
    from act.editing.mergekit import merge

    for name in ("target", "one"):
        tokenizer.save_pretrained(tmp_path / name)
    space = ChannelSpace.from_model(models["target"])
    config = configured(tmp_path, {"one": 0.4})
    plain = config.read_text()
    config.write_text(f"{plain}tokenizer_source: union\n")
    with pytest.raises(
        act.ActError, match=r"numbers the tokens anew \(tokenizer source: union\), .* rank again with --ex"
    ):
        merge(config, tmp_path / "out")
    body = torch.tensor([at for at in range(0, len(space), 3) if space.locate(at)[0].kind != "head"])
    act.ChannelSet(space, body, torch.ones(len(body), dtype=torch.float64)).save(tmp_path / "one.set", force=True)
    merge(config, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- mergekit made the tokenizer, and gave each token its row (tokenizer source: union)" in card
    assert "<!-- results -->" in card and "tokenizer_source: union" in card


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "base_model:",
            "bsae_model:",
            "has the key 'bsae_model', which mergekit does not know.*; did you mean base_model?",
        ),
        ("merge_method:", "merge_methd:", "did you mean merge_method?"),
        ("\nparameters:", "\nparamters:", "has the key 'paramters'.* did you mean parameters?"),
        ("- model:", "- modle:", "entry 1 of models in .* has the key 'modle'.* did you mean model?"),
        ("merge_method: act", "weight: 0.4\nmerge_method: act", "has the key 'weight', which mergekit does not know"),
    ],
)
def test_a_key_that_mergekit_would_ignore_is_refused(right, wrong, said, tmp_path):
    pytest.importorskip("mergekit")
    from act.editing.mergekit import merge

    (tmp_path / "m.yaml").write_text(EXAMPLE.replace(right, wrong, 1))
    with pytest.raises(act.ActError, match=said.replace("?", "[?]")):
        merge(tmp_path / "m.yaml", tmp_path / "out")


def test_other_methods_may_have_keys_of_their_own(tmp_path):
    pytest.importorskip("mergekit")
    from act.editing.mergekit import _require_keys

    _require_keys("m.yaml", {"merge_method": "linear", "name": "mine"}, ["merge_method", "dtype"], False)
    with pytest.raises(act.ActError, match=r"did you mean dtype\?"):
        _require_keys("m.yaml", {"merge_method": "linear", "dtpye": "float16"}, ["merge_method", "dtype"], False)


def test_a_merge_that_is_interrupted_leaves_nothing(models, tmp_path, monkeypatch):
    from act.core.scratch import release_all
    from act.editing.mergekit import merge

    def interrupted(_: object, folder: str, *__: object, **___: object) -> None:
        (tmp_path / folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    config = configured(tmp_path, {"one": 0.4})
    before = {*tmp_path.iterdir()}
    monkeypatch.setattr("mergekit.merge.run_merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(config, tmp_path / "out")
    release_all()  # of the locks, as every command does at its end
    assert {*tmp_path.iterdir()} == before


def test_an_example_takes_no_file():
    result = RUNNER.invoke(app, ["mergekit", "--example", "out/"])
    assert isinstance(result.exception, act.ActError) and "out was given beside it" in str(result.exception)
