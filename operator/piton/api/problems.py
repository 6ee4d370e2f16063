"""The problems of a spec as one text that is short enough for a status."""

from collections.abc import Sequence

_MOST = 30
"""Maximum number of problems in the text. Nobody reads more."""
_TEXT_MAX = 500
"""Maximum characters of one problem, because a problem quotes names and values of any length."""


def in_brief(problems: Sequence[str]) -> str:
    """Return the first problems as one text, and how many more there are.

    A condition of Kubernetes has at most 32,768 characters. etcd refuses an object that is too large.
    """
    first = [each if len(each) <= _TEXT_MAX else f"{each[: _TEXT_MAX - 4]} ..." for each in problems[:_MOST]]
    more = len(problems) - len(first)
    return "; ".join([*first, *([f"and {more} more, which `piton validate` lists"] if more else [])])
