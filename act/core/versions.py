"""Versions of everything that decides a number, for provenance and bug reports."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("act-profile", "torch", "transformers", "triton", "safetensors", "tokenizers", "numpy", "greenlet")


def versions() -> dict[str, str]:
    """Version of Python and of each of :data:`PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
