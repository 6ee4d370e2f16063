"""A save whose copy runs beside the training is of one moment, or it is none."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import piton_trainer
from fuzz_loops.models import ExtraState
from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.load.loader import load_tensors, newest_good
from piton_trainer.checkpoint.save import overlapped_copy
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.clock import Clock
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.tracked_objects import TrackedObjects
from support import checkpoints, ranks, tiny


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Copies beside the training wait until it is set."""
    event, copy = threading.Event(), overlapped_copy._OnThread._copy

    def wait_and_copy(self: overlapped_copy._OnThread) -> None:
        event.wait()
        copy(self)

    monkeypatch.setattr(overlapped_copy._OnThread, "_copy", wait_and_copy)
    return event


@contextmanager
def checkpointer(directory: Path) -> Iterator[AsyncCheckpointer]:
    fence = Fence(directory, disk=layout.Disk())
    fence.claim()
    made = AsyncCheckpointer(directory, ranks=Ranks(), fence=fence, policy=SavePolicy(), clock=Clock())
    try:
        yield made
    finally:
        made.close()


def a_state() -> dict[str, Tensor]:
    return {"weights": torch.randn(300, 7), "buffer": torch.randn(5), "transposed": torch.randn(4, 6).t()}


def snapshot_of(state: dict[str, Tensor], *steady: str) -> Snapshot:
    return Snapshot(step=1, tensors=state, steady=frozenset(steady))


def loaded(directory: Path) -> dict[str, Tensor]:
    found = newest_good(directory, Ranks())
    assert found is not None
    return load_tensors(found, dict.fromkeys(a_state()))


def zero(state: dict[str, Tensor], *names: str) -> None:
    for name in names:
        state[name].zero_()


def test_save_returns_while_steady_tensors_are_still_being_copied(tmp_path: Path, gate: threading.Event) -> None:
    live = a_state()
    before = {name: value.clone() for name, value in live.items()}
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights", "transposed"))
        # What is not steady, or not in one row, is copied already.
        zero(live, "buffer", "transposed")
        checkpoints.poll(saver)
        assert saver.in_flight
        gate.set()
        saver.settle()
        zero(live, "weights")
        saver.wait()
    assert [name for name, value in loaded(tmp_path).items() if not torch.equal(value, before[name])] == []


def test_what_changes_too_early_fails_the_save_and_the_next_one_is_good(tmp_path: Path) -> None:
    live = a_state()
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights"))
        zero(live, "weights")
        with pytest.raises(RuntimeError, match="weights was changed before an optimizer stepped; leave overlap_saves"):
            saver.wait()
        assert newest_good(tmp_path, Ranks()) is None
        saver.save(snapshot_of(live, "weights"))
        saver.wait()
    assert torch.equal(loaded(tmp_path)["weights"], live["weights"])


def test_what_comes_after_a_copy_finds_the_memory_whole(gate: threading.Event) -> None:
    tensors, views = [torch.ones(9), torch.full((4,), 2.0)], [torch.zeros(9), torch.zeros(4)]
    found: list[list[Tensor]] = []
    copy = overlapped_copy.Copying(
        overlapped_copy.Rows(["a", "b"], tensors, views), then=lambda: found.append([view.clone() for view in views])
    )
    assert (copy.is_done, found) == (False, [])
    gate.set()
    copy.finish()
    assert copy.is_done
    assert [list(map(torch.equal, seen, tensors)) for seen in found] == [[True, True]]


def test_the_writer_begins_when_the_copy_ends_and_not_when_the_step_does(tmp_path: Path, gate: threading.Event) -> None:
    live = a_state()
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights"))
        assert saver._writer._requests == []
        gate.set()
        # The step goes on: nobody asks the checkpointer anything.
        wait_for(lambda: any(tmp_path.glob(f"{names.SAVING_PREFIX}*/{layout.INDEX_FILE}")))
        assert layout.step_folders(tmp_path) == []
        saver.settle()
        # Nor does the commit wait for the end of the step.
        wait_for(lambda: [step for step, _ in layout.step_folders(tmp_path)] == [1])
    assert torch.equal(loaded(tmp_path)["weights"], live["weights"])


