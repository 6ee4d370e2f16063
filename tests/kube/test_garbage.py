"""Garbage collection of the operator's process, in a process of its own: the settings are the interpreter's."""

import subprocess
import sys

_OBJECTS = """
import gc
from piton.kube.garbage import collect_rarely
if {rarely}:
    collect_rarely()
before = gc.get_stats()[2]["collections"]
kept = [[] for _ in range(1_000_000)]
print(gc.get_stats()[2]["collections"] - before)
"""


def _full_collections(*, rarely: bool) -> int:
    """Return the full collections while 1,000,000 lasting objects are made."""
    command = [sys.executable, "-c", _OBJECTS.format(rarely=rarely)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_objects_that_last_do_not_have_all_objects_looked_at() -> None:
    assert _full_collections(rarely=False) > 0
    assert _full_collections(rarely=True) == 0
