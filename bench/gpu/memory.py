"""Memory: what a run takes beside what its rehearsal measured, and what the trainer says when there is too little."""

import atexit
import json
import os
import resource
import subprocess
import sys

from bench.gpu.setting import Row, Setting
from bench.gpu.throughput import charlm_config
from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy

_ROOM_BYTES = 6 << 30
"""For a process on the CPU that is to run out of it: torch's own libraries take some of that."""


def peak(setting: Setting) -> list[Row]:
    """The recipe's own process, rehearsed for two steps and in earnest for twelve: the peaks that it reports."""
    rehearsed = _peak(setting, "rehearsed", steps=12, rehearsal=2)
    earnest = _peak(setting, "in-earnest", steps=12, rehearsal=None)
    what = "of the GPU" if setting.device.type == "cuda" else "of the process"
    return [
        Row(what=f"most memory {what}, 12 steps", value=earnest / 2**30, unit="GiB"),
        Row(
            what="the same over the rehearsal's", value=earnest / rehearsed, unit="x", beside="1: a rehearsal shows it"
        ),
    ]


def out_of_memory(setting: Setting) -> list[Row]:
    """A batch that fits into no memory: the attempt ends with a sentence that says what to do."""
    sequences, length = setting.size((4096, 2048), (1 << 16, 64))
    batch = {"device_batch_size": sequences, "total_batch_tokens": sequences * length}
    code, message, log = _train(setting, "too-much", steps=2, rehearsal=None, is_short=True, **batch)
    setting.check(code not in (0, -9), f"it ended with {code}: {log[-300:]}")
    told = message or log
    setting.check("memory" in told and "deviceBatchSize" in told, f"nothing says what to do: {told[-300:]}")
    return [Row(what=f"out of memory: {message[:160]}", value=1, unit="holds")]


def _peak(setting: Setting, folder: str, *, steps: int, rehearsal: int | None) -> float:
    code, _, log = _train(setting, folder, steps=steps, rehearsal=rehearsal)
    # A rehearsal stops halfway, as on a notice; by then it has had steps and a save.
    setting.check(code == (0 if rehearsal is None else 143), f"the training ended with {code}: {log[-300:]}")
    return float(next(line for line in log.splitlines() if line.startswith("PEAK ")).split()[1])


def _train(
    setting: Setting, folder: str, *, steps: int, rehearsal: int | None, is_short: bool = False, **changes: int
) -> tuple[int, str, str]:
    """An attempt of `charlm` in a process of its own: exit code, termination message, log."""
    path = setting.folder / folder
    path.mkdir()
    given = charlm_config(setting, 12, **changes).model_copy(update={"steps": steps, "compile": False})
    config = given.model_dump(by_alias=True, exclude_unset=True) | {"steps": steps, "compile": False}
    orders, termination = path / "orders.json", path / "termination"
    orders.write_text(Assignment(recipe="charlm", config=config, save=SavePolicy(every_steps=steps)).to_json())
    env = {
        names.ENV_CHECKPOINT_DIR: str(path / "checkpoints"),
        names.ENV_CONFIG: str(orders),
        names.ENV_TERMINATION_LOG: str(termination),
        **({} if rehearsal is None else {names.ENV_REHEARSAL: str(rehearsal)}),
    }
    command = [sys.executable, "-m", "bench.gpu.memory", *(["short"] if is_short and setting.dry else [])]
    done = subprocess.run(command, check=False, env=os.environ | env, capture_output=True, text=True)
    message = termination.read_text() if termination.exists() else ""
    detail = json.loads(message).get("detail", "") if message else ""
    return done.returncode, detail, done.stdout + done.stderr


def _attempt() -> None:
    """In a process of its own: what `python -m piton_trainer` does, and its peak of memory."""
    import torch

    from piton_trainer.__main__ import main

    if "short" in sys.argv:
        resource.setrlimit(resource.RLIMIT_AS, (_ROOM_BYTES, _ROOM_BYTES))

    def tell() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"PEAK {torch.cuda.max_memory_allocated() if torch.cuda.is_available() else used}", flush=True)

    atexit.register(tell)
    main()


if __name__ == "__main__":
    _attempt()
