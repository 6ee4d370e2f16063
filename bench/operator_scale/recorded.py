"""Recorded results, by the number of runs: one JSON file that is kept with the code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "recorded" / "operator.json"


def load(path: Path = PATH) -> dict[int, dict[str, Any]]:
    """Return what is recorded; nothing if there is no file.

    Raises:
        ValueError: the file is not what `save` writes.
    """
    if not path.exists():
        return {}
    try:
        return {int(runs): dict(results) for runs, results in json.loads(path.read_text()).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no recorded results: {error}") from error


def save(results: Mapping[int, Mapping[str, Any]], path: Path = PATH) -> None:
    """Record these results; those for other numbers of runs stay."""
    both = load(path) | {runs: _rounded(dict(found)) for runs, found in results.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps({str(runs): both[runs] for runs in sorted(both)}, indent=2)
    path.write_text(lines + "\n")


def is_whole(results: Mapping[str, Any]) -> bool:
    """True if each scenario got to its end."""
    return all("late" not in part for part in results.values() if isinstance(part, Mapping))


def may_replace(results: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """True if each scenario got to its end, and none is missing that is recorded: its figures would be lost."""
    return is_whole(results) and results.keys() >= (before or {}).keys()


def _rounded(value: Any) -> Any:
    """Return it with four significant digits: more says nothing, and hides what changed."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
