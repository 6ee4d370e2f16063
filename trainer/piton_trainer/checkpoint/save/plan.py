"""Plan that saves of equal tensors share: the chunks that this rank writes, their location in memory, torch's index.

torch's planner makes it, and makes it again only if a tensor is added, removed or changes its shape. All ranks take
part.
"""

import logging
import pickle
from collections.abc import Mapping
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.archive import Archive, lay_out
from piton_trainer.checkpoint.format.shards import prefix_of, weights_index
from piton_trainer.checkpoint.save.blocking_save import size_of
from piton_trainer.checkpoint.save.overlapped_copy import Rows, local_tensors
from piton_trainer.checkpoint.save.shared_buffer import NoRoomError, SharedBuffer
from piton_trainer.runtime.process_group import Ranks

logger = logging.getLogger(__name__)

Signature = tuple[object, ...]
_FORM = attrgetter("dtype", "shape")


class SavePlan:
    """Everything about a save that is known in advance."""

    def __init__(self, buffer: SharedBuffer, *, ranks: Ranks, apart: bool) -> None:
        self.is_refused = False
        """True if these tensors cannot be saved in the background."""
        self.image = Archive()
        self.names: list[str] = []
        """Names of the tensors that this rank writes."""
        self.views: list[Tensor] = []
        """Memory that their data is copied to."""
        self.size = 0
        """Approximate size of the tensors of all ranks, in bytes."""
        self.indices: dict[str, bytes] = {}
        """Index files with the location of each tensor."""
        self._buffer = buffer
        self._ranks = ranks
        self._apart = apart
        self._signature: Signature | None = None

    @property
    def is_blank(self) -> bool:
        """True if nothing has been planned and nothing has been written to the memory."""
        return self._signature is None and not self.image.pieces

    def settle(self) -> None:
        """Wait until the memory is warm. If that failed, raise the error; then the plan is made again."""
        try:
            self._buffer.settle()
        except Exception:
            self._signature = None
            raise

    def renew(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the plan for these tensors, unless it is valid; if one rank needs a new plan, all make one."""
        signature = signature_of(tensors)
        if self._ranks.agree([signature != self._signature])[0]:
            self._signature = None  # an incomplete image is not valid
            self.size = size_of(tensors)
            self.is_refused = self._ranks.agree([not all(_is_plain(tensor) for tensor in tensors.values())])[0] > 0
            if not self.is_refused:
                self._arrange(tensors)
            if self.is_refused:
                self.views = []
                self._buffer.release()
            self._signature = signature

    def rows(self, tensors: Mapping[str, Tensor]) -> Rows:
        """Return the tensors to copy and their targets; of a sharded tensor this rank's shard."""
        return Rows(self.names, local_tensors(map(tensors.__getitem__, self.names)), self.views)

    def _arrange(self, tensors: Mapping[str, Tensor]) -> None:
        planner = DefaultSavePlanner(flatten_state_dict=False)
        # The plan would record that a tensor is a parameter, which a checkpoint does not contain.
        detached = {name: tensor.detach() for name, tensor in tensors.items()}
        planner.set_up_planner(detached, is_coordinator=self._ranks.is_main)
        plans = self._ranks.gather(planner.create_local_plan())
        plans, metadata = self._ranks.on_main(partial(planner.create_global_plan, plans))
        prefix = prefix_of(apart=self._apart)
        items = sorted(planner.finish_plan(plans[self._ranks.rank]).items, key=lambda item: prefix(item.index.fqn))
        self.names = [item.index.fqn for item in items]
        self.image = lay_out(map(_shape_of, items), rank=self._ranks.rank, prefix=prefix)
        self.indices = self._index(metadata, self._ranks.gather(self.image.index()))
        refusal = self._reserve()
        if self._ranks.agree([refusal is not None])[0]:
            self.is_refused = True
            if refusal is not None:
                logger.warning("%s; training waits for each save", refusal)

    def _index(self, metadata: Metadata, places: list[dict[MetadataIndex, _StorageInfo]]) -> dict[str, bytes]:
        """Return the index files with the location of each tensor."""
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_data = {index: place for part in places for index, place in part.items()}
        indices = {layout.INDEX_FILE: pickle.dumps(metadata)}
        if self._apart and (weights := weights_index(metadata)) is not None:
            indices[layout.WEIGHTS_INDEX_FILE] = weights
        return indices

    def _reserve(self) -> str | None:
        self.views = []
        try:
            self._buffer.reserve(self.image.size, then=self._stamp)
            self.views = self.image.views(self._buffer.bytes)
        except (NoRoomError, OSError) as error:
            return str(error)
        return None

    def _stamp(self) -> None:
        self.image.stamp(self._buffer.bytes)


def signature_of(tensors: Mapping[str, Tensor]) -> Signature:
    """Return the properties of tensors that a plan depends on. Types and shapes are hashed.

    The signature is kept until the next save. The shapes themselves would add thousands of objects for the garbage
    collector to scan.
    """
    values, kinds = tensors.values(), list(map(type, tensors.values()))
    sharded = DTensor in set(kinds) and [str(tensor.placements) for tensor in values if isinstance(tensor, DTensor)]
    return list(tensors), kinds, list(map(hash, map(_FORM, values))), sharded


def _is_plain(tensor: Tensor) -> bool:
    """Return True if a tensor is a plain, strided array of numbers."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return codec.is_array(local)


def _shape_of(item: WriteItem) -> tuple[MetadataIndex, torch.dtype, torch.Size]:
    assert item.tensor_data is not None
    return item.index, item.tensor_data.properties.dtype, item.tensor_data.chunk.sizes
