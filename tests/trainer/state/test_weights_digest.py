"""The digest of the final weights is one of their numbers, and its absence ends nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import piton_trainer
from piton_trainer.checkpoint import inspect
from piton_trainer.state.weights_digest import weights_digest
from piton_trainer.training.save_scheduler import SaveScheduler
from support import tiny
from support.subclasses import Named, in_rows, ragged


def with_buffer(buffer: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    model.register_buffer("own", buffer)
    return model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1 + 2j, 3j]).conj(), torch.tensor([1 - 2j, complex(0, -3)])),
        (torch.tensor([1 + 2j, 3j]).conj().imag, torch.tensor([-2.0, -3.0])),
        (torch.ones(2).expand(3, 2), torch.ones(3, 2)),
        (torch.arange(6.0).reshape(2, 3).T, torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])),
        (Named(torch.ones(2)), torch.ones(2)),
    ],
)
def test_it_is_one_of_the_numbers_however_they_lie_in_memory(one: Tensor, other: Tensor) -> None:
    digest = weights_digest({"model": with_buffer(one)})
    assert digest is not None
    assert digest == weights_digest({"model": with_buffer(other)})
    assert digest != weights_digest({"model": with_buffer(torch.zeros_like(other))})


class Silent(nn.Linear):
    """It fails when it is asked."""

    is_silent = False

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_silent:
            raise RuntimeError("ask me later")
        return super().state_dict(*args, **kwargs)


def silent() -> nn.Module:
    model = Silent(2, 2)
    model.is_silent = True
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: with_buffer(torch.eye(2).to_sparse()),
        lambda: with_buffer(in_rows()),
        lambda: with_buffer(ragged()),
        silent,
    ],
)
def test_there_is_none_of_what_is_no_array_of_numbers(build: Callable[[], nn.Module]) -> None:
    assert weights_digest({"model": build()}) is None


def test_a_training_that_is_done_is_finished_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Silent(2, 2)
    save = SaveScheduler.save_final

    def save_and_fall_silent(self: Any, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        model.is_silent = True

    monkeypatch.setattr(SaveScheduler, "save_final", save_and_fall_silent)
    with piton_trainer.session(tiny.config(tmp_path, termination_log=tmp_path / "end")) as session:
        session.restore(model=model, optimizer=SGD(model.parameters(), 0.1))
        for _ in session.steps(range(3)):
            pass
    complete = inspect.complete(tmp_path)
    assert complete is not None
    assert (complete.step, complete.weights_digest) == (3, None)
    assert '"outcome": "finished"' in (tmp_path / "end").read_text()
