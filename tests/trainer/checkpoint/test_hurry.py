"""A save takes the cores that training leaves, and all of them once training waits for it."""

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from piton.contract.assignment import SavePolicy
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.save import direct_io, writer
from piton_trainer.checkpoint.save.direct_io import FilePart, WriterPool
from piton_trainer.checkpoint.save.messages import Expedite, Sealed, Write, WriterSettings

PARTS = [FilePart(f"__0_{number}.distcp", 4096 * number, 4096) for number in range(4)]
MEMORY = memoryview(bytes(range(256)) * 16 * len(PARTS))


class Gate:
    """The first file that is written waits until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.others_are_done = threading.Event()
        self.begun: list[str] = []
        self._write = direct_io.write_file

    def write(self, path: Path, data: memoryview) -> FileEntry:
        self.begun.append(path.name)
        if self.begun[0] == path.name:
            assert self.is_open.wait(30)
        entry = self._write(path, data)
        if len(self.begun) == len(PARTS):
            self.others_are_done.set()
        return entry


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(direct_io, "write_file", made.write)
    yield made
    made.is_open.set()


def test_threads_that_join_later_take_the_files_that_are_left(tmp_path: Path, gate: Gate) -> None:
    pool = WriterPool(tmp_path, PARTS, MEMORY)
    pool.enlist(1)
    assert not gate.others_are_done.wait(0.05)
    pool.enlist(2)
    assert gate.others_are_done.wait(30)
    gate.is_open.set()
    files = pool.finish()
    assert files == {part.name: layout.seal(tmp_path / part.name) for part in PARTS}


def test_what_fails_on_one_thread_fails_the_save_and_ends_the_others(tmp_path: Path) -> None:
    pool = WriterPool(tmp_path / "not there", PARTS, MEMORY)
    pool.enlist(3)
    with pytest.raises(FileNotFoundError):
        pool.finish()


def hired(directory: Path, threads: int, memory: int) -> Connection:
    """A writer at the other end of a connection, in a thread of this process."""
    fence = Fence(directory, disk=layout.Disk())
    fence.claim()
    ours, theirs = Pipe()
    settings = WriterSettings(
        directory=directory,
        attempt=fence.attempt,
        owner=fence.owner,
        is_main=True,
        policy=SavePolicy(),
        objective=None,
        threads=threads,
    )
    ours.send(settings)
    threading.Thread(target=writer.serve, args=(theirs, memory), daemon=True).start()
    return ours


@pytest.mark.parametrize("early", [True, False], ids=["before the order", "while it is carried out"])
def test_a_trainer_that_waits_is_given_all_cores(early: bool, tmp_path: Path, gate: Gate) -> None:
    image = tmp_path / "image"
    image.write_bytes(MEMORY)
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    with image.open("rb") as memory, hired(directory, 1, memory.fileno()) as trainer:
        order, hurry = Write(step=3, parts=PARTS), Expedite(step=3)
        for message in (hurry, order) if early else (order, hurry):
            trainer.send(message)
        # With a single thread the file at the gate would keep all others waiting.
        assert gate.others_are_done.wait(30)
        gate.is_open.set()
        assert isinstance(trainer.recv(), Sealed)


def test_a_hurry_for_another_step_is_not_for_this_one(tmp_path: Path, gate: Gate) -> None:
    image = tmp_path / "image"
    image.write_bytes(MEMORY)
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    with image.open("rb") as memory, hired(directory, 1, memory.fileno()) as trainer:
        trainer.send(Expedite(step=2))
        trainer.send(Write(step=3, parts=PARTS))
        assert not gate.others_are_done.wait(0.05)
        gate.is_open.set()
        assert isinstance(trainer.recv(), Sealed)
