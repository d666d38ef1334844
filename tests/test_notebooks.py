"""The notebooks run from the first cell to the last, on models that come with the package."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
IDS = [path.stem for path in NOTEBOOKS]


def kinds(notebook: dict) -> list[list[str]]:
    """What kinds of outputs each cell has; figures may differ in their last digits from machine to machine."""
    return [[output["output_type"] for output in cell.get("outputs", [])] for cell in notebook["cells"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_runs(path, tmp_path):
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package)
    notebook = runpy.run_path(str(path.parent / "run.py"))["executed"](path, tmp_path)
    assert kinds(notebook) == kinds(json.loads(path.read_text(encoding="utf-8"))), "run python notebooks/run.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_was_run_in_order_before_it_was_committed(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert cells[-1]["outputs"] and not any(one["output_type"] == "error" for cell in cells for one in cell["outputs"])
