"""Gradients of several batches that make one step: no save and no stop comes between them."""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.load.loader import load_tensors, newest_good
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.training import gradient_accumulation
from support import ranks, resume, tiny

BATCHES = 12
Body = Callable[[nn.Module, Optimizer, Tensor, int], object]
"""What a user does with a batch; batches are counted from 1, over all attempts."""


def train(
    directory: Path,
    body: Body,
    *,
    at: int = 0,
    every: int = 1,
    seed: int = 0,
    wrap: Callable[[Optimizer], Any] = lambda optimizer: optimizer,
    **how: Any,
) -> dict[str, Tensor]:
    """One attempt, stopped in the body of batch `at`; the weights at its end."""
    torch.manual_seed(seed)
    model = nn.Linear(2, 1)
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.randn(BATCHES, 2)), shuffle=True)
    with piton_trainer.session(tiny.config(directory, tiny.every(every, keep_last=100))) as session:
        session.restore(model=model, optimizer=optimizer)
        for (x,) in session.steps(loader, **how):
            body(model, optimizer, x, session.step + 1)
            if session.step + 1 == at:
                tiny.terminate(session)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def saved_steps(directory: Path) -> list[int]:
    return sorted(step for step, _ in layout.step_folders(directory))


def cleared_after(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int, *, by: int = 4) -> None:
    model(x).square().mean().backward()
    if number % by == 0:
        optimizer.step()
        optimizer.zero_grad()


