"""Ways to save and load one state, behind one face, and the physical floors that they are measured against."""

import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint import Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.load.loader import load_newest
from piton_trainer.checkpoint.load.rank_loader import Targets
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.checkpoint.save.shared_buffer import SharedBuffer
from piton_trainer.clock import Clock
from piton_trainer.runtime.process_group import Ranks

try:
    from safetensors.torch import load_file, save_file
except ImportError:  # not a dependency; without it there is a row less
    save_file = load_file = None

State = dict[str, Tensor]
"""What is saved; torch's own methods take nested state dicts as well."""
CHUNK_BYTES = 16 << 20


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Method:
    """`save` returns when the tensors may change, `wait` when they are durable; then `load` brings them back."""

    goes_on = False
    """Training goes on between the two."""
    can_load = True
    only_stall = False
    """Written and loaded like another method's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder

    def save(self, state: State, step: int) -> None:
        """Until the tensors may change."""
        raise NotImplementedError

    def stall(self, state: State, step: int) -> float:
        """Save; the seconds by which training is later."""
        return seconds(lambda: self.save(state, step))

    def wait(self) -> None:
        """Until what was saved is durable, with all of the machine."""

    def is_durable(self) -> bool:
        """Whether it is, asked between two steps of a training that goes on."""
        return True

    def get_ready_to_load(self, size: int) -> None:
        """What an attempt does while it builds its model; so many bytes will be loaded."""

    def load(self, into: State) -> None:
        """The newest, into tensors that are there."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Delete what was saved."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def close(self) -> None:
        """The last save is done."""


class Memcpy(Method):
    """Floor of a stall: the state into shared memory that is warm."""

    can_load = False

    def __init__(self, folder: Path, state: State) -> None:
        super().__init__(folder)
        self._copies = [torch.zeros_like(value).share_memory_() for value in state.values()]

    def save(self, state: State, step: int) -> None:
        """Copy."""
        torch._foreach_copy_(self._copies, list(state.values()))


