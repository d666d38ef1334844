"""The benchmarks and experiments: every script starts, and the committed pages hold the committed figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if not path.name.startswith("test_")
)
OUTPUTS = {"gpu.py": "--out", "shipped.py": "--output"}
COMMANDS = [path for path in SCRIPTS if "parse_args()" in path.read_text(encoding="utf-8")]

START_ALL = """
import runpy, sys
before = list(sys.path)
for path, name in zip(sys.argv[1::2], sys.argv[2::2]):
    folder = path.rpartition("/")[0]
    sys.path[:], sys.argv = [folder, *before], [path, "--help"]
    print(f"\\f{path}", flush=True)
    try:
        runpy.run_path(path, run_name=name)
    except SystemExit as end:
        assert not end.code, path
    for name, module in list(sys.modules.items()):  # each file meets its own neighbours
        if str(getattr(module, "__file__", None)).startswith((folder, folder.rpartition("/")[0] + "/tests")):
            del sys.modules[name]
"""


def test_every_script_starts():
    arguments = [word for path in SCRIPTS for word in (str(path), "__main__" if path in COMMANDS else "imported")]
    run = subprocess.run(
        [sys.executable, "-c", START_ALL, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-500:] + run.stderr[-3000:]
    helps = dict(part.split("\n", 1) for part in run.stdout.split("\f")[1:])
    for path in COMMANDS:
        assert helps[str(path)].startswith("usage: "), path
        assert OUTPUTS.get(path.name, "--json") in helps[str(path)], path


@pytest.mark.parametrize(
    ("script", "path"),
    [
        ("benchmarks/table.py", "benchmarks/README.md"),
        ("benchmarks/table.py", "docs/families.md"),
        ("benchmarks/table.py", "docs/reliability.md"),
        ("benchmarks/table.py", "docs/scale.md"),
        ("experiments/page.py", "experiments/README.md"),
        ("experiments/page.py", "docs/language.md"),
    ],
)
def test_a_page_holds_the_committed_figures(script, path, tmp_path):
    code = f"""
import pathlib, runpy, sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
found = runpy.run_path({str(ROOT / script)!r})
text = pathlib.Path({str(ROOT / path)!r}).read_text(encoding="utf-8")
sys.stdout.write(found["page"](text))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    committed = (ROOT / path).read_text(encoding="utf-8")
    assert run.stdout == committed, f"run python {script}"
    assert "<!-- table: " in committed
