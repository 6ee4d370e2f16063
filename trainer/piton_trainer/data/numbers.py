"""Numbers in data, as other programs write them: Python takes `1_0` for 10, and digits of any alphabet."""

import re

from piton.contract import InputError

_WHOLE = re.compile(r"[+-]?[0-9]+")
_MOST = 2**63 - 1


def whole_number(text: str) -> int:
    """Return the whole number that a text is, of 64 bits at most.

    Raises:
        ValueError: it is none.
    """
    told = text.strip()
    if not _WHOLE.fullmatch(told):
        raise InputError(f"{text[:20]!r} is no whole number")
    if len(told) > len(f"-{_MOST}") or abs(number := int(told)) > _MOST:
        raise InputError(f"{told[:25]} is too large a number")
    return number


def decimal_number(text: str) -> float:
    """Return the number that a text is, with or without a fraction. `nan` and `inf` count as numbers.

    Raises:
        ValueError: it is none.
    """
    if "_" in text or not text.isascii():
        raise InputError(f"{text[:20]!r} is no number")
    return float(text)
