"""What a SIGTERM costs until all is durable, and until the end, over one write of the state past the page cache.

Two ranks train under torchrun, as in a pod, with `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` as Piton sets it; torchrun gets the
signal in the middle of a step. The floor is written before and after, so that the disk's moods hit both; what is
printed are medians of the ratios within a repetition, never seconds. The last line is one JSON object.

    notice_to_boundary    until the step under way is done and both ranks know
    boundary_to_durable   the copy, the write, the commit
    durable_to_closed     the session's end: writer, process group, last words
    closed_to_gone        the interpreter's end, of both ranks
    gone_to_exit          torchrun's own
    durable_over_raw      the first two together, which is what has to fit into a notice
    exit_over_raw         all of them

A run with a lost step is an error, not a row.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint_methods import Raw
from torch import nn

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.termination import Outcome, Termination
from piton.rendering.appdef import ELASTIC_SHUTDOWN_SECONDS

RANKS = 2
STEP_SECONDS = 0.02
READY_STEPS = 50
"""By then the memory for the first save is warm: it is made ready after the first step."""
WORKER = "--worker"


class Heavy(nn.Module):
    """Weights of so many megabytes, in tensors such as large models have."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(1 << 20)) for _ in range(max(1, megabytes // 4))])


def train(folder: Path, megabytes: int) -> None:
    """One rank: train until told to stop, and write down when what happened."""
    marks: dict[str, float] = {}
    torch.manual_seed(0)  # ranks that begin with different weights are refused
    try:
        with piton_trainer.session() as session:
            session.restore(model=Heavy(megabytes))
            try:
                for _ in session.steps(range(10**9)):
                    time.sleep(STEP_SECONDS)
                    marks["boundary"], marks["step"] = time.monotonic(), session.step + 1
                    if session.step == READY_STEPS:
                        (folder / f"ready.{session.rank}").touch()
            finally:
                marks["durable"] = time.monotonic()
    finally:
        marks["closed"] = time.monotonic()
        (folder / f"marks.{os.environ['RANK']}").write_text(json.dumps(marks))


def environment(folder: Path) -> dict[str, str]:
    """What a pod has."""
    config = folder / "config.json"
    config.write_text(Assignment(save=SavePolicy(every_seconds=3600.0)).to_json())
    return os.environ | {
        names.ENV_ATTEMPT: "1",
        names.ENV_CHECKPOINT_DIR: str(folder / "checkpoints"),
        names.ENV_CONFIG: str(config),
        names.ENV_TERMINATION_LOG: str(folder / "termination"),
        names.ENV_ELASTIC_SHUTDOWN_TIMEOUT: str(ELASTIC_SHUTDOWN_SECONDS),
        "OMP_NUM_THREADS": "1",
    }


def stop_once(folder: Path, megabytes: int) -> dict[str, float]:
    """Seconds of each part, of one run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += [__file__, WORKER, str(folder), "--megabytes", str(megabytes)]
    with (folder / "log").open("w") as log:
        torchrun = subprocess.Popen(command, env=environment(folder), stdout=log, stderr=log)
    try:
        ready = [folder / f"ready.{rank}" for rank in range(RANKS)]
        wait_until(lambda: all(path.exists() for path in ready), torchrun)
        workers = children_of(torchrun.pid)
        noticed = time.monotonic()
        torchrun.send_signal(signal.SIGTERM)
        while any(map(is_running, workers)):
            time.sleep(0.002)
        gone = time.monotonic()
        torchrun.wait()
        exited = time.monotonic()
    finally:
        torchrun.kill()
        torchrun.wait()
    return parts_of(folder, noticed=noticed, gone=gone, exited=exited)


def parts_of(folder: Path, *, noticed: float, gone: float, exited: float) -> dict[str, float]:
    """From marks to durations; each part ends when the slower rank is done with it."""
    marks = [json.loads((folder / f"marks.{rank}").read_text()) for rank in range(RANKS)]
    message = Termination.from_json((folder / "termination").read_text())
    trained = max(mark["step"] for mark in marks)
    if message is None or (message.outcome, message.checkpoint_step) != (Outcome.STOPPED, trained):
        raise RuntimeError(f"step {trained} was trained, and this is what became of it: {message}")
    boundary, durable, closed = (max(mark[name] for mark in marks) for name in ("boundary", "durable", "closed"))
    return {
        "notice_to_boundary": max(0.0, boundary - noticed),
        "boundary_to_durable": durable - max(boundary, noticed),
        "durable_to_closed": closed - durable,
        "closed_to_gone": gone - closed,
        "gone_to_exit": exited - gone,
        "durable_over_raw": durable - noticed,
        "exit_over_raw": exited - noticed,
    }


def wait_until(happens: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait for something that a process does."""
    while not happens():
        if process.poll() is not None:
            raise RuntimeError(f"torchrun ended with {process.returncode} before it was told to")
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process has not ended yet; one that nobody has asked for its end yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def raw_seconds(raw: Raw) -> float:
    """One write of as many bytes as the state has."""
    start = time.perf_counter()
    raw.save({}, 0)
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark, or one rank of it."""
    parser = argparse.ArgumentParser(description="What a SIGTERM costs, over one raw write of the state.")
    parser.add_argument("--megabytes", type=int, default=500, help="size of the state")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(), help="where to save; the disk that is measured")
    parser.add_argument(WORKER, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        train(options.worker, options.megabytes)
        return
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory.absolute()))
    found: dict[str, list[float]] = defaultdict(list)
    try:
        (root / "raw").mkdir()
        raw = Raw(root / "raw", max(1, options.megabytes // 4) * 4 << 20)
        for repetition in range(options.repetitions):
            folder = root / str(repetition)
            folder.mkdir()
            before = raw_seconds(raw)
            parts = stop_once(folder, options.megabytes)
            floor = (before + raw_seconds(raw)) / 2
            for name, seconds in parts.items():
                found[name].append(seconds / floor)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)
    medians = {name: round(statistics.median(ratios), 3) for name, ratios in found.items()}
    print(f"{'over one raw write':<24}{'min':>8}{'median':>8}{'max':>8}")
    for name, ratios in found.items():
        print(f"{name:<24}{min(ratios):>8.2f}{medians[name]:>8.2f}{max(ratios):>8.2f}")
    print(json.dumps({"megabytes": options.megabytes, "lost_steps": 0, **medians}))


if __name__ == "__main__":
    main()
