"""The checkpoint volume when an attempt begins: patience where the run may have saved, else a sentence."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from piton.contract import names
from piton.contract.termination import Outcome, Termination
from piton_trainer.checkpoint import volume_start
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.volume_start import (
    answered,
    check_shared,
    claim_directory,
    look_before_torch,
    may_have_saved,
)
from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig, Ended, OutOfSpace, VolumeLost
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.clocks import FakeClock
from support.volumes import fill, mounted, remount

SAVED: dict[str, dict[str, Any]] = {
    "a durable step": {"attempt": 1, "durable_step": 458},
    "a later attempt": {"attempt": 2, "durable_step": None},
}


class Failing(layout.Disk):
    """A volume that answers each write so, for so many writes."""

    def __init__(self, code: int, *, times: int = 10**9) -> None:
        self._code = code
        self._left = times

    def write(self, path: Path, text: str) -> None:
        self._left -= 1
        if self._left >= 0:
            raise OSError(self._code, os.strerror(self._code), str(path))
        super().write(path, text)


def claim(directory: Path, code: int, *, times: int = 10**9, **who: Any) -> Fence:
    who = {"attempt": 1, "durable_step": None, **who}
    disk = Failing(code, times=times)
    return claim_directory(directory, disk=disk, clock=FakeClock(), is_stopping=lambda: False, **who)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("who", SAVED.values(), ids=SAVED)
def test_a_volume_in_trouble_is_tried_again_where_the_run_may_have_saved(
    tmp_path: Path, code: int, who: dict[str, Any]
) -> None:
    (tmp_path / names.CACHE_FOLDER).mkdir()
    assert claim(tmp_path, code, times=3, **who).attempt == who["attempt"]


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (errno.EROFS, VolumeLost),
        (errno.EACCES, VolumeLost),
        (errno.EPERM, VolumeLost),
        (errno.ESTALE, VolumeLost),
        (errno.ENOSPC, OutOfSpace),
        (errno.EDQUOT, OutOfSpace),
    ],
)
@pytest.mark.parametrize("who", SAVED.values(), ids=SAVED)
def test_trouble_that_stays_ends_the_attempt_as_in_the_middle_of_a_run_and_never_for_good(
    tmp_path: Path, code: int, end: type[Ended], who: dict[str, Any]
) -> None:
    (tmp_path / names.CACHE_FOLDER).mkdir()
    with pytest.raises(end) as ended:
        claim(tmp_path, code, **who)

    assert ended.value.outcome is not Outcome.BAD_CONFIG
    assert os.strerror(code) in ended.value.detail or code in layout.NO_SPACE
    assert str(tmp_path) in ended.value.detail


def test_a_volume_that_shows_what_was_saved_is_not_fresh(tmp_path: Path) -> None:
    """A new run that goes on from a claim: its first attempt, of which the operator knows no durable step."""
    assert not may_have_saved(tmp_path, attempt=1, durable_step=None)
    Fence(tmp_path, disk=layout.Disk(), attempt=7).claim()
    assert may_have_saved(tmp_path, attempt=1, durable_step=None)

    with pytest.raises(VolumeLost):
        claim(tmp_path, errno.EROFS, attempt=8)


@pytest.mark.parametrize("call", ["stat", "scandir", "mkdir"])
@pytest.mark.parametrize("attempt", [None, 1, 2])
def test_a_volume_that_hangs_is_given_up_whatever_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int | None, call: str
) -> None:
    monkeypatch.setattr(volume_start, "READ_SECONDS", 0.2)
    monkeypatch.setattr(volume_start, "_PROBE_SECONDS", 0.2)
    directory, release, original = tmp_path / "checkpoints", threading.Event(), getattr(os, call)
    if call != "mkdir":
        directory.mkdir()

    def hang(path: Any = ".", *args: Any, **options: Any) -> Any:
        if str(path).startswith(str(directory)):
            release.wait(30)
        return original(path, *args, **options)

    monkeypatch.setattr(os, call, hang)
    disk = Failing(errno.ETIMEDOUT)
    try:
        with pytest.raises(VolumeLost):
            claim_directory(
                directory,
                attempt=attempt,
                durable_step=None,
                disk=disk,
                clock=FakeClock(),
                is_stopping=lambda: False,
            )
    finally:
        release.set()


@pytest.mark.parametrize(
    ("code", "may"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False), (errno.ENOTDIR, False)]
)
def test_a_volume_that_cannot_be_read_may_hold_work_unless_nobody_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, may: bool
) -> None:
    def fail(directory: Path) -> Any:
        raise OSError(code, os.strerror(code), str(directory))

    monkeypatch.setattr(layout, "committed", fail)
    assert may_have_saved(tmp_path, attempt=1, durable_step=None) is may


@pytest.mark.parametrize(
    ("code", "attempt"), [(errno.EROFS, 1), (errno.EACCES, 1), (errno.EACCES, 2), (errno.EPERM, 2)]
)
@pytest.mark.parametrize("folder", [".", "run"], ids=["empty", "not there"])
def test_a_fresh_volume_that_may_not_be_written_is_a_wrong_setting_at_once(
    tmp_path: Path, code: int, folder: str, attempt: int
) -> None:
    """The attempts before have prepared data, or have lost their machines while an image was pulled."""
    with pytest.raises(BadConfig, match="checkpoints cannot be kept in"):
        claim(tmp_path / folder, code, attempt=attempt)


@pytest.mark.parametrize(("code", "end"), [(errno.EROFS, VolumeLost), (errno.ENOSPC, OutOfSpace)])
def test_a_later_attempt_waits_for_a_volume_that_is_read_only_or_full(
    tmp_path: Path, code: int, end: type[Ended]
) -> None:
    """Nobody knows that it always was: a file system that has failed looks like that."""
    assert claim(tmp_path, code, times=3, attempt=2).attempt == 2
    with pytest.raises(end):
        claim(tmp_path / "run", code, attempt=2)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_directory_that_a_later_attempt_cannot_list_may_hold_anything(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Iterator[Path]:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    assert may_have_saved(tmp_path, attempt=2, durable_step=None)


def test_a_path_through_a_file_is_a_wrong_setting_whatever_was_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="cannot be kept in"):
        claim(tmp_path / "file" / "run", errno.EIO, times=0, durable_step=3)


def test_a_volume_that_does_not_answer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match="has not answered for"):
        answered(lambda: release.wait(30), tmp_path, seconds=0.05)
    release.set()

    assert answered(lambda: 7, tmp_path, seconds=5) == 7
    with pytest.raises(ZeroDivisionError):
        answered(lambda: 1 // 0, tmp_path, seconds=5)


def test_a_volume_that_never_answers_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(volume_start, "READ_SECONDS", 0.05)

    class Hung(layout.Disk):
        def write(self, path: Path, text: str) -> None:
            release.wait(30)

    with pytest.raises(VolumeLost, match="the volume has not answered"):
        claim_directory(
            tmp_path, attempt=1, durable_step=None, disk=Hung(), clock=FakeClock(), is_stopping=lambda: False
        )
    release.set()


# --- before torch is imported ---------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    directory = tmp_path / "volume" / "run"
    return {
        names.ENV_CHECKPOINT_DIR: str(directory),
        names.ENV_INDUCTOR_CACHE: f"{directory}/.cache/inductor",
        names.ENV_TRITON_CACHE: "/scratch/of/the/users",
        names.ENV_TERMINATION_LOG: str(tmp_path / "termination-log"),
        names.ENV_ATTEMPT: "1",
    }


def forbid(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def mkdir(path: Path, **_: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_a_volume_that_can_be_written_keeps_the_caches_and_nothing_of_the_look(environment: dict[str, str]) -> None:
    look_before_torch(environment)

    directory = Path(environment[names.ENV_CHECKPOINT_DIR])
    assert [path.name for path in directory.iterdir()] == [".cache"]
    assert Path(environment[names.ENV_INDUCTOR_CACHE]).is_dir()


@pytest.mark.parametrize("attempt", ["1", "3"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_fresh_volume_of_root_is_named_with_what_would_help(
    environment: dict[str, str],
    code: int,
    attempt: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment[names.ENV_ATTEMPT] = attempt
    forbid(monkeypatch, code)
    with pytest.raises(SystemExit) as ended:
        look_before_torch(environment)

    assert ended.value.code == 78
    words = Termination.from_json(Path(environment[names.ENV_TERMINATION_LOG]).read_text())
    assert words is not None
    assert words.outcome is Outcome.BAD_CONFIG
    for part in (environment[names.ENV_CHECKPOINT_DIR], "belongs to", "fsGroup", "access point"):
        assert part in words.detail
    assert words.detail in capsys.readouterr().err


@pytest.mark.parametrize("known", [{names.ENV_DURABLE_STEP: "458"}, {names.ENV_ATTEMPT: "3"}], ids=["step", "attempt"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_volume_that_may_hold_work_is_left_to_the_claim_and_torch_gets_no_caches_on_it(
    environment: dict[str, str], known: dict[str, str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(environment[names.ENV_CHECKPOINT_DIR]) / names.CACHE_FOLDER).mkdir(parents=True)
    forbid(monkeypatch, code)
    environment |= known

    look_before_torch(environment)

    assert names.ENV_INDUCTOR_CACHE not in environment
    assert environment[names.ENV_TRITON_CACHE] == "/scratch/of/the/users"


# --- whole runs on real volumes -------------------------------------------------------------------------------------


def test_a_run_whose_volume_is_read_only_when_it_begins_again_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "32m") as volume:
        first = tiny.train(volume / "run", at={6: tiny.terminate}, attempt=1)
        assert first.code == 143
        remount(volume, "ro")

        lost = tiny.train(volume / "run", attempt=2, clock=FakeClock())

        assert lost.code == 82
        assert "Read-only file system" in lost.error
        remount(volume, "rw")
        assert tiny.train(volume / "run", attempt=3).resumed_from == 6


def test_a_run_whose_volume_is_full_when_it_begins_again_is_out_of_space_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path / "volume", "32m") as volume:
        assert tiny.train(volume / "run", at={6: tiny.terminate}, attempt=1).code == 143
        ballast = fill(volume, leave=0)

        full = tiny.train(volume / "run", attempt=2, clock=FakeClock())

        assert full.code == 80, full.error
        ballast.unlink()
        assert tiny.train(volume / "run", attempt=3).resumed_from == 6


def test_the_last_words_are_those_of_a_session(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, errno.EACCES)
    with pytest.raises(SystemExit):
        look_before_torch(environment)
    assert json.loads(Path(environment[names.ENV_TERMINATION_LOG]).read_text())["outcome"] == "badConfig"


def look(directories: list[Path], durable_step: int | None) -> str | None:
    """One rank's look for what rank 0 writes; its complaint."""
    volume_start.SHARED_SECONDS = 0.5
    warnings: list[str] = []
    volume_start.logger.warning = lambda text: warnings.append(f"warning: {text}")  # type: ignore[assignment, misc]
    world = Ranks.join()
    try:
        check_shared(directories[world.rank], ranks=world, durable_step=durable_step, disk=layout.Disk(), clock=Clock())
    except VolumeLost as lost:
        return lost.detail
    finally:
        world.leave()
    return warnings[0] if warnings else None


