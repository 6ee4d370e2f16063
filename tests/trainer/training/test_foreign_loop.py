"""A session around a loop that it does not own: `begin`, `boundary`, `peek`, and the random numbers of its epochs."""

import contextlib
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import piton_trainer
from piton_trainer.checkpoint.format import layout
from piton_trainer.errors import Stopped
from support import ends, resume, tiny
from support.attempts import completion

EPOCHS, BATCHES = 2, 3
STEPS = EPOCHS * BATCHES


class Place:
    """How far the loop is, as it knows by itself."""

    def __init__(self) -> None:
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def loop(
    directory: Path, *, at: Mapping[int, Callable[[], object]] | None = None, ends_at: int = 0, seed: int = 9
) -> list[float]:
    """Somebody's loop: an order that is drawn when an epoch begins, and random numbers in each step."""
    torch.manual_seed(seed)
    random.seed(seed)
    seen, place = [], Place()
    with piton_trainer.session(tiny.config(directory)) as session:
        done = (session.peek("place") or {"done": 0})["done"]
        session.restore(model=tiny.build(), place=place)
        assert place.done == done
        randomness = session.begin(total=STEPS)
        while randomness is not None and done < STEPS:
            passed_over = done % BATCHES
            if passed_over:
                randomness.replay_epoch()
            else:
                randomness.catch_up()
                randomness.begin_epoch()
            order = torch.randperm(BATCHES).tolist()
            randomness.catch_up()
            for batch in order[passed_over:]:
                seen.append(batch + random.random() + float(torch.rand(())))
                (at or {}).get(done + 1, int)()
                place.done = done = done + 1
                if session.boundary(ended="the loop has had enough" if done == ends_at else None):
                    return seen
    return seen


@resume.exact("loops: one's own, with session.boundary()")
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_loop_that_is_stopped_goes_on_as_if_it_had_not_been(step: int, tmp_path: Path) -> None:
    whole = loop(tmp_path / "whole", seed=1)
    with pytest.raises(Stopped, match=f"step {step} is saved"):
        loop(tmp_path / "parts", seed=1, at={step: ends.terminate})
    assert loop(tmp_path / "parts") == whole[step:]
    assert completion(tmp_path / "parts").reason == "all steps are done"


def test_who_catches_a_stop_hears_it_again_when_the_session_ends(tmp_path: Path) -> None:
    def catch() -> None:
        with piton_trainer.session(tiny.config(tmp_path)) as session:
            session.restore(model=tiny.build())
            session.begin()
            ends.terminate()
            with contextlib.suppress(Stopped):
                session.boundary()

    with pytest.raises(Stopped, match="step 1 is saved"):
        catch()


def test_a_loop_that_ends_by_itself_stays_ended(tmp_path: Path) -> None:
    assert len(loop(tmp_path, ends_at=4)) == 4
    assert (completion(tmp_path).step, completion(tmp_path).reason) == (4, "the loop has had enough")
    assert loop(tmp_path) == []


def test_a_loop_that_comes_from_elsewhere_keeps_its_count(tmp_path: Path) -> None:
    with piton_trainer.session(tiny.config(tmp_path)) as session:
        session.restore(model=tiny.build())
        assert session.begin(total=8, step=7) is not None
        assert session.boundary()
    assert [step for step, _ in layout.step_folders(tmp_path)] == [8]


def test_signals_that_a_framework_has_taken_are_listened_to_again(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def a_framework_takes_them() -> None:
        with piton_trainer.session(tiny.config(tmp_path)) as session:
            session.restore(model=tiny.build())
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            session.listen()
            ends.terminate()
            session.begin()

    with pytest.raises(Stopped, match="SIGTERM"):
        a_framework_takes_them()
    assert signal.getsignal(signal.SIGTERM) == before
