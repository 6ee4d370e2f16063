"""A save in the background is a save: durable, consistent, fenced, and heard of when it fails."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.progress import CHECKPOINTS_SKIPPED
from piton_trainer.checkpoint import Checkpointer, Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence, read
from piton_trainer.checkpoint.load.loader import load_tensors, newest_good
from piton_trainer.checkpoint.save import shared_buffer
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.checkpoint.save.commit import ManifestDraft, is_good
from piton_trainer.checkpoint.save.direct_io import FilePart
from piton_trainer.checkpoint.save.messages import Commit, Write, WriterSettings
from piton_trainer.checkpoint.save.writer import Writer
from piton_trainer.errors import Fenced, OutOfSpace
from piton_trainer.runtime.child_process import Failed
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.checkpoints import checkpointer, poll
from support.clocks import FakeClock
from support.processes import is_running

KINDS = pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])


def state(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of all kinds."""
    torch.manual_seed(seed)
    return {
        "matrix": torch.randn(64, 33),
        "transposed": torch.randn(16, 8).t(),
        "slice": torch.randn(100)[10:20],
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "half": torch.randn(5).bfloat16(),
        "flags": torch.rand(7) > 0.5,
        "indices": torch.randint(99, (3,)),
        "large": torch.randn(600_000),
    }


def loaded(directory: Path) -> tuple[int, dict[str, Tensor]]:
    checkpoint = newest_good(directory, Ranks())
    assert checkpoint is not None
    return checkpoint.manifest.step, load_tensors(checkpoint, dict.fromkeys(state()))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert {key: value.dtype for key, value in one.items()} == {key: value.dtype for key, value in other.items()}
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@KINDS
def test_what_was_saved_is_loaded_to_the_last_bit(background: bool, tmp_path: Path) -> None:
    with checkpointer(tmp_path, background=background) as saver:
        saver.prepare(state)
        for step in (1, 2, 3):
            saver.save(Snapshot(step=step, tensors=state(step), document={"step": step}, metrics={"loss": step}))
            saver.wait()
            found = loaded(tmp_path)
            assert found[0] == step
            assert_same(found[1], state(step))
            assert saver.durable is not None
            assert (saver.durable.step, saver.in_flight) == (step, False)
            assert layout.read_document(saver.durable.folder) == {"step": step}
        wait_for(lambda: len(layout.step_folders(tmp_path)) == 2)  # a writer that is told to leave puts that off
    assert [step for step, _ in layout.step_folders(tmp_path)] == [3, 2]


@KINDS
def test_tensors_that_change_after_the_save_do_not_change_the_checkpoint(background: bool, tmp_path: Path) -> None:
    live = state()
    before = {key: value.clone() for key, value in live.items()}
    with checkpointer(tmp_path, background=background) as saver:
        saver.save(Snapshot(step=1, tensors=live))
        for value in live.values():
            value.zero_()
        saver.wait()
    assert_same(loaded(tmp_path)[1], before)


@KINDS
def test_tensors_may_come_and_change_their_shapes_between_two_saves(background: bool, tmp_path: Path) -> None:
    with checkpointer(tmp_path, background=background) as saver:
        saver.save(Snapshot(step=1, tensors={"large": torch.zeros(10)}))
        saver.save(Snapshot(step=2, tensors=state()))
        saver.wait()
        assert_same(loaded(tmp_path)[1], state())
        saver.save(Snapshot(step=3, tensors={"large": torch.ones(11)}))
        saver.wait()
    checkpoint = newest_good(tmp_path, Ranks())
    assert checkpoint is not None
    assert torch.equal(load_tensors(checkpoint, {"large": None})["large"], torch.ones(11))


@KINDS
def test_an_attempt_that_is_overtaken_cannot_commit(background: bool, tmp_path: Path) -> None:
    with checkpointer(tmp_path, background=background, attempt=2) as zombie:
        Fence(tmp_path, disk=layout.Disk(), attempt=3).claim()
        with pytest.raises(Fenced, match=r"attempt 3 has claimed .* attempt 2 may not save any more") as caught:
            save_durably(zombie, 8)
        assert caught.value.holder == 3
    assert [path.name for path in tmp_path.iterdir()] == [names.FENCE_FILE]


def save_durably(saver: Checkpointer, step: int) -> None:
    saver.save(Snapshot(step=step, tensors=state()))
    saver.wait()


