"""Versions of everything that can change a result, for provenance and bug reports."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("act-profile", "torch", "transformers", "triton", "safetensors", "tokenizers", "numpy", "greenlet")


def versions() -> dict[str, str]:
    """The versions of Python and of :data:`PACKAGES`, or ``not installed``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
