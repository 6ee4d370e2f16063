"""The words in which a driver says that a GPU of this machine is broken, which both sides recognise.

A connection that breaks is none of them: whoever misses a peer says the same, and its own machine is well.
"""

import re

MISSING_GPUS = "GPUs are missing: CUDA sees"
"""In what the trainer says where it finds fewer GPUs than the attempt asked for."""
_BROKEN = re.compile(
    "uncorrectable (ECC|NVLink) error|no CUDA-capable device is detected|system not yet initialized|"
    rf"over nvlink or a hardware error|(GPU|device) is lost|fallen off the bus|\bXid\b|{MISSING_GPUS}"
)
_QUOTED = re.compile(r"\brank \d+ failed with ")
"""A rank repeats what another one has said, which may be on another machine."""


def names_broken_device(text: str) -> bool:
    """True if an error is about a device, its own or one of a rank that it quotes."""
    return bool(_BROKEN.search(text))


def names_own_broken_device(text: str) -> bool:
    """True if it is about a device of the machine on which it was said."""
    return names_broken_device(text) and not _QUOTED.search(text)
