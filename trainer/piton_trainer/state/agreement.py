"""Digests by which ranks tell, in the exchange of each save, whether they have the same state.

    plain objects, and buffers of modules    each rank may have its own: kept per rank where they differ
    parameters and state of optimizers       expected to be equal, since a checkpoint holds one of each, any rank's

The first are compared in each exchange. The second are compared as a whole at first and in the first save, and in parts
later, so that a save stays as fast as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format import codec

Documents = Mapping[str, Any]
LARGE_BYTES = 64 * 2**20
"""State that is too much to be looked at in each save; it is compared in the first exchange only."""
PARTS = 16
"""Of the weights, one of which is compared in each save: 1/16 of a read of memory, against a write to a disk."""


class Content(NamedTuple):
    """Type, shape and sum of a tensor: a form that ranks can compare."""

    dtype: str
    shape: tuple[int, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Those of one rank, by the names of objects."""

    own: Mapping[str, str] = field(default_factory=dict)
    """Of what each rank may have its own of."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Of what all ranks are expected to have equal."""


class Agreement:
    """The memory of ranks about the state of each other."""

    def __init__(self) -> None:
        self.per_rank: frozenset[str] = frozenset()
        """The objects of which each rank has a state of its own."""
        self._has_compared = False
        self._part = 0

    def digests(
        self, own: Documents, weights: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor], *, is_whole: bool
    ) -> Digests:
        """Return digests of what ranks may have the same of.

        Args:
            own: JSON of the parts that each rank may have its own of, by object; large ones count only the first time.
            weights: keys of the tensors that all ranks are expected to have equal, by object.
            tensors: those that both refer to.
            is_whole: True if all weights are compared, and not only the part whose turn it is.
        """
        equal = {name: own[name] for name in sorted(own.keys() - self.per_rank)}
        return Digests(
            own={
                name: digest(document, tensors)
                for name, document in equal.items()
                if not self._has_compared or not _is_large(document, tensors)
            },
            weights={
                name: _digest_of(contents(keys if is_whole else keys[self._part :: PARTS], tensors))
                for name, keys in weights.items()
            },
        )

    def settle(self, found: Sequence[Digests]) -> bool:
        """Take the digests of all ranks; False if parts differ that were equal before. The same on all ranks."""
        differing = _differing([digests.own for digests in found])
        self.per_rank |= differing
        self._has_compared = True
        self._part = (self._part + 1) % PARTS
        return not differing

    @staticmethod
    def unequal(found: Sequence[Digests]) -> list[str]:
        """Return the objects whose weights ranks do not have alike. One that rank 0 alone has is rank 0's."""
        return sorted(_differing([digests.weights for digests in found]))


def digest(document: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a state: its JSON, and types, shapes and sums of its tensors. A shard is each rank's own."""
    return _digest_of(contents(codec.keys(document), tensors), json.dumps(document, sort_keys=True))


@torch.no_grad()
def contents(keys: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Content]:
    """Return what tensors are. Sums are made where the tensors are, and read together."""
    named = {key: tensors[key] for key in keys}
    sums = {key: total for key, tensor in named.items() if (total := _sum(tensor)) is not None}
    totals = dict.fromkeys(named, 0)
    for device in {total.device for total in sums.values()}:
        here = {key: total for key, total in sums.items() if total.device == device}
        totals |= zip(here, torch.stack(list(here.values())).tolist(), strict=True)
    return {key: Content(str(tensor.dtype), tuple(tensor.shape), totals[key]) for key, tensor in named.items()}


def difference(name: str, found: Sequence[Mapping[str, Content] | None]) -> str:
    """Return how the weights of an object differ between ranks, and what to do.

    Args:
        name: the object.
        found: its tensors on each rank; None where a rank does not have the object.
    """
    main = found[0]
    if main is None:
        rank = next(rank for rank, own in enumerate(found) if own is not None)
        return f"{name}: rank {rank} has it and rank 0 has not; name it in session.restore() on all ranks"
    return next(_sentence(name, main, rank, own) for rank, own in enumerate(found) if own is not None and own != main)


_CURE = (
    "a checkpoint holds one of each, any rank's: wrap the model in DistributedDataParallel, give all ranks the same "
    "weights and updates, or say session.restore(…, per_rank=True) if each rank is to have its own"
)


def _sentence(name: str, main: Mapping[str, Content], rank: int, own: Mapping[str, Content]) -> str:
    """Return how this rank differs from rank 0."""
    if own.keys() != main.keys():
        is_more = bool(own.keys() - main.keys())
        key = min(own.keys() - main.keys() or main.keys() - own.keys())
        one, other = (f"rank {rank}", "rank 0") if is_more else ("rank 0", f"rank {rank}")
        return f"{name}: {one} has {key}, which {other} lacks; {_CURE}"
    other_kind = [key for key in main if own[key][:2] != main[key][:2]]
    if other_kind:
        key = other_kind[0]
        there, here = (f"{each[key].dtype} {list(each[key].shape)}" for each in (main, own))
        return f"{name}: {key} is {there} on rank 0 and {here} on rank {rank}; {_CURE}"
    key, *others = [key for key in main if own[key] != main[key]]
    more = f", and so do {len(others)} more" if others else ""
    return f"{name}: {key} has other values on rank {rank} than on rank 0{more}; {_CURE}"


def _differing(found: Sequence[Mapping[str, str]]) -> frozenset[str]:
    """Return the names under which ranks that have any have different digests, or rank 0 has none."""
    names = {name for digests in found for name in digests}
    several = {name for name in names if len({digests[name] for digests in found if name in digests}) > 1}
    return frozenset(several | (names - found[0].keys()))


def _is_large(document: Any, tensors: Mapping[str, Tensor]) -> bool:
    """True if a state is larger than what each save compares."""
    return sum(tensors[key].nbytes for key in codec.keys(document)) > LARGE_BYTES


def _digest_of(found: Mapping[str, Content], text: str = "") -> str:
    """Return a digest of contents, and of a text."""
    parts = hashlib.blake2b(text.encode(), digest_size=16)
    for key, content in found.items():
        parts.update(f"{key}\0{content}\0".encode())
    return parts.hexdigest()


def _sum(tensor: Tensor) -> Tensor | None:
    """Return a sum over the bytes, as a whole number on the tensor's device, that tells two contents apart.

    None: there is none, of a shard, which is each rank's own, or of what is more than an array of numbers.
    """
    if isinstance(tensor, DTensor) or tensor.is_meta:
        return None
    try:
        content = codec.bytes_of(tensor)
    except RuntimeError:  # it is more than an array of numbers, which is told elsewhere
        return None
    whole = len(content) // 8 * 8
    head = content[:whole] if content.storage_offset() % 8 == 0 else content[:whole].clone()
    words = head.view(torch.int64)
    weights = torch.arange(1, 1 + min(len(words), 4096), device=words.device)
    ordered = words[:4096] * weights  # an order that differs, as of a permutation, gives another sum here
    return words.sum() + ordered.sum() + content[whole:].sum()
