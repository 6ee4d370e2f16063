"""Checkpoints without a session: saved, damaged, and looked at as people look at them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import Checkpointer, SaveStatus, inspect
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.save.factory import make_checkpointer
from piton_trainer.clock import Clock
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.training.run_checkpoint import RunCheckpointer


@contextmanager
def checkpointer(
    directory: Path,
    *,
    background: bool = True,
    attempt: int | None = None,
    world: Ranks | None = None,
    keep_last: int | None = None,
) -> Iterator[Checkpointer]:
    """One that holds the fence."""
    world = world or Ranks()
    disk = layout.Disk()

    def claim() -> Fence:
        fence = Fence(directory, disk=disk, attempt=attempt)
        fence.claim()
        return fence

    made = make_checkpointer(
        directory,
        ranks=world,
        fence=world.on_main(claim),
        policy=SavePolicy() if keep_last is None else SavePolicy(keep_last=keep_last),
        objective=None,
        disk=disk,
        clock=Clock(),
        background=background,
    )
    try:
        yield made
    finally:
        made.close()


def poll(saver: Checkpointer | RunCheckpointer, ranks: Ranks | None = None) -> bool:
    """Go on with the save in flight as a step boundary does; return True if none is in flight any more."""
    status = saver.status()
    agreed = (ranks or Ranks()).agree([status.waits, status.fails, status.ends])
    waits, fails, ends = (value > 0 for value in agreed)
    saver.advance(SaveStatus(waits=waits, fails=fails, ends=ends))
    return not saver.in_flight


def sound_steps(directory: Path) -> list[int]:
    """The steps that are there, newest first; each has to be what `piton checkpoint verify` calls good."""
    found = inspect.survey(directory) if directory.exists() else []
    torn = [f"{check.found.folder.name}: {check.problem}" for check in inspect.verify(found) if check.problem]
    assert torn == [], torn
    return [item.step for item in found]


def flip(path: Path, place: int | None = None, bit: int = 0) -> None:
    """Flip a bit of a byte: of this one, or of the one in the middle. A second time all is as it was."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(data)