@KINDS
def test_what_has_failed_leaves_nothing_behind_and_the_next_save_may_succeed(background: bool, tmp_path: Path) -> None:
    with checkpointer(tmp_path, background=background) as saver:
        save_durably(saver, 1)
        fence = (tmp_path / names.FENCE_FILE).read_text()
        (tmp_path / names.FENCE_FILE).write_text("{")
        with pytest.raises(ValueError, match="FENCE is damaged"):
            save_durably(saver, 2)
        (tmp_path / names.FENCE_FILE).write_text(fence)
        save_durably(saver, 3)
    assert [step for step, _ in layout.step_folders(tmp_path)] == [3, 1]
    assert list(tmp_path.glob(f"{names.SAVING_PREFIX}*")) == []


def test_plain_torch_reads_what_the_background_wrote(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        save_durably(saver, 1)
    found = {key: torch.empty_like(value) for key, value in state().items()}
    with pytest.warns(UserWarning, match="torch.distributed is"):
        load(found, checkpoint_id=tmp_path / names.step_folder(1), no_dist=True)
    assert_same(found, state())


def test_a_large_shard_is_several_files_of_whole_blocks(tmp_path: Path) -> None:
    tensors = {f"layer{number}": torch.full((3_000_001,), float(number)) for number in range(6)}
    with checkpointer(tmp_path) as saver:
        saver.save(Snapshot(step=1, tensors=tensors))
        saver.wait()
    checkpoint = newest_good(tmp_path, Ranks())
    assert checkpoint is not None
    shards = {name: entry.size for name, entry in checkpoint.manifest.files.items() if name.endswith(".distcp")}
    assert len(shards) == 2
    assert [size % 4096 for size in shards.values()] == [0, 0]
    assert_same(load_tensors(checkpoint, dict.fromkeys(tensors)), tensors)


def saving(directory: Path, step: int, *, attempt: int = 1) -> Path:
    """The folder that a save will use, made beforehand to hold a trap."""
    holder = read(directory)
    assert holder is not None
    folder = layout.saving_folder(directory, step=step, attempt=attempt, owner=holder.owner)
    folder.mkdir()
    return folder


def writer_of(saver: object) -> int:
    assert isinstance(saver, AsyncCheckpointer)
    assert saver._writer.pid is not None
    return saver._writer.pid


def test_the_writer_does_without_torch(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        save_durably(saver, 1)
        mapped = Path(f"/proc/{writer_of(saver)}/maps").read_text()
    assert "memfd:piton-save" in mapped
    assert "torch" not in mapped


def test_a_full_disk_is_an_end_of_its_own(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        save_durably(saver, 1)
        (saving(tmp_path, 2) / "__0_0.distcp").symlink_to("/dev/full")
        saver.save(Snapshot(step=2, tensors=state()))
        with pytest.raises(OutOfSpace, match=f"the disk of {tmp_path} is full; the checkpoints that are there"):
            saver.wait()
        assert saver.durable is not None
        assert saver.durable.step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [names.FENCE_FILE, names.step_folder(1)]


def test_a_writer_that_is_killed_is_replaced_and_the_save_done_again(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        os.kill(first := writer_of(saver), signal.SIGSTOP)
        live = state()
        saver.save(Snapshot(step=1, tensors=live))
        live["matrix"].zero_()
        os.kill(first, signal.SIGKILL)
        saver.wait()
        assert writer_of(saver) != first
    assert_same(loaded(tmp_path)[1], state())


def test_a_writer_that_dies_between_two_saves_is_replaced(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        save_durably(saver, 1)
        os.kill(writer_of(saver), signal.SIGKILL)
        save_durably(saver, 2)
    assert [step for step, _ in layout.step_folders(tmp_path)] == [2, 1]


def test_a_writer_that_is_killed_twice_over_one_save_is_an_error(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        # Opening a pipe that nobody reads takes for ever.
        os.mkfifo(saving(tmp_path, 1) / "__0_0.distcp")
        saver.save(Snapshot(step=1, tensors=state()))
        os.kill(first := writer_of(saver), signal.SIGKILL)
        wait_for(lambda: not poll(saver) and writer_of(saver) != first)
        os.kill(writer_of(saver), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="step 1 could not be written: the writer's process died twice"):
            saver.wait()
        save_durably(saver, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names.FENCE_FILE, names.step_folder(2)]


def wait_for(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_save_in_flight_is_not_durable_until_it_is_seen_to_be(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        os.kill(writer_of(saver), signal.SIGSTOP)
        saver.save(Snapshot(step=1, tensors=state()))
        poll(saver)
        assert (saver.durable, saver.in_flight) == (None, True)
        assert list(layout.committed(tmp_path)) == []
        os.kill(writer_of(saver), signal.SIGCONT)
        wait_for(lambda: poll(saver))
        assert saver.durable is not None


def test_getting_ready_for_other_tensors_does_not_touch_a_save_in_flight(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        os.kill(writer_of(saver), signal.SIGSTOP)
        saver.save(Snapshot(step=1, tensors=state()))
        saver.prepare(lambda: {"a new one": torch.ones(1000), **state()})
        os.kill(writer_of(saver), signal.SIGCONT)
        saver.wait()
    assert_same(loaded(tmp_path)[1], state())


def test_a_writer_dies_with_its_trainer_and_commits_nothing(tmp_path: Path) -> None:
    told = tmp_path / "writer"

    def train() -> None:
        with checkpointer(tmp_path / "checkpoints") as saver:
            save_durably(saver, 1)
            os.kill(writer := writer_of(saver), signal.SIGSTOP)
            saver.save(Snapshot(step=2, tensors=state()))
            told.with_suffix(".new").write_text(str(writer))
            told.with_suffix(".new").rename(told)
            signal.pause()

    (tmp_path / "checkpoints").mkdir()
    with ranks.start(1, train) as world:
        wait_for(told.exists)
        world.kill()
        world.wait()
    wait_for(lambda: not is_running(int(told.read_text())))
    assert [step for step, _ in layout.step_folders(tmp_path / "checkpoints")] == [1]


def test_without_memory_for_a_second_state_training_waits_for_each_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_buffer, "free_bytes", lambda: 1000)
    with checkpointer(tmp_path) as saver:
        for step in (1, 2):
            saver.save(Snapshot(step=step, tensors=state()))
            assert saver.durable is not None
            assert (saver.durable.step, saver.in_flight) == (step, False)
    assert_same(loaded(tmp_path)[1], state())
    assert [r.getMessage() for r in caplog.records] == [
        "the state has 2424832 bytes, and only 500 may be used for a second one; training waits for each save"
    ]


def replicated_and_own(rank: int) -> dict[str, Tensor]:
    own = {f"rank{rank}/rng": torch.full((3,), float(rank))}
    return state() | own


def save_on_two_ranks(directory: Path, event: Callable[[Checkpointer, Ranks], object]) -> str:
    world = Ranks.join()
    with checkpointer(directory, world=world) as saver:
        event(saver, world)
        try:
            saver.save(Snapshot(step=1, tensors=replicated_and_own(world.rank)))
            # As the boundaries between steps do it.
            while saver.in_flight:
                poll(saver, world)
        except (OutOfSpace, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        assert saver.durable is not None
        world.gather(None)
        return f"saved {saver.durable.step}"


def test_two_ranks_write_their_shards_and_commit_together(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(save_on_two_ranks, tmp_path, lambda saver, world: None))
    assert [e.result for e in ends] == ["saved 1", "saved 1"]
    checkpoint = newest_good(tmp_path, Ranks())
    assert checkpoint is not None
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "state.json"} == set(checkpoint.manifest.files)
    want = state() | {"rank0/rng": torch.zeros(3), "rank1/rng": torch.ones(3)}
    assert_same(load_tensors(checkpoint, dict.fromkeys(want)), want)


def save_sharded(directory: Path) -> None:
    world = Ranks.join()
    mesh = init_device_mesh("cpu", (world.world_size,))
    whole = state()["matrix"][:7]
    tensors = {
        "sharded": distribute_tensor(whole, mesh, [Shard(0)]),
        "replicated": distribute_tensor(whole, mesh, [Replicate()]),
    }
    with checkpointer(directory, world=world) as saver:
        saver.save(Snapshot(step=1, tensors=tensors))
        saver.wait()
    world.leave()


def test_rows_that_two_ranks_share_unevenly_are_whole_again_in_one(tmp_path: Path) -> None:
    ends = ranks.run(2, partial(save_sharded, tmp_path))
    assert [e.code for e in ends] == [0, 0]
    checkpoint = newest_good(tmp_path, Ranks())
    assert checkpoint is not None
    whole = state()["matrix"][:7]
    found = load_tensors(checkpoint, {"sharded": torch.zeros(7, 33), "replicated": None})
    assert_same(found, {"sharded": whole, "replicated": whole})


def test_small_files_are_whole_where_the_kernel_takes_them_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, start: write(descriptor, data[:3], start))
    memory = shared_buffer.SharedBuffer()
    assert memory.put_behind([b"state", b"", b"the index"]) == [0, 5, 5]
    assert os.pread(memory.descriptor, 99, 0) == b"statethe index"
    memory.close()


class Scaled(Tensor):
    """It may mean other numbers than it holds."""


def test_a_tensor_that_becomes_more_than_numbers_in_rows_is_saved_in_another_way(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as saver:
        assert isinstance(saver, AsyncCheckpointer)
        for step, tensor in enumerate([torch.ones(3), torch.ones(3).as_subclass(Scaled), torch.ones(3)], start=1):
            saver.save(Snapshot(step=step, tensors={"weights": tensor}))
            assert saver._plan.is_refused == isinstance(tensor, Scaled)
            saver.wait()


def test_what_fails_while_memory_is_warmed_fails_the_save(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no frame fits")

    memory = shared_buffer.SharedBuffer()
    memory.reserve(4096, then=fail)
    with pytest.raises(ValueError, match="no frame fits"):
        memory.settle()
    memory.close()


def test_a_writer_of_one_rank_that_is_killed_costs_two_ranks_nothing(tmp_path: Path) -> None:
    def kill(saver: Checkpointer, world: Ranks) -> None:
        if world.rank == 1:
            os.kill(writer_of(saver), signal.SIGKILL)

    ends = ranks.run(2, partial(save_on_two_ranks, tmp_path, kill))
    assert [e.result for e in ends] == ["saved 1", "saved 1"]
    assert is_good(tmp_path / names.step_folder(1))


def test_a_full_disk_on_one_rank_is_heard_by_both(tmp_path: Path) -> None:
    def fill(saver: Checkpointer, world: Ranks) -> None:
        if world.rank == 1:
            (saving(tmp_path, 1) / "__1_0.distcp").symlink_to("/dev/full")

    ends = ranks.run(2, partial(save_on_two_ranks, tmp_path, fill))
    assert [e.result.split(";")[0] for e in ends] == [f"OutOfSpace: the disk of {tmp_path} is full"] * 2
    assert [path.name for path in tmp_path.iterdir()] == [names.FENCE_FILE]


# In a session.


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_stopped_and_resumed_ends_with_the_weights_of_one_that_was_not(world_size: int, tmp_path: Path) -> None:
    whole = ranks.run(world_size, partial(tiny.train, tmp_path / "whole"))
    train = partial(tiny.train, tmp_path / "parts", background_saves=True)
    stopped = ranks.run(world_size, partial(train, at={7: tiny.terminate}))
    resumed = ranks.run(world_size, partial(train, seed=9))
    assert [e.result.code for e in stopped] == [143] * world_size
    assert [e.result.resumed_from for e in resumed] == [7] * world_size
    assert {e.result.digest() for e in resumed} == {e.result.digest() for e in whole}


def test_a_run_that_crashes_keeps_the_save_that_was_in_flight(tmp_path: Path) -> None:
    with pytest.raises(tiny.LostError):
        tiny.train(tmp_path, at={5: tiny.vanish}, background_saves=True)
    assert [step for step, _ in layout.step_folders(tmp_path)] == [4]


def writer_in(session: piton_trainer.Session) -> int:
    assert session._services.store is not None
    return writer_of(session._services.store._checkpointer)


def stop_writer(session: piton_trainer.Session) -> None:
    os.kill(writer_in(session), signal.SIGSTOP)


def continue_writer(session: piton_trainer.Session) -> None:
    os.kill(writer_in(session), signal.SIGCONT)


def let_it_land(session: piton_trainer.Session) -> None:
    assert session._services.store is not None
    store = session._services.store
    wait_for(lambda: poll(store))


def let_fail(session: piton_trainer.Session) -> None:
    """Until the writer has given up: polling is left to the boundary, which hears of it."""
    assert session._services.store is not None
    checkpointer = session._services.store._checkpointer
    assert isinstance(checkpointer, AsyncCheckpointer)
    assert checkpointer._writer._connection.poll(30)


def test_a_periodic_save_waits_for_the_one_before_and_training_does_not(tmp_path: Path) -> None:
    seen: list[int | None] = []

    def look(session: piton_trainer.Session) -> None:
        assert session._services.store is not None
        seen.append(session._services.store.durable_step)

    def go_on(session: piton_trainer.Session) -> None:
        continue_writer(session)
        let_it_land(session)

    # The save of step 2 is in flight until step 7; those of steps 4 and 6 are due, and one is made at step 7.
    events = {2: stop_writer, 6: look, 7: go_on, 8: let_it_land}
    tiny.train(tmp_path, assignment=tiny.every(2, keep_last=9), at=events, background_saves=True)
    assert seen == [None]
    assert [step for step, _ in layout.step_folders(tmp_path)][-3:] == [8, 7, 2]


def test_a_new_best_is_saved_even_if_training_has_to_wait(tmp_path: Path) -> None:
    def best(session: piton_trainer.Session) -> None:
        session.report(val=1.0 - session.step / 100)

    orders = Assignment(objective=Objective(metric="val"), save=SavePolicy(every_steps=4, keep_last=99))
    tiny.train(tmp_path, assignment=orders, at={4: best, 5: best, 6: best}, background_saves=True)
    assert {4, 5, 6} < {step for step, _ in layout.step_folders(tmp_path)}


def test_what_went_wrong_in_the_background_ends_the_run_with_its_code_if_the_end_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trap(session: piton_trainer.Session) -> None:
        (saving(tmp_path, session.step + 1) / "__0_0.distcp").symlink_to("/dev/full")

    ran = tiny.train(
        tmp_path,
        at={5: let_it_land, 9: let_it_land, 13: let_it_land, 15: trap},
        assignment=tiny.every(4, keep_last=9),
        background_saves=True,
    )
    assert ran.code == 80
    assert f"piton: the disk of {tmp_path} is full; the checkpoints that are there" in capsys.readouterr().err
    assert [step for step, _ in layout.step_folders(tmp_path)] == [12, 8, 4]


def test_what_went_wrong_in_the_background_is_tried_again_while_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, seen = FakeClock(), list[float]()

    def trap(_: piton_trainer.Session) -> None:
        (saving(tmp_path, 8) / "__0_0.distcp").symlink_to("/dev/full")

    def look(session: piton_trainer.Session) -> None:
        let_it_land(session)
        clock.pass_seconds(1)

    def note(session: piton_trainer.Session) -> None:
        seen.append(session._opened.progress().metrics[CHECKPOINTS_SKIPPED])

    events = {5: let_it_land, 7: trap, 9: let_fail, 10: look, 11: note, 12: let_it_land, 13: let_it_land}
    ran = tiny.train(tmp_path, at=events, background_saves=True, clock=clock, assignment=tiny.every(4, keep_last=9))
    assert (ran.code, seen) == (0, [1])
    assert [step for step, _ in layout.step_folders(tmp_path)] == [15, 12, 10, 4]
    words = [
        record.getMessage() for record in caplog.records if record.name == "piton_trainer.checkpoint.volume_health"
    ]
    assert words[0] == (
        f"a checkpoint cannot be saved: the disk of {tmp_path} is full; the checkpoints that are there are untouched; "
        "step 4 is the newest checkpoint. Training goes on and tries again, for 1h at most"
    )
    assert words[1:] == ["checkpoints can be saved again: step 10 is"]


def test_a_session_that_is_overtaken_while_it_saves_is_fenced(tmp_path: Path) -> None:
    def overtake(_: piton_trainer.Session) -> None:
        Fence(tmp_path, disk=layout.Disk(), attempt=9).claim()

    ran = tiny.train(tmp_path, attempt=8, at={5: let_it_land, 6: overtake}, background_saves=True)
    assert ran.code == 81
    assert ran.complete is None
    assert [step for step, _ in layout.step_folders(tmp_path)] == [4]


def test_what_could_not_be_written_is_not_committed_although_the_order_is_there(tmp_path: Path) -> None:
    """A rank that is alone orders both at once. The files of the step before are not those of this one."""
    fence = Fence(tmp_path, disk=layout.Disk(), attempt=1)
    fence.claim()
    settings = WriterSettings(
        directory=tmp_path, attempt=1, owner=fence.owner, is_main=True, policy=SavePolicy(keep_last=9), objective=None
    )
    memory = os.memfd_create("memory")
    os.pwrite(memory, b"1", 0)
    writer = Writer(settings, memory)
    for step in (1, 2):
        draft = ManifestDraft(step=step, world_size=1, metrics={}, versions={}, created="2026-01-01T00:00:00+00:00")
        if step == 2:
            (saving(tmp_path, 2) / "a").symlink_to("/dev/full")
        answers = [
            writer.execute(Write(step=step, parts=[], small=[FilePart("a", 0, 1)])),
            writer.execute(Commit(draft=draft, files=None)),
        ]

    os.close(memory)
    assert [type(answer) for answer in answers] == [Failed, Failed]
    assert [step for step, _ in layout.step_folders(tmp_path)] == [1]
