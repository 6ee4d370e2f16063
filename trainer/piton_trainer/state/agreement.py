"""Whether ranks have the same state of an object: digests that are compared in the exchange that each save makes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format import codec

LARGE_BYTES = 64 * 2**20
"""State that is too much to be looked at in each save; it is compared in the first exchange only."""


def is_large(document: Any, tensors: Mapping[str, Tensor]) -> bool:
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


def unequal(digests: Sequence[Mapping[str, str]]) -> frozenset[str]:
    """Return the names of which ranks have different digests, or which some ranks have not."""
    names = {name for rank in digests for name in rank}
    return frozenset(name for name in names if len({rank.get(name) for rank in digests}) > 1)


@torch.no_grad()
def _sum(tensor: Tensor) -> int:
    """Return a sum over the bytes, as whole numbers on the tensor's device, that tells two contents apart."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(content) // 8 * 8
    words = content[:whole].view(torch.int64)
    weights = torch.arange(1, 1 + min(len(words), 4096), device=words.device)
    head = words[:4096] * weights  # an order that differs, as of a permutation, gives another sum here
    return int(words.sum()) + int(head.sum()) + int(content[whole:].sum())
