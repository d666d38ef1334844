"""Defaults that the library and the command line share; importing them costs nothing."""

CHECKPOINT_EVERY = 60.0
"""Seconds between two checkpoints."""

STABLE_TOP = 0.05
"""Size of the top set of an until-stable run, as a share of the channels."""

STABLE_OVERLAP = 0.98
"""Share of the top set that must also be in the top set of the whole corpus."""

STABLE_CONFIDENCE = 0.95
"""Probability with which that overlap must hold."""

KEPT = "keep/"
"""Begins the name of a text to keep among those of a run; no other name has a slash."""
