"""One checkpoint while training goes on.

    training    prepare: plan, memory         save: copy          poll … poll       wait
    writer                                    shards, hashes      commit            retention

A save costs the loop one copy of the state into memory that is there and warm; the rest is the writer's. What is the
same from save to save is in the `plan`. Of what is copied beside the training, the writer begins to write when the
copy ends, and commits it when it is certain that nothing changed too early.

Several ranks meet at the boundaries between steps, not through files: a file that another node wrote may be seen late
on a network volume, and cannot be written at all on a full one. A rank that fails is heard by all, and the writer of
rank 0 commits only what all ranks have made durable.
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
from piton_trainer.checkpoint import Saved, Snapshot
from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.save.blocking_save import BlockingCheckpointer, clean_up, documents_of, draft_of
from piton_trainer.checkpoint.save.commit import ManifestDraft
from piton_trainer.checkpoint.save.direct_io import FilePart
from piton_trainer.checkpoint.save.messages import Answer, Commit, Failed, Order, Sealed, Write, WriterSettings
from piton_trainer.checkpoint.save.overlapped_copy import BrokenPromiseError, Copying, Rows, gpus_of
from piton_trainer.checkpoint.save.plan import SavePlan
from piton_trainer.checkpoint.save.shared_buffer import SharedBuffer
from piton_trainer.checkpoint.save.writer_client import WriterClient
from piton_trainer.clock import Clock
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.runtime.resources import share_of_cores

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PendingSave:
    """A save that is not durable yet."""

    draft: ManifestDraft
    is_sealed: bool
    """All ranks have written; what is left is rank 0's writer's to do."""
    then: Sequence[Order]
    """What the writer is told after the first order, once it is certain that the copy is of one moment."""
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
        """What is copied beside the training; the writer may have been told to write it, and not to commit it."""
        self._durable: Saved | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a save is not durable yet."""
        return self._flight is not None

    @property
    def durable(self) -> Saved | None:
        """The newest checkpoint that this object has made durable."""
        return self._durable

    def expect(self, size: int) -> None:
        """Begin to warm memory, if it is there in plenty."""
        self._buffer.expect(size)

    @property
    def spare(self) -> Tensor | None:
        """The memory that a save will fill; afterwards it holds what stands around the numbers."""
        return self._buffer.bytes if self._plan.is_blank else None

    def prepare(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Plan a save of these tensors, and begin to warm the memory for it.

        While a save is in flight that memory is its own, and the next one plans for itself.
        """
        if not self.in_flight:
            self._plan.renew(tensors())

    @torch.no_grad()
    def save(self, snapshot: Snapshot) -> None:
        """Copy the snapshot, and leave it to the writer."""
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
        """Let the steady tensors change."""
        if self._copying is not None:
            self._copying.settle()
            if self._flight is not None and self._copying.is_done:
                self._go_on(self._flight)

    def poll(self) -> None:
        """Take the save in flight as far as it goes by now."""
        flight = self._flight
        if flight is None:
            return
        asked = self._ranks.is_main or not flight.is_sealed
        if self._copying is not None and self._copying.is_done:
            self._go_on(flight)
        if asked and flight.answer is None and self._copying is None:
            flight.answer = self._writer.answer(wait=False)
        waits, fails = self._ranks.agree([asked and flight.answer is None, isinstance(flight.answer, Failed)])
        if fails or not waits:
            self._advance(flight)

    def wait(self) -> None:
        """Until nothing is in flight."""
        while self._flight is not None:
            self._advance(self._flight)

    def close(self) -> None:
        """End the writer; a save that needs no other rank any more is finished first."""
        try:
            if self._flight is not None and self._flight.is_sealed and self._ranks.is_main:
                self._durable = self._committed(self._flight)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever ends the session is worth more
            logger.warning("the last checkpoint is lost: %s", error)
        finally:
            self._flight = None
            self._drop_copy()
            self._writer.close()
            self._plan.views = []
            self._buffer.close()

    def _advance(self, flight: PendingSave) -> None:
        """The next stage of a save, waiting for the writers."""
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
        """Everything is copied, or will be when this returns, and the writer has begun: give it its further orders."""
        copying, self._copying = self._copying, None
        try:
            if copying is not None:
                copying.finish()
        except BrokenPromiseError as error:
            self._writer.kill()  # what it writes is not of one moment
            flight.answer = Failed.by(error)
            return
        for order in flight.then:
            self._writer.go_on(order)

    def _drop_copy(self) -> None:
        """Nobody wants it any more, but the memory is not ours before it has ended."""
        copying, self._copying = self._copying, None
        if copying is not None:
            with suppress(BrokenPromiseError):
                copying.finish()
            self._writer.kill()  # it has been told to write it

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
        """The stall: everything that training may change from now on; and where the small files are."""
        self._writer.get_ready()
        self._plan.settle()
        if rows.names:
            torch._foreach_copy_(rows.views, rows.tensors, non_blocking=True)
        if torch.cuda.is_available():
            for gpu in {torch.device("cuda", torch.cuda.current_device()), *gpus_of(rows.tensors)}:
                torch.cuda.synchronize(gpu)
        return self._buffer.put_behind(small)


def _spare_cores() -> int:
    """What this rank's training leaves of its share of the machine; at least one."""
    return max(1, share_of_cores() - torch.get_num_threads())
