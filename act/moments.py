"""The arena that :func:`act.taps.taps` accumulates into, for code that runs a model itself."""

from act.profiles.moments import Moments as Moments
