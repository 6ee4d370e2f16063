"""Checkpoints that are saved while training continues.

    training    prepare: plan, memory         save: copy          advance … advance       wait
    writer                                    shards, hashes      commit            retention

A save costs the loop one copy of the state into allocated and warm memory; the writer does the rest. State that is the
same from save to save is in the `plan`. If the copy overlaps with training, the writer starts when the copy ends, and
commits when it is certain that no tensor changed too early.

Several ranks synchronize between steps, not through files: a file of another node may become visible late on a network
volume, and cannot be written at all on a full one. The failure of a rank reaches all ranks, and the writer of rank 0
commits only files that all ranks have made durable.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import Saved, SaveStatus, Snapshot
from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.save.blocking_save import BlockingCheckpointer, clean_up, documents_of, draft_of
from piton_trainer.checkpoint.save.commit import ManifestDraft
from piton_trainer.checkpoint.save.direct_io import FilePart
from piton_trainer.checkpoint.save.messages import Answer, Commit, Request, Sealed, Write, WriterSettings
from piton_trainer.checkpoint.save.overlapped_copy import BrokenPromiseError, Copying, Rows, gpus_of
from piton_trainer.checkpoint.save.plan import SavePlan
from piton_trainer.checkpoint.save.shared_buffer import SharedBuffer
from piton_trainer.checkpoint.save.writer_client import WriterClient
from piton_trainer.clock import Clock
from piton_trainer.runtime.child_process import Failed
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.runtime.resources import share_of_cores

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PendingSave:
    """A save that is not durable yet."""

    draft: ManifestDraft
    is_sealed: bool
    """True if all ranks have written; only the commit by the writer of rank 0 is left."""
    then: Sequence[Request]
    """Further requests to the writer, sent once it is certain that the copy is consistent."""
    answer: Answer | None = None


class AsyncCheckpointer:
    """A `Checkpointer` whose `save` returns when the tensors may change again."""

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        fence: Fence,
        policy: SavePolicy,
        objective: Objective | None = None,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._ranks = ranks
        self._fence = fence
        self._clock = clock
        self._blocking = BlockingCheckpointer(
            directory, ranks=ranks, fence=fence, policy=policy, objective=objective, disk=layout.Disk(), clock=clock
        )
        self._buffer = SharedBuffer()
        settings = WriterSettings(
            directory=directory,
            attempt=fence.attempt,
            owner=fence.owner,
            is_main=ranks.is_main,
            policy=policy,
            objective=objective,
            threads=_spare_cores(),
        )
        self._writer = WriterClient(settings, memory=self._buffer.descriptor)
        self._apart = policy.keep_weights_only > 0
        self._plan = SavePlan(self._buffer, ranks=ranks, apart=self._apart)
        self._flight: PendingSave | None = None
        self._copying: Copying | None = None
        """Copy that overlaps with training; the writer may have been asked to write it, but not to commit it."""
        self._durable: Saved | None = None

    @property
    def in_flight(self) -> bool:
        """True if a save is not durable yet."""
        return self._flight is not None

    @property
    def durable(self) -> Saved | None:
        """Newest checkpoint that this object has made durable."""
        return self._durable

    def expect(self, size: int) -> None:
        """Start to warm memory, if there is plenty of it."""
        self._buffer.expect(size)

    @property
    def spare(self) -> Tensor | None:
        """Memory that a save will fill; None once it holds the heads and tails of the archives."""
        return self._buffer.bytes if self._plan.is_blank else None

    def prepare(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Plan a save of these tensors, and start to warm the memory for it.

        While a save is in flight it owns that memory, so nothing is done, and the next save makes its own plan.
        """
        if not self.in_flight:
            self._plan.renew(tensors())

    @torch.no_grad()
    def save(self, snapshot: Snapshot) -> None:
        """Copy the snapshot, and let the writer save it."""
        self.wait()
        self._plan.renew(snapshot.tensors)
        if self._plan.is_refused:
            self._blocking.save(snapshot)
            self._durable = self._blocking.durable
            return
        later, now = self._plan.rows(snapshot.tensors).divided(snapshot.steady)
        small = self._small_files(snapshot)
        starts = self._ranks.together(partial(self._copy, now, small.values()))[self._ranks.rank]
        write = Write(
            step=snapshot.step,
            parts=[FilePart(part.name, part.start, part.size) for part in self._plan.image.parts],
            small=[FilePart(name, start, len(small[name])) for name, start in zip(small, starts, strict=True)],
            size=self._plan.size,
        )
        draft = draft_of(snapshot, world_size=self._ranks.world_size, clock=self._clock)
        alone = self._ranks.world_size == 1
        self._flight = PendingSave(
            draft=draft, is_sealed=alone, then=[Commit(draft=draft, files=None)] if alone else []
        )
        if later.names:
            self._copying = Copying(later, then=partial(self._writer.begin, write))
        else:
            self._writer.begin(write)
            self._go_on(self._flight)

    def settle(self) -> None:
        """Allow the steady tensors to change."""
        if self._copying is not None:
            self._copying.settle()
            if self._flight is not None and self._copying.is_done:
                self._go_on(self._flight)

    def status(self) -> SaveStatus:
        """Return this rank's status of the save in flight; first take what is done without waiting."""
        flight = self._flight
        if flight is None:
            return SaveStatus()
        asked = self._ranks.is_main or not flight.is_sealed
        if self._copying is not None and self._copying.is_done:
            self._go_on(flight)
        if asked and flight.answer is None and self._copying is None:
            flight.answer = self._writer.answer(wait=False)
        waits, fails = asked and flight.answer is None, isinstance(flight.answer, Failed)
        return SaveStatus(waits=waits, fails=fails, ends=self._ranks.is_main and flight.is_sealed and not waits)

    def advance(self, status: SaveStatus) -> None:
        """Complete the next stage of the save in flight, unless a rank's writer is still busy with it."""
        if self._flight is not None and (status.fails or not status.waits):
            self._advance(self._flight)

    def wait(self) -> None:
        """Wait until no save is in flight."""
        while self._flight is not None:
            self._advance(self._flight)

    def close(self) -> None:
        """Stop the writer; first finish a save that needs no other rank any more."""
        try:
            if self._flight is not None and self._flight.is_sealed and self._ranks.is_main:
                self._durable = self._committed(self._flight)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the error that ends the session has priority
            logger.warning("the last checkpoint is lost: %s", error)
        finally:
            self._flight = None
            self._drop_copy()
            self._writer.close()
            self._plan.views = []
            self._buffer.close()

    def _advance(self, flight: PendingSave) -> None:
        """Complete the next stage of a save, waiting for the writers."""
        try:
            if flight.is_sealed:
                self._durable = self._ranks.on_main(partial(self._committed, flight))
                self._flight = None
                return
            parts = self._ranks.together(partial(self._sealed, flight))
            flight.is_sealed = True
            if self._ranks.is_main:
                files = {name: entry for part in parts for name, entry in part.items()}
                self._writer.go_on(Commit(draft=flight.draft, files=files))
        except BaseException:
            self._flight = None
            saving = layout.saving_folder(
                self._directory, step=flight.draft.step, attempt=self._fence.attempt, owner=self._fence.owner
            )
            self._ranks.on_main(partial(clean_up, saving, self._fence))
            raise

    def _go_on(self, flight: PendingSave) -> None:
        """Finish the copy, then send the further requests to the writer, which has started."""
        copying, self._copying = self._copying, None
        try:
            if copying is not None:
                copying.finish()
        except BrokenPromiseError as error:
            self._writer.kill()  # the copy that it writes is not consistent
            flight.answer = Failed.by(error)
            return
        for request in flight.then:
            self._writer.go_on(request)

    def _drop_copy(self) -> None:
        """Discard the copy, but wait for its end first: until then it writes to the memory."""
        copying, self._copying = self._copying, None
        if copying is not None:
            with suppress(BrokenPromiseError):
                copying.finish()
            self._writer.kill()  # it has been asked to write the copy

    def _sealed(self, flight: PendingSave) -> Mapping[str, FileEntry]:
        answer = self._answer(flight)
        assert isinstance(answer, Sealed)
        return answer.files

    def _committed(self, flight: PendingSave) -> Saved:
        answer = self._answer(flight)
        assert isinstance(answer, Saved)
        return answer

    def _answer(self, flight: PendingSave) -> Answer:
        if self._copying is not None:
            self._go_on(flight)
        answer, flight.answer = flight.answer or self._writer.answer(wait=True), None
        assert answer is not None
        if isinstance(answer, Failed):
            raise answer.error(f"the checkpoint of step {flight.draft.step} could not be written")
        return answer

    def _small_files(self, snapshot: Snapshot) -> dict[str, bytes]:
        if not self._ranks.is_main:
            return {}
        documents = documents_of(snapshot, apart=self._apart)
        encoded = {name: codec.encode(document).encode() for name, document in documents.items()}
        return encoded | self._plan.indices

    def _copy(self, rows: Rows, small: Iterable[bytes]) -> list[int]:
        """Copy all tensors that training may change from now on (the stall); return the offsets of the small files."""
        self._writer.get_ready()
        self._plan.settle()
        if rows.names:
            torch._foreach_copy_(rows.views, rows.tensors, non_blocking=True)
        if torch.cuda.is_available():
            for gpu in {torch.device("cuda", torch.cuda.current_device()), *gpus_of(rows.tensors)}:
                torch.cuda.synchronize(gpu)
        return self._buffer.put_behind(small)


def _spare_cores() -> int:
    """Return the cores in this rank's share of the machine that training does not use; at least one."""
    return max(1, share_of_cores() - torch.get_num_threads())
