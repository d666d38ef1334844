"""Model cards, and their way to the hub: a local stand-in of its API."""

from __future__ import annotations

import base64
import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from packaging.version import Version
from support import chosen, tiny_model

import act
from act.cli import app
from act.core.scratch import release_all
from act.data.records import Memory
from act.editing.card_channels import how_found
from act.editing.card_history import other_parent
from act.editing.card_results import Figure, metadata_of, put_results, results_section
from act.editing.card_texts import uses_of
from act.editing.model_card import Card, Origin, hub_id_of, licence_of, write_card
from act.editing.provenance import DonorUsed, TransferProvenance
from act.editing.publishing import push, require_repository
from act.editing.tuned_card import then_tuned, tuned_card
from act.evaluation.harness import TaskFigure
from act.evaluation.results_table import figure_of_task, figures_of, results_table
from act.models.channels import ChannelSpace
from act.ranking.rule import Rule


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for; files go into the commit, none to a store of large files."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if not self.headers.get("authorization", "").endswith("hf_right"):
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/whoami-v2":
            return self._answer({"name": "somebody", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        self._answer({"id": "org/mended", "sha": "a" * 40, "siblings": []})

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        self.server.asked.append(self.path)
        here = f"http://127.0.0.1:{self.server.server_port}/org/mended"
        if not self.headers.get("authorization", "").endswith("hf_right"):
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._answer({"url": here, "name": "org/mended", "id": "org/mended"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"commitUrl": f"{here}/commit/{'b' * 40}", "commitOid": "b" * 40})
        self._answer({}, 404)

    def _answer(self, data, status=200):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    if Version(huggingface_hub.__version__) < Version("1.0"):
        pytest.skip("this version of huggingface_hub keeps the address of the hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.created, server.files = [], [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    server.server_close()


def test_a_folder_is_pushed_as_it_was_written(hub, tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A model")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / ".act-profile").write_text("README.md\n")
    require_repository("org/mended")
    push(tmp_path, "org/mended")
    assert hub.created[0]["name"] == "mended" and hub.created[0]["organization"] == "org"
    assert hub.created[0].get("private", hub.created[0].get("visibility") == "private")
    assert {name: bytes(content) for name, content in hub.files.items()} == {
        "README.md": (tmp_path / "README.md").read_bytes(),
        "model.safetensors": b"weights",
    }


def test_no_folder_of_this_machine_is_published(hub, tmp_path):
    written = {
        "README.md": "| donor | base |\n\nevaluate --before '/home/me/my base' --corpus de=/home/me/de.jsonl",
        "recipe.yaml": "target: /home/me/my-target\n",
        "report.json": '{"output": "/home/me/out", "key": "a/b", "url": "https://example.org/home/me"}',
        "index.html": "<p>/home/me/my-target</p><script>a=b/c/d;/x/y/.test(e)</script>",
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    push(tmp_path, "org/mended")
    assert {name: content.decode() for name, content in hub.files.items()} == {
        "README.md": "| donor | base |\n\nevaluate --before 'my base' --corpus de=de.jsonl",
        "recipe.yaml": "target: my-target\n",
        "report.json": '{"output": "out", "key": "a/b", "url": "https://example.org/home/me"}',
        "index.html": "<p>my-target</p><script>a=b/c/d;/x/y/.test(e)</script>",
    }
    assert (tmp_path / "recipe.yaml").read_text() == written["recipe.yaml"]


def test_who_may_not_push_is_told_before_any_work(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(act.ActError, match=r"cannot push to org/mended: .*log in with a token that may write"):
        require_repository("org/mended")
    with pytest.raises(act.ActError, match=r"was written, but not pushed to org/mended: .*hf upload org/mended"):
        push(tmp_path, "org/mended")
    with pytest.raises(act.ActError, match="expected a name such as org/name"):
        require_repository("mended")
    assert not hub.created


def test_origins_are_named_by_their_hub_id_and_licence(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    other = tmp_path / "other"
    other.mkdir()
    assert hub_id_of(snapshot) == "org/name" and hub_id_of(other) is None
    assert (licence_of(snapshot), licence_of(other), licence_of(tmp_path / "none")) == (
        "apache-2.0",
        *["not stated"] * 2,
    )
    origins = [Origin.of(snapshot), Origin.of("org/donor@v1")]
    figures = [Figure("german", "exact match", 0.4, "40.0 ± 5.0")]
    text = str(Card("mended", origins, "body", ["merge"], ["org/texts:de:train", "german.jsonl"], figures))
    data = ModelCard(text).data
    assert data.base_model == ["org/name", "org/donor"] and data.datasets == ["org/texts"]
    assert data.license == "apache-2.0" and "merge" in data.tags and data.library_name == "transformers"
    assert [(one.dataset_name, one.metric_value) for one in data.eval_results] == [("german", 0.4)]
    assert ModelCard(str(Card("one", origins[:1], ""))).data.license == "apache-2.0"
    for others in ([Origin("d", "mit", None), *origins], [origins[0], Origin("d", "mit", None)], origins[::-1]):
        assert ModelCard(str(Card("one", others, ""))).data.license is None
    (other / "README.md").write_text(text)
    again = str(Card("again", [Origin.of(other)], "", architecture="BertModel"))
    assert ModelCard(again).data.base_model == ["org/name", "org/donor"] and "import AutoModel, Auto" in again
    assert ModelCard(again).data.pipeline_tag is None and data.pipeline_tag == "text-generation"
    assert "AutoPeftModelForCausalLM" in str(Card("adapter", origins[:1], "", adapter=True))


def test_the_card_of_a_tune_has_what_it_was(tokenizer):
    corpus = act.Corpus.from_records([{"prompt": "a", "completion": " b"}] * 4, tokenizer, name="org/texts:train")
    settings = act.TuneSettings(mode="rows", steps=2, batch_size=2)
    channels = chosen(ChannelSpace.from_model(tiny_model("llama")), 0.1)
    tuned = act.tune(tiny_model("llama"), corpus, settings, channels=channels)
    text = tuned_card("org/name", tuned, settings, [corpus], channels, command="act-profile tune --steps 2")
    assert "[org/name](https://huggingface.co/org/name)" in text and "act-profile tune --steps 2" in text
    assert (
        f"| loss per token | {tuned.loss_before:.3f} before, {tuned.loss_after:.3f} after" in text
        and "learning_rate: 0.0001" in text
    )
    other = act.Corpus.from_records([{"prompt": "c", "completion": " d"}] * 4, tokenizer, name="maths")
    mixed = act.tune(tiny_model("llama"), corpus, settings, channels=channels, replay=other)
    apart = tuned_card("org/name", mixed, settings, [corpus, other], channels, command="act-profile tune")
    assert f"| of maths alone | {mixed.replay_loss_before:.3f} before, {mixed.replay_loss_after:.3f} after |" in apart
    assert f"| of org/texts:train alone | {mixed.corpus_loss_before:.3f} before, " in apart and " alone |" not in text
    without = ("lora_rank", "replay_share", "save_steps")
    assert not any(name in text for name in without) and "seed: 0" in text
    mixed = tuned_card("org/name", tuned, act.TuneSettings("lora"), [corpus, corpus], channels)
    assert [f"\n{name}: " in mixed for name in without] == [True, True, False]
    data = ModelCard(text).data
    assert data.base_model == ["org/name"] and data.datasets == ["org/texts"] and "fine-tune" in data.tags


def test_the_card_of_a_tune_keeps_how_its_model_was_made(tokenizer, tmp_path):
    rule = Rule("paired", top=0.05, corpora=("german",), places={"german": ("org/texts:de:train",)})
    transfer = TransferProvenance((DonorUsed("org/base", 5, 0.4, rule),), before="bef0", after="af7e")
    for name in ("mended", "again"):
        (tmp_path / name).mkdir()
    how = "## The command\n\n```bash\n# no heading\nact-profile transfer\n```"
    write_card(tmp_path / "mended", "org/mine", transfer, afterwards=how, results="40.0 ± 5.0")
    corpus = act.Corpus.from_records([{"prompt": "a", "completion": " b"}] * 2, tokenizer, name="mine.jsonl")
    settings = act.TuneSettings(steps=1, batch_size=2)
    tuned = act.tune(tiny_model("llama"), corpus, settings)
    once = tuned_card(str(tmp_path / "mended"), tuned, settings, [corpus], before="af7e")
    (tmp_path / "again" / "README.md").write_text(once)
    for text in (once, tuned_card(str(tmp_path / "again"), tuned, settings, [corpus], before="1a7e")):
        assert "| donor | [org/base](https://huggingface.co/org/base) | not stated | 5 |" in text and "`bef0`" in text
        assert (
            "## How mended was made" in text and "### How the channels were found" in text and "\n# no heading" in text
        )
        assert "\n\n\n" not in text
        assert text.count("## Results") == 1 == text.count("## How to use it") and "40.0 ± 5.0" not in text
        data = ModelCard(text).data
        assert {"merge", "fine-tune"} <= {*data.tags} and data.datasets == ["org/texts"]
        assert data.base_model == ["org/mine", "org/base"]
    assert "## How again was made" in text and "### How mended was made" in text and "`1a7e`" in text
    assert uses_of(tmp_path / "again" / "README.md", Memory([], "de/texts")) == ["ranked"]  # by its name alone
    assert uses_of(tmp_path / "again" / "README.md", corpus.source) == ["trained"]
    for model, parent in (("mended", "org/mine"), ("again", "mended")):
        place = str(tmp_path / model)
        assert other_parent(place, "org/base", "0000") == parent
        assert other_parent(place, "org/mine", "0000") is other_parent(place, "org/base", "bef0") is None
    assert other_parent(str(tmp_path / "again"), str(tmp_path / "mended"), "0000") is None
    (tmp_path / "mended" / "README.md").write_text("---\ntags: [merge]\n---\n# Somebody's\n\nIn words of their own.")
    assert "In words" not in tuned_card(str(tmp_path / "mended"), tuned, settings, [corpus])


def test_a_card_says_how_it_is_measured_until_it_was(tmp_path):
    rule = Rule("paired", top=0.05, corpora=("german",), places={"german": ("org/texts:de:train",)})
    transfer = TransferProvenance((DonorUsed("org/base", 5, 0.4, rule),), before="b", after="a")
    write_card(tmp_path, "org/my model", transfer, afterwards="## The command\n\nact-profile transfer")
    text = (tmp_path / "README.md").read_text()
    assert "evaluate --before 'org/my model' --model FOLDER --corpus NAME=RECORDS --card` does so" in text
    assert ModelCard(text).data.datasets == ["org/texts"] and ModelCard(text).data.eval_results is None
    for text_of, value, replaced in (("german", 0.4, False), ("maths", 0.3, False), ("german", 0.5, True)):
        table = f"| corpus | model | right | p against x |\n|---|---|---|---|\n| {text_of} | m | found {value} | |"
        found = put_results(tmp_path, f"{table}\n\n± errors.", [Figure(text_of, "exact match", value, "± 0.1")])
        assert found is replaced
    again = (tmp_path / "README.md").read_text()
    assert "| maths | m | found 0.3 |\n| german | m | found 0.5 |\n\n± errors." in again
    assert "found 0.4" not in again and "p against" not in again and "evaluate --before" not in again
    assert again.partition("## The command")[2] == text.partition("## The command")[2]
    _, one = ModelCard(again).data.eval_results
    assert (one.dataset_name, one.metric_value) == ("german", 0.5) and ModelCard(again).data.datasets == ["org/texts"]
    put_results(
        tmp_path, "| corpus | a |\n|---|---|\n| /home/me/de/test.jsonl | 1 |\n| /home/me/fr/test.jsonl | 2 |", []
    )
    assert "| de/test.jsonl |  |  | 1 |\n| fr/test.jsonl |  |  | 2 |" in (tmp_path / "README.md").read_text()
    write_card(tmp_path, "/home/me/mine", transfer, results="## The recipe\n\ntarget: /home/me/mine")
    assert "/home" not in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# Mine")
    with pytest.raises(act.ActError, match="has no place for results"):
        put_results(tmp_path, "x", [])


def test_the_commands_on_a_card_find_its_channels_again(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [tiny_model("llama"), tiny_model("llama", 1)]
    for name, model in zip(("base", "mine"), models, strict=True):
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    for name, word in (("german", " b c"), ("my maths", " d")):
        Path(f"{name}.jsonl").write_text(json.dumps({"prompt": "a", "completion": word}) + "\n")
    texts = [act.Corpus.from_file(str(tmp_path / f"{name}.jsonl"), tokenizer) for name in ("german", "my maths")]
    channels = act.rank(act.attribute(*models, texts[0], keep=texts[1]), "attribution", top=0.03, exclude="embed")
    transfer = TransferProvenance((DonorUsed("base", len(channels), 0.4, channels.rule),), before="b", after="a")
    write_card(tmp_path, "mine", transfer)
    section = (tmp_path / "README.md").read_text().partition("## How the channels were found")[2]
    assert "On german.jsonl; to be kept: my maths.jsonl. By attribution, top 3%" in section
    lines = section.partition("```bash\n")[2].partition("```")[0].splitlines()
    assert [line.split()[1] for line in lines] == ["attribute", "rank"]
    assert "--dtype float32" in lines[0]  # which was measured, whatever the type that is stored
    for line in lines:
        app(shlex.split(line)[1:], standalone_mode=False)
    release_all()
    again = act.ChannelSet.load("channels.safetensors")
    assert torch.equal(again.index, channels.index) and torch.equal(again.scores, channels.scores)


def test_where_channels_come_from_is_said_of_every_rule():
    rule = Rule("match", top=0.1, corpora=("de",), keep=(("org/maths:train",), ("b",)), places={"de": ("/x/de.jsonl",)})
    text = how_found(rule, "org/base", "mine")
    assert text.startswith(
        "On de.jsonl; to be kept: [org/maths](https://huggingface.co/datasets/org/maths) (train), b."
    )
    assert "pair --donor org/base --target mine --swap --corpus org/maths:train --output keep-1.safetensors" in text
    assert "--keep-profile keep-1.safetensors --keep-profile keep-2.safetensors --score match --top 10%" in text
    weights = how_found(Rule("weight-diff", count=5, corpora=("de",)), "a", "b")
    assert "rank profile.safetensors --donor a --target b --score weight-diff --number 5" in weights
    assert "```" not in how_found(rule, "a", "b", commands=False) and "/x" not in text
    assert "the channel set does not say" in how_found(Rule(), "a", "b")


def test_a_card_says_what_was_tuned_after_a_transfer(tmp_path):
    rule = Rule("paired", top=0.05, corpora=("german",), keep=(("org/kept",),))
    transfer = TransferProvenance((DonorUsed("org/base", 5, 0.4, rule),), before="b", after="a")
    for mode, said in {"rows": "these rows were tuned", "full": "all weights were tuned", "lora": "adapters"}.items():
        tuned = then_tuned(act.TuneSettings(mode=mode, steps=20), ["german", "english"])
        write_card(tmp_path, "org/mine", transfer, tuned=tuned)
        text = (tmp_path / "README.md").read_text()
        assert said in text and "# mine with rows of base, tuned" in text.replace("org/", "")
        assert ("everything else is the target's" in text) == (mode == "rows") and "before the tune." in text
        assert "fine-tune" in ModelCard(text).data.tags and ModelCard(text).data.datasets == ["org/kept"]
    write_card(tmp_path, "org/mine", transfer)
    assert "fine-tune" not in ModelCard.load(tmp_path / "README.md").data.tags


def test_the_card_says_which_figures_are_of_texts_that_the_model_was_made_by(tokenizer, tmp_path):
    lines = [json.dumps({"prompt": f"a {word}", "completion": " c"}) + "\n" for word in "bcde"]
    for name, some in (("german.jsonl", lines), ("copy.jsonl", lines), ("other/german.jsonl", lines[1:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(some))
    german, copied, other = (
        act.Corpus.from_file(tmp_path / name, tokenizer)
        for name in ("german.jsonl", "copy.jsonl", "other/german.jsonl")
    )
    pair = act.profile_pair(tiny_model("llama"), tiny_model("llama", 1), german.part([0], 2))
    donor = DonorUsed("org/base", 5, 0.4, act.rank(pair, count=5).rule)
    write_card(tmp_path, "org/mine", TransferProvenance((donor,), before="b", after="a"))
    card = tmp_path / "README.md"
    assert "\n\nFingerprints of these texts: `" in card.read_text() and str(tmp_path) not in card.read_text()
    found = [uses_of(card, one.source) for one in (german, copied, copied.beginning(2), other)]
    assert found == [["ranked"], ["ranked"], ["ranked"], []]  # whose half was ranked on
    assert uses_of(tmp_path / "none", german.source) == uses_of(None, german.source) == []
    row = act.evaluate(tiny_model("llama"), copied, "nll", name="m").summary()
    table = results_table(
        [row, {**row, "model": "x"}], [], own="m", limit=4, used={row["corpus"]: ["ranked", "trained"]}
    )
    assert "| **m** (this model) | the first 4, by which the channels were found, on which it was trained |" in table
    assert "| NLL | x | the first 4 |" in table and "chance" not in table and "right" not in table
    assert [one.metric for one in figures_of(row)] == ["NLL per token"]


def test_results_have_errors_and_chance_beside_them(tokenizer):
    rows = [{"prompt": f"Which?\nA. {word}\nB. x\nAnswer:", "completion": " A"} for word in ("a", "b", "c")]
    corpus = act.Corpus.from_records(rows, tokenizer, name="choices")
    found = [act.evaluate(tiny_model("llama", seed), corpus, name=name) for seed, name in ((0, "target"), (1, "act"))]
    table = results_table([one.summary() for one in found], [act.compare(*found).summary()], own="act")
    lines = table.splitlines()
    assert "| choices | right choice | **act** (this model) | 3 |" in lines[3] and "this model" not in lines[2]
    assert "± " in lines[3] and "| 50.0 | 100.0 |" in lines[3]
    assert lines[2].endswith("|  |") and not lines[3].endswith("|  |")
    assert [figure.metric for figure in figures_of(found[0].summary())] == [
        "right choice",
        "NLL per token",
    ]
    named = [one.metric_name for one in metadata_of([*figures_of(found[0].summary())], "one")["eval_results"]]
    assert re.fullmatch(r"right choice \(\S+ ± \S+ %; 50.0 % by chance; 100.0 % by the commonest answer\)", named[0])
    assert re.fullmatch(r"NLL per token \(\S+ ± \S+\)", named[1])


def test_p_is_explained_as_long_as_its_column_stands(tokenizer, tmp_path):
    (tmp_path / "README.md").write_text(f"# mended\n\n{results_section('none yet')}\n")
    texts = [act.Corpus.from_records([{"text": "a b c d"}] * 3, tokenizer, name=name) for name in ("de", "fr")]
    before, after = (act.evaluate(tiny_model("llama", seed), texts[0], name=f"m{seed}") for seed in (0, 1))
    other = act.evaluate(tiny_model("llama", 1), texts[1], name="m1").summary()
    rows, pairs = [one.summary() for one in (before, after)], [act.compare(before, after).summary()]
    for given, compared in ((rows, pairs), ([other], [])):
        put_results(tmp_path, results_table(given, compared, "m0", own="m1"), [])
        text = (tmp_path / "README.md").read_text()
        assert "p against m0 |" in text and text.count("p: the probability") == text.count("± standard error") == 1
    put_results(tmp_path, results_table(rows, [], "m0", own="m1"), [])
    text = (tmp_path / "README.md").read_text()
    assert "p against" not in text and "p: the probability" not in text


def test_the_metadata_says_which_figures_are_of_the_first_records(tokenizer):
    corpus = act.Corpus.from_records([{"prompt": "A. x\nB. y\nAnswer:", "completion": " A"}] * 2, tokenizer)
    row = act.evaluate(tiny_model("llama"), corpus, name="m").summary()
    assert [one.text.endswith("; the first 2 records") for one in figures_of(row, 2)] == [True, True]
    assert not any("the first" in one.text for limit in (None, 3) for one in figures_of(row, limit))


def test_tasks_of_the_harness_are_in_the_metadata_by_their_own_names(tmp_path):
    (tmp_path / "README.md").write_text(f"# mended\n\n{results_section('none yet')}\n")
    accuracy = TaskFigure("mended", "arc_easy", "acc", 0.4, 0.05, {}, 0.25)
    strict = TaskFigure("mended", "gsm8k", "exact_match,strict-match", 0.1, None, {})
    unknown = TaskFigure("mended", "gsm8k", "perplexity", float("nan"), None, {})
    figures = [figure for one in (accuracy, strict, unknown) for figure in figure_of_task(one.summary())]
    put_results(tmp_path, "tables", figures)
    found = {
        (one.dataset_name, one.metric_type): one for one in ModelCard.load(tmp_path / "README.md").data.eval_results
    }
    assert {key: one.metric_value for key, one in found.items()} == {
        ("arc_easy", "acc"): 0.4,
        ("gsm8k", "exact_match,strict-match"): 0.1,
    }
    assert found["arc_easy", "acc"].metric_name == "acc (0.400 ± 0.050; 0.250 by chance; lm-evaluation-harness)"
