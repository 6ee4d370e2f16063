"""Durations as people write them in a spec: `90s`, `15m`, `24h`, `2d`, `1h30m`."""

import re

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
PATTERN = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
YEARS_MAX = 10
LONGEST = f"{YEARS_MAX * 365}d"
SECONDS_MAX = YEARS_MAX * 365 * 86_400.0
"""Longer ones would end after the last date that a computer knows. They count as this long."""
_DAYS = "([0-9]{1,3}|[12][0-9]{3}|3[0-5][0-9]{2}|36[0-4][0-9]|3650)"
_HOURS = "([0-9]{1,4}|[1-7][0-9]{4}|8[0-6][0-9]{3}|87[0-5][0-9]{2}|87600)"
_MINUTES = "([0-9]{1,6}|[1-4][0-9]{6}|5[01][0-9]{5}|52[0-4][0-9]{4}|525[0-5][0-9]{3}|5256000)"
_TENS_OF_SECONDS = "([0-9]{1,7}|[12][0-9]{7}|30[0-9]{6}|31[0-4][0-9]{5}|315[0-2][0-9]{4}|3153[0-5][0-9]{3})"
WITHIN_YEARS = rf"^(0*{_DAYS}d)?(0*{_HOURS}h)?(0*{_MINUTES}m)?(0*({_TENS_OF_SECONDS}[0-9]|315360000|[0-9])s)?$"
"""Durations of which no part is longer than 10 years: an API server has no function that adds them up."""


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as `1h30m`, at most those of 10 years.

    Raises:
        ValueError: the text is empty or not a duration.
    """
    if not text or not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 15m, 24h or 1h30m")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([dhms])", text))
    return float(min(seconds, int(SECONDS_MAX)))


def format_duration(seconds: float) -> str:
    """A duration for people: the two largest units, e.g. `1h30m`, `45s`."""
    rest = max(0, round(seconds))
    parts = []
    for unit, size in _SECONDS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"
