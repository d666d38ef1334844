"""The exceptions of the package: what a person can mend."""


class ActError(ValueError):
    """What was given, what was expected, and what to do, in one sentence; the CLI prints it and exits with code 2."""


class BadRecord(ActError):
    """A record of a corpus that cannot be read, or whose tokens cannot be told apart."""


class Interrupted(ActError):
    """The run was told to stop, and did so between two batches; the CLI exits with code 130."""
