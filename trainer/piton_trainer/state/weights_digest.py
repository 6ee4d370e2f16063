"""One SHA-256 that says which weights a run ended with, whatever machines and however many ranks they came from."""

import hashlib
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from piton_trainer.checkpoint.format.codec import bytes_of
from piton_trainer.state.state_dicts import state_of_module

logger = logging.getLogger(__name__)


def weights_digest(modules: Mapping[str, nn.Module]) -> str | None:
    """`sha256:<hex>` over the tensors of these modules: sorted names, types, shapes and bytes.

    All ranks call it together: sharded tensors are gathered, one at a time so that the whole model never has to fit
    onto one device. Training is done, so whatever goes wrong ends nothing: then there is no digest.
    """
    try:
        return _digest(modules)
    except Exception as error:  # noqa: BLE001 - of the user's modules, of a kind of tensor, of a device
        logger.warning("the final weights have no digest (%s: %s); they are saved", type(error).__name__, error)
        return None


def _digest(modules: Mapping[str, nn.Module]) -> str:
    total = hashlib.sha256()
    for owner, module in sorted(modules.items()):
        for name, value in sorted(state_of_module(module).items()):
            if isinstance(value, Tensor):
                _update(total, f"{owner}/{name}", value)
    return f"sha256:{total.hexdigest()}"


@torch.no_grad()
def _update(total: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    total.update(f"{name}\0{whole.dtype}\0{tuple(whole.shape)}\0".encode())
    total.update(bytes_of(whole.cpu()).numpy().data)
