"""An optimizer that holds other optimizers comes back with all of them, whatever its own state_dict() says."""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

import piton_trainer
from piton_trainer.errors import Stopped
from piton_trainer.state import tracked_optimizers
from support import resume, tiny

STEPS, STOP = 12, 7


class SAM(Optimizer):
    """As many copy it: one list of groups for both, and a state_dict() of the outer one alone."""

    def __init__(self, parameters: Any, base: Callable[..., Optimizer], **settings: Any) -> None:
        super().__init__(parameters, {"rho": 0.05, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
        for parameter in parameters:
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(parameter.grad * self.param_groups[0]["rho"] / norm)
        with torch.enable_grad():
            closure()
        for parameter in parameters:
            parameter.copy_(self.state[parameter]["before"])
        self.base_optimizer.step()


class Lookahead(Optimizer):
    """As many copy it: it was never initialised as an optimizer, and says its state by places in memory."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.counted = optimizer, 0
        self.param_groups, self.state = optimizer.param_groups, defaultdict(dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)
        self.counted += 1
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
            if self.counted % 3 == 0:
                slow.lerp_(parameter, 0.5)
                parameter.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"fast": self.optimizer.state_dict(), "slow": {id(key): value for key, value in self.state.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise KeyError("slow")


class Several(Optimizer):
    """Optimizers in lists and dicts, each of some parameters."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__(model.parameters(), {"lr": 0.05})
        self.by_name = {"first": [SGD(model[0].parameters(), lr=0.05, momentum=0.9)]}
        self.others = (AdamW(model[2].parameters(), lr=0.05),)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for optimizer in (*self.by_name["first"], *self.others):
            optimizer.step()


class Shared(Optimizer):
    """A wrapper that has the state and the groups of the optimizer inside, as accelerate's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def defaults(self) -> Any:  # type: ignore[override]
        return self.optimizer.defaults

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class Strange(SGD):
    """It says its state in a form of its own."""

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": list(self.state.values())}


def train(directory: Path, make: Callable[[nn.Sequential], Optimizer], *, stop: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = make(model)
    inner = getattr(optimizer, "base_optimizer", getattr(optimizer, "optimizer", optimizer))
    schedule = StepLR(inner, 2, gamma=0.9)
    with piton_trainer.session(tiny.config(directory, tiny.every(1))) as session:
        session.restore(model=model, optimizer=optimizer, schedule=schedule)
        for batch in session.steps([torch.randn(8, 4) for _ in range(STEPS)]):

            def closure(batch: Tensor = batch) -> float:
                optimizer.zero_grad()
                loss: Any = model(batch).sub(batch.sum(1, keepdim=True)).square().mean()
                loss.backward()
                return float(loss.detach())

            closure()
            optimizer.step(closure)
            schedule.step()
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
    return [parameter.detach().clone() for parameter in model.parameters()]


MAKE: dict[str, Callable[[Any], Optimizer]] = {
    "SAM around SGD": lambda model: SAM(model.parameters(), SGD, lr=0.05, momentum=0.9),
    "SAM around AdamW": lambda model: SAM(model.parameters(), AdamW, lr=0.05),
    "Lookahead": lambda model: Lookahead(AdamW(model.parameters(), lr=0.05)),
    "Lookahead around SAM": lambda model: Lookahead(SAM(model.parameters(), AdamW, lr=0.05)),
    "several": Several,
    "a wrapper that shares": lambda model: Shared(AdamW(model.parameters(), lr=0.05)),
    "SAM in a wrapper that shares": lambda model: Shared(SAM(model.parameters(), AdamW, lr=0.05)),
    "a state in a form of its own": lambda model: Strange(model.parameters(), lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@resume.exact("optimizers: those that hold others (SAM, Lookahead), or say their state in a form of their own")
def test_an_optimizer_comes_back_with_those_that_it_holds(
    make: Callable[[Any], Optimizer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(tmp_path / "whole", make)
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", make, stop=True)
    assert all(map(torch.equal, whole, train(tmp_path / "stopped", make)))
    assert "trains weights of the checkpoint" not in caplog.text


def test_a_checkpoint_without_those_inside_is_read_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An older trainer has saved it."""

    monkeypatch.setattr(tracked_optimizers, "held_by", lambda *_, **__: {})
    with pytest.raises(Stopped):
        train(tmp_path, MAKE["SAM around SGD"], stop=True)
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        train(tmp_path, MAKE["SAM around SGD"])
    assert "optimizer.base_optimizer: the checkpoint, of an older trainer, has no state of it" in caplog.text


def test_an_older_trainer_reads_the_outer_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, MAKE["SAM around SGD"], stop=True)
    monkeypatch.setattr(tracked_optimizers, "held_by", lambda *_, **__: {})
    train(tmp_path, MAKE["SAM around SGD"])


class Counting(SGD):
    """It counts its steps beside its state, and keeps a flag and something of Python's own."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.count, self.is_begun, self._inner = 0, False, 0

    def step(self, closure: Any = None) -> Any:
        self.count, self.is_begun, self._inner = self.count + 1, True, self._inner + 1
        return super().step(closure)


@resume.approximate(
    "optimizers: numbers that one changes beside its state and leaves out of its state_dict", "told at the save"
)
def test_a_count_beside_the_state_of_an_optimizer_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "counting", lambda model: Counting(model.parameters(), lr=0.05))
    told = [line for line in caplog.messages if "is not in its state_dict" in line]
    assert [line.split(" changes ")[0] for line in told] == ["optimizer/0: its count"]
    caplog.clear()
    train(tmp_path / "sgd", lambda model: SGD(model.parameters(), lr=0.05))
    train(tmp_path / "adam", lambda model: AdamW(model.parameters(), lr=0.05))
    assert "is not in its state_dict" not in caplog.text
