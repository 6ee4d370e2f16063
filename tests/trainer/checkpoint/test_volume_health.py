"""A volume that fails in the middle of a run: training goes on for a while, and nothing committed is lost."""

import errno
import logging
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import piton_trainer
from piton.contract import names
from piton.contract.progress import CHECKPOINTS_THAT_FIT
from piton_trainer.checkpoint import Checkpointer, Saved
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.retention import with_overhead
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.checkpoint.save.commit import is_good
from piton_trainer.checkpoint.volume_health import VolumeHealth
from piton_trainer.errors import VolumeLost
from support import checkpoints, ranks, tiny
from support.clocks import FakeClock
from support.disks import SmallDisk
from support.volumes import Trouble, fill, mounted, remount

GONE_AT, BACK_AT = 5, 11
STEP_SECONDS = 5.0
"""Of virtual time: the volume is away for 30 s."""


@dataclass
class Heard:
    """What a rank has seen."""

    code: int = 0
    error: str = ""
    durable: dict[int, int | None] = field(default_factory=dict)
    """The newest checkpoint, by the step in whose body it was looked for."""
    words: list[str] = field(default_factory=list)
    losses: int = 0


class Words(logging.Handler):
    def __init__(self, into: list[str]) -> None:
        super().__init__()
        self.into = into

    def emit(self, record: logging.LogRecord) -> None:
        self.into.append(record.getMessage())


def train(
    directory: Path,
    *,
    gone: Callable[[], object],
    back: Callable[[], object],
    background: bool,
    patience_seconds: float = 3600.0,
    until: float = BACK_AT,
) -> Heard:
    """An attempt in a process of its own. Each save has an interval to become durable, or not."""
    heard, clock = Heard(), FakeClock()
    logging.getLogger("piton_trainer.checkpoint.volume_health").addHandler(Words(heard.words))

    def live(session: piton_trainer.Session) -> None:
        clock.pass_seconds(STEP_SECONDS)
        store, step = session._services.store, session.step + 1
        assert store is not None
        while store.in_flight and not GONE_AT < step <= until:
            checkpoints.poll(store, session._ranks)
        wait_for_the_writer(store._checkpointer, session)
        heard.durable[step] = store.durable_step
        if step == GONE_AT:
            gone()
        if step == until:
            back()

    orders = tiny.every(2, keep_last=9, patience_seconds=patience_seconds)
    events: dict[int, tiny.Event] = dict.fromkeys(range(1, tiny.STEPS + 1), live)
    ran = tiny.train(directory, assignment=orders, at=events, background_saves=background, clock=clock)
    heard.code, heard.error, heard.losses = ran.code, ran.error, len(ran.losses)
    return heard


def wait_for_the_writer(saver: Checkpointer, session: piton_trainer.Session) -> None:
    """Until this rank's writer has something to say; what that is the boundary hears."""
    flight = saver._flight if isinstance(saver, AsyncCheckpointer) else None
    if flight is not None and flight.answer is None and (session.is_main or not flight.is_sealed):
        assert isinstance(saver, AsyncCheckpointer)
        assert saver._writer._connection.poll(30)


def in_trouble(directory: Path, code: int, *, rank: int = 0, **how: Any) -> Heard:
    if os.environ["RANK"] != str(rank):
        return train(directory, gone=int, back=int, **how)
    trouble = Trouble(directory)
    return train(directory, gone=partial(trouble.begin, code), back=trouble.end, **how)


def steps_in(directory: Path) -> list[int]:
    folders = layout.step_folders(directory)
    assert all(is_good(folder) for _, folder in folders)
    return [step for step, _ in folders]


def assert_it_came_back(heard: Heard, directory: Path, sentence: str) -> None:
    assert (heard.code, heard.losses) == (0, tiny.STEPS)
    assert heard.durable[BACK_AT] == 4
    assert [word.split(";")[0] for word in heard.words] == [
        f"a checkpoint cannot be saved: {sentence}",
        f"checkpoints can be saved again: step {steps_in(directory)[-3]} is",
    ]
    assert steps_in(directory)[-2:] == [4, 2]
    assert steps_in(directory)[0] == tiny.STEPS
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("code", "background"),
    [(errno.EIO, True), (errno.ESTALE, False)],
    ids=["background", "blocking"],
)
def test_a_volume_that_is_gone_for_30_seconds_costs_the_saves_of_30_seconds(
    code: int, background: bool, tmp_path: Path
) -> None:
    directory = tmp_path / "volume"
    heard = ranks.run(1, partial(in_trouble, directory, code, background=background))[0].result
    assert_it_came_back(heard, directory, f"the volume of {directory} fails ({os.strerror(code)})")


