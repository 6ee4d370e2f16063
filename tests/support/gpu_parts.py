"""Parts of `make gpu` that do what real ones do only when something is wrong."""

import subprocess
import sys
from pathlib import Path

from bench.gpu.setting import Row, Setting


def works(setting: Setting, number: int) -> list[Row]:
    setting.check(setting.dry, "a test has no GPU")
    return [Row(what="a number", value=number, unit="x", beside="1 is best")]


def fails(setting: Setting) -> list[Row]:
    setting.check(False, "the sums differ")
    return []


def hangs(setting: Setting, told: str) -> list[Row]:
    """With a child, whose number it tells."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(told).write_text(str(child.pid))
    child.wait()
    return []
