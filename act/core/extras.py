"""Optional packages: imported where they are used, or one sentence that says how to install them."""

from __future__ import annotations

import importlib
from types import ModuleType

from act.core.errors import ActError


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """The module; raises ActError, with the pip command, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ActError(f"{purpose} needs {error.name}; install it with: pip install 'act-profile[{extra}]'") from error
