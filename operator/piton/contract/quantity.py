"""Amounts of bytes: as Kubernetes writes them, and for people."""

import re

_FACTORS = {
    "": 1,
    "m": 1e-3,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
}
_SHOWN = ("bytes", "kB", "MB", "GB", "TB", "PB")
_STEP = 1000


def parse_quantity(text: str) -> float:
    """The number in a quantity such as `500Gi`.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if found is None or found[2] not in _FACTORS:
        raise ValueError(f"{text!r} is not a quantity; write it like 500Gi")
    return float(found[1]) * _FACTORS[found[2]]


def format_bytes(size: float) -> str:
    """Three digits and a unit: `12.9 GB`."""
    for unit in _SHOWN:
        if size < _STEP - 0.5 or unit == _SHOWN[-1]:
            break
        size /= _STEP
    digits = 0 if unit == _SHOWN[0] else max(0, 3 - len(str(int(size))))
    return f"{size:.{digits}f} {unit}"
