"""Which errors say that a GPU, its driver, or the connection between ranks failed, and not the program.

torch has one class for all that a driver reports (AcceleratorError, a RuntimeError), so the texts decide: those of
CUDA's error codes, of NCCL's results, and of gloo. It must not be taken for a fault of the hardware what programs bring
about by themselves, although a broken GPU may say it too: an illegal memory access, an unspecified launch failure, an
assertion, an illegal instruction, too little memory. Nor that there is no GPU where nobody asked for one.

A rank that only misses another one says so with the same errors as a rank whose network fails. Which of several ranks
failed first is for the operator to tell.
"""

import re

import torch.distributed as dist

_OF_THE_PROGRAM = re.compile(
    "out of memory|illegal memory access|illegal instruction|misaligned address|device-side assert|"
    "unspecified launch failure|invalid device ordinal"
)
"""NCCL reports these as an unhandled error of CUDA's."""
_OF_A_DEVICE = re.compile(
    "uncorrectable (ECC|NVLink) error|no CUDA-capable device is detected|is/are busy or unavailable|"
    "system not yet initialized|unsupported display driver / cuda driver combination|over nvlink or a hardware error|"
    r"CUDA error: unknown error|(GPU|device) is lost|fallen off the bus|\bXid\b"
)
_OF_A_CONNECTION = re.compile(
    "ncclSystemError|ncclRemoteError|ncclUnhandledCudaError|Watchdog caught collective operation timeout|"
    "gloo/.*(Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|connectFullMesh failed|"
    "Application timeout caused pair closure)"
)


def is_device_fault(error: BaseException) -> bool:
    """Whether an error, or that of another rank which it quotes, is none of the program's."""
    if not isinstance(error, RuntimeError) or _OF_THE_PROGRAM.search(text := str(error)):
        return False
    if isinstance(error, dist.DistStoreError | dist.DistNetworkError):  # a rank does not come, or cannot be reached
        return True
    return bool(_OF_A_DEVICE.search(text) or _OF_A_CONNECTION.search(text))
