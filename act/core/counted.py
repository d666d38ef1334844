"""Numbers of things, as text."""


def counted(number: int, what: str) -> str:
    """A number with what it counts, in the plural unless it is one.

    >>> counted(1, "record"), counted(1200, "record")
    ('1 record', '1,200 records')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"
