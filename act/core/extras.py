"""Optional packages: imported where they are used, with an error that says how to install a missing one."""

from __future__ import annotations

import importlib
from types import ModuleType

from act.core.errors import ActError


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module.

    Raises:
        ActError: it is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ActError(f"{purpose} needs {error.name}; install it with: pip install 'act-profile[{extra}]'") from error
