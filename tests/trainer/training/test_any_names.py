"""Modules of any name, several of them, sharded or not: optimizers and averages come back as those of `model` do."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, AdamW, Optimizer

import piton_trainer
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.state import tracked_optimizers
from support import ranks, resume, tiny

STEPS, STOP = 9, 5
Objects = dict[str, Any]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))


def shards(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def another_name(wrap: Callable[[nn.Module], nn.Module], kind: Callable[..., Optimizer]) -> Objects:
    """Call the model something else."""
    model = wrap(net())
    return {"net": model, "optimizer": kind(model.parameters(), 0.05)}


def adversaries(wrap: Callable[[nn.Module], nn.Module], kind: Callable[..., Optimizer]) -> Objects:
    """Train two modules with equal keys, each by an optimizer of its own."""
    first, second = wrap(net()), wrap(net())
    return {
        "generator": first,
        "critic": second,
        "of_generator": kind(first.parameters(), 0.05),
        "of_critic": kind(second.parameters(), 0.02),
    }


def beside_a_model(wrap: Callable[[nn.Module], nn.Module], kind: Callable[..., Optimizer]) -> Objects:
    """Train a module beside the model, with optimizers in a list."""
    model, head = wrap(net()), wrap(nn.Sequential(nn.Linear(4, 4)))
    return {"model": model, "head": head, "optimizer": [kind(head.parameters(), 0.05), kind(model.parameters(), 0.02)]}


class Average:
    """An average of one's own, which copies into what it has, or takes what it is given."""

    def __init__(self, model: nn.Module, *, takes: bool) -> None:
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.takes = takes

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            self.values[name].lerp_(value.detach(), 0.1)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.takes:
            self.values = dict(state)
        else:
            for name, value in state.items():
                self.values[name].copy_(value)


def average(wrap: Callable[[nn.Module], nn.Module], kind: Callable[..., Optimizer], *, takes: bool) -> Objects:
    """Keep an average by a class of one's own."""
    model = wrap(net())
    return {
        "model": model,
        "optimizer": kind(model.parameters(), 0.05),
        "mine": Average(model, takes=takes),
    }


MAKES = {
    "another name": another_name,
    "two modules with equal keys": adversaries,
    "a module beside the model": beside_a_model,
    "an average that copies": partial(average, takes=False),
    "an average that takes": partial(average, takes=True),
}
KINDS = {"AdamW": AdamW, "momenta": partial(SGD, momentum=0.9), "no state": SGD}


def parts(objects: Objects, kind: type[Any]) -> Iterator[Any]:
    for value in objects.values():
        yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, kind))


def attempt(
    directory: Path,
    make: Callable[..., Objects],
    kind: Callable[..., Optimizer],
    *,
    wrap: Any = None,
    stop: bool = False,
) -> dict[int, float]:
    """Return the losses of the steps, each of which depends on all that was trained before."""
    losses = {}
    with piton_trainer.session(tiny.config(directory)) as session:
        torch.manual_seed(0)
        objects = make(wrap or (lambda model: model), kind)
        session.restore(**objects)
        for x in session.steps([torch.randn(8, 4, generator=torch.Generator().manual_seed(n)) for n in range(STEPS)]):
            y = x
            for module in parts(objects, nn.Module):
                y = module(y)
            loss = (y - x).square().mean()
            loss.backward()
            for optimizer in parts(objects, Optimizer):
                optimizer.step()
                optimizer.zero_grad()
            for mine in parts(objects, Average):
                mine.update(objects["model"])
                loss = loss.detach() + sum(float(value.sum()) for value in mine.values.values())
            losses[session.step + 1] = float(loss.detach())
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
    return losses


def attempts(directory: Path, size: int, *args: Any, **kwargs: Any) -> list[Any]:
    return [end.result for end in ranks.run(size, partial(attempt_or_stop, directory, *args, **kwargs))]


def attempt_or_stop(*args: Any, **kwargs: Any) -> dict[int, float] | str:
    try:
        return attempt(*args, **kwargs)
    except BadConfig as error:
        return str(error)
    except Stopped:
        return {}


@resume.exact("modules: of any name, several of them, FSDP2, averages of one's own over shards")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize(("size", "wrap"), [(1, None), (2, shards)], ids=["whole", "sharded"])
def test_it_comes_back_as_it_was(
    size: int, wrap: Any, make: Callable[..., Objects], kind: Callable[..., Optimizer], tmp_path: Path
) -> None:
    whole = attempts(tmp_path / "whole", size, make, kind, wrap=wrap)
    attempts(tmp_path / "disturbed", size, make, kind, wrap=wrap, stop=True)
    resumed = attempts(tmp_path / "disturbed", size, make, kind, wrap=wrap)
    assert [list(losses) for losses in resumed] == [list(range(STOP + 1, STEPS + 1))] * size
    assert resumed == [{step: loss for step, loss in losses.items() if step > STOP} for losses in whole]


def test_an_optimizer_of_several_modules_goes_by_numbers(tmp_path: Path) -> None:
    def make(_: Any, kind: Callable[..., Optimizer]) -> Objects:
        one, other = net(), net()
        return {"one": one, "other": other, "optimizer": kind([*one.parameters(), *other.parameters()], 0.05)}

    whole = attempt(tmp_path / "whole", make, AdamW)
    assert attempt_or_stop(tmp_path / "disturbed", make, AdamW, stop=True) == {}
    resumed = attempt(tmp_path / "disturbed", make, AdamW)
    assert resumed == {step: loss for step, loss in whole.items() if step > STOP}


@resume.refused("optimizers: shards of several modules in one", "no module names all parameters")
def test_shards_of_several_modules_in_one_optimizer_are_refused(tmp_path: Path) -> None:
    def make(wrap: Any, kind: Callable[..., Optimizer]) -> Objects:
        one, other = wrap(net()), wrap(net())
        return {"one": one, "other": other, "optimizer": kind([*one.parameters(), *other.parameters()], 0.05)}

    ends = attempts(tmp_path, 2, make, AdamW, wrap=shards)
    sentence = "optimizer/0 holds shards of several modules; name one that has them all, as model"
    assert [sentence in end for end in ends] == [True, True]


def test_a_checkpoint_of_before_with_numbers_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a module called model, parameters had numbers and no names."""
    whole = attempt(tmp_path / "whole", another_name, AdamW)
    with monkeypatch.context() as patch:
        patch.setattr(tracked_optimizers.TrackedOptimizers, "_home", lambda self, optimizer: None)
        assert attempt_or_stop(tmp_path / "disturbed", another_name, AdamW, stop=True) == {}
    resumed = attempt(tmp_path / "disturbed", another_name, AdamW)
    assert resumed == {step: loss for step, loss in whole.items() if step > STOP}
