"""Runs programs to their end. A program that fails is an error that quotes what it said."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class BoxError(Exception):
    """The box cannot do what was asked; the message says why, and what to do about it."""


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: str = ""
) -> str:
    """Run `command` and return what it printed.

    Raises:
        BoxError: It is not there, or it failed.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BoxError(f"{words[0]} is not installed") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise BoxError(f"`{' '.join(words)[:300]}` failed with {done.returncode}:\n{said}")
    return done.stdout
