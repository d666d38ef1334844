"""Defaults that the library and the command line share; importing them costs nothing."""

CHECKPOINT_EVERY = 60.0
"""Seconds between two checkpoints."""

STABLE_TOP = 0.05
"""Share of the channels that is the top set of an until-stable run."""

STABLE_OVERLAP = 0.98
"""Share of the top set that the whole corpus must give too."""

STABLE_CONFIDENCE = 0.95
"""Probability with which it must do so."""
