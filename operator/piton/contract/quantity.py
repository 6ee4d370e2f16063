"""Amounts of bytes: as Kubernetes writes them, and for people."""

import re
from fractions import Fraction
from functools import lru_cache

PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$"
"""Amounts that resource.ParseQuantity of Kubernetes reads: none below zero, and exponents of two digits at most."""
_NUMBER_AND_UNIT = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)([A-Za-z]*)")
_POWERS = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
"""Of 1000, and with an `i` behind it of 1024."""
_SHOWN = ("bytes", "kB", "MB", "GB", "TB", "PB")
_STEP = 1000


@lru_cache(maxsize=1024)
def parse_quantity(text: str) -> Fraction:
    """Return the exact number in a quantity such as `500Gi`: a float of 700m would be above one of 0.7.

    Raises:
        ValueError: it is none.
    """
    found = _NUMBER_AND_UNIT.fullmatch(text.removeprefix("+"))
    if found is None or not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a quantity; write it like 500Gi")
    number, unit = found.groups()
    return Fraction(number) * Fraction(1024 if unit.endswith("i") else 1000) ** _POWERS[unit.removesuffix("i")]


def format_bytes(size: float) -> str:
    """Three digits and a unit: `12.9 GB`."""
    for unit in _SHOWN:
        if size < _STEP - 0.5 or unit == _SHOWN[-1]:
            break
        size /= _STEP
    digits = 0 if unit == _SHOWN[0] else max(0, 3 - len(str(int(size))))
    return f"{size:.{digits}f} {unit}"