@pytest.mark.parametrize("other", ["empty", "used", "missing"])
def test_a_directory_that_the_ranks_do_not_share_is_named_at_the_claim(other: str, tmp_path: Path) -> None:
    directories = [tmp_path / "volume", tmp_path / other]
    directories[0].mkdir()
    if other != "missing":
        directories[1].mkdir()
    if other == "used":
        Fence(directories[1], disk=layout.Disk(), attempt=3).claim()
    ends = ranks.run(2, partial(look, directories, None))

    assert all(end.result is not None for end in ends)
    for told in (end.result for end in ends):
        assert f"what rank 0 writes to {directories[0]} on " in told
        assert f"is not in {directories[1]} on " in told
    assert list(directories[0].iterdir()) == []


@pytest.mark.parametrize("evidence", ["a durable step", "a checkpoint"])
def test_a_run_that_has_saved_is_warned_and_goes_on(evidence: str, tmp_path: Path) -> None:
    directories = [tmp_path / "volume", tmp_path / "other"]
    for directory in directories:
        directory.mkdir()
    if evidence == "a checkpoint":
        tiny.train(directories[0])
    ends = ranks.run(2, partial(look, directories, 458 if evidence == "a durable step" else None))

    assert ends[0].result.startswith("warning: the ranks do not share the checkpoint directory")
    assert ends[1].result is None


@pytest.mark.parametrize("path", ["volume", "link"])
def test_a_directory_that_is_shared_keeps_nothing_of_the_look(path: str, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    ends = ranks.run(2, partial(look, [tmp_path / "volume", tmp_path / path], None))

    assert [end.result for end in ends] == [None, None]
    assert list((tmp_path / "volume").iterdir()) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_rank_that_gets_no_answer_is_no_evidence(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bool:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "exists", fail)
    assert volume_start._sees(tmp_path / "nonce", FakeClock())
