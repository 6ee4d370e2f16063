"""A save or a stop in the middle of a gradient accumulation waits for its end: no gradient is lost."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import piton_trainer
from piton_trainer import accumulation
from piton_trainer.accumulation import Accumulation
from piton_trainer.checkpoint import layout
from piton_trainer.errors import Stopped
from support import ranks, tiny

BATCHES, EVERY = 12, 4
ROWS = torch.linspace(-1, 1, BATCHES * 4).reshape(BATCHES, 4)


def train(directory: Path, *, stop_at: int = 0, save_every: int = 100, vanish_at: int = 0) -> list[float]:
    """Accumulate over `EVERY` batches; the weights in the end."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with piton_trainer.session(tiny.config(directory, tiny.every(save_every))) as session:
        session.restore(model=model, optimizer=optimizer)
        for row in session.steps(list(ROWS)):
            model(row).square().sum().backward()
            if (session.step + 1) % EVERY == 0:
                optimizer.step()
                optimizer.zero_grad()
            if session.step + 1 == stop_at:
                tiny.terminate(session)
            if session.step + 1 == vanish_at:
                tiny.vanish(session)
    return model.weight.detach().flatten().tolist()


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[float]:
    return train(tmp_path / "undisturbed")


@pytest.mark.parametrize("stop_at", range(1, BATCHES - EVERY + 1))
def test_a_stop_at_any_batch_loses_no_gradient(stop_at: int, tmp_path: Path, undisturbed: list[float]) -> None:
    directory = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(directory, stop_at=stop_at)
    assert [step for step, _ in layout.step_folders(directory)] == [-(-stop_at // EVERY) * EVERY]
    assert train(directory) == undisturbed


def test_a_stop_in_the_last_accumulation_finishes_the_run(tmp_path: Path, undisturbed: list[float]) -> None:
    assert train(tmp_path / "stopped", stop_at=BATCHES - 1) == undisturbed


@pytest.mark.parametrize(("save_every", "saved"), [(1, [8, 4]), (2, [8, 4]), (3, [8, 4]), (5, [8])])
def test_a_save_that_is_due_in_the_middle_comes_at_the_end_of_it(
    save_every: int, saved: list[int], tmp_path: Path, undisturbed: list[float]
) -> None:
    directory = tmp_path / "killed"
    with pytest.raises(tiny.LostError):
        train(directory, save_every=save_every, vanish_at=11)
    assert [step for step, _ in layout.step_folders(directory)] == saved
    assert train(directory, save_every=save_every) == undisturbed


def test_a_loop_that_clears_its_gradients_at_the_start_of_a_step_is_saved_at_each_one(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with piton_trainer.session(tiny.config(tmp_path, tiny.every(1, keep_last=20))) as session:
        session.restore(model=model, optimizer=optimizer)
        for row in session.steps(list(ROWS)):
            optimizer.zero_grad()
            model(row).square().sum().backward()
            optimizer.step()
    assert len(layout.step_folders(tmp_path)) == BATCHES


def test_what_one_rank_accumulates_keeps_all_ranks_from_saving(tmp_path: Path) -> None:
    ends = ranks.run(2, lambda: train_on_two(tmp_path))
    assert [end.code for end in ends] == [0, 0]
    assert [step for step, _ in layout.step_folders(tmp_path)] == [12, 9, 6, 3]


def train_on_two(directory: Path) -> None:
    """Rank 0 steps at each batch, rank 1 at every third."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with piton_trainer.session(tiny.config(directory, tiny.every(1, keep_last=20))) as session:
        session.restore(model=model, optimizer=optimizer)
        for row in session.steps(list(ROWS)):
            model(row).square().sum().backward()
            if session.rank == 0 or (session.step + 1) % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()


def test_an_optimizer_that_never_steps_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accumulation, "BATCHES_MAX", 3)
    optimizer = torch.optim.SGD(gradients_of(nn.Linear(2, 1)), lr=0.1)
    seen = Accumulation([optimizer])
    assert [seen.is_under_way() for _ in range(5)] == [True, True, False, False, False]
    assert caplog.messages == ["no optimizer has stepped for 3 batches; checkpoints are saved without the gradients"]
    optimizer.step()
    assert [seen.is_under_way() for _ in range(2)] == [False, True]
    seen.release()
    optimizer.step()
    assert seen.is_under_way()


def gradients_of(model: nn.Module) -> Iterable[Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model.parameters()
