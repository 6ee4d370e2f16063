"""The plan that saves of equal tensors share: which chunks this rank writes, where they lie in memory, torch's index.

It is made by torch's planner, and made again only when a tensor comes, goes or changes its shape. All ranks take part.
"""

import logging
import pickle
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.archive import Archive, lay_out
from piton_trainer.checkpoint.format.shards import prefix_of, weights_index
from piton_trainer.checkpoint.save.blocking_save import size_of
from piton_trainer.checkpoint.save.overlapped_copy import Rows, local_tensors
from piton_trainer.checkpoint.save.shared_buffer import NoRoomError, SharedBuffer
from piton_trainer.runtime.process_group import Ranks

logger = logging.getLogger(__name__)

Signature = tuple[object, ...]


class SavePlan:
    """What is known of a save before there is one."""

    def __init__(self, buffer: SharedBuffer, *, ranks: Ranks, apart: bool) -> None:
        self.is_refused = False
        """Tensors like these are not saved in the background."""
        self.image = Archive()
        self.names: list[str] = []
        """The tensors that this rank writes."""
        self.views: list[Tensor] = []
        """Where their numbers go."""
        self.size = 0
        """About as many bytes have all ranks' tensors together."""
        self.indices: dict[str, bytes] = {}
        """The files that say where each tensor is."""
        self._buffer = buffer
        self._ranks = ranks
        self._apart = apart
        self._signature: Signature | None = None

    @property
    def is_blank(self) -> bool:
        """Whether nothing has been planned, and nothing stands in the memory."""
        return self._signature is None and not self.image.pieces

    def settle(self) -> None:
        """Wait until the memory is warm. Raises what went wrong with that; then all is made again."""
        try:
            self._buffer.settle()
        except Exception:
            self._signature = None
            raise

    def renew(self, tensors: Mapping[str, Tensor]) -> None:
        """Have all in place for these tensors; on all ranks anew if on any."""
        signature = signature_of(tensors)
        if self._ranks.agree([signature != self._signature])[0]:
            self._signature = None  # an image that is half made is none
            self.size = size_of(tensors)
            self.is_refused = self._ranks.agree([not all(_is_plain(tensor) for tensor in tensors.values())])[0] > 0
            if not self.is_refused:
                self._arrange(tensors)
            if self.is_refused:
                self.views = []
                self._buffer.release()
            self._signature = signature

    def rows(self, tensors: Mapping[str, Tensor]) -> Rows:
        """What goes where; of a sharded tensor this rank's shard."""
        return Rows(self.names, local_tensors(map(tensors.__getitem__, self.names)), self.views)

    def _arrange(self, tensors: Mapping[str, Tensor]) -> None:
        planner = DefaultSavePlanner(flatten_state_dict=False)
        # That a parameter is one would be in the plan, and a checkpoint does not say it.
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
        """The files that say where each tensor is."""
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
    """What a plan depends on."""
    values, kinds = tensors.values(), list(map(type, tensors.values()))
    sharded = DTensor in set(kinds) and [str(tensor.placements) for tensor in values if isinstance(tensor, DTensor)]
    return list(tensors), kinds, [tensor.dtype for tensor in values], [tensor.shape for tensor in values], sharded


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in rows."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return type(local) in (Tensor, torch.nn.Parameter) and local.layout is torch.strided and not local.is_quantized


def _shape_of(item: WriteItem) -> tuple[MetadataIndex, torch.dtype, torch.Size]:
    assert item.tensor_data is not None
    return item.index, item.tensor_data.properties.dtype, item.tensor_data.chunk.sizes
