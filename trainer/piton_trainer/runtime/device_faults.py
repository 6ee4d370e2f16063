"""Errors that show a fault of a GPU, its driver, or the connection between ranks, and not of the program.

torch has one class for all that a driver reports (AcceleratorError, a RuntimeError), so the texts decide: those of
CUDA's error codes, of NCCL's results, and of gloo. It must not be taken for a fault of the hardware what programs bring
about by themselves, although a broken GPU may say it too: an illegal memory access, an unspecified launch failure, an
assertion, an illegal instruction, too little memory. Nor that there is no GPU where nobody asked for one.

A rank that only misses another one says so with the same errors as a rank whose network fails. Which of several ranks
failed first is for the operator to tell.
"""

import logging
import os
import re
from pathlib import Path

import torch
import torch.distributed as dist

from piton.contract.devices import MISSING_GPUS, names_broken_device
from piton_trainer.errors import DeviceLost

_log = logging.getLogger(__name__)

DRIVER = Path("/dev/nvidiactl")
"""The container's way to the driver, beside that to each GPU."""
_OF_THE_PROGRAM = re.compile(
    "out of memory|illegal memory access|illegal instruction|misaligned address|device-side assert|"
    "unspecified launch failure|invalid device ordinal"
)
"""NCCL reports these as an unhandled error of CUDA's."""
_OF_A_DEVICE = re.compile(
    "is/are busy or unavailable|unsupported display driver / cuda driver combination|CUDA error: unknown error"
)
"""Beside those that name a broken one: these may have another cause than the machine."""
_OF_A_CONNECTION = re.compile(
    "ncclSystemError|ncclRemoteError|ncclUnhandledCudaError|Watchdog caught collective operation timeout|"
    "gloo/.*(Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|connectFullMesh failed|"
    "Application timeout caused pair closure)"
)


def is_device_fault(error: BaseException) -> bool:
    """True if an error, or that of another rank which it quotes, is none of the program's."""
    if not isinstance(error, RuntimeError) or _OF_THE_PROGRAM.search(text := str(error)):
        return False
    if isinstance(error, dist.DistStoreError | dist.DistNetworkError):  # a rank does not come, or cannot be reached
        return True
    return names_broken_device(text) or bool(_OF_A_DEVICE.search(text) or _OF_A_CONNECTION.search(text))


def is_out_of_memory(error: BaseException) -> bool:
    """True if a GPU or the machine has too little memory: torch has a class of its own for the first only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def require_gpus(asked: int | None) -> None:
    """Find a GPU that is missing before anything is spent: fewer would train on, each rank alone or on the CPU.

    Not where the ranks or the user have chosen their devices by CUDA_VISIBLE_DEVICES, nor with a torch without CUDA. A
    container without any driver is on a node that only says it has GPUs, as those of a test cluster do.

    Raises:
        DeviceLost: the container sees fewer GPUs than its pod asked for.
    """
    if not asked or torch.version.cuda is None or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    seen = torch.cuda.device_count()
    if seen == 0 and not DRIVER.exists():
        _log.warning("the pod asked for %d GPUs, and its container has no driver for any: it trains on the CPU", asked)
    elif seen < asked:
        raise DeviceLost(
            f"{asked - seen} of {asked} {MISSING_GPUS} {seen}; look at nvidia-smi and the kernel's log on the node"
        )
