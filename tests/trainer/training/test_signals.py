"""Stop signals become a flag, are given back, and do not reach forked children through the process group."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from piton.contract.termination import ExitCode
from piton_trainer.training.signals import STOP_SIGNALS, StopFlag


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


def test_before_training_has_begun_sigterm_ends_the_process_at_once() -> None:
    assert run("stop_at_once(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)").returncode == ExitCode.STOPPED
