"""The contract of resuming: stop anywhere, resume, and the weights are those of a run that was never stopped."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import piton_trainer
from piton_trainer.errors import BadConfig, DeviceLost, Stopped
from support import resume, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tiny.Ran:
    return tiny.train(tmp_path_factory.mktemp("whole"))


@resume.exact("loops: session.steps, stopped by SIGTERM at any step")
@pytest.mark.parametrize("step", range(1, tiny.STEPS))
def test_a_run_stopped_at_any_step_ends_with_the_same_weights(step: int, whole: tiny.Ran, tmp_path: Path) -> None:
    stopped = tiny.train(tmp_path, at={step: tiny.terminate})
    resumed = tiny.train(tmp_path, seed=99)
    assert stopped.code == 143
    assert resumed.resumed_from == step
    assert stopped.losses | resumed.losses == whole.losses
    assert resumed.digest() == whole.digest()


@resume.exact("loops: session.steps, killed at any step")
@pytest.mark.parametrize("step", [5, 6, 11, 15])
def test_a_run_that_vanishes_at_any_step_ends_with_the_same_weights(step: int, whole: tiny.Ran, tmp_path: Path) -> None:
    with pytest.raises(tiny.LostError):
        tiny.train(tmp_path, at={step: tiny.vanish})
    resumed = tiny.train(tmp_path, seed=99)
    assert resumed.resumed_from == (step - 1) // 4 * 4
    assert resumed.digest() == whole.digest()


def test_sigterm_loses_no_step(tmp_path: Path) -> None:
    stopped = tiny.train(tmp_path, at={7: tiny.terminate})
    resumed = tiny.train(tmp_path, seed=1)
    assert sorted([*stopped.losses, *resumed.losses]) == list(range(1, tiny.STEPS + 1))


def test_a_signal_in_the_last_step_does_not_stop_a_run_that_is_done(tmp_path: Path) -> None:
    ran = tiny.train(tmp_path, at={tiny.STEPS: tiny.terminate})
    assert ran.code == 0
    assert ran.complete is not None


def test_a_finished_run_trains_nothing_and_finishes_again_with_the_same_digest(whole: tiny.Ran, tmp_path: Path) -> None:
    tiny.train(tmp_path)
    again = tiny.train(tmp_path, seed=5)
    assert again.losses == {}
    assert again.digest() == whole.digest()


def test_a_finished_run_that_is_given_more_epochs_goes_on(tmp_path: Path) -> None:
    more = tiny.EPOCHS + 1
    with_more = tiny.train(tmp_path / "at once", epochs=more)
    tiny.train(tmp_path / "later")
    later = tiny.train(tmp_path / "later", seed=5, epochs=more)
    assert sorted(later.losses) == list(range(tiny.STEPS + 1, tiny.STEPS + tiny.BATCHES + 1))
    assert later.digest() == with_more.digest()


def test_a_run_that_goes_on_is_not_complete_any_more(tmp_path: Path) -> None:
    tiny.train(tmp_path)
    stopped = tiny.train(tmp_path, epochs=tiny.EPOCHS + 1, at={tiny.STEPS + 2: tiny.terminate})
    assert stopped.complete is None


class Line(nn.Module):
    """The smallest model that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def train_line(
    directory: Path, loader: Any, *, stop_at: int = 0, total: int | None = None, **more: Any
) -> list[Tensor]:
    """The batches that one attempt saw."""
    model, seen = Line(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with piton_trainer.session(tiny.config(directory)) as session:
        session.restore(model=model, optimizer=optimizer, loader=loader, **more)
        for batch in session.steps(loader, epochs=3, total=total):
            x = batch[0] if isinstance(batch, list) else batch
            model(x.reshape(-1, 1)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(x)
            if session.step + 1 == stop_at:
                tiny.terminate(session)
    return seen


def shuffled_by_its_own_generator() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(torch.arange(12.0)), batch_size=4, shuffle=True, generator=generator)


def test_a_distributed_sampler_is_told_the_epoch_so_that_its_order_changes(tmp_path: Path) -> None:
    data = TensorDataset(torch.arange(12.0))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=1, rank=0)
    seen = train_line(tmp_path, DataLoader(data, batch_size=12, sampler=sampler))
    assert len({tuple(batch.tolist()) for batch in seen}) == 3


class Augmented(Dataset[Tensor]):
    """Rows that are changed at random by the process that loads them."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return index + torch.rand(())


def augmented() -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=4, shuffle=True)


class Countdown:
    """A loader that carries its state, and never ends."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.next += 1
            yield torch.full((2,), float(self.next))

    def state_dict(self) -> dict[Any, Any]:
        return {"next": self.next, "history": Counter([self.next]), 5: (1, 2)}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        assert isinstance(state["history"], Counter)
        assert state[5] == (1, 2)
        self.next = state["next"]


