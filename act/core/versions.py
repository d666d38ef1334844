"""Versions of everything that can change a result, for provenance and bug reports."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterable

PACKAGES = ("act-profile", "torch", "transformers", "triton", "safetensors", "tokenizers", "numpy", "greenlet")


OPTIONAL = ("flash-attn", "bitsandbytes", "sentencepiece", "tiktoken", "s3fs", "gcsfs")
"""Packages by which models and texts of some kinds are read, beside those of :data:`act.core.extras.EXTRAS`."""


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed.

    >>> from act.core.versions import installed
    >>> [*installed(["numpy", "no-such-package"])]
    ['numpy']
    """
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def versions() -> dict[str, str]:
    """The versions of Python and of :data:`PACKAGES`, or ``not installed``."""
    there = installed(PACKAGES)
    return {"python": platform.python_version(), **{name: there.get(name, "not installed") for name in PACKAGES}}