class Raw(Method):
    """Floor of a durable save: as many bytes from memory, past the page cache, in one row."""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder)
        self._bytes = mmap.mmap(-1, -(-size // 4096) * 4096)
        torch.frombuffer(self._bytes, dtype=torch.uint8).random_()
        self.path = folder / "raw"

    def save(self, state: State, step: int) -> None:
        """Write and fsync."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
        view = memoryview(self._bytes)
        for start in range(0, len(view), CHUNK_BYTES):
            os.write(descriptor, view[start : start + CHUNK_BYTES])
        os.fsync(descriptor)
        os.close(descriptor)

    def load(self, into: State) -> None:
        """Read."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        view = memoryview(self._bytes)
        for start in range(0, len(view), CHUNK_BYTES):
            os.readv(descriptor, [view[start : start + CHUNK_BYTES]])
        os.close(descriptor)


class TorchSave(Method):
    """`torch.save` and fsync."""

    def save(self, state: State, step: int) -> None:
        """All of it in one file."""
        self.path = self.folder / "state.pt"
        with self.path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def load(self, into: State) -> None:
        """`torch.load` and copy."""
        found = torch.load(self.path, weights_only=True)
        torch._foreach_copy_([into[key] for key in found], list(found.values()))


class Safetensors(Method):
    """`safetensors` and fsync."""

    def save(self, state: State, step: int) -> None:
        """All of it in one file."""
        self.path = self.folder / "state.safetensors"
        save_file(state, self.path)
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def load(self, into: State) -> None:
        """`load_file` and copy."""
        found = load_file(self.path)
        torch._foreach_copy_([into[key] for key in found], list(found.values()))


class Dcp(Method):
    """`dcp.save`, which fsyncs."""

    def save(self, state: State, step: int) -> None:
        """All of it."""
        self.path = self.folder / str(step)
        dcp.save(state, checkpoint_id=self.path)

    def load(self, into: State) -> None:
        """In place."""
        dcp.load(into, checkpoint_id=self.path)


class DcpAsync(Dcp):
    """`dcp.async_save`, with or without a stager that keeps its memory."""

    goes_on = True

    def __init__(self, folder: Path, kind: AsyncCheckpointerType, *, cached: bool) -> None:
        super().__init__(folder)
        self._kind = kind
        self._stager = DefaultStager(StagingOptions(False, True, False, False)) if cached else None
        self._done: Future[Any] | None = None

    def save(self, state: State, step: int) -> None:
        """Until staged."""
        self.path = self.folder / str(step)
        more = {} if self._stager is None else {"async_stager": self._stager}
        response = dcp.async_save(state, checkpoint_id=self.path, async_checkpointer_type=self._kind, **more)
        if isinstance(response, Future):
            self._done = response
        else:
            response.staging_completion.result()
            self._done = response.upload_completion

    def wait(self) -> None:
        """Until written."""
        if self._done is not None:
            self._done.result()
            self._done = None

    def is_durable(self) -> bool:
        """Whether it is written."""
        return self._done is None or self._done.done()

    def close(self) -> None:
        """Give the stager's memory back."""
        if self._stager is not None:
            self._stager.close()


class Piton(Method):
    """Ours."""

    goes_on = True

    def __init__(self, folder: Path, state: State, ranks: Ranks | None = None) -> None:
        super().__init__(folder)
        self._ranks = ranks or Ranks()
        self._spare: SharedBuffer | None = None
        self._saver = self._make(state)

    def _make(self, state: State) -> AsyncCheckpointer:
        fence = self._ranks.on_main(self._claim)
        saver = AsyncCheckpointer(self.folder, ranks=self._ranks, fence=fence, policy=SavePolicy(), clock=Clock())
        saver.prepare(lambda: state)
        return saver

    def _claim(self) -> Fence:
        fence = Fence(self.folder, disk=layout.Disk())
        fence.claim()
        return fence

    def save(self, state: State, step: int) -> None:
        """Until copied."""
        self._saver.save(Snapshot(step=step, tensors=state))

    def wait(self) -> None:
        """Until committed."""
        self._saver.wait()

    def is_durable(self) -> bool:
        """As a session asks at a boundary."""
        self._saver.advance(self._saver.status())
        return not self._saver.in_flight

    def get_ready_to_load(self, size: int) -> None:
        """A session has warmed the memory of its saves by then."""
        self._spare = warm_memory(size)

    def load(self, into: State) -> None:
        """Verified, in place."""
        restore(self.folder, into, None if self._spare is None else self._spare.bytes)

    def tidy(self) -> None:
        """Delete the checkpoints; the fence stays."""
        for _, folder in layout.step_folders(self.folder):
            layout.discard(folder)

    def close(self) -> None:
        """End the writer."""
        self._saver.close()
        if self._spare is not None:
            self._spare.close()


class PitonBeside(Piton):
    """Ours, where only optimizers change the state: copied beside a pass that takes several copies' time."""

    only_stall = True
    COPIES = 5

    def __init__(self, folder: Path, state: State) -> None:
        super().__init__(folder, state)
        self._one, self._other = torch.randn(768, 768), torch.randn(768, 768)
        floor = Memcpy(folder, state)
        floor.save(state, 0)
        wanted = self.COPIES * seconds(lambda: floor.save(state, 0))
        self._rounds = 1
        while seconds(self._pass) < wanted:
            self._rounds *= 2

    def stall(self, state: State, step: int) -> float:
        """By how much a pass with a save takes longer than one without; what it loses to the copy counts."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads - 1))  # the trainer's; the copy has a core, as on a machine with GPUs
        alone = seconds(self._pass)
        longer = super().stall(state, step)
        torch.set_num_threads(threads)
        return longer - alone

    def save(self, state: State, step: int) -> None:
        """Until an optimizer may step."""
        self._saver.save(Snapshot(step=step, tensors=state, steady=frozenset(state)))
        self._pass()
        self._saver.settle()

    def _pass(self) -> None:
        for _ in range(self._rounds):
            self._one @ self._other


def peers(root: Path, kinds: Iterable[AsyncCheckpointerType] = AsyncCheckpointerType) -> dict[str, Method]:
    """What torch brings, each with a folder of its own."""
    return {"torch.save": TorchSave(folder_in(root, "torch.save")), "dcp.save": Dcp(folder_in(root, "dcp.save"))} | {
        name: DcpAsync(folder_in(root, name), kind, cached=cached)
        for kind in kinds
        for cached in (False, True)
        if (name := f"dcp.async_save {kind.value}{' cached' if cached else ''}")
    }


def folder_in(root: Path, name: str) -> Path:
    """One for a method."""
    path = root / name.replace(" ", "-")
    path.mkdir()
    return path


def warm_memory(size: int) -> SharedBuffer:
    """As a session's saver has it by the time that the model is built, and lends it to the loader."""
    buffer = SharedBuffer()
    buffer.expect(size)
    buffer.settle()
    return buffer


def restore(folder: Path, into: Mapping[str, Tensor], spare: Tensor | None) -> None:
    """As a session does it: the newest good checkpoint, every file verified, the tensors in use changed last.

    The momenta of an optimizer that has not stepped yet are no tensors in use, so they may be filled at once.
    """
    weights = {key: tensor for key, tensor in into.items() if key.startswith("w/")}
    momenta = {key: tensor for key, tensor in into.items() if key not in weights}
    loaded = load_newest(folder, Ranks(), lambda _: Targets(live=weights, fresh=momenta), spare=spare)
    assert loaded is not None
    loaded.settle()


def drop_from_cache(path: Path) -> None:
    """What was written has to come from the disk again."""
    for file in [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def is_consistent(method: Method, state: State) -> bool:
    """Whether a change right after `save` stays out of what was saved."""
    before = {key: value.clone() for key, value in state.items()}
    method.save(state, 9999)
    for value in state.values():
        value.add_(1)
    method.wait()
    into = {key: torch.empty_like(value) for key, value in state.items()}
    method.load(into)
    method.tidy()
    return all(torch.equal(into[key], before[key]) for key in before)