def test_what_was_written_too_early_is_not_committed(tmp_path: Path, gate: threading.Event) -> None:
    live = a_state()
    gate.set()
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights"))
        wait_for(lambda: any(tmp_path.glob(f"{names.SAVING_PREFIX}*/{layout.INDEX_FILE}")))
        zero(live, "weights")
        saver.settle()
        with pytest.raises(RuntimeError, match="weights was changed before an optimizer stepped"):
            saver.wait()
        assert [path.name for path in tmp_path.iterdir()] == [names.FENCE_FILE]
        saver.save(snapshot_of(live, "weights"))
        saver.wait()
    assert torch.equal(loaded(tmp_path)["weights"], live["weights"])


def test_a_tensor_that_is_given_other_memory_is_saved_as_it_was(tmp_path: Path, gate: threading.Event) -> None:
    live = a_state()
    before = live["weights"].clone()
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights"))
        live["weights"].data = torch.zeros(300, 7)
        others = [torch.full((300, 7), 9.0) for _ in range(99)]  # would take memory that is free
        gate.set()
        saver.wait()
        del others
    assert torch.equal(loaded(tmp_path)["weights"], before)


def test_a_writer_that_dies_before_the_copy_ends_is_replaced(tmp_path: Path, gate: threading.Event) -> None:
    live = a_state()
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights"))
        assert saver._writer.pid is not None
        os.kill(saver._writer.pid, signal.SIGKILL)
        gate.set()
        saver.wait()
    assert torch.equal(loaded(tmp_path)["weights"], live["weights"])


def whole() -> Tensor:
    return torch.arange(21.0).reshape(7, 3)


def save_two_shards(directory: Path, *, breaks_on: int | None) -> str:
    """One of two ranks: what it hears of a save beside the training, and at last one that keeps the promise."""
    world = Ranks.join()
    shards = distribute_tensor(whole(), init_device_mesh("cpu", (2,)), [Shard(0)])
    assert isinstance(shards, DTensor)
    heard = "saved"
    with checkpoints.checkpointer(directory, world=world) as saver:
        saver.save(Snapshot(step=1, tensors={"weights": shards}, steady=frozenset({"weights"})))
        if world.rank == breaks_on:
            shards.to_local().zero_()
        saver.settle()
        shards.to_local().zero_()
        try:
            while saver.in_flight:
                checkpoints.poll(saver, world)
        except RuntimeError as error:
            heard = str(error)
        saver.save(Snapshot(step=2, tensors={"weights": shards}, steady=frozenset({"weights"})))
        saver.wait()
    world.leave()
    return heard


def test_shards_that_are_copied_beside_the_training_are_of_one_moment(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(save_two_shards, tmp_path, breaks_on=None))
    assert [(end.code, end.result) for end in ends] == [(0, "saved")] * 2
    for step, numbers in ((2, torch.zeros(7, 3)), (1, whole())):
        found = newest_good(tmp_path, Ranks())
        assert found is not None
        assert found.manifest.step == step
        assert torch.equal(load_tensors(found, {"weights": torch.ones(7, 3)})["weights"], numbers)
        shutil.rmtree(found.folder)


def test_a_rank_that_breaks_the_promise_fails_the_save_of_all(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(save_two_shards, tmp_path, breaks_on=1))
    assert [end.code for end in ends] == [0, 0]
    assert all("weights was changed before an optimizer stepped" in end.result for end in ends)
    assert [step for step, _ in layout.step_folders(tmp_path)] == [2]


