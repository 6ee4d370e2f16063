"""A stop as torchrun sends it: to whole process groups, and with a SIGKILL when its patience is at an end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.termination import Outcome, Termination
from support import ranks, tiny
from support.checkpoints import sound_steps

WRITER_SLEEPS = """
import os, sys, time
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".distcp") and os.path.exists(os.environ["SLEEPS_IF"]):
        time.sleep(float(os.environ["SLEEPS_SECONDS"]))
if "piton_trainer.checkpoint.save.writer" in sys.orig_argv:
    sys.addaudithook(hook)
"""
START_SECONDS = 60


def train_with_workers(directory: Path, stop: signal.Signals, how: str) -> int:
    """The exit code of an attempt whose data is loaded by processes, and whose whole group is signalled at step 7."""
    os.setpgrp()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # a daemon has no children
    workers = 2 if how == "fork" else 1  # one that is started by exec imports torch
    data = TensorDataset(torch.arange(120.0))
    loader: DataLoader[Any] = DataLoader(data, batch_size=4, num_workers=workers, multiprocessing_context=how)
    try:
        with piton_trainer.session(tiny.config(directory)) as session:
            session.restore(model=torch.nn.Linear(1, 1))
            for _ in session.steps(loader):
                if session.step + 1 == 7:
                    # Sent by somebody else: what a worker hears from its own trainer is another matter.
                    subprocess.run(["sh", "-c", f"kill -{stop} -{os.getpid()}"], start_new_session=True, check=True)
                    time.sleep(0.3)  # the rest of the step; a worker that dies would be noticed in it
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("stop", "how"),
    [
        (signal.SIGTERM, "fork"),
        (signal.SIGINT, "fork"),
        (signal.SIGTERM, "spawn"),
        (signal.SIGTERM, "forkserver"),
    ],
)
def test_a_stop_of_the_whole_group_leaves_the_workers_of_a_data_loader_alive_until_all_is_saved(
    stop: signal.Signals, how: str, tmp_path: Path
) -> None:
    (end,) = ranks.run(1, partial(train_with_workers, tmp_path, stop, how))
    assert end.result == 143
    assert sound_steps(tmp_path) == [7, 4]


def test_what_is_forked_when_nobody_waits_for_a_stop_stays_in_its_group() -> None:
    (end,) = ranks.run(1, os.getpgrp)
    assert end.result == os.getpgrp()


def environment(tmp_path: Path, *, patience_seconds: int, save_seconds: float) -> dict[str, str]:
    """What a pod has, and a disk that becomes slow when `slow` appears."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WRITER_SLEEPS)
    config = tmp_path / "config.json"
    config.write_text(Assignment(save=SavePolicy(every_seconds=0.5)).to_json())
    tests = Path(__file__).parents[2]
    return os.environ | {
        names.ENV_ATTEMPT: "1",
        names.ENV_CHECKPOINT_DIR: str(tmp_path / "checkpoints"),
        names.ENV_CONFIG: str(config),
        names.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        names.ENV_ELASTIC_SHUTDOWN_TIMEOUT: str(patience_seconds),
        "SLEEPS_IF": str(tmp_path / "slow"),
        "SLEEPS_SECONDS": str(save_seconds),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [site, tests, *filter(None, sys.path)])),
    }


def stop_under_torchrun(tmp_path: Path, **times: Any) -> int:
    """Let two ranks train, make their writers slow, and stop torchrun; the newest step that was trained."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "support.stoppable", str(tmp_path / "ready")]
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(command, env=environment(tmp_path, **times), stdout=log, stderr=log)
    try:
        wait_for_files(torchrun, tmp_path / "ready.0", tmp_path / "ready.1")
        (tmp_path / "slow").touch()
        torchrun.terminate()
        # torchrun turns every end of its workers into one of its own; the termination message has the truth.
        assert torchrun.wait(START_SECONDS) != 0
    finally:
        torchrun.kill()
        torchrun.wait()
    return max(int((tmp_path / f"ready.{rank}.trained").read_text()) for rank in range(2))


def wait_for_files(process: "subprocess.Popen[bytes]", *paths: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not all(path.exists() for path in paths):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.crash
def test_a_save_that_takes_longer_than_torchrun_waits_by_default_is_waited_for(tmp_path: Path) -> None:
    trained = stop_under_torchrun(tmp_path, patience_seconds=30, save_seconds=3)
    message = Termination.from_json((tmp_path / "termination").read_text())
    assert message is not None
    assert (message.outcome, message.step, message.checkpoint_step) == (Outcome.STOPPED, trained, trained)
    assert sound_steps(tmp_path / "checkpoints")[0] == trained


@pytest.mark.crash
def test_torchrun_that_was_not_told_to_wait_takes_its_ranks_away_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """The default of 30 s, in small: this is what the variable is for. What was durable before stays whole."""
    trained = stop_under_torchrun(tmp_path, patience_seconds=1, save_seconds=3)
    assert not (tmp_path / "termination").exists()
    newest = sound_steps(tmp_path / "checkpoints")[0]
    assert 0 < newest < trained
