"""This process's part in loading one checkpoint, step by step; `loader` has all ranks take each step together.

open     the two small files, verified; what is wanted, and which bytes of which files that is
read     the other files: hashed, and everything put where it does no harm while nothing is known to be good
settle   into the tensors that are in use; nothing can go wrong any more
"""

import json
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.file_digest import digest_of
from piton_trainer.checkpoint.format.index import IndexedReader, index_file, parse_index
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load.read_plan import ReadPlan, read_plan_of
from piton_trainer.checkpoint.load.reader import ReadJob, read_files
from piton_trainer.runtime.resources import free_bytes

SMALL_FILES = (layout.STATE_FILE, layout.INDEX_FILE)
GONE = "it is gone"
"""What is wrong with a checkpoint whose folder another process has deleted or renamed."""
Document = dict[str, Any]
_SHARE_MAX = 0.9
"""Of the memory that is free, for what is kept aside."""
_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The tensors that are wanted, by the keys that they have in the checkpoint."""

    live: Mapping[str, Tensor] = field(default_factory=dict)
    """In use: they keep their numbers until everything is known to be good."""
    fresh: Mapping[str, Tensor | None] = field(default_factory=dict)
    """Of no use yet: filled at once. For None a tensor is made, on the CPU."""
    explain: Callable[[], None] = lambda: None
    """Called when a tensor does not fit: raises BadConfig if there is a plainer reason."""


class RankLoader:
    """The steps. Each is taken once, in order."""

    def __init__(self, checkpoint: CommittedCheckpoint, *, retry: Retry, spare: Tensor | None = None) -> None:
        """Begin; what is kept aside is kept in `spare`, as long as there is some of it."""
        self.checkpoint = checkpoint
        self._retry = retry
        self._spare = torch.empty(0, dtype=torch.uint8, device="cpu") if spare is None else spare
        self.document: Document = {}
        self._index = Metadata({})
        self._live: Mapping[str, Tensor] = {}
        self._staged: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}
        self._aim = ReadPlan()

    @property
    def is_short_of_memory(self) -> bool:
        """Whether there is no room beside the tensors in use for what will replace them."""
        more = sum(_local(tensor).nbytes for tensor in self._live.values()) - len(self._spare)
        return more > _SHARE_MAX * free_bytes()

    def open(self) -> str | None:
        """Read and verify the small files; what is wrong with them.

        Raises:
            VolumeLost: they cannot be read.
        """
        try:
            state, index = (self._verified(name) for name in SMALL_FILES)
            self._index = parse_index(index, self.checkpoint)
            self.document = json.loads(state)
        except FileNotFoundError:
            return GONE
        except ValueError as error:
            return str(error)
        return None

    def open_index(self) -> None:
        """Only the index, of a checkpoint that has been verified.

        Raises:
            ValueError: it is refused.
            VolumeLost: it cannot be read.
        """
        path = self.checkpoint.folder / index_file(self.checkpoint)
        self._index = parse_index(self._retry(path.read_bytes, path), self.checkpoint)

    def want(self, targets: Targets) -> None:
        """Say what is wanted.

        Raises:
            ValueError: a tensor is not in the checkpoint, or has another shape there.
        """
        self._live = targets.live
        self._tensors = {key: self._target(key, tensor) for key, tensor in {**targets.fresh, **targets.live}.items()}

    def read(self, verified: Collection[str], *, cached: Collection[str] = ()) -> str | None:
        """Read what is wanted, and verify these files; what is wrong with them.

        Args:
            verified: files that are read whole, and hashed.
            cached: files that are read by way of the page cache, because other processes of this node read them too.

        Raises:
            VolumeLost: they cannot be read.
        """
        jobs = []
        for name, entry in self.checkpoint.manifest.files.items():
            landings = self._aim.take(name)
            if name not in SMALL_FILES and (landings or name in verified):
                is_verified, is_cached = name in verified, name in cached
                jobs.append(
                    ReadJob(name=name, entry=entry, is_verified=is_verified, is_cached=is_cached, landings=landings)
                )
        try:
            return read_files(self.checkpoint.folder, jobs, self._retry)
        except FileNotFoundError:
            return GONE

    def stage(self, *, aside: bool) -> dict[str, int]:
        """Take aim: for live tensors at memory of its own, or straight at them; how many bytes of which files it is."""
        into = {}
        for key, tensor in self._tensors.items():
            into[key] = _local(tensor)
            if aside and key in self._live:
                into[key] = self._staged[key] = self._room_for(into[key])
        self._aim = read_plan_of(self._index, self._tensors, into)
        return self._aim.needs

    def settle(self) -> dict[str, Tensor]:
        """All tensors that were wanted, with what was read. The staged copies go as they are used."""
        with torch.no_grad():
            while self._staged:
                key, staged = self._staged.popitem()
                _local(self._tensors[key]).copy_(staged)
        if strangers := self._aim.strangers():
            state = {key: self._tensors[key] for key in strangers}
            self._retry(partial(_load_by_torch, self.checkpoint, self._index, state), self.checkpoint.folder)
        return self._tensors

    def _room_for(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes > len(self._spare):
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        memory = self._spare[: tensor.nbytes]
        self._spare = self._spare[-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT :]
        return memory.view(tensor.dtype).view(tensor.shape)

    def _verified(self, name: str) -> bytes:
        path, entry = self.checkpoint.folder / name, self.checkpoint.manifest.files.get(name)
        if entry is None:
            raise ValueError(f"its manifest has no {name}")
        if problem := self._retry(partial(layout.wrong_size, path, entry), path):
            raise ValueError(problem)
        data = self._retry(path.read_bytes, path)
        if problem := layout.wrong_digest(path, entry, digest_of(data, entry)):
            raise ValueError(problem)
        return data

    def _target(self, key: str, tensor: Tensor | None) -> Tensor:
        entry = self._index.state_dict_metadata.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{self.checkpoint.folder.name} has no tensor {key}")
        if tensor is None:
            return torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
        if tensor.size() != entry.size:
            here, there = tuple(tensor.size()), tuple(entry.size)
            raise ValueError(f"{key} has shape {here} here and {there} in {self.checkpoint.folder.name}")
        return tensor


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _load_by_torch(checkpoint: CommittedCheckpoint, index: Metadata, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        try:
            load(state, storage_reader=IndexedReader(checkpoint, index), planner=planner, no_dist=True)
        except CheckpointException as error:
            raise next(cause for cause, _ in error.failures.values()) from error
