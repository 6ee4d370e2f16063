"""A rank that is gone without a word is noticed at the vote; one that is only slow is waited for."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import piton_trainer
from support import ranks, tiny

SECONDS = 2


def vanish(_: piton_trainer.Session) -> None:
    """As a node that loses its power: the connections stay open, and nobody answers."""
    os.kill(os.getpid(), signal.SIGSTOP)


def take_long(_: piton_trainer.Session) -> None:
    """Longer than the limit, and alive."""
    threading.Event().wait(2 * SECONDS)


def evaluate_in_c(session: piton_trainer.Session) -> None:
    """No other thread of this process runs meanwhile."""
    with session.untimed():
        ctypes.PyDLL(None).sleep(2 * SECONDS)


def train(directory: Path, who: int, event: Callable[[piton_trainer.Session], None]) -> str:
    try:
        with piton_trainer.session(tiny.config(directory, collective_seconds=SECONDS)) as session:
            session.restore(model=tiny.build())
            for batch in session.steps([1, 2, 3, 4]):
                if session.rank == who and batch == 2:
                    event(session)
    except RuntimeError as error:
        return str(error)
    return f"step {session.step}"


@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_is_gone_is_noticed_within_the_limit(who: int, tmp_path: Path) -> None:
    began = time.monotonic()
    with ranks.start(2, partial(train, tmp_path, who, vanish)) as world:
        told = world.result(1 - who)

    assert told.startswith(f"rank {who} has given no sign of life for 0.8 s")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("event", [take_long, evaluate_in_c])
def test_a_rank_that_takes_long_is_waited_for(
    event: Callable[[piton_trainer.Session], None], who: int, tmp_path: Path
) -> None:
    ends = ranks.run(2, partial(train, tmp_path, who, event))

    assert [end.result for end in ends] == ["step 4", "step 4"]
