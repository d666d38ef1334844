"""What a strength of a transfer may be."""

from __future__ import annotations

import functools
import logging
import math

from act.core.errors import ActError

MOST = 1.5
"""Beyond it, rows are further from both models than half of their distance."""

log = logging.getLogger(__name__)


def require_strength(strength: float) -> None:
    """Raise :class:`ActError` unless ``strength`` is a finite number of at least 0."""
    try:
        usable = math.isfinite(strength) and strength >= 0
    except TypeError as error:
        raise ActError(f"strength is {strength!r}; expected a number, such as 0.4") from error
    if not usable:
        raise ActError(f"strength is {strength}; expected 0 (change nothing) or more, 1 copies the donor's rows")


@functools.cache  # once, however many donors have it
def warn_of_strength(strength: float) -> None:
    """Log a warning of a strength above :data:`MOST`."""
    if strength > MOST:
        log.warning(
            "strength %g goes %g times as far as the donor, where neither model has been; 1 copies the donor's rows, "
            "and the paper's is 0.4",
            strength,
            strength,
        )
