"""Durations, sizes and rates in the units that people read."""

from __future__ import annotations

import itertools
import math
import re

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_RATES = ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s")
_COUNTS = ("", " thousand", " million", " billion", " trillion")
_UNITS = {
    unit: 1000.0**power
    for power, units in enumerate(
        (("",), ("k", "thousand"), ("m", "mn", "million"), ("b", "bn", "g", "billion"), ("t", "tn", "trillion"))
    )
    for unit in units
}
_STEPS = ((365.25 * 86400, "years"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """A duration in its two largest units; what nobody waits for is not given more digits than matter.

    >>> from act.core.units import duration
    >>> duration(11_520), duration(93), duration(7.3), duration(0.25), duration(200_000)
    ('3 h 12 min', '1 min 33 s', '7.3 s', '0.25 s', '2 d 8 h')
    >>> duration(3.4e7), duration(1e9)
    ('1.1 years', '32 years')
    """
    if not math.isfinite(seconds):
        return "unknown"
    if 0 < seconds < 0.05:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    for (step, unit), (finer, smaller) in itertools.pairwise(_STEPS):
        count = round(seconds / finer) * finer  # so that 3599.7 s are an hour
        if count < step:
            continue
        if unit == "years":
            years = f"{count / step:.2g}" if count < 10 * step else f"{count / step:,.0f}"
            return f"{years} year" if years == "1" else f"{years} years"
        rest = round(count % step / finer)
        return f"{int(count // step)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """A number of bytes.

    >>> from act.core.units import size
    >>> size(15_247_000_000), size(5 << 20), size(812)
    ('14.2 GiB', '5.0 MiB', '812 B')
    """
    value, unit = _scaled(count, _BYTES, 1024)
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def rate(flops: float) -> str:
    """Floating-point operations per second.

    >>> from act.core.units import rate
    >>> rate(989.4e12), rate(41e9)
    ('989 TFLOP/s', '41 GFLOP/s')
    """
    value, unit = _scaled(flops, _RATES, 1000)
    return f"{value:.3g} {unit}"


def amount(count: float) -> str:
    """A number of tokens or operations, in words where it is long.

    >>> from act.core.units import amount
    >>> amount(1e9), amount(52_300), amount(734), amount(1.32e19)
    ('1 billion', '52,300', '734', '13,200,000 trillion')
    """
    if count < 1e6:
        return f"{count:,.0f}"
    value, word = _scaled(count, _COUNTS, 1000)
    return f"{value:,.0f}{word}" if value >= 1000 else f"{value:.3g}{word}"


def count_of(text: str) -> float:
    """The number that a text says, with the letter or word for thousands, millions, billions or trillions behind it.

    Raises:
        ValueError: it says none, or one that is not finite.

    >>> from act.core.units import count_of
    >>> count_of("1e9"), count_of("2.5k"), count_of("500M"), count_of("1_000"), count_of("1.5 billion")
    (1000000000.0, 2500.0, 500000000.0, 1000.0, 1500000000.0)
    """
    found = re.fullmatch(r"(?P<number>[-+\d.,_e]*?[\d.])\s*(?P<unit>[a-z]*)", text.strip().lower())
    if not found or found["unit"] not in _UNITS:
        raise ValueError(f"{text!r} is no number with one of the units k, M, B, T")
    number = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", found["number"])
    count = float(number) * _UNITS[found["unit"]]
    if not math.isfinite(count):
        raise ValueError(f"{text!r} is not finite")
    return count


def _scaled(value: float, units: tuple[str, ...], step: int) -> tuple[float, str]:
    """The value in the largest unit of which it is at least one."""
    place = 0
    while abs(value) >= step and place + 1 < len(units):
        value, place = value / step, place + 1
    return value, units[place]