def cleared_in_place(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
    model(x).square().mean().backward()
    if number % 4 == 0:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def cleared_before(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
    if number % 4 == 1:
        optimizer.zero_grad()
    model(x).square().mean().backward()
    if number % 4 == 0:
        optimizer.step()


def stopped(*args: Any, **kwargs: Any) -> None:
    with pytest.raises(Stopped):
        train(*args, **kwargs)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@resume.exact("loops: accumulation of gradients, stopped between two batches of a step")
@pytest.mark.parametrize("body", [cleared_after, cleared_in_place, cleared_before])
@pytest.mark.parametrize("at", [1, 2, 4, 7])
def test_a_run_stopped_between_two_batches_of_a_step_ends_with_the_same_weights(
    body: Body, at: int, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", body)
    stopped(tmp_path / "parts", body, at=at)
    assert saved_steps(tmp_path / "parts")[-1] == -(-at // 4) * 4
    assert same(train(tmp_path / "parts", body, seed=0), whole)


@pytest.mark.parametrize("body", [cleared_after, cleared_in_place, cleared_before])
def test_saves_come_where_the_optimizer_has_stepped(body: Body, tmp_path: Path) -> None:
    train(tmp_path, body)
    assert saved_steps(tmp_path) == [4, 8, 12]


def test_a_save_that_is_due_between_two_batches_of_a_step_comes_after_it(tmp_path: Path) -> None:
    """It is due at 5 and 10."""
    train(tmp_path, cleared_after, every=5)
    assert saved_steps(tmp_path) == [8, 12]


def test_a_run_that_vanishes_between_two_batches_of_a_step_ends_with_the_same_weights(tmp_path: Path) -> None:
    def vanish(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
        cleared_after(model, optimizer, x, number)
        if number == 6:
            raise tiny.LostError

    whole = train(tmp_path / "whole", cleared_after)
    with pytest.raises(tiny.LostError):
        train(tmp_path / "parts", vanish)
    assert saved_steps(tmp_path / "parts") == [4]
    assert same(train(tmp_path / "parts", cleared_after), whole)


def zeroed_at_the_start(model: nn.Module, optimizer: Optimizer, x: Tensor, _: int) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def zeroed_in_place_at_the_start(model: nn.Module, optimizer: Optimizer, x: Tensor, _: int) -> None:
    optimizer.zero_grad(set_to_none=False)
    model(x).square().mean().backward()
    optimizer.step()


def never_zeroed(model: nn.Module, optimizer: Optimizer, x: Tensor, _: int) -> None:
    model(x).square().mean().backward()
    optimizer.step()


def steps_at_first_only(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
    """The gradients stay as the step has left them."""
    if number == 1:
        never_zeroed(model, optimizer, x, number)


def without_gradients(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
    """Nothing is learned."""


@pytest.mark.parametrize(
    "body", [zeroed_at_the_start, zeroed_in_place_at_the_start, steps_at_first_only, without_gradients]
)
def test_gradients_that_a_step_has_used_put_nothing_off(body: Body, tmp_path: Path) -> None:
    train(tmp_path, body)
    assert saved_steps(tmp_path) == list(range(1, BATCHES + 1))


def test_a_step_that_a_scaler_leaves_out_puts_a_save_off_by_one_batch(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def scaled(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean() * (float("inf") if number == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()

    train(tmp_path, scaled)
    assert saved_steps(tmp_path) == [step for step in range(1, BATCHES + 1) if step != 3]


def test_what_is_declared_counts_and_not_what_gradients_say(tmp_path: Path) -> None:
    train(tmp_path / "one", cleared_after, accumulate=1)
    train(tmp_path / "six", zeroed_at_the_start, accumulate=6)
    assert saved_steps(tmp_path / "one") == list(range(1, BATCHES + 1))
    assert saved_steps(tmp_path / "six") == [6, 12]


def test_an_end_in_the_middle_of_a_step_is_an_end(tmp_path: Path) -> None:
    train(tmp_path, partial(cleared_after, by=8), total=10)
    assert saved_steps(tmp_path) == [8, 10]


def test_to_accumulate_less_than_one_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate=0"):
        train(tmp_path, cleared_after, accumulate=0)


@resume.refused("loops: gradients that no step ever uses", "there is never a moment for a save")
def test_gradients_that_no_step_ever_uses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_accumulation, "LIMIT", 10)
    with pytest.raises(BadConfig, match=r"for 10 batches.*accumulate=k"):
        train(tmp_path, lambda model, _, x, __: model(x).mean().backward())
    assert saved_steps(tmp_path) == []


def test_a_declared_accumulation_may_be_longer_than_what_is_taken_for_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_accumulation, "LIMIT", 3)
    train(tmp_path, partial(cleared_after, by=12), accumulate=12)
    assert saved_steps(tmp_path) == [12]


class Wrapper(Optimizer):
    """An optimizer that is another one underneath, as accelerate makes them."""

    def __init__(self, inner: Optimizer) -> None:  # on purpose without Optimizer's own
        self.inner = inner

    @property
    def param_groups(self) -> Any:
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.inner.param_groups = groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step(closure)


def test_the_steps_of_a_wrapped_optimizer_are_seen() -> None:
    model = nn.Linear(1, 1)
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with gradient_accumulation.Gradients.watched([wrapper], accumulate=None) as watched:
        watched.next_batch()
        model(torch.ones(1, 1)).backward()
        assert watched.wait(1)
        wrapper.step()
        assert not watched.wait(1)


def test_nobody_watches_when_the_steps_are_over() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradient_accumulation.Gradients.watched([optimizer], accumulate=None) as watched:
        pass
    model(torch.ones(1, 1)).backward()
    optimizer.step()
    assert watched.wait(1)


def test_two_optimizers_that_step_in_turns(tmp_path: Path) -> None:
    """One steps with every batch, the other with every third, on gradients of that batch alone."""
    models = [nn.Linear(1, 1), nn.Linear(1, 1)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    with piton_trainer.session(tiny.config(tmp_path, tiny.every(1, keep_last=100))) as session:
        session.restore(model=nn.ModuleList(models), optimizer=optimizers)
        for number in session.steps(range(1, 7)):
            for model, optimizer, often in zip(models, optimizers, (1, 3), strict=True):
                if number % often == 0:
                    optimizer.zero_grad()
                    model(torch.ones(1, 1)).backward()
                    optimizer.step()
    assert saved_steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def in_two_ranks(directory: Path) -> list[int]:
    """Rank 1 is told to stop after the second of four batches; its gradients wait, and rank 0's do not."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # the weights stay the same on both ranks
    seen: list[int] = []
    try:
        with piton_trainer.session(tiny.config(directory, tiny.every(100))) as session:
            session.restore(model=model, optimizer=optimizer)
            for number in session.steps(range(1, 9)):
                seen.append(number)
                if session.rank == 1:
                    model(torch.ones(1, 1)).backward()
                if number % 4 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                if number == 2 and session.rank == 1:
                    tiny.terminate(session)
    except Stopped:
        pass
    return seen


def test_all_ranks_wait_for_the_one_whose_gradients_wait(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(in_two_ranks, tmp_path))
    assert [end.result for end in ends] == [[1, 2, 3, 4]] * 2
    assert saved_steps(tmp_path) == [4]


def test_a_checkpoint_of_the_middle_would_have_lost_gradients(tmp_path: Path) -> None:
    """What all of this is for: declared wrongly, the resumed training is another one."""
    whole = train(tmp_path / "whole", cleared_after)
    stopped(tmp_path / "parts", cleared_after, at=2, accumulate=1)
    assert not same(train(tmp_path / "parts", cleared_after, accumulate=1), whole)


def test_the_weights_of_a_save_are_those_after_the_step(tmp_path: Path) -> None:
    weights = []

    def noted(model: nn.Module, optimizer: Optimizer, x: Tensor, number: int) -> None:
        cleared_after(model, optimizer, x, number)
        weights.append(model.state_dict()["weight"].clone())

    stopped(tmp_path, noted, at=5)
    checkpoint = newest_good(tmp_path, Ranks())
    assert checkpoint is not None
    assert torch.equal(load_tensors(checkpoint, {"model/weight": None})["model/weight"], weights[7])


def test_an_evaluation_between_two_batches_of_a_step_says_that_its_weights_are_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from piton.contract.assignment import Assignment, Objective, SavePolicy

    losses = count(9, -1)
    assignment = Assignment(save=SavePolicy(every_steps=100), objective=Objective(metric="val_loss"))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with piton_trainer.session(tiny.config(tmp_path, assignment)) as session:
        session.restore(model=model, optimizer=optimizer)
        for number in session.steps(range(1, 9)):
            cleared_after(model, optimizer, torch.ones(1, 1), number)
            if number in {2, 4}:
                session.report(val_loss=float(next(losses)))
    assert saved_steps(tmp_path) == [4, 8]
    assert [record.args for record in caplog.records if "evaluate after" in record.message] == [(2,)]


class Lookahead:
    """A wrapper that is no optimizer of torch, and holds one."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.steps = inner, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        self.steps += 1
        fast = [p for group in self.inner.param_groups for p in group["params"]]
        for slow, own in zip(self.slow, fast, strict=True) if self.steps % 2 == 0 else ():
            own.copy_(slow.lerp_(own, 0.5))

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps, "slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps, self.slow = state["steps"], state["slow"]


class Pair(Lookahead):
    """It holds several in a list."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner)
        self.optimizers = [inner]
        del self.inner

    def __getattr__(self, name: str) -> Any:
        return self.optimizers[0] if name == "inner" else super().__getattribute__(name)


class Idle(Lookahead):
    """It never lets the one that it holds step."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=0.1)


@resume.exact("optimizers: one inside a wrapper, in the middle of an accumulation")
@pytest.mark.parametrize("wrap", [Lookahead, Pair])
@pytest.mark.parametrize("body", [cleared_after, cleared_before])
@pytest.mark.parametrize("at", [1, 6])
def test_an_optimizer_inside_a_wrapper_is_waited_for(
    wrap: Callable[[Optimizer], Any], body: Body, at: int, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", body, wrap=wrap)
    stopped(tmp_path / "parts", body, at=at, wrap=wrap)
    assert saved_steps(tmp_path / "parts")[-1] == -(-at // 4) * 4
    assert same(train(tmp_path / "parts", body, wrap=wrap), whole)


def test_one_inside_a_wrapper_that_never_steps_is_waited_for_so_long_and_then_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gradient_accumulation, "LIMIT", 5)
    train(tmp_path, zeroed_at_the_start, wrap=Idle)
    assert saved_steps(tmp_path) == [6, 7, 8, 9, 10, 11, 12]
    assert "gradients have waited for the step of an optimizer for 5 batches" in caplog.text
