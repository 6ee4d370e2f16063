"""The mirror's process: beside the trainer, and no longer than it; replaced when it dies; never waited for."""

import os
import signal
import time
from pathlib import Path

import pytest

from piton.contract import names
from piton_trainer.errors import VolumeLost
from piton_trainer.mirror.client import MirrorClient, start
from piton_trainer.mirror.messages import Timeouts
from piton_trainer.runtime.child_process import NICE, ChildProcess
from support import ranks, s3
from support.mirrored import MIB, QUICK, Contents, Volume, errors, wait_for
from support.processes import is_running

LARGE = 6 * MIB


def pid_of(mirror: MirrorClient) -> int:
    assert wait_for(lambda: mirror._process is not None)
    assert isinstance(mirror._process, ChildProcess)
    return mirror._process.pid


def test_the_process_has_no_torch_a_low_priority_and_an_end(volume: Volume, bucket: Contents) -> None:
    folder = volume.commit(4)
    mirror = volume.mirror(start=start)
    assert mirror.restore(4) is None
    pid = pid_of(mirror)
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert os.getpriority(os.PRIO_PROCESS, pid) >= min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)

    mirror.committed(4)

    assert mirror.close(20)
    assert bucket.newest() == folder
    assert not is_running(pid)


def test_a_process_that_is_killed_over_an_upload_is_replaced_and_nothing_is_left_of_it(
    volume: Volume, proxy: s3.Proxy, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    folder = volume.commit(4, size=LARGE)
    mirror = volume.mirror(start=start)
    killed: list[int] = []

    def kill(method: str, path: str) -> None:
        if "partNumber=2" in path and not killed:
            killed.append(pid_of(mirror))
            os.kill(killed[0], signal.SIGKILL)

    proxy.on_request = kill
    mirror.committed(4)

    assert mirror.close(20)
    assert bucket.newest() == folder
    bucket.assert_sound()
    assert bucket.unfinished() == []
    assert errors(mirror) == 1
    assert caplog.text.count("has died, and is started again") == 1
    assert not is_running(killed[0])


def test_a_trainer_that_is_killed_takes_its_mirror_along_and_the_next_attempt_finishes_its_upload(
    volume: Volume, proxy: s3.Proxy, bucket: Contents, tmp_path: Path
) -> None:
    folder = volume.commit(4, size=LARGE)
    note = tmp_path / "pid"

    def train() -> None:
        mirror = volume.mirror(start=start)
        note.write_text(str(pid_of(mirror)))
        mirror.committed(4)
        mirror.close(60)

    with ranks.start(1, train) as world:

        def kill(method: str, path: str) -> None:
            if "partNumber=2" in path:
                world.kill()
                # The part waits here until its sender is gone too, or the upload would be done first.
                assert wait_for(lambda: not is_running(int(note.read_text())))

        proxy.on_request = kill
        assert [end.code for end in world.wait()] == [-signal.SIGKILL]
    proxy.on_request = None
    assert names.MANIFEST_FILE not in bucket.folders().get(folder, set())

    assert Volume(volume.directory, volume.uri, attempt=2).mirrored(4)

    assert bucket.newest() == folder
    bucket.assert_sound()
    assert bucket.unfinished() == []


def test_a_process_that_stands_still_is_not_waited_for(volume: Volume, bucket: Contents) -> None:
    folder = volume.commit(5000)
    mirror = volume.mirror(start=start)
    assert mirror.restore(5000) is None
    os.kill(pid_of(mirror), signal.SIGSTOP)

    for step in range(1, 5001):
        mirror.committed(step)
        lag = mirror.lag()

    assert lag is not None
    assert (lag.steps, lag.seconds > 0) == (5000, True)
    os.kill(pid_of(mirror), signal.SIGCONT)
    assert mirror.close(20)
    assert bucket.newest() == folder


def test_where_no_process_can_be_started_training_goes_on_if_it_has_something_to_go_on_from(
    volume: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> ChildProcess:
        raise OSError("no more processes")

    volume.commit(4)
    mirror = volume.mirror(QUICK, start=refuse)

    assert mirror.restore(4) is None
    with pytest.raises(VolumeLost, match="ends before it has done so"):
        mirror.restore(None)
    mirror.committed(4)
    assert not mirror.close(0)
    assert caplog.text.count("cannot be started (no more processes), and is started again") == 1
    assert errors(mirror) >= 3


def test_a_process_that_dies_over_and_over_is_not_started_over_and_over(volume: Volume) -> None:
    starts: list[float] = []

    def die() -> ChildProcess:
        starts.append(time.monotonic())
        return ChildProcess("piton_trainer.no_such_module")

    mirror = volume.mirror(Timeouts(backoff=0.2, backoff_max=60), start=die)
    assert wait_for(lambda: len(starts) == 3)
    assert not mirror.close(0) or mirror.lag() is None

    assert starts[1] - starts[0] >= 0.2
    assert starts[2] - starts[1] >= 0.4
