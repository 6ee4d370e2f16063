"""A session that chooses its save interval: what it does with dear saves, cheap saves, slow writers and preemptions."""

import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

import piton_trainer
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.progress import CHECKPOINT_INTERVAL_SECONDS
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.checkpoint.save_interval import FIRST_SECONDS, SHORTEST_SECONDS, Choice
from support import ranks, tiny
from support.clocks import FakeClock
from support.disks import SlowDisk

AUTO = Assignment(save=SavePolicy(auto=True, keep_last=999))
STEP_SECONDS = 10.0
Look = Callable[[piton_trainer.Session], object]


def train(
    directory: Path,
    *,
    save_seconds: float = 0.0,
    steps: int = 100,
    killed_after: int | None = None,
    look: Look = lambda session: None,
) -> None:
    """An attempt with steps of ten seconds. `look` sees each step; a kill comes without a word."""
    clock = FakeClock()
    disk = SlowDisk(clock, seconds=save_seconds)
    with piton_trainer.session(tiny.config(directory, AUTO), clock=clock, disk=disk) as session:
        session.restore(model=tiny.build())
        for taken, _ in enumerate(session.steps(range(1000), total=steps), start=1):
            clock.pass_seconds(STEP_SECONDS if session.is_main else 0.0)
            look(session)
            if taken == killed_after:
                raise tiny.LostError


def attempt_that_is_killed(directory: Path, *, after: int, save_seconds: float, look: Look = lambda _: None) -> None:
    with pytest.raises(tiny.LostError):
        train(directory, save_seconds=save_seconds, steps=1000, killed_after=after, look=look)


def choice_of(session: piton_trainer.Session) -> Choice:
    choice = session._opened._saves._interval.choice
    assert choice is not None
    return choice


def steps_in(directory: Path) -> list[int]:
    return [step for step, _ in reversed(layout.step_folders(directory))]


def gaps(directory: Path) -> list[int]:
    """Steps from save to save, without the first and the last, which are there in any case."""
    steps = steps_in(directory)[:-1]
    return [later - earlier for earlier, later in pairwise(steps)]


def test_the_first_save_comes_after_a_minute(tmp_path: Path) -> None:
    train(tmp_path, save_seconds=100)

    assert steps_in(tmp_path)[0] * STEP_SECONDS == FIRST_SECONDS


def test_cheap_saves_are_made_often_and_dear_ones_seldom(tmp_path: Path) -> None:
    for name, seconds in (("cheap", 1 / 64), ("dear", 5.0), ("very dear", 20.0)):
        train(tmp_path / name, save_seconds=seconds)

    assert set(gaps(tmp_path / "cheap")) == {SHORTEST_SECONDS / STEP_SECONDS}
    # One interruption in 3600 s and what has passed by then: sqrt(2 * 5 * 3700) s, sqrt(2 * 20 * 3700) s.
    assert set(gaps(tmp_path / "dear")) == {20, 21}
    assert set(gaps(tmp_path / "very dear")) == {39, 41}


def test_preemptions_make_the_interval_shorter(tmp_path: Path) -> None:
    chosen: list[float] = []

    for _ in range(6):
        attempt_that_is_killed(tmp_path, after=50, save_seconds=5, look=lambda s: chosen.append(choice_of(s).seconds))

    ends = chosen[49::50]
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] < ends[0] / 1.5


def test_an_attempt_goes_on_with_what_the_one_before_it_knew(tmp_path: Path) -> None:
    seen: list[Choice] = []
    attempt_that_is_killed(tmp_path, after=60, save_seconds=5, look=lambda s: seen.append(choice_of(s)))
    newest = steps_in(tmp_path)[-1]
    before = seen[-1]
    attempt_that_is_killed(tmp_path, after=30, save_seconds=5, look=lambda s: seen.append(choice_of(s)))

    assert seen[60].cost_seconds == before.cost_seconds == 5
    assert seen[60].between_seconds == pytest.approx(before.between_seconds / 2, rel=0.05)
    first_save = steps_in(tmp_path)[steps_in(tmp_path).index(newest) + 1] - newest
    assert first_save * STEP_SECONDS == pytest.approx(seen[60].seconds, abs=STEP_SECONDS)
    assert first_save * STEP_SECONDS > FIRST_SECONDS


def test_attempts_that_left_nothing_behind_are_counted_too(tmp_path: Path) -> None:
    seen: list[float] = []
    for _ in range(3):
        attempt_that_is_killed(
            tmp_path, after=3, save_seconds=5, look=lambda s: seen.append(choice_of(s).between_seconds)
        )

    assert seen[::3] == [3600, 1800, 1200]


def test_a_restart_that_is_no_new_attempt_is_no_interruption(tmp_path: Path) -> None:
    found: list[float] = []
    for _ in range(2):
        with piton_trainer.session(tiny.config(tmp_path, AUTO, attempt=4), clock=FakeClock()) as session:
            session.restore(model=tiny.build())
            for _ in session.steps([1, 2, 3], total=session.step + 1):
                found.append(choice_of(session).between_seconds)  # noqa: PERF401 - the session is asked meanwhile

    assert found == [900, 900], "three attempts came before it, both times"


@pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])
def test_bests_notices_and_the_end_are_saved_whatever_the_interval_is(tmp_path: Path, background: bool) -> None:
    values = {3: 0.5, 5: 0.6, 6: 0.4}

    def report(session: piton_trainer.Session) -> None:
        session.report(val=values[session.step + 1])

    reports: dict[int, tiny.Event] = dict.fromkeys(values, report)
    orders = Assignment(save=AUTO.save, objective=Objective(metric="val"))
    train_on = partial(tiny.train, tmp_path, assignment=orders, clock=FakeClock(), background_saves=background)

    assert train_on(at=reports | {9: tiny.terminate}).code == 143
    assert steps_in(tmp_path) == [3, 6, 9]
    assert train_on().code == 0
    assert steps_in(tmp_path) == [3, 6, 9, tiny.STEPS]


def test_the_weights_do_not_depend_on_it(tmp_path: Path) -> None:
    clock = FakeClock()
    slow: dict[int, tiny.Event] = dict.fromkeys(range(1, tiny.STEPS), lambda _: clock.pass_seconds(10))
    auto = tiny.train(tmp_path / "auto", assignment=AUTO, clock=clock, at=slow)
    never = tiny.train(tmp_path / "never", assignment=Assignment(save=SavePolicy()))

    assert len(steps_in(tmp_path / "auto")) > len(steps_in(tmp_path / "never")) == 1
    assert auto.digest() == never.digest()


def signal_the_writer(signum: signal.Signals) -> Look:
    def send(session: piton_trainer.Session) -> None:
        assert session._services.store is not None
        checkpointer = session._services.store._checkpointer
        assert isinstance(checkpointer, AsyncCheckpointer)
        assert checkpointer._writer.pid is not None
        os.kill(checkpointer._writer.pid, signum)

    return send


def test_a_slow_writer_and_the_steps_that_it_slows_are_measured(tmp_path: Path) -> None:
    clock = FakeClock()
    chosen: dict[int, Choice] = {}
    # The save of step 6 is written until step 14. Meanwhile a step takes a quarter longer.
    slow = range(7, 15)

    def event(session: piton_trainer.Session) -> None:
        step = session.step + 1
        clock.pass_seconds(12.5 if step in slow else 10.0)
        if step == 6:
            signal_the_writer(signal.SIGSTOP)(session)
        if step == 14:
            signal_the_writer(signal.SIGCONT)(session)
            session._opened._store.wait()
        chosen[step] = choice_of(session)

    at: dict[int, tiny.Event] = dict.fromkeys(range(1, tiny.STEPS + 1), event)
    tiny.train(tmp_path, assignment=AUTO, clock=clock, at=at, background_saves=True)

    assert chosen[14].cost_seconds is None
    assert chosen[15].durable_seconds == 8 * 12.5
    assert chosen[15].cost_seconds == pytest.approx(100 * 0.2)
    assert chosen[15].seconds == pytest.approx((2 * 20 * 3760) ** 0.5, rel=0.01)


def test_a_step_that_lasts_as_long_as_the_writing_is_measured_too(tmp_path: Path) -> None:
    clock = FakeClock()
    costs: list[float | None] = []

    def event(session: piton_trainer.Session) -> None:
        costs.append(choice_of(session).cost_seconds)
        store = session._opened._store
        clock.pass_seconds(25 if store.in_flight else 20)
        store.wait()

    at: dict[int, tiny.Event] = dict.fromkeys(range(1, tiny.STEPS + 1), event)
    tiny.train(tmp_path, assignment=AUTO, clock=clock, at=at, background_saves=True)

    assert costs[:3] == [None] * 3
    assert costs[4] == pytest.approx(5)


def test_of_several_ranks_the_first_says_when(tmp_path: Path) -> None:
    """The clock of the other one stands still."""
    exits = ranks.run(2, partial(train, tmp_path, save_seconds=5, steps=40))

    assert [end.code for end in exits] == [0, 0]
    assert steps_in(tmp_path) == [6, 26, 40]


def test_the_interval_is_reported_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[float] = []
    train(
        tmp_path,
        save_seconds=5,
        look=lambda s: shown.append(s._opened.progress().metrics[CHECKPOINT_INTERVAL_SECONDS]),
    )

    assert shown[0] == FIRST_SECONDS
    assert shown[-1] == pytest.approx((2 * 5 * 4300) ** 0.5, rel=0.05)
    lines = [line for line in capsys.readouterr().err.splitlines() if "saving every" in line]
    assert len(lines) == 1
    assert lines[0].startswith("piton: saving every 3m11s: a save costs 5 s and is durable after 5 s, an interruption")


def test_who_names_an_interval_hears_nothing_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[bool] = []

    def look(session: piton_trainer.Session) -> None:
        seen.append(CHECKPOINT_INTERVAL_SECONDS in session._opened.progress().metrics)

    tiny.train(tmp_path, assignment=tiny.every(2), at={9: look})

    assert seen == [False]
    assert "saving every" not in capsys.readouterr().err
