"""Programs from Go modules: which there are, what they are built with, and what is said where that cannot be done."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from hack.cluster import programs
from hack.cluster.programs import FAMILIES, Family, build, pin
from hack.cluster.shell import BoxError


@pytest.fixture
def no_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_HOME", tmp_path / "programs")
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_pins_its_module_its_commands_and_the_sum_of_it(family: Family) -> None:
    for program in family.commands:
        assert re.search(rf"^\s*(tool )?{re.escape(family.package(program))}$", family.go_mod, re.MULTILINE)
    assert f"{family.module} {family.version} h1:" in family.go_sum


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_built_with_the_pinned_go(family: Family) -> None:
    assert f"\ngo {build.TOOLCHAIN.removeprefix('go')}\n" in family.go_mod


def test_a_pinned_kubernetes_is_of_the_minor_version_that_it_is_called() -> None:
    for family in FAMILIES:
        if family.name.startswith("kubernetes-"):
            assert family.version.startswith(f"v{family.name.removeprefix('kubernetes-')}.")
    assert programs.kubernetes(programs.KUBERNETES) in FAMILIES


def test_a_version_that_is_not_pinned_is_answered_with_those_that_are() -> None:
    with pytest.raises(BoxError, match=r"1\.21.*1\.30, .*1\.37"):
        programs.kubernetes("1.21")


def test_a_program_is_called_by_its_name_whatever_go_build_calls_it() -> None:
    assert programs.named("etcd").built_as("etcd") == "server"  # of …/etcd/server/v3
    assert programs.named("karpenter").built_as("karpenter") == "kwok"
    assert programs.named("containerd").built_as("ctr") == "ctr"


def test_without_go_one_sentence_says_what_to_install(no_go: None) -> None:
    with pytest.raises(BoxError, match=r"there is no Go: install Go .*KUBERNETES=DIR"):
        programs.need(["etcd"], print)


def test_what_is_in_the_cache_needs_no_go(no_go: None) -> None:
    programs.folder("etcd").mkdir(parents=True)

    programs.need(["etcd"], print)


def test_the_cache_is_keyed_by_what_decides_about_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    before = programs.folder("etcd")
    monkeypatch.setattr(build, "TOOLCHAIN", "go1.99.0")

    assert programs.folder("etcd") != before
    assert programs.folder("etcd").name.startswith("etcd-v")


def test_only_the_two_newest_builds_of_a_family_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_HOME", tmp_path)
    for second, name in enumerate(("etcd-v1-a", "etcd-v2-b", "etcd-v3-c", "kueue-v1-a")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (second, second))

    build._forget_old(programs.named("etcd"))

    assert {path.name for path in tmp_path.iterdir()} == {"etcd-v2-b", "etcd-v3-c", "kueue-v1-a"}


def test_kubernetes_is_told_its_version() -> None:
    flags = build._linker_flags(programs.kubernetes("1.33"))

    assert f"-X k8s.io/component-base/version.gitVersion={programs.kubernetes('1.33').version}" in flags
    assert "-X k8s.io/client-go/pkg/version.gitMinor=33" in flags


def a_module(*replaces: tuple[str, dict[str, str]], **required: str) -> dict[str, Any]:
    return {
        "Require": [{"Path": path, "Version": version} for path, version in required.items()],
        "Replace": [{"Old": {"Path": old}, "New": new} for old, new in replaces],
    }


def test_the_parts_of_kubernetes_are_taken_from_the_same_release() -> None:
    module = a_module(("api", {"Path": "./staging/src/api"}), api="v0.0.0", utils="v0.1.2")

    assert list(pin.replacements(module, "v1.37.2")) == ["-replace=api=api@v0.37.2"]


def test_a_replacement_by_a_version_is_taken_over() -> None:
    module = a_module(("api", {"Path": "fork", "Version": "v1.2.3"}), api="v1.0.0")

    assert list(pin.replacements(module, "v1.9.4")) == ["-replace=api=fork@v1.2.3"]


def test_a_replacement_by_a_folder_of_a_published_part_is_left_out() -> None:
    module = a_module(("api", {"Path": "../api"}), api="v3.7.3")

    assert list(pin.replacements(module, "v3.7.3")) == []
