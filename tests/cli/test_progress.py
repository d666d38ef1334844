"""The bar of a long run, on a terminal of 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from act.cli.progress import Progress


def test_times_are_whole_on_a_narrow_terminal():
    progress = Progress(as_json=False)
    text = "12,345,678 counted of 67,890,000 tokens, 12,345 tokens/s, 2.1% padding, top set 98.0% stable"
    progress._bar.disable = False
    progress._bar.update(progress._task, total=100_000, completed=2_000, text=text)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(progress._bar.get_renderable())
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0:00:00 -:--:--" in drawn and "…" not in drawn
    assert all(word in drawn for word in text.split())
