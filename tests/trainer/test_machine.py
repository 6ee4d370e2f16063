"""What a process may take of its machine, as files of the kernel have it."""

from pathlib import Path

import pytest

from piton_trainer import machine

GB = 10**9


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 90 GB free, and a container without limits."""
    info = tmp_path / "meminfo"
    info.write_text(f"MemTotal: {100 * GB // 1024} kB\nMemAvailable: {90 * GB // 1024} kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(machine, "_MEMORY_INFO", info)
    monkeypatch.setattr(machine, "_CONTAINERS", (tmp_path / "v2", tmp_path / "v1"))
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
    assert machine.free_bytes() == pytest.approx(90 * GB, abs=1024)


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_it_is_what_its_limit_leaves_and_idle_pages_of_files_do_not_count(
    version: int, container: Path
) -> None:
    limit(container / f"v{version}", version=version, most=str(16 * GB), used=15 * GB, idle=9 * GB)
    assert machine.free_bytes() == 10 * GB


def test_a_container_whose_limit_is_max_or_that_is_over_it_is_no_error(container: Path) -> None:
    limit(container / "v2", version=2, most="max", used=15 * GB, idle=9 * GB)
    assert machine.free_bytes() == pytest.approx(90 * GB, abs=1024)
    limit(container / "v1", version=1, most=str(GB), used=2 * GB, idle=0)
    assert machine.free_bytes() == 0


def test_the_ranks_of_a_node_share_it(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert machine.free_bytes() == pytest.approx(30 * GB, abs=1024)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert machine.share_of_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    assert machine.share_of_cores() == 1


def test_this_machine_has_cores_and_memory() -> None:
    assert machine.cores() > 0
    assert machine.free_bytes() > 0
