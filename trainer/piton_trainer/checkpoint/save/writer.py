"""Process that writes the checkpoints of a rank while the rank trains. It imports no torch.

`writer_client` starts it. It reads the memory of the trainer, executes one request after the other, and sends only
answers. It ends with its trainer in all cases: when the socket closes or, if a forked child of the trainer still holds
the socket, by the signal of the kernel. A save that it has not renamed by then is never committed.

Its priority is low: while the trainer trains, it uses the idle CPU time, and while the trainer waits, all of it.
"""

import mmap
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import assert_never

from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.file_digest import digest_of
from piton_trainer.checkpoint.save.commit import Committer
from piton_trainer.checkpoint.save.direct_io import FilePart, WriterPool
from piton_trainer.checkpoint.save.messages import Answer, Commit, Expedite, Request, Sealed, Write, WriterSettings
from piton_trainer.errors import Ended
from piton_trainer.runtime import child_process
from piton_trainer.runtime.child_process import Failed
from piton_trainer.runtime.resources import cores

_MORE_THREADS = 6
"""Extra threads of an expedited save. While some hash, others write: otherwise the disk would be idle at times."""


class Writer:
    """Executes requests."""

    def __init__(self, settings: WriterSettings, memory: int) -> None:
        self._directory = settings.directory
        self._is_main = settings.is_main
        self._memory = memory
        self._mapped: mmap.mmap | None = None
        self._sealed: Mapping[str, FileEntry] | None = None
        self._threads = settings.threads
        self._pool: WriterPool | None = None
        self._hurry: Expedite | None = None
        disk = layout.Disk()
        fence = Fence(settings.directory, disk=disk, attempt=settings.attempt, owner=settings.owner)
        self._committer = Committer(
            settings.directory, fence=fence, policy=settings.policy, objective=settings.objective, disk=disk
        )

    def execute(self, request: Request) -> Answer:
        """Execute a request; an error is returned as an answer."""
        try:
            match request:
                case Write():
                    return self._write(request)
                case Commit():
                    return self._commit(request)
                case _:
                    assert_never(request)
        except (Exception, Ended) as error:  # noqa: BLE001 - the trainer raises it
            return Failed.by(error)

    def expedite(self, expedite: Expedite) -> None:
        """Use all cores for a step that is being written, or will be. Called from another thread."""
        self._hurry, pool = expedite, self._pool
        if pool is not None:
            pool.enlist(_all_cores())

    def follow_up(self, saved: Saved, *, is_wanted: Callable[[], bool]) -> None:
        """Apply retention after a commit, once the trainer has received the answer."""
        self._committer.follow_up(saved, is_wanted=is_wanted)

    def _commit(self, request: Commit) -> Saved:
        """Commit. The request may arrive before the files are written, and is void if the write fails."""
        files = self._sealed if request.files is None else request.files
        if files is None:
            raise RuntimeError("nothing is written that could be committed")
        with layout.translate_os_errors(self._directory):
            return self._committer.commit(request.draft, files)

    def _write(self, request: Write) -> Sealed:
        self._sealed = None
        folder = self._committer.folder(request.step)
        with layout.translate_os_errors(self._directory):
            if self._is_main:
                self._committer.begin(request.step, request.size)
            else:
                layout.make_folder(folder)
            files = {part.name: _write_small(folder / part.name, self._small(part)) for part in request.small}
            if request.parts:
                files |= self._write_parts(folder, request)
            layout.sync_folder(folder)
        self._sealed = files
        return Sealed(files=files)

    def _small(self, part: FilePart) -> bytes:
        data = os.pread(self._memory, part.size, part.start)
        assert len(data) == part.size
        return data

    def _write_parts(self, folder: Path, request: Write) -> Mapping[str, FileEntry]:
        self._pool = pool = WriterPool(folder, request.parts, self._bytes(request))
        in_a_hurry = self._hurry is not None and self._hurry.step == request.step
        pool.enlist(_all_cores() if in_a_hurry else self._threads)
        try:
            return pool.finish()
        finally:
            self._pool = None

    def _bytes(self, request: Write) -> memoryview:
        size = max(part.start + part.size for part in request.parts)
        if self._mapped is None or len(self._mapped) < size:
            self._mapped = mmap.mmap(self._memory, os.fstat(self._memory).st_size, prot=mmap.PROT_READ)
        return memoryview(self._mapped)


def _write_small(path: Path, data: bytes) -> FileEntry:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size=len(data), digest=digest_of(data))


def _all_cores() -> int:
    return cores() + _MORE_THREADS


def serve(connection: Connection, memory: int) -> None:
    """Execute incoming requests until the trainer closes the connection."""
    try:
        writer = Writer(connection.recv(), memory)
        requests: SimpleQueue[Request | None] = SimpleQueue()
        threading.Thread(target=_listen, args=(connection, writer, requests), daemon=True).start()
        while (request := requests.get()) is not None:
            answer = writer.execute(request)
            connection.send(answer)
            if isinstance(answer, Saved):
                writer.follow_up(answer, is_wanted=lambda: not requests.empty())
    except (EOFError, ConnectionError):
        return


def _listen(connection: Connection, writer: Writer, requests: "SimpleQueue[Request | None]") -> None:
    """Queue incoming requests in order; apply an `Expedite` at once."""
    try:
        with suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                if isinstance(message, Expedite):
                    writer.expedite(message)
                else:
                    requests.put(message)
    finally:
        requests.put(None)


def main() -> None:
    """Serve the trainer that started this process."""
    trainer, (memory,) = child_process.join()
    with trainer:
        serve(trainer, memory)


if __name__ == "__main__":
    main()
