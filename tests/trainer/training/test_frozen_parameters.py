"""Which parameters are trained comes back: a layer that a script freezes or unfreezes in the middle stays so."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

import piton_trainer
from piton_trainer.errors import Stopped
from piton_trainer.training import run_state
from support import ranks, resume, tiny

STEPS, CHANGES_AT, STOPS_AT = 8, 2, 4


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))


class Tied(nn.Module):
    """Two layers of one weight, and a part whose state is more than what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.other.weight = self.first.weight

    def __getitem__(self, number: int) -> nn.Module:
        return [self.first, self.other, self.last][number]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.other(torch.tanh(self.first(x))))  # type: ignore[no-any-return]

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 1}


def shards() -> nn.Module:
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def compiled() -> Any:
    return torch.compile(net(), backend="eager")


def attempt(directory: Path, make: Callable[[], Any], *, at: int = 0, freezes: bool = False) -> tuple[Any, Any]:
    """Train, and return which parameters are trained at the end, and the weights."""
    torch.manual_seed(3)
    model = make()
    layer = getattr(model, "_orig_mod", model)[0]
    layer.requires_grad_(freezes)
    optimizer = AdamW(model.parameters(), 0.05)
    with piton_trainer.session(tiny.config(directory, tiny.every(3))) as session:
        session.restore(model=model, optimizer=optimizer)
        for x in session.steps([torch.randn(4, 4, generator=torch.Generator().manual_seed(n)) for n in range(STEPS)]):
            if session.step == CHANGES_AT:
                layer.requires_grad_(not freezes)
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
            if session.step + 1 == at:
                tiny.terminate(session)
    trained = [value.requires_grad for value in model.parameters()]
    return trained, [value.detach().clone() for value in model.parameters()]


MAKES = {"a plain model": net, "tied weights": Tied, "a compiled model": compiled}


@resume.exact("modules: layers that a script freezes or unfreezes in the middle, by requires_grad")
@pytest.mark.parametrize("freezes", [False, True])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_what_is_trained_since_a_step_is_trained_after_a_resume(
    make: Callable[[], Any], freezes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained, whole = attempt(tmp_path / "whole", make, freezes=freezes)
    with pytest.raises(Stopped):
        attempt(tmp_path / "parts", make, at=STOPS_AT, freezes=freezes)
    with caplog.at_level(logging.WARNING):
        again, weights = attempt(tmp_path / "parts", make, freezes=freezes)
    assert again == trained
    assert all(map(torch.equal, weights, whole))
    assert (
        "frozen in the checkpoint, trained in the script" if freezes else "frozen in the script, trained"
    ) in caplog.text


def test_what_was_trained_is_so_where_nothing_is_left_to_train(tmp_path: Path) -> None:
    trained, _ = attempt(tmp_path, net)
    assert attempt(tmp_path, net)[0] == trained == [True] * 4


def test_nothing_is_told_where_nothing_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        attempt(tmp_path, net, at=CHANGES_AT)
    with caplog.at_level(logging.WARNING):
        attempt(tmp_path, net)
    assert "frozen" not in caplog.text


def test_a_checkpoint_that_does_not_say_what_is_frozen_leaves_that_to_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier trainers did not write it."""
    with monkeypatch.context() as earlier:
        earlier.setattr(run_state, "FROZEN", "nothing")
        with pytest.raises(Stopped):
            attempt(tmp_path, net, at=STOPS_AT)
    trained, _ = attempt(tmp_path, net)
    assert trained == [False, False, True, True]


def rank_body(directory: Path, at: int) -> tuple[Any, Any]:
    trained, weights = attempt(directory, shards, at=at)
    return trained, [value.full_tensor().tolist() for value in weights]


@pytest.mark.crash  # forks two ranks three times
def test_sharded_parameters_are_trained_again_as_well(tmp_path: Path) -> None:
    whole = ranks.run(2, partial(rank_body, tmp_path / "whole", 0))
    ranks.run(2, partial(rank_body, tmp_path / "parts", STOPS_AT))
    again = ranks.run(2, partial(rank_body, tmp_path / "parts", 0))
    assert [end.result for end in again] == [end.result for end in whole]


def gan_body(directory: Path, parts: slice, at: int) -> list[list[float]]:
    """Train a generator against a critic that is frozen while the generator steps, both in DDP after the restore."""
    with piton_trainer.session(tiny.config(directory)) as session:
        torch.manual_seed(3)
        generator, critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        steps = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (generator, critic)]
        session.restore(model=generator, critic=critic, optimizer=steps)
        makes, judges = DistributedDataParallel(generator), DistributedDataParallel(critic)
        for x in session.steps([torch.full((2, 2), session.rank + n / 8) for n in range(STEPS)]):
            critic[parts].requires_grad_(True)
            steps[1].zero_grad()
            (judges(x) - judges(generator(x).detach())).square().mean().backward()
            steps[1].step()
            critic[parts].requires_grad_(False)
            steps[0].zero_grad()
            critic(makes(x)).mean().backward()
            steps[0].step()
            if session.step + 1 == at:
                tiny.terminate(session)
    return [weight.detach().flatten().tolist() for net in (generator, critic) for weight in net.parameters()]


@resume.exact("modules: a network that is frozen by turns, in DistributedDataParallel")
@pytest.mark.parametrize("parts", [slice(None), slice(1)], ids=["all of it", "a layer of it"])
def test_a_network_that_is_frozen_by_turns_is_shared_by_ranks_again(parts: slice, tmp_path: Path) -> None:
    whole = ranks.run(2, partial(gan_body, tmp_path / "whole", parts, 0))
    ranks.run(2, partial(gan_body, tmp_path / "parts", parts, STOPS_AT))
    again = ranks.run(2, partial(gan_body, tmp_path / "parts", parts, 0))
    assert [end.result for end in whole] == [whole[0].result] * 2
    assert [end.result for end in again] == [end.result for end in whole]


def test_a_model_that_is_frozen_after_a_break_is_trained_when_the_script_is_started_again(tmp_path: Path) -> None:
    def started() -> list[int]:
        model, seen = nn.Linear(4, 4), []
        optimizer = AdamW(model.parameters(), 0.05)
        with piton_trainer.session(tiny.config(tmp_path)) as session:
            session.restore(model=model, optimizer=optimizer)
            for x in session.steps([torch.ones(4, 4)] * STEPS):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                seen.append(session.step)
                if len(seen) == CHANGES_AT:
                    break
            model.eval().requires_grad_(False)
        return seen

    assert [started(), started()] == [[0, 1], [2, 3]]