def test_a_volume_that_fails_on_one_of_two_ranks_holds_neither_of_them_up(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    body = partial(in_trouble, directory, errno.EIO, background=True, rank=1)
    first, second = (end.result for end in ranks.run(2, body))
    assert (first.code, second.code) == (0, 0)
    assert first.words[0].startswith("a checkpoint cannot be saved")
    assert first.words[-1].startswith("checkpoints can be saved again")
    assert second.words == []
    assert {4, 2, tiny.STEPS} < set(steps_in(directory))


def test_a_volume_that_stays_away_ends_the_attempt_with_its_code_and_a_sentence(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    body = partial(in_trouble, directory, errno.EIO, until=math.inf, background=True, patience_seconds=30.0)
    heard = ranks.run(1, body)[0].result
    assert heard.code == 82
    assert heard.error == (
        f"nothing could be saved for {heard.error.split()[5]} the volume of {directory} fails (Input/output error); "
        "what it holds is untouched; step 4 is the newest checkpoint"
    )
    assert heard.losses < tiny.STEPS
    assert steps_in(directory) == [4, 2]


def test_a_volume_that_turns_read_only_and_back(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "32m") as directory:
        gone, back = partial(remount, directory, "ro"), partial(remount, directory, "rw")
        heard = ranks.run(1, partial(train, directory, gone=gone, back=back, background=True))[0].result
        assert_it_came_back(heard, directory, f"the volume of {directory} fails (Read-only file system)")


def full_but_for_one(directory: Path) -> Path:
    """A volume with one checkpoint, which must not go, and something else."""
    layout.discard(directory / names.step_folder(2))
    return fill(directory, leave=10_000)


def test_a_volume_that_is_full_for_a_while(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "32m") as directory, ExitStack() as later:

        def gone() -> None:
            later.callback(full_but_for_one(directory).unlink)

        heard = ranks.run(1, partial(train, directory, gone=gone, back=later.close, background=True))[0].result
        assert (heard.code, heard.losses) == (0, tiny.STEPS)
        assert f"the disk of {directory} is full: step 6 needs " in heard.words[0]
        assert "checkpoints can be saved again" in heard.words[-1]
        assert steps_in(directory)[0] == tiny.STEPS


def test_a_volume_that_stays_full_ends_the_run_with_its_code_and_keeps_what_it_has(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "32m") as directory:
        gone = partial(full_but_for_one, directory)
        body = partial(train, directory, gone=gone, back=int, background=True, until=math.inf)
        heard = ranks.run(1, body)[0].result
        assert (heard.code, heard.losses) == (80, tiny.STEPS)
        assert f"the disk of {directory} is full: step 15 needs " in heard.error
        assert steps_in(directory) == [4]
        (directory / "ballast").unlink()
        assert ranks.run(1, partial(tiny.train, directory))[0].result.resumed_from == 4


def test_what_would_go_later_goes_early_when_there_is_no_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = tmp_path / "one"
    tiny.train(one, at={2: tiny.terminate})
    size = layout.read_manifest(one / names.step_folder(2)).size
    disk = SmallDisk(with_overhead(size) + 3 * size)
    ran = tiny.train(tmp_path / "small", assignment=tiny.every(2, keep_last=9), disk=disk)
    assert ran.code == 0
    assert 2 <= len(steps_in(tmp_path / "small")) <= 4
    assert "what would have gone later is gone" in caplog.text


def test_a_volume_that_is_too_small_for_one_checkpoint_ends_the_attempt_after_its_first_step(tmp_path: Path) -> None:
    """And not one whose room is taken by checkpoints that would make way."""
    assert tiny.train(tmp_path / "one", at={2: tiny.terminate}).code == 143
    size = layout.read_manifest(tmp_path / "one" / names.step_folder(2)).size

    ran = tiny.train(tmp_path / "small", assignment=tiny.every(2), disk=SmallDisk(size // 2))

    assert (ran.code, list(ran.losses)) == (80, [1])
    assert f"the disk of {tmp_path / 'small'} is too small: a checkpoint needs " in ran.error
    assert tiny.train(tmp_path / "one", assignment=tiny.every(2), disk=SmallDisk(with_overhead(2 * size))).code == 0


def test_it_is_said_once_that_a_volume_is_nearly_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = VolumeHealth(FakeClock(), patience_seconds=60)
    seen = []
    for step, free in enumerate([250, 150, 150, 350, 90]):
        watch.saved(Saved(step=step, folder=tmp_path / names.step_folder(step), size=100, free=free))
        seen.append(watch.metrics().get(CHECKPOINTS_THAT_FIT))
    assert seen == [None, 1, 1, None, 0]
    sentence = (
        f"the volume of {tmp_path} is nearly full: beside what is kept, %d bytes were free for a checkpoint of 100"
    )
    assert [record.getMessage() for record in caplog.records] == [sentence % 150, sentence % 90]


def test_who_is_told_to_stop_tries_for_20_seconds_however_long_nothing_could_be_saved_before() -> None:
    clock, tries = FakeClock(), []
    watch, trouble = VolumeHealth(clock, patience_seconds=3600), VolumeLost("it is away")
    watch.failed(trouble, durable_step=4)
    clock.pass_seconds(600)

    def stop() -> None:
        while True:
            watch.failed(trouble, durable_step=4, is_stopping=True)
            tries.append(clock.monotonic())
            clock.pass_seconds(1)

    with pytest.raises(VolumeLost, match="nothing could be saved for 10m20s: it is away; step 4 is the newest"):
        stop()
    assert tries == [600 + second for second in range(20)]


def test_it_is_said_once_that_a_save_hangs(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    watch = VolumeHealth(clock, patience_seconds=60)
    seen = []
    for in_flight in [True, True, True, True, False, True]:
        watch.look(in_flight=in_flight)
        seen.append(watch.stuck_seconds)
        clock.pass_seconds(300)
    assert seen == [0, 0, 600, 900, 0, 0]
    assert [record.getMessage() for record in caplog.records] == ["a save has been under way for 10m; training goes on"]
