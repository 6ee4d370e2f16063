"""Part of this process in loading one checkpoint, step by step; `loader` makes all ranks take each step together.

open     read and verify the two small files; determine the tensors to load, and their bytes in the files
read     read and hash the other files; stage the data outside the live tensors until the checkpoint is known to be good
settle   copy the data into the live tensors
"""

import json
import pickle
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

from piton.contract import InputError
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
"""Problem of a checkpoint whose folder another process has deleted or renamed."""
Document = dict[str, Any]
_SHARE_MAX = 0.9
"""Maximum share of the free memory for staged data."""
_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Tensors to load, by their keys in the checkpoint."""

    live: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors in use: they keep their values until the checkpoint is known to be good."""
    fresh: Mapping[str, Tensor | None] = field(default_factory=dict)
    """Tensors not in use yet: filled at once. For None a tensor is created on the CPU."""
    explain: Callable[[], None] = lambda: None
    """Called when a tensor does not fit: raises BadConfig if there is a more specific reason."""


class RankLoader:
    """The steps of a load on one rank. Each is called once, in order."""

    def __init__(self, checkpoint: CommittedCheckpoint, *, retry: Retry, spare: Tensor | None = None) -> None:
        """Prepare a load. Data is staged in `spare` as long as there is room in it."""
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
        """True if the free memory cannot hold a staged copy of the live tensors."""
        more = sum(_local(tensor).nbytes for tensor in self._live.values()) - len(self._spare)
        return more > _SHARE_MAX * free_bytes()

    def open(self) -> str | None:
        """Read and verify the small files; return the problem, or None.

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
        """Read only the index, of a checkpoint that has been verified.

        Raises:
            ValueError: the index is refused.
            VolumeLost: it cannot be read.
        """
        path = self.checkpoint.folder / index_file(self.checkpoint)
        self._index = parse_index(self._retry(path.read_bytes, path), self.checkpoint)

    def want(self, targets: Targets) -> None:
        """Set the tensors to load.

        Raises:
            ValueError: a tensor is not in the checkpoint, or has a different shape there.
        """
        self._live = targets.live
        self._tensors = {key: self._target(key, tensor) for key, tensor in {**targets.fresh, **targets.live}.items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the types that the wanted tensors have in the checkpoint."""
        entries = {key: self._index.state_dict_metadata[key] for key in self._tensors}
        return {
            key: entry.properties.dtype for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)
        }

    def read(self, verified: Collection[str], *, cached: Collection[str] = ()) -> str | None:
        """Read the planned data, and verify the given files; return the problem, or None.

        Args:
            verified: files that are read completely and hashed.
            cached: files that are read through the page cache, because other processes of this node read them too.

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
        """Plan the reads, of live tensors to staging memory if `aside`; return the bytes needed of each file."""
        into = {}
        for key, tensor in self._tensors.items():
            into[key] = _local(tensor)
            if aside and key in self._live:
                into[key] = self._staged[key] = self._room_for(into[key])
        self._aim = read_plan_of(self._index, self._tensors, into)
        return self._aim.needs

    def settle(self) -> dict[str, Tensor]:
        """Return all tensors, filled with the data. Each staged copy is freed after use."""
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
            raise InputError(f"its manifest has no {name}")
        if problem := self._retry(partial(layout.wrong_size, path, entry), path):
            raise InputError(problem)
        data = self._retry(path.read_bytes, path)
        if problem := layout.wrong_digest(path, entry, digest_of(data, entry)):
            raise InputError(problem)
        return data

    def _target(self, key: str, tensor: Tensor | None) -> Tensor:
        entry = self._index.state_dict_metadata.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise InputError(f"{self.checkpoint.folder.name} has no tensor {key}")
        if tensor is None:
            return torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
        if tensor.size() != entry.size:
            here, there = tuple(tensor.size()), tuple(entry.size)
            raise InputError(f"{key} has shape {here} here and {there} in {self.checkpoint.folder.name}")
        return tensor


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _load_by_torch(checkpoint: CommittedCheckpoint, index: Metadata, state: dict[str, Any]) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    try:
        load(state, storage_reader=IndexedReader(checkpoint, index), planner=planner, no_dist=True)
    except CheckpointException as error:
        cause = next(cause for cause, _ in error.failures.values())
        if isinstance(cause, pickle.UnpicklingError):
            names = ", ".join(sorted(state))
            raise InputError(f"{names}: only its own class could read this again, and it is not trusted") from error
        raise cause from error
