"""What starting costs: ``import act`` and every ``--help`` load neither torch nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "numpy", "pyarrow", "matplotlib", "pydantic", "safetensors.torch"}
COMMANDS = [
    *("run", "pair", "combine", "rank", "report", "transfer", "sweep", "tune", "evaluate", "recipe"),
    *("mergekit", "plan", "demo", "env", "patch", "patch apply", "patch revert", "patch show", "patch compose"),
]


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
