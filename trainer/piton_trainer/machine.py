"""What of its machine this process may take: cores and memory, by the machine's account and by the container's.

The ranks of a node do the same at the same time, so each counts on its share only. It needs no torch.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_MEMORY_INFO = Path("/proc/meminfo")
_CONTAINERS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
"""Where cgroups of version 2 and of version 1 keep their accounts."""
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def share_of_cores() -> int:
    """Cores of this rank, at least one."""
    return max(1, cores() // ranks_here())


def cores() -> int:
    """Cores that all ranks here may use."""
    return len(os.sched_getaffinity(0))


def free_bytes() -> int:
    """Memory that this rank can still take."""
    free = _numbers(_MEMORY_INFO)["MemAvailable:"] * 1024
    for folder, (limit, usage) in zip(_CONTAINERS, _LIMITS, strict=True):
        try:
            used = int((folder / usage).read_text()) - _idle_bytes(folder / "memory.stat")
            free = min(free, int((folder / limit).read_text()) - used)
        except (OSError, ValueError):  # there is no such controller, or its limit is "max"
            continue
    return max(0, free) // ranks_here()


def _idle_bytes(path: Path) -> int:
    """Pages of files, which count as used; the kernel takes them back before it kills. The kubelet reckons so too."""
    numbers = _numbers(path)
    return numbers.get("total_inactive_file", numbers.get("inactive_file", 0))


def _numbers(path: Path) -> Mapping[str, int]:
    """Lines of a name and a number."""
    return {name: int(number) for name, number, *_ in map(str.split, path.read_text(encoding="ascii").splitlines())}


def ranks_here() -> int:
    """How many ranks this node has, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