@pytest.mark.parametrize("make", [shuffled_by_its_own_generator, augmented, Countdown])
@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_loader_goes_on_with_the_batch_that_comes_next(make: Any, stop_at: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = train_line(tmp_path / "whole", make(), total=7)
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        train_line(tmp_path / "parts", make(), total=7, stop_at=stop_at)
    torch.manual_seed(1)
    seen = whole[:stop_at] + train_line(tmp_path / "parts", make(), total=7)
    assert torch.equal(torch.stack(seen), torch.stack(whole))


def test_a_loader_with_state_that_restore_was_not_told_of_is_refused(tmp_path: Path) -> None:
    model = Line()
    with piton_trainer.session(tiny.config(tmp_path)) as session:
        session.restore(model=model)
        with pytest.raises(ValueError, match=r"name it in session.restore\(loader=...\)"):
            next(iter(session.steps(Countdown())))


def test_a_loader_without_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loader has no batches"):
        train_line(tmp_path, [], total=3)


def test_steps_without_restore_is_refused(tmp_path: Path) -> None:
    with (
        piton_trainer.session(tiny.config(tmp_path)) as session,
        pytest.raises(ValueError, match=r"call session\.restore"),
    ):
        next(iter(session.steps([1])))


def test_an_object_without_state_is_refused_by_name(tmp_path: Path) -> None:
    with (
        piton_trainer.session(tiny.config(tmp_path)) as session,
        pytest.raises(ValueError, match="scaler cannot be saved: a int has no state_dict"),
    ):
        session.restore(model=Line(), scaler=3)


class Secretive:
    """An object whose state only pickle could save."""

    def state_dict(self) -> dict[str, Any]:
        return {"thing": object()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing was saved")


def test_state_that_only_pickle_could_save_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"secret/thing is a builtins\.object"):
        train_line(tmp_path, [torch.ones(1)], secret=Secretive())


@resume.refused("models: another one than the checkpoint's", "missing and further names are named")
def test_another_model_is_told_what_does_not_fit(tmp_path: Path) -> None:
    train_line(tmp_path, [torch.ones(1)])
    with (
        pytest.raises(BadConfig, match=r"lacks bias and 1 more and also has layer.bias and 1 more"),
        piton_trainer.session(tiny.config(tmp_path)) as session,
    ):
        session.restore(model=nn.Linear(1, 1))


def test_a_model_of_another_shape_is_told_which_tensor_does_not_fit(tmp_path: Path) -> None:
    train_line(tmp_path, [torch.ones(1)])
    wide = Line()
    wide.layer = nn.Linear(2, 1)
    with (
        pytest.raises(BadConfig, match=r"model/layer.weight has shape \(1, 2\) here and \(1, 1\) in step-"),
        piton_trainer.session(tiny.config(tmp_path)) as session,
    ):
        session.restore(model=wide)


def test_two_optimizers_and_one_that_never_stepped_come_back_as_they_were(tmp_path: Path) -> None:
    def attempt(*, lr: float) -> list[torch.optim.Optimizer]:
        model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(model["a"].parameters(), lr=lr, momentum=0.9),
            torch.optim.AdamW(model["b"].parameters(), lr=lr),
        ]
        with piton_trainer.session(tiny.config(tmp_path)) as session:
            session.restore(model=model, optimizer=optimizers)
            for x in session.steps([torch.ones(1, 2)]):
                model["a"](x).sum().backward()
                optimizers[0].step()
                optimizers[1].param_groups[0]["lr"] = 0.25
        return optimizers

    before, after = attempt(lr=0.5), attempt(lr=0.125)
    assert [o.param_groups[0]["lr"] for o in after] == [0.5, 0.25]
    assert not before[1].state
    assert not after[1].state
    momenta = [[state["momentum_buffer"] for state in o.state.values()] for o in (before[0], after[0])]
    assert len(momenta[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


class Grown:
    """An object whose state has changed since."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def state_dict(self) -> dict[str, Any]:
        return {"scale": 1.0}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("momentum"),
        AttributeError("no attribute 'qdata'"),
        TypeError("unhashable"),
        IndexError("3"),
        RuntimeError("The source state dict is empty, possibly because it was saved from a disabled instance"),
    ],
)
def test_an_object_that_fails_with_its_state_is_named_and_no_attempt_is_repeated(
    error: Exception, tmp_path: Path
) -> None:
    loader = shuffled_by_its_own_generator()
    with pytest.raises(Stopped):
        train_line(tmp_path, loader, stop_at=2, scaler=Grown(error))
    with pytest.raises(BadConfig, match=f"scaler does not take its state .{type(error).__name__}"):
        train_line(tmp_path, loader, scaler=Grown(error))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: unknown error")]
)
def test_a_fault_of_the_machine_is_none_of_an_objects(error: Exception, tmp_path: Path) -> None:
    loader = shuffled_by_its_own_generator()
    with pytest.raises(Stopped):
        train_line(tmp_path, loader, stop_at=2, scaler=Grown(error))
    with pytest.raises((type(error), DeviceLost)):
        train_line(tmp_path, loader, scaler=Grown(error))
