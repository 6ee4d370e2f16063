"""Checkpoints that are saved while training waits, from tensors in memory to a committed folder.

    every rank   write shards, then hash them and make them durable
    rank 0       write state.json before that; afterwards commit

A step that fails on one rank fails on all ranks, and the folder in flight is removed.
"""

import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import Saved, SaveStatus, Snapshot
from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.shards import is_weight
from piton_trainer.checkpoint.save.commit import Committer, ManifestDraft
from piton_trainer.clock import Clock
from piton_trainer.runtime.process_group import Ranks


class BlockingCheckpointer:
    """A `Checkpointer` whose `save` returns when the checkpoint is durable."""

    in_flight = False
    spare = None

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        fence: Fence,
        policy: SavePolicy,
        objective: Objective | None = None,
        disk: layout.Disk,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._ranks = ranks
        self._fence = fence
        self._committer = Committer(directory, fence=fence, policy=policy, objective=objective, disk=disk, clock=clock)
        self._disk = disk
        self._apart = policy.keep_weights_only > 0
        self._clock = clock
        self._durable: Saved | None = None

    @property
    def durable(self) -> Saved | None:
        """Newest checkpoint that this process has made durable."""
        return self._durable

    def expect(self, size: int) -> None:
        """Do nothing: there is nothing to prepare."""

    def prepare(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Do nothing: there is nothing to prepare."""

    def settle(self) -> None:
        """Do nothing: no tensor is copied later."""

    def status(self) -> SaveStatus:
        """Return the status without a save in flight."""
        return SaveStatus()

    def advance(self, status: SaveStatus) -> None:
        """Do nothing: no save is ever in flight."""

    def wait(self) -> None:
        """Do nothing: no save is ever in flight."""

    def close(self) -> None:
        """Do nothing: no resources are held."""

    def save(self, snapshot: Snapshot) -> None:
        """Save a snapshot durably, on all ranks together."""
        folder = self._committer.folder(snapshot.step)
        try:
            self._ranks.on_main(partial(self._begin, folder, snapshot))
            self._write_shards(folder, snapshot)
            sealed = self._ranks.together(partial(self._seal, folder))
            files = {name: entry for part in sealed for name, entry in part.items()}
            draft = draft_of(snapshot, world_size=self._ranks.world_size, clock=self._clock)
            self._durable = self._ranks.on_main(partial(self._commit, draft, files))
        except BaseException:
            self._ranks.on_main(partial(clean_up, folder, self._fence))
            raise
        if self._ranks.is_main:
            self._committer.follow_up(self._durable)

    def _begin(self, folder: Path, snapshot: Snapshot) -> None:
        with layout.translate_os_errors(self._directory):
            self._committer.begin(snapshot.step, size_of(snapshot.tensors))
            for name, document in documents_of(snapshot, apart=self._apart).items():
                self._disk.write(folder / name, codec.encode(document))

    def _commit(self, draft: ManifestDraft, files: Mapping[str, FileEntry]) -> Saved:
        with layout.translate_os_errors(self._directory):
            return self._committer.commit(draft, files)

    def _write_shards(self, folder: Path, snapshot: Snapshot) -> None:
        try:
            save(
                {name: tensor.detach() for name, tensor in snapshot.tensors.items()},
                storage_writer=self._disk.writer(folder, apart=self._apart),
                planner=DefaultSavePlanner(flatten_state_dict=False),
                process_group=self._ranks.group,
                no_dist=self._ranks.world_size == 1,
            )
        except CheckpointException as error:
            _raise_first(error, self._directory)

    def _seal(self, folder: Path) -> dict[str, FileEntry]:
        """Make the files of this rank durable, on rank 0 also the common files; return their entries."""
        with layout.translate_os_errors(self._directory):
            own = [path for kind in ("__", layout.WEIGHTS_SHARD) for path in folder.glob(f"{kind}{self._ranks.rank}_*")]
            if self._ranks.is_main:
                own += [folder / layout.INDEX_FILE, folder / layout.STATE_FILE]
                own += [path for name in layout.WEIGHTS_FILES if (path := folder / name).exists()]
            return {path.name: layout.seal(path) for path in own}


def clean_up(folder: Path, fence: Fence) -> None:
    """Delete the folder of a failed save, on rank 0, unless the volume fails even then.

    Raises:
        Fenced: a claim has swept the folder; then that is the reason of the failure, not a missing file.
    """
    with suppress(OSError):  # a failing volume cannot tell its holder; leftovers are swept at the next save
        layout.discard(folder)
        fence.check()


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors in a checkpoint of all ranks, except tensors that only other ranks have."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def documents_of(snapshot: Snapshot, *, apart: bool) -> dict[str, Mapping[str, Any]]:
    """Return the JSON files of a checkpoint by name."""
    documents: dict[str, Mapping[str, Any]] = {layout.STATE_FILE: snapshot.document}
    if apart and any(is_weight(key) for key in snapshot.tensors):
        documents[layout.WEIGHTS_STATE_FILE] = state_of_weights(snapshot.document)
    return documents


def state_of_weights(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint's state.json that belongs to the weights.

    Objects without tensors are part of it: weights are useless without their vocabulary, for example.
    """
    objects = document.get("objects", {})
    return {
        "train": document.get("train"),
        "objects": {name: part for name, part in objects.items() if name in layout.WEIGHTS or not codec.keys(part)},
        **({layout.RECIPE: document[layout.RECIPE]} if layout.RECIPE in document else {}),
    }


def draft_of(snapshot: Snapshot, *, world_size: int, clock: Clock) -> ManifestDraft:
    """Return the draft of the manifest of this snapshot."""
    return ManifestDraft(
        step=snapshot.step,
        world_size=world_size,
        metrics=snapshot.metrics,
        # The writer would have to import torch to unpickle the string subclass of torch.
        versions={"torch": str(torch.__version__), "python": platform.python_version()},
        created=clock.now().isoformat(timespec="seconds"),
    )


def _raise_first(error: CheckpointException, directory: Path) -> NoReturn:
    """Raise the most important error: a full disk, then another volume error, then that of the lowest rank."""
    causes = {rank: cause for rank, (cause, _) in error.failures.items()}
    with layout.translate_os_errors(directory):
        troubles = [cause for cause in causes.values() if isinstance(cause, OSError)]
        for trouble in sorted(troubles, key=lambda trouble: trouble.errno not in layout.NO_SPACE):
            raise trouble
    rank, cause = min(causes.items(), key=lambda item: item[0])
    raise RuntimeError(f"rank {rank} failed to write its shard: {type(cause).__name__}: {cause}") from error
