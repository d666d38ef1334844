"""What a strength of a transfer may be."""

from __future__ import annotations

import math

from act.core.errors import ActError


def require_strength(strength: float) -> None:
    """Raise :class:`ActError` unless ``strength`` is a finite number of at least 0."""
    try:
        usable = math.isfinite(strength) and strength >= 0
    except TypeError as error:
        raise ActError(f"strength is {strength!r}; expected a number, such as 0.4") from error
    if not usable:
        raise ActError(f"strength is {strength}; expected 0 (change nothing) or more, 1 copies the donor's rows")
