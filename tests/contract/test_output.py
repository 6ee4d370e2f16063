"""What cannot be written is lost, and the program goes on to its exit code."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

SCRIPT = """
import sys
from piton.contract.output import keep_going
keep_going()
for number in range(2000):
    print("to stdout", number, "x" * 50)
    print("to stderr", number, file=sys.stderr)
    sys.stdout.flush()
sys.exit(7)
"""


@contextmanager
def a_pipe_without_a_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def a_full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@contextmanager
def a_terminal_that_is_gone() -> Iterator[int]:
    reader, terminal = pty.openpty()
    os.close(reader)
    yield terminal
    os.close(terminal)


GONE = [a_pipe_without_a_reader, a_full_disk, a_terminal_that_is_gone]


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("streams", ["stdout", "stderr", "both"])
def test_a_program_whose_output_goes_nowhere_goes_on(gone: Callable[..., Iterator[int]], streams: str) -> None:
    with gone() as descriptor:  # type: ignore[attr-defined]
        stdout, stderr = (descriptor if streams in (name, "both") else subprocess.PIPE for name in ("stdout", "stderr"))
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=stdout, stderr=stderr)

    assert done.returncode == 7
    assert streams != "stdout" or done.stderr.count(b"\n") == 2000
    assert streams != "stderr" or done.stdout.count(b"\n") == 2000


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_a_stream_that_was_never_open_is_no_trouble(closed: str) -> None:
    assert (
        subprocess.run(["sh", "-c", f"exec {sys.executable} -c '{SCRIPT}' {closed}"], capture_output=True).returncode
        == 7
    )


def test_a_stream_that_is_full_and_does_not_block_is_waited_for() -> None:
    code = "import os\nos.set_blocking(1, False)\n" + SCRIPT
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read().count(b"\n") == 2000
    assert process.returncode == 7
