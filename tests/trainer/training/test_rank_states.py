"""Rank 0 does not speak for all: what differs between ranks comes back to each of them as it was."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import piton_trainer
from piton_trainer.state import agreement
from support import logged, ranks, resume, tiny

STEPS, STOP = 8, 5


class Counter:
    """An object of the user's: what each rank has seen so far, in numbers and in a tensor."""

    def __init__(self) -> None:
        self.seen, self.rows, self.calls = 0.0, torch.zeros(3), 0

    def add(self, x: Tensor) -> None:
        self.seen += float(x.sum())
        self.rows += x.sum(dim=0)[:3]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "rows": self.rows, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.rows, self.calls = state["seen"], state["rows"], state["calls"]


class LateCounter(Counter):
    """It is equal on all ranks for some steps."""

    def add(self, x: Tensor) -> None:
        self.calls += 1
        super().add(x if self.calls > 2 else torch.ones_like(x))


class Replay(Counter):
    """It holds more than each save compares."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.zeros(3, 1000)

    def add(self, x: Tensor) -> None:
        self.rows = self.rows.roll(1, 1)
        self.rows[:, 0] = x.sum(dim=0)[:3]


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))


def attempt(
    directory: Path, build: Callable[[], nn.Module], make: Callable[[int], Any], *, stop: bool = False
) -> dict[str, Any]:
    """Return the losses of a rank, and what it has in the end."""
    with piton_trainer.session(tiny.config(directory)) as session:
        torch.manual_seed(0)
        model, extra = build(), make(session.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        session.restore(model=model, optimizer=optimizer, **({} if extra is None else {"extra": extra}))
        several = session.world_size > 1
        wrapped = DistributedDataParallel(model) if several else model
        losses = {}
        for x in session.steps(batches(session.rank), epochs=1):
            noise = torch.randn(x.shape, generator=extra) if isinstance(extra, torch.Generator) else 0.0
            if isinstance(extra, Counter):
                extra.add(x)
            loss = (wrapped(x + noise) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[session.step + 1] = float(loss.detach())
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
        # DDP gives all ranks the statistics of rank 0 before the next step; until then only rank 0's count.
        state = {key: value.tolist() for key, value in model.state_dict().items()}
        kept = extra.get_state() if isinstance(extra, torch.Generator) else extra and extra.state_dict()
        return {"losses": losses, "model": state if session.rank == 0 else None, "extra": listed(kept)}


def batches(rank: int) -> list[Tensor]:
    return [torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + n)) + rank for n in range(STEPS)]


def listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: listed(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def nothing(rank: int) -> None:
    """Give no further object."""


def seeded(rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(rank + 7)


CASES = [
    (norms, nothing),
    (plain, seeded),
    (plain, lambda rank: Counter()),
    (plain, lambda rank: LateCounter()),
    (norms, lambda rank: Replay()),
]


@resume.exact("ranks: BatchNorm under DDP, generators, counters and replay buffers of each rank")
@pytest.mark.parametrize(("build", "make"), CASES)
def test_what_differs_between_ranks_is_there_again(
    build: Callable[[], nn.Module], make: Callable[[int], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "LARGE_BYTES", 1000)
    whole = ranks.run(2, partial(attempt, tmp_path / "whole", build, make))
    stopped = ranks.run(2, partial(attempt, tmp_path / "disturbed", build, make, stop=True))
    resumed = ranks.run(2, partial(attempt, tmp_path / "disturbed", build, make))
    assert [exit_.code for exit_ in (*whole, *stopped, *resumed)] == [0, 0, 143, 143, 0, 0]
    for there, here in zip(whole, resumed, strict=True):
        late = {step: loss for step, loss in there.result["losses"].items() if step > STOP}
        assert here.result == {**there.result, "losses": late}


@resume.approximate("ranks: another number of them, with objects of each rank's own", "new ranks have rank 0's")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3)])
def test_another_number_of_ranks_has_its_own_state_or_rank_0s(before: int, after: int, tmp_path: Path) -> None:
    ranks.run(before, partial(attempt, tmp_path, plain, lambda rank: Counter(), stop=True))
    resumed = ranks.run(after, partial(seen_at_once, tmp_path))
    seen = [sum(float(x.sum()) for x in batches(rank)[:STOP]) for rank in range(before)]
    expected = [seen[rank] if rank < before else seen[0] for rank in range(after)]
    assert [exit_.result[0] for exit_ in resumed] == pytest.approx(expected)
    told = "extra: each of 2 ranks has a state of its own in the checkpoint, and there are 3 ranks now"
    assert [any(line.startswith(told) for line in exit_.result[1]) for exit_ in resumed] == (
        [True, False, False] if after > before else [False]
    )


def seen_at_once(directory: Path) -> tuple[float, list[str]]:
    """Return what a rank goes on with, and what it logs."""
    lines = logged.warnings_from_now_on()
    with piton_trainer.session(tiny.config(directory)) as session:
        model, extra = plain(), Counter()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        session.restore(model=model, optimizer=optimizer, extra=extra)
        for _ in session.steps(batches(0), epochs=1):
            break
        return extra.seen, lines
