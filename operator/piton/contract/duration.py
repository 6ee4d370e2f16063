"""Durations as people write them in a spec: `90s`, `15m`, `24h`, `2d`, `1h30m`."""

import re

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
PATTERN = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `1h30m`.

    Raises:
        ValueError: the text is empty or not a duration.
    """
    if not text or not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 15m, 24h or 1h30m")
    return float(sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([dhms])", text)))


def format_duration(seconds: float) -> str:
    """A duration for people: the two largest units, e.g. `1h30m`, `45s`."""
    rest = max(0, round(seconds))
    parts = []
    for unit, size in _SECONDS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"
