"""Which programs the box runs."""

from pathlib import Path

import pytest

from hack.cluster import processes, programs, release
from hack.cluster.shell import BoxError


@pytest.fixture
def bin_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(release, "_BIN", tmp_path / "bin")
    monkeypatch.setattr(processes, "PIDS", tmp_path / "pids")
    return tmp_path / "bin"


def a_release(folder: Path, *, without: str = "") -> str:
    folder.mkdir()
    for name in release._PROGRAMS:
        if name != without:
            (folder / name).touch()
    return str(folder)


def test_a_folder_of_programs_is_taken_without_building(bin_folder: Path, tmp_path: Path) -> None:
    release.choose(a_release(tmp_path / "v1.35"), print)

    assert release.program("kubelet").resolve() == tmp_path / "v1.35" / "kubelet"
    assert release.program("containerd-shim-runc-v2").resolve().exists()


def test_a_folder_that_lacks_a_program_is_refused_with_its_name(bin_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BoxError, match=r"lacks etcd: put .* or give a minor version"):
        release.choose(a_release(tmp_path / "v1.35", without="etcd"), print)


def test_a_version_that_is_not_pinned_is_refused_before_anything_is_built(bin_folder: Path) -> None:
    with pytest.raises(BoxError, match=r"1\.12.* is not pinned"):
        release.choose("1.12", print)


def test_without_a_wish_the_box_keeps_what_it_runs(bin_folder: Path, tmp_path: Path) -> None:
    release.choose(a_release(tmp_path / "v1.35"), print)

    release.choose(None, print)

    assert release.program("kubelet").resolve() == tmp_path / "v1.35" / "kubelet"


def test_a_box_that_is_down_takes_another_release(bin_folder: Path, tmp_path: Path) -> None:
    release.choose(a_release(tmp_path / "v1.35"), print)

    release.choose(a_release(tmp_path / "v1.36"), print)

    assert release.program("kubelet").resolve() == tmp_path / "v1.36" / "kubelet"


def test_a_box_that_is_up_does_not_change_its_release(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.choose(a_release(tmp_path / "v1.35"), print)
    monkeypatch.setattr(processes, "names", lambda: ["kube-apiserver"])
    monkeypatch.setattr(release, "version", lambda: "v1.35.4")

    with pytest.raises(BoxError, match=r"runs v1\.35\.4 .*make cluster-down"):
        release.choose(a_release(tmp_path / "v1.36"), print)


def test_without_a_wish_and_without_a_box_it_is_the_version_that_everything_is_proven_on(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(programs, "need", lambda names, say: asked.extend(names))

    release.choose(None, print)

    assert asked == [f"kubernetes-{programs.KUBERNETES}", "etcd", "containerd"]
