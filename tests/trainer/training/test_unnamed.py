"""Optimizers and schedules that train and that no checkpoint has are told of; nothing is ended by that."""

import logging
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, SequentialLR, StepLR

import piton_trainer
from support import resume, tiny

Objects = dict[str, Any]


class Holder:
    """A class of the user's that has its schedule inside."""

    def __init__(self, schedule: LRScheduler) -> None:
        self.parts = {"schedule": schedule}

    def state_dict(self) -> dict[str, Any]:
        return {"schedule": self.parts["schedule"].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parts["schedule"].load_state_dict(state["schedule"])


class Slow(Optimizer):
    """An optimizer around another one."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def sequence(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer), StepLR(optimizer, 2)], milestones=[2])


NAMED: dict[str, Callable[[Optimizer], Objects]] = {
    "no schedule": lambda optimizer: {"optimizer": optimizer},
    "a schedule": lambda optimizer: {"optimizer": optimizer, "scheduler": StepLR(optimizer, 1)},
    "a sequence of schedules": lambda optimizer: {"optimizer": [optimizer], "mine": sequence(optimizer)},
    "a schedule in a class": lambda optimizer: {"optimizer": optimizer, "mine": Holder(StepLR(optimizer, 1))},
    "an optimizer around another": lambda optimizer: {"optimizer": Slow(optimizer)},
    "another model's optimizer": lambda optimizer: {"optimizer": optimizer, "other": SGD(nn.Linear(1, 1).parameters())},
}


def train(directory: Path, objects: Callable[[Optimizer], Objects], later: Callable[[Any, Any], object]) -> None:
    """Train three steps; `later` builds something once the objects are restored."""
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), 0.1)
    named = objects(optimizer)
    with piton_trainer.session(tiny.config(directory, tiny.every(100))) as session:
        session.restore(model=model, **named)
        extra: Any = later(model, optimizer)
        for x in session.steps([torch.ones(3, 2)], total=3):
            model(x).square().mean().backward()
            for one in (optimizer, extra):
                if one is not None:
                    one.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("objects", NAMED.values(), ids=NAMED)
def test_nothing_is_told_of_what_is_named(
    objects: Callable[[Optimizer], Objects], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(tmp_path, objects, lambda *_: None)
    assert "was not given it" not in caplog.text


@pytest.mark.parametrize(
    "make", [lambda optimizer: StepLR(optimizer, 1), lambda o: LambdaLR(o, lambda _: 0.5), sequence]
)
def test_a_schedule_that_is_not_named_is_told_of_once(
    make: Callable[[Optimizer], LRScheduler], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, NAMED["no schedule"], lambda _, optimizer: make(optimizer))
    assert (
        caplog.text.count("a schedule changes the rates of optimizer SGD, and session.restore() was not given it") == 1
    )


def test_an_optimizer_that_is_not_named_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, NAMED["no schedule"], lambda model, _: AdamW(model.parameters(), 0.1))
    assert "optimizer AdamW trains weights of the checkpoint" in caplog.text


class Broken(dict[str, Any]):
    """A mapping of the user's that cannot be read."""

    def values(self) -> Any:
        raise RuntimeError("not open")


class Awkward:
    """An object that cannot be looked at."""

    def __init__(self) -> None:
        self.parts, self.gone = Broken(), weakref.proxy(Broken())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def test_what_cannot_be_looked_at_ends_nothing(tmp_path: Path) -> None:
    train(tmp_path, lambda optimizer: {"optimizer": optimizer, "mine": Awkward()}, lambda *_: None)


class OnceEach:
    """An optimizer for a single step, as of an inner loop of meta-learning."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def step(self) -> None:
        SGD(self.model.parameters(), 0.1).step()


def test_an_optimizer_of_a_single_step_is_not_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, NAMED["no schedule"], lambda model, _: OnceEach(model))
    assert "was not given it" not in caplog.text


class Remembering(nn.Module):
    """It keeps numbers outside of its state, and others in it, or the same all the time."""

    table: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.calls, self.mean, self.width = 0, torch.zeros(2), 2
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        self.table += 1
        self.seen += 1
        newest: torch.Tensor = self.inner(x)
        self.newest = newest
        return newest


class Saying(Remembering):
    """It says them."""

    def get_extra_state(self) -> Any:
        return {"calls": self.calls, "mean": self.mean}

    def set_extra_state(self, state: Any) -> None:
        self.calls, self.mean = state["calls"], state["mean"]


@resume.approximate(
    "modules: numbers and tensors in attributes, buffers that are not persistent", "told if they change"
)
def test_what_a_module_keeps_outside_of_its_state_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in (Remembering, Saying):
        model = nn.Sequential(kind(), nn.Dropout(0.1))
        with piton_trainer.session(tiny.config(tmp_path / kind.__name__, tiny.every(100))) as session:
            optimizer = SGD(model.parameters(), 0.1)
            session.restore(model=model, optimizer=optimizer)
            for x in session.steps([torch.ones(3, 2)], total=5):
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    told = re.findall(r"(\S+): it changes in the training and is in no checkpoint", caplog.text)
    assert sorted(told) == ["model.0.calls", "model.0.mean", "model.0.table"]
