"""What happens to a trainer in the middle of a step, for training loops that are a framework's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from piton.contract import names
from support import tiny

Event = Callable[[], object]


def terminate() -> None:
    """The node is being reclaimed, and says so."""
    signal.raise_signal(signal.SIGTERM)


def vanish() -> None:
    """The node is gone without a word."""
    raise tiny.LostError


def die(directory: Path) -> None:
    """The process is gone without a word, but not before there is something to resume from."""
    while not any(directory.glob(f"checkpoints/{names.STEP_PREFIX}*")):  # a manifest is written before that, too
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(framework: str, directory: Path, *, dies_at: int) -> int:
    """A process of its own that saves in the background, as everybody's does; its exit code."""
    program = (
        "import os, sys; from functools import partial; from pathlib import Path; import torch;"
        "from piton_trainer.config import Config; from support import ends;"
        f"from support import {framework} as framework; torch.set_num_threads(1); folder = Path(sys.argv[1]);"
        "framework.train(folder, at={int(sys.argv[2]): partial(ends.die, folder)}, config=Config.from_env(os.environ))"
    )
    orders = directory / "orders.json"
    orders.write_text(tiny.every(2).to_json())
    env = os.environ | {
        names.ENV_CHECKPOINT_DIR: str(directory / "checkpoints"),
        names.ENV_CONFIG: str(orders),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", program, str(directory), str(dies_at)]
    return subprocess.run(command, env=env, capture_output=True, timeout=300).returncode
