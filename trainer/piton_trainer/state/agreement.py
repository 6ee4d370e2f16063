"""Digests of objects, by which ranks tell in the exchange of each save whether they have the same state."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format import codec

Digests = Mapping[str, str]
LARGE_BYTES = 64 * 2**20
"""State that is too much to be looked at in each save; it is compared in the first exchange only."""


class Agreement:
    """The plain objects of which each rank has a state of its own, as far as ranks have found out."""

    def __init__(self) -> None:
        self.per_rank: frozenset[str] = frozenset()
        self._has_compared = False

    def digests(self, names: Iterable[str], documents: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Digests:
        """Return digests of those objects of which ranks may have the same state; of large ones only the first time."""
        equal = sorted(frozenset(names) - self.per_rank)
        return {
            name: digest(documents[name], tensors)
            for name in equal
            if not self._has_compared or not _is_large(documents[name], tensors)
        }

    def settle(self, found: Sequence[Digests]) -> bool:
        """Take the digests of all ranks; False if objects differ that were equal before. The same on all ranks."""
        names = {name for digests in found for name in digests}
        differing = {name for name in names if len({digests.get(name) for digests in found}) > 1}
        self.per_rank |= differing
        self._has_compared = True
        return not differing


def _is_large(document: Any, tensors: Mapping[str, Tensor]) -> bool:
    """True if a state is larger than what each save compares."""
    return sum(tensors[key].nbytes for key in codec.keys(document)) > LARGE_BYTES


def digest(document: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a state: its JSON, and types, shapes and sums of its tensors. A shard is each rank's own."""
    found = hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16)
    for key in codec.keys(document):
        tensor = tensors[key]
        total = 0 if isinstance(tensor, DTensor) else _sum(tensor)
        found.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0{total}\0".encode())
    return found.hexdigest()


@torch.no_grad()
def _sum(tensor: Tensor) -> int:
    """Return a sum over the bytes, as whole numbers on the tensor's device, that tells two contents apart."""
    try:
        content = codec.bytes_of(tensor)
    except RuntimeError:  # it is more than an array of numbers, which is told elsewhere
        return 0
    whole = len(content) // 8 * 8
    words = content[:whole].view(torch.int64)
    weights = torch.arange(1, 1 + min(len(words), 4096), device=words.device)
    head = words[:4096] * weights  # an order that differs, as of a permutation, gives another sum here
    return int(words.sum()) + int(head.sum()) + int(content[whole:].sum())
