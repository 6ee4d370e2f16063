"""The problems of a spec in one text, short enough for a status."""

from collections.abc import Sequence

_MOST = 30
"""More than anybody reads."""
_TEXT_MAX = 500
"""Characters of one problem. It quotes names and values of the user's, which may be of any length."""


def in_brief(problems: Sequence[str]) -> str:
    """Return the problems in one text; of very many the first ones, and how many more there are.

    A condition of Kubernetes has at most 32,768 characters, and an object that is too large for etcd has no status.
    """
    first = [each if len(each) <= _TEXT_MAX else f"{each[: _TEXT_MAX - 4]} ..." for each in problems[:_MOST]]
    more = len(problems) - len(first)
    return "; ".join([*first, *([f"and {more} more, which `piton validate` lists"] if more else [])])
