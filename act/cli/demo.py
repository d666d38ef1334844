"""``act-profile demo``: the whole method on small trained models that ship with the package."""

from __future__ import annotations

from act.cli import console


def command(as_json: console.Json = False) -> None:
    """Recover a forgotten language in a tiny model, beside controls of equal size."""
    console.print_json({})
