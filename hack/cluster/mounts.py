"""Mounts, as the kernel tells them; a bind mount is none that Path.is_mount() would see."""

from pathlib import Path

from hack.cluster.shell import run


def mounted(path: Path) -> bool:
    """Whether something is mounted exactly there."""
    return str(path) in _places()


def bind_to_itself(path: Path, propagation: str) -> None:
    """Make a folder a mount of its own, whose mounts others see (shared) or do not (private)."""
    path.mkdir(parents=True, exist_ok=True)
    if not mounted(path):
        run(["mount", "--bind", path, path])
        run(["mount", f"--make-{propagation}", path])


def unmount_all(path: Path) -> None:
    """Unmount what is mounted there and below, the latest first."""
    for place in reversed(_places()):
        if place == str(path) or place.startswith(f"{path}/"):
            run(["umount", place])


def _places() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
