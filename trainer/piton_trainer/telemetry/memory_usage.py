"""Peak memory of the training on its machine, for reports."""

import resource

import torch

from piton.contract.progress import GPU_MEMORY_BYTES, GPU_MEMORY_PEAK_BYTES, MEMORY_PEAK_BYTES

_KILO = 1024
"""The kernel counts a process's memory in these."""


def peaks_of(device: torch.device) -> dict[str, float]:
    """The most that this process has had at a time, as metrics."""
    found = {MEMORY_PEAK_BYTES: float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILO)}
    if device.type == "cuda":
        found[GPU_MEMORY_PEAK_BYTES] = torch.cuda.max_memory_allocated(device)
        found[GPU_MEMORY_BYTES] = torch.cuda.get_device_properties(device).total_memory
    return found
