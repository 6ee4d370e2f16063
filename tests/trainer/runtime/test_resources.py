"""What a process may take of its machine, as files of the kernel have it."""

import os
from pathlib import Path

import pytest

from piton_trainer.runtime import resources

GB = 10**9


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 90 GB free, and a container without limits."""
    info = tmp_path / "meminfo"
    info.write_text(f"MemTotal: {100 * GB // 1024} kB\nMemAvailable: {90 * GB // 1024} kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(resources, "_MEMORY_INFO", info)
    monkeypatch.setattr(resources, "_CONTAINERS", (tmp_path / "v2", tmp_path / "v1"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def limit(folder: Path, *, version: int, most: str, used: int, idle: int) -> None:
    folder.mkdir()
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (most, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    stat = f"inactive_file {idle}\n" if version == 2 else f"inactive_file 7\ntotal_inactive_file {idle}\n"
    (folder / "memory.stat").write_text(f"anon 5\n{stat}")


def test_without_a_container_it_is_what_the_machine_has_left(container: Path) -> None:
    assert resources.free_bytes() == pytest.approx(90 * GB, abs=1024)


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_it_is_what_its_limit_leaves_and_idle_pages_of_files_do_not_count(
    version: int, container: Path
) -> None:
    limit(container / f"v{version}", version=version, most=str(16 * GB), used=15 * GB, idle=9 * GB)
    assert resources.free_bytes() == 10 * GB


def test_a_container_whose_limit_is_max_or_that_is_over_it_is_no_error(container: Path) -> None:
    limit(container / "v2", version=2, most="max", used=15 * GB, idle=9 * GB)
    assert resources.free_bytes() == pytest.approx(90 * GB, abs=1024)
    limit(container / "v1", version=1, most=str(GB), used=2 * GB, idle=0)
    assert resources.free_bytes() == 0


def test_the_ranks_of_a_node_share_it(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert resources.free_bytes() == pytest.approx(30 * GB, abs=1024)
    monkeypatch.setattr(resources, "cores", lambda: 8)
    assert resources.share_of_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    assert resources.share_of_cores() == 1


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 96 cores, and the folders where the kernel shows the cgroups of both versions."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    monkeypatch.setattr(resources, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(resources, "_CPU_CGROUPS", {2: tmp_path / "v2", 1: tmp_path / "v1"})
    (tmp_path / "own").write_text("9:memory:/elsewhere\n2:cpu,cpuacct:/\n0::/\n")
    return tmp_path


def cpu_limit(folder: Path, *, version: int, quota: int | None, period: int = 100_000) -> None:
    """A CPU limit as the kernel shows it, in microseconds; None: there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{'max' if quota is None else quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{-1 if quota is None else quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def test_without_a_cpu_limit_all_cores_count_that_the_scheduler_may_choose(cgroups: Path) -> None:
    assert resources.cores() == 96


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("quota", "cores"), [(None, 96), (800_000, 8), (250_000, 3), (10_000, 1), (20_000_000, 96)])
def test_the_cpu_limit_of_a_container_counts_in_whole_cores(
    quota: int | None, cores: int, version: int, cgroups: Path
) -> None:
    cpu_limit(cgroups / f"v{version}", version=version, quota=quota)
    assert resources.cores() == cores


def test_the_period_of_a_cpu_limit_is_not_always_100_ms(cgroups: Path) -> None:
    cpu_limit(cgroups / "v2", version=2, quota=200_000, period=50_000)
    assert resources.cores() == 4


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_cpu_limit_of_the_cgroups_around_a_process_counts(version: int, cgroups: Path) -> None:
    own = "3:cpu:/pods/pod-1/trainer" if version == 1 else "0::/pods/pod-1/trainer"
    (cgroups / "own").write_text(f"{own}\n")
    root = cgroups / f"v{version}"
    cpu_limit(root / "pods/pod-1/trainer", version=version, quota=None)
    cpu_limit(root / "pods/pod-1", version=version, quota=400_000)
    cpu_limit(root / "pods", version=version, quota=1_600_000)
    cpu_limit(root / "pods/pod-2", version=version, quota=100_000)
    assert resources.cores() == 4


def test_a_cgroup_whose_path_is_that_of_the_host_is_found_where_the_container_sees_it(cgroups: Path) -> None:
    (cgroups / "own").write_text("4:cpu,cpuacct:/kubepods/burstable/pod1/abc\n")
    cpu_limit(cgroups / "v1", version=1, quota=200_000)
    assert resources.cores() == 2


def test_a_system_without_cgroups_has_its_cores(cgroups: Path) -> None:
    (cgroups / "own").unlink()
    assert resources.cores() == 96


def test_this_machine_has_cores_and_memory() -> None:
    assert resources.cores() > 0
    assert resources.free_bytes() > 0
