"""Optional packages: imported where they are used, with an error that says how to install a missing one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from act.core.errors import ActError


@dataclass(frozen=True)
class Extra:
    """What ``pip install 'act-profile[NAME]'`` adds: what for, and the packages that it brings."""

    purpose: str
    packages: tuple[str, ...]


EXTRAS = {
    "tune": Extra("tune, and adapters (LoRA)", ("accelerate", "peft")),
    "offload": Extra("models spread over GPUs, memory and disk (--device-map)", ("accelerate",)),
    "eval": Extra("tasks of lm-evaluation-harness (evaluate --task)", ("lm-eval",)),
    "frame": Extra("channels as a pandas data frame (to_frame)", ("pandas",)),
    "images": Extra("texts with images", ("pillow",)),
    "ray": Extra("profiling on Ray Data", ("ray",)),
    "mergekit": Extra("configurations of mergekit with merge_method: act", ("mergekit",)),
}
"""Those that serve users; the others serve who works on the package."""


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module.

    Raises:
        ActError: it is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ActError(f"{purpose} needs {error.name}; install it with: pip install 'act-profile[{extra}]'") from error
