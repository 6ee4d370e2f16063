"""The share of the machine for this process: cores and memory, within the limits of the container.

The ranks of a node do the same at the same time, so each counts on its share only. It needs no torch.
"""

import os
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path

_MEMORY_INFO = Path("/proc/meminfo")
_CONTAINERS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
"""Paths of the memory accounts of cgroups, version 2 and version 1."""
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPU_CGROUPS = {2: Path("/sys/fs/cgroup"), 1: Path("/sys/fs/cgroup/cpu")}
"""Paths of the CPU limits of cgroups, by version."""
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def share_of_cores() -> int:
    """Cores of this rank, at least one."""
    return max(1, cores() // ranks_here())


def cores() -> int:
    """Cores that all ranks here may use, by their affinity and by CPU limits: part of a core counts as a whole one.

    More threads than that would use up a CPU limit at the start of each period, and then the training waits as well.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([there, *map(ceil, _cpu_limits())])


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


def _cpu_limits() -> Iterator[float]:
    """CPU limits, in cores, of this process's cgroup and of those around it.

    The path of a cgroup may be the host's, of which a container sees only the end: then its own cgroup is at the root.
    """
    for version, path in _own_cpu_cgroups():
        root = _CPU_CGROUPS[version]
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and (limit := _cpu_limit(folder, version)) is not None:
                yield limit


def _own_cpu_cgroups() -> Iterator[tuple[int, str]]:
    """Version and path of the cgroups of this process that may have a CPU limit."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # this system has no cgroups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            yield (1 if controllers else 2), path


def _cpu_limit(folder: Path, version: int) -> float | None:
    """In cores. None: this cgroup has no limit, or cannot be seen from here."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # there is no such controller, or its limit is "max"
        return None


def _idle_bytes(path: Path) -> int:
    """Pages of files, which count as used; the kernel takes them back before it kills. The kubelet reckons so too."""
    numbers = _numbers(path)
    return numbers.get("total_inactive_file", numbers.get("inactive_file", 0))


def _numbers(path: Path) -> Mapping[str, int]:
    """Lines of a name and a number."""
    return {name: int(number) for name, number, *_ in map(str.split, path.read_text(encoding="ascii").splitlines())}


def ranks_here() -> int:
    """Return the number of ranks on this node, by torchrun's environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
