"""Stop signals become a flag, are given back, and do not reach forked children through the process group."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from piton.contract.termination import ExitCode
from piton_trainer.training.signals import SAME_SECONDS, STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_is_remembered_and_the_handler_of_before_is_given_back(signum: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(signum, lambda number, _: heard.append(number))
    try:
        flag = StopFlag()
        flag.install()
        os.kill(os.getpid(), signum)
        assert (flag.received, heard) == (signum, [])

        flag.restore()
        os.kill(os.getpid(), signum)
        assert heard == [signum]
    finally:
        signal.signal(signum, before)


def test_another_thread_cannot_take_the_signals_and_nothing_fails() -> None:
    flag, before = StopFlag(), [signal.getsignal(signum) for signum in STOP_SIGNALS]
    thread = threading.Thread(target=flag.install)
    thread.start()
    thread.join()

    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
    flag.restore()


def test_signals_that_a_framework_has_taken_can_be_taken_back() -> None:
    flag = StopFlag()
    flag.install()
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        flag.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.received is signal.SIGTERM
    finally:
        flag.restore()


def run(code: str) -> subprocess.CompletedProcess[str]:
    head = "import os, signal, sys, time\nfrom piton_trainer.training.signals import StopFlag, stop_at_once\n"
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, start_new_session=True)


def test_a_forked_child_outlives_a_signal_to_the_group_and_ends_by_one_of_its_own() -> None:
    done = run(
        "flag = StopFlag(); flag.install()\n"
        "gate, entry = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.write(entry, b'.')\n"
        "    time.sleep(60)\n"
        "os.read(gate, 1)\n"
        "os.killpg(0, signal.SIGTERM)\n"
        "print(flag.received.name, os.waitpid(child, os.WNOHANG) == (0, 0))\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(signal.Signals(os.WTERMSIG(os.waitpid(child, 0)[1])).name)\n"
    )

    assert done.stdout.split() == ["SIGTERM", "True", "SIGTERM"], done.stderr


STARTED = {
    "a process": (
        "child = context.Process(target=time.sleep, args=(60,), daemon=True); child.start()\n",
        "child.terminate()\n",
    ),
    "a pool": ("pool = context.Pool(1); pool.apply(int); child = pool._pool[0]\n", "pool.terminate()\n"),
}
"""How a child is started, and how it is ended: a pool would start another one in its place."""


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
@pytest.mark.parametrize(("started", "ended"), STARTED.values(), ids=STARTED)
def test_a_child_that_multiprocessing_starts_by_exec_outlives_a_signal_to_the_group(
    how: str, started: str, ended: str
) -> None:
    done = run(
        "import multiprocessing\n"
        "flag = StopFlag(); flag.install()\n"
        f"context = multiprocessing.get_context({how!r})\n" + started + "os.killpg(0, signal.SIGTERM)\n"
        "child.join(0.3)\n"  # one that heard it would be gone at once
        "print(flag.received.name, child.is_alive())\n" + ended + "child.join()\n"
        "print(child.exitcode in (0, -15), flush=True)\n"
        "os._exit(0)\n"
    )

    assert done.stdout.split() == ["SIGTERM", "True", "True"], done.stderr


def test_outside_a_session_a_child_stays_in_the_group() -> None:
    done = run(
        "import multiprocessing\n"
        "child = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,)); child.start()\n"
        "print(os.getpgid(child.pid) == os.getpgrp())\n"
        "child.kill(); child.join()\n"
    )

    assert done.stdout.split() == ["True"], done.stderr


def test_before_training_has_begun_sigterm_ends_the_process_at_once() -> None:
    assert run("stop_at_once(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)").returncode == ExitCode.STOPPED


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    flag = StopFlag()
    flag.install()
    yield flag
    flag.restore()


@pytest.mark.parametrize("times", [2, 3])
def test_a_launcher_that_passes_a_ctrl_c_on_does_not_double_it(
    times: int, flag: StopFlag, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)

    assert flag.received is signal.SIGINT
    assert capfd.readouterr().err.count("Ctrl-C once more ends it at once, unsaved") == 1


def test_the_second_ctrl_c_is_an_exception_and_the_third_needs_no_python(
    flag: StopFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    os.kill(os.getpid(), signal.SIGINT)
    now[0] = SAME_SECONDS

    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_sigterm_may_come_any_number_of_times(
    first: signal.Signals, flag: StopFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for signum in (first, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), signum)
        now[0] += 60

    assert flag.received is signal.SIGTERM


HUNG = {
    "sleep": "[time.sleep(0.1) for _ in iter(int, 1)]",
    "queue": "import queue; queue.Queue().get()",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize("hung", HUNG.values(), ids=HUNG.keys())
def test_the_second_ctrl_c_ends_a_step_that_hangs(hung: str, tmp_path: Path) -> None:
    code = (
        "import time, torch, piton_trainer\n"
        "from piton_trainer.training import signals\n"
        "signals.SAME_SECONDS = 0.0\n"
        "model = torch.nn.Linear(2, 2)\n"
        "with piton_trainer.session() as session:\n"
        "    session.restore(model=model)\n"
        "    for _ in session.steps([1, 2]):\n"
        f"        print('in', flush=True); {hung}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        while "Ctrl-C once more" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
def test_a_terminal_that_vanishes_is_nothing_unless_the_script_listens(before: Any) -> None:
    earlier, flag = signal.signal(signal.SIGHUP, before), StopFlag()
    try:
        flag.install()
        during = signal.getsignal(signal.SIGHUP)
        flag.listen()
        assert signal.getsignal(signal.SIGHUP) is during is (signal.SIG_IGN if before is signal.SIG_DFL else before)
        flag.restore()
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, earlier)
