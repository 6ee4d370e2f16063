"""The memory of the first save is warmed while an attempt starts, and lent to the loader until then."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import piton_trainer
from piton_trainer.checkpoint import Snapshot
from piton_trainer.checkpoint.load.loader import load_newest, share_of_newest
from piton_trainer.checkpoint.load.rank_loader import Targets
from piton_trainer.checkpoint.save import shared_buffer
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.checkpoints import checkpointer, sound_steps


def state(seed: int) -> dict[str, Tensor]:
    """Types of all widths, and numbers of them that leave gaps."""
    torch.manual_seed(seed)
    return {
        "flags": torch.rand(7) > 0.5,
        "double": torch.randn(3, 5).double(),
        "empty": torch.empty(0, 4),
        "half": torch.randn(5).bfloat16(),
        "number": torch.tensor(2.5 + seed),
        "matrix": torch.randn(64, 33),
    }


def save(directory: Path, step: int) -> None:
    with checkpointer(directory) as saver:
        saver.save(Snapshot(step=step, tensors=state(step)))


def restored(directory: Path, spare: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors in use, before they are settled and after."""
    live = {key: torch.zeros_like(value) for key, value in state(0).items()}
    loaded = load_newest(directory, Ranks(), lambda _: Targets(live=live), spare=spare)
    assert loaded is not None
    before = {key: value.clone() for key, value in live.items()}
    loaded.settle()
    return before, live


def assert_is(found: dict[str, Tensor], step: int) -> None:
    assert [key for key, value in state(step).items() if not torch.equal(found[key], value)] == []


@pytest.mark.parametrize("size", [0, 1, 200, 1 << 20], ids=["none", "too little", "for some", "plenty"])
def test_what_is_kept_aside_is_kept_in_spare_memory_as_far_as_it_goes(size: int, tmp_path: Path) -> None:
    save(tmp_path, 1)
    spare = torch.zeros(size, dtype=torch.uint8)
    before, after = restored(tmp_path, spare)
    assert all((value == 0).all() for value in before.values())
    assert_is(after, 1)
    assert bool(spare.any()) == (size >= 200)


def test_memory_that_was_lent_is_whole_again_for_the_first_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with checkpointer(tmp_path) as saver:
        saver.expect(share_of_newest(tmp_path, Ranks()))
        spare = saver.spare
        assert spare is not None
        assert spare.numel() == share_of_newest(tmp_path, Ranks()) > 0
        assert_is(restored(tmp_path, spare)[1], 1)
        assert spare.any()
        saver.prepare(partial(state, 2))
        assert saver.spare is None
        saver.save(Snapshot(step=2, tensors=state(2)))
    assert sound_steps(tmp_path) == [2, 1]
    assert_is(restored(tmp_path, None)[1], 2)


def test_warming_changes_nothing_that_has_been_written_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernel is too old to do it in one go."""
    monkeypatch.setattr(shared_buffer, "_POPULATE_WRITE", 999)
    memory = shared_buffer.SharedBuffer()
    memory.expect(1 << 22)
    memory.settle()
    memory.bytes.fill_(7)
    shared_buffer._populate(memory.descriptor, memory.bytes)
    assert (memory.bytes == 7).all()
    memory.close()


def test_where_memory_is_no_plenty_nothing_is_taken_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_buffer, "free_bytes", lambda: 10_000)
    memory = shared_buffer.SharedBuffer()
    memory.expect(2_501)
    assert memory.bytes.numel() == 0
    memory.expect(2_500)
    assert memory.bytes.numel() == 2_500
    memory.close()


class Odd(Tensor):
    """More than rows of numbers, as far as anybody can tell."""


def test_memory_that_no_save_will_fill_is_given_back(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with checkpointer(tmp_path) as saver:
        assert isinstance(saver, AsyncCheckpointer)
        saver.expect(share_of_newest(tmp_path, Ranks()))
        assert os.fstat(saver._buffer.descriptor).st_size > 0
        saver.prepare(lambda: {"odd": torch.zeros(3).as_subclass(Odd)})
        assert os.fstat(saver._buffer.descriptor).st_size == 0
        saver.save(Snapshot(step=2, tensors=state(2)))
    assert sound_steps(tmp_path) == [2, 1]
    assert_is(restored(tmp_path, None)[1], 2)


def share(directory: Path) -> int:
    world = Ranks.join()
    with checkpointer(directory, world=world) as saver:
        saver.save(Snapshot(step=1, tensors=state(1) | {f"rank{world.rank}/rng": torch.zeros(4096)}))
        saver.wait()
    size = share_of_newest(directory, world)
    world.leave()
    return size


def test_a_rank_expects_what_its_number_wrote_and_in_another_world_its_part(tmp_path: Path) -> None:
    assert share_of_newest(tmp_path, Ranks()) == 0
    sizes = [end.result for end in ranks.run(2, partial(share, tmp_path))]
    files = [(tmp_path / "step-000000001" / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)]
    assert sizes == files
    assert share_of_newest(tmp_path, Ranks()) == sum(files)
    assert share_of_newest(tmp_path, Ranks(world_size=3)) == sum(files) // 3


def test_a_session_that_resumes_expects_saves_like_the_newest_checkpoint(tmp_path: Path) -> None:
    for attempt, expected in ((1, False), (2, True)):
        with piton_trainer.session(tiny.config(tmp_path, background_saves=True)) as session:
            store = session._services.store
            assert store is not None
            spare = store._checkpointer.spare
            assert spare is not None
            assert (spare.numel() > 0, attempt) == (expected, attempt)
            model = tiny.build()
            session.restore(model=model)
            for _ in session.steps([torch.ones(1)], total=attempt):
                pass