def test_nothing_is_copied_later_from_several_gpus() -> None:
    with FakeTensorMode():
        tensors = [torch.empty(3, device=device) for device in ("cpu", "cuda:0", "cuda:1")]
    names, views = ["a", "b", "c"], [torch.empty(3)] * 3
    one = overlapped_copy.Rows(names[:2], tensors[:2], views[:2])
    several = overlapped_copy.Rows(names, tensors, views)
    assert [rows.names for rows in one.divided({"a", "b"})] == [["a", "b"], []]
    assert [rows.names for rows in several.divided({"a", "b", "c"})] == [[], ["a", "b", "c"]]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_session_that_ends_while_copying_keeps_the_save(tmp_path: Path, gate: threading.Event) -> None:
    live = a_state()
    with checkpointer(tmp_path) as saver:
        saver.save(snapshot_of(live, "weights"))
        threading.Timer(0.05, gate.set).start()
    assert torch.equal(loaded(tmp_path)["weights"], live["weights"])


def test_steady_is_what_optimizers_change_and_the_average_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), ExtraState())
    model.requires_grad_(True)
    frozen = nn.Linear(3, 3).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    objects = TrackedObjects(
        {"model": model, "frozen": frozen, "optimizer": optimizer, "ema": nn.Sequential(nn.Linear(3, 3), ExtraState())}
    )
    tensors = objects.capture()[1]
    steady = objects.steady(tensors)
    assert {name for name in tensors if name not in steady} == {
        *(f"model/1.{buffer}" for buffer in ("running_mean", "running_var", "num_batches_tracked")),
        *("frozen/weight", "frozen/bias"),
        "optimizer/0/param_groups/0/lr",
    }


def test_what_an_optimizer_has_let_go_is_not_steady_any_more() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD([{"params": part.parameters()} for part in model])
    objects = TrackedObjects({"model": model, "optimizer": optimizer})
    both = {f"model/{number}.{name}" for number in (0, 1) for name in ("weight", "bias")}
    assert objects.steady(objects.capture()[1]) == both
    optimizer.param_groups.pop()
    assert objects.steady(objects.capture()[1]) == {name for name in both if "/0." in name}


def test_a_run_that_overlaps_and_is_stopped_ends_like_one_that_was_never_disturbed(tmp_path: Path) -> None:
    whole = tiny.train(tmp_path / "whole")
    train = tmp_path / "parts"
    stopped = tiny.train(train, at={7: tiny.terminate}, background_saves=True, overlap_saves=True)
    resumed = tiny.train(train, seed=9, background_saves=True, overlap_saves=True)
    assert (stopped.code, resumed.resumed_from) == (143, 7)
    assert resumed.digest() == whole.digest()


def a_step(session: piton_trainer.Session, model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def step() -> None:
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
        session.report(loss=0.0)

    return step


def test_the_copy_ends_when_the_optimizer_steps(tmp_path: Path, gate: threading.Event) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    seen: list[tuple[int, bool]] = []
    config = tiny.config(tmp_path, tiny.every(2, keep_last=9), background_saves=True)
    with piton_trainer.session(config, overlap_saves=True) as session:
        session.restore(model=model, optimizer=optimizer)
        assert session._services.store is not None
        saver = session._services.store._checkpointer
        assert isinstance(saver, AsyncCheckpointer)
        step = a_step(session, model, optimizer)
        for number in session.steps(range(4)):
            seen.append((number, saver._copying is not None))
            gate.set()
            step()
            assert saver._copying is None
            if number < 3:  # at the end there is no further step to wait for
                gate.clear()
    assert seen == [(0, False), (1, False), (2, True), (3, False)]
    assert [step for step, _ in layout.step_folders(tmp_path)] == [4, 2]


def test_a_loop_that_breaks_its_promise_hears_of_it(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    config = tiny.config(tmp_path, tiny.every(2), background_saves=True)

    def train() -> None:
        with piton_trainer.session(config, overlap_saves=True) as session:
            session.restore(model=model, optimizer=optimizer)
            step = a_step(session, model, optimizer)
            for _ in session.steps(range(9)):
                with torch.no_grad():
                    model.weight.mul_(0.99)
                step()

    with pytest.raises(RuntimeError, match=r"step 2 could not be written: .* model/weight was changed before"):
        train()
