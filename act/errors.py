"""The one exception of the package for input a person can mend."""


class ActError(ValueError):
    """What was given, what was expected, and what to do, in one sentence; the CLI prints it and exits with code 2."""
