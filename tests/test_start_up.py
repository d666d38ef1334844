"""What starting costs: ``import act`` and every ``--help`` load neither torch nor transformers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import chosen, tiny_model, train_tokenizer

import act
from act import cli
from act.models.channels import ChannelSpace

HEAVY = {"torch", "transformers", "datasets", "numpy", "pyarrow", "matplotlib", "safetensors.torch"}
COMMANDS = [*cli.COMMANDS, *(f"patch {name}" for name in ("apply", "revert", "show", "compose"))]


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_act_loads_next_to_nothing():
    bare, after = modules_after("pass"), modules_after("import act")
    assert not HEAVY & after
    assert len(after - bare) <= 20, sorted(after - bare)


def test_an_attribute_loads_only_what_it_needs():
    assert not HEAVY & modules_after("import act; act.ActError")
    assert "transformers" not in modules_after("import act; act.ChannelSet, act.load")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_no_heavy_module(command):
    arguments = ["act-profile", *command.split(), "--help"]
    loaded = modules_after(
        f"sys.argv = {arguments!r}\nfrom act.cli import main\ntry: main()\nexcept SystemExit as done: assert not done.code"
    )
    assert not HEAVY & loaded
    assert len(loaded) < 600, len(loaded)


def test_the_version_is_shown_at_once(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.app(["--version"])
    assert capsys.readouterr().out == f"act-profile {act.__version__}\n"
    loaded = modules_after("from act.cli import app\ntry: app(['--version'])\nexcept SystemExit: pass")
    assert not HEAVY & loaded


def test_the_list_of_commands_is_that_of_the_modules():
    """A command is listed without being imported, so the list could go stale."""
    folder = Path(cli.__file__).parent
    assert set(cli.COMMANDS) == {
        path.stem for path in folder.glob("*.py") if re.search(r"^def command\(|^app = ", path.read_text(), re.M)
    } - {"__init__"}


def test_a_transfer_on_disk_loads_torch_once_the_copying_has_begun_and_no_transformers(tmp_path):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    for name, model in (("donor", donor), ("target", target)):
        model.save_pretrained(tmp_path / name)
        train_tokenizer(["one two three"]).save_pretrained(tmp_path / name)
    chosen(ChannelSpace.from_model(target), 0.2).save(tmp_path / "set.safetensors")
    arguments = ["act-profile", "transfer", "--channels", str(tmp_path / "set.safetensors"), "--json"]
    for name in ("donor", "target", "output"):
        arguments += [f"--{name}", str(tmp_path / name)]
    loaded = modules_after(
        "import act.editing.copies as copies\nbegin = copies.Copy.begin\n"
        "def checked(copy):\n assert 'torch' not in sys.modules\n begin(copy)\ncopies.Copy.begin = checked\n"
        f"sys.argv = {arguments!r}\nfrom act.cli import main\ntry: main()\nexcept SystemExit as done: assert not done.code"
    )
    assert "torch" in loaded and "transformers" not in loaded
