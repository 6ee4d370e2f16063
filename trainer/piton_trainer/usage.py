"""What the training takes of its machine, for its reports: memory at its fullest, and how long a save holds it up."""

import resource

import torch

from piton.contract.progress import (
    CHECKPOINT_STALL_SECONDS,
    GPU_MEMORY_BYTES,
    GPU_MEMORY_PEAK_BYTES,
    MEMORY_PEAK_BYTES,
)

_KILO = 1024
"""The kernel counts a process's memory in these."""


class Usage:
    """Of this process; rank 0 speaks for all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stall: float | None = None

    def stood_still(self, seconds: float) -> None:
        """Training waited so long for a save."""
        self._stall = seconds

    def metrics(self) -> dict[str, float]:
        """As of now."""
        found = {MEMORY_PEAK_BYTES: float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILO)}
        if self._stall is not None:
            found[CHECKPOINT_STALL_SECONDS] = round(self._stall, 4)
        if self._device.type == "cuda":
            found[GPU_MEMORY_PEAK_BYTES] = torch.cuda.max_memory_allocated(self._device)
            found[GPU_MEMORY_BYTES] = torch.cuda.get_device_properties(self._device).total_memory
        return found
