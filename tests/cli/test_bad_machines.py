"""Every command on a machine that takes nothing: exit code 2 (or 0) and one line on stderr, never a trace.

The commands run in forks of this process, which have imported everything already.
"""

import io
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from cli.test_checkpoint import trained
from cli.test_sweep_command import write
from local.helpers import fake_parts, write_manifest
from piton.cli import main
from support.volumes import fill, mounted, remount

__all__ = ["trained"]

QUICK = ("--steps", "2")
COMMANDS = {
    "validate": ("validate", "run.yaml"),
    "plan": ("plan", "run.yaml", "--json"),
    "plan a sweep": ("plan", "sweep.yaml"),
    "run": ("run", "run.yaml", "--json", "--quiet"),
    "run a sweep": ("run", "sweep.yaml", "--json", "--quiet"),
    "preflight": ("preflight", "run.yaml", "--json", "--quiet"),
    "results": ("results", "sweep.yaml"),
    "export": ("export", "done", "--out", "out"),
    "serve": ("serve", "done"),
    "ls": ("checkpoint", "ls", "done"),
    "verify": ("checkpoint", "verify", "done", "--json"),
    "prune": ("checkpoint", "prune", "done", "--keep-last", "1"),
    "to torch": ("checkpoint", "export", "done", "out", "--format", "torch"),
    "to dcp": ("checkpoint", "export", "done", "out", "--format", "dcp"),
    "to safetensors": ("checkpoint", "export", "done", "out", "--format", "safetensors", "--weights-only"),
    "to hf": ("checkpoint", "export", "done", "out", "--format", "hf", "--config", "config.json"),
    "retry": ("retry", "run"),
    "operator": ("operator",),
    "version": ("--version",),
    "help": ("--help",),
    "nothing": (),
}
QUIET = {"export", "serve", "retry", "operator", "results"}
"""They are refused here on any machine: no recipe, no cluster, no sweep."""


def furnish(place: Path, trained: Path) -> None:
    """Make what the commands are about: files of a run and a sweep, and the folder of a run."""
    (place / "done").mkdir()
    shutil.copytree(trained, place / "done/checkpoints")
    write_manifest(place / "run.yaml", **fake_parts(*QUICK))
    write(place / "sweep.yaml", {"a": QUICK})
    (place / "config.json").write_text("{}")


def run_in(place: Path, arguments: tuple[str, ...], prepare: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Return exit code and stderr of a command that stands in this folder, in a fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.chdir(place)
            _be_a_command(writer, arguments, prepare)
        finally:
            os._exit(99)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        err = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), err


def _be_a_command(stderr: int, arguments: tuple[str, ...], prepare: Callable[[], object]) -> NoReturn:
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = io.TextIOWrapper(open(number, "wb", closefd=False), encoding="utf-8", line_buffering=True)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["piton", *arguments]
    os.environ["KUBECONFIG"] = "/nonexistent/config"
    prepare()
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    os._exit(98)


def assert_said(name: str, code: int, err: str, *, may_work: bool = True) -> None:
    assert "Traceback" not in err, err
    assert "internal error" not in err, err
    if code == 0:
        assert may_work, f"{name} has worked"
        return
    if name == "preflight" and may_work and code == 1:  # the fake has no session, which the table on stdout says
        return
    assert code == 2, (code, err)
    if name == "nothing":  # the help, on stdout
        return
    lines = [line for line in err.splitlines() if not line.startswith("{")]  # the operator's log
    assert len(lines) == 1, err
    assert lines[0].startswith("piton: ")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A good disk."""
    found = tmp_path_factory.mktemp("place")
    furnish(found, trained)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[Path]:
    """A disk of its own."""
    with mounted(tmp_path_factory.mktemp("disks") / "small", "4m") as found:
        furnish(found, trained)
        yield found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name: str, small: Path) -> None:
    ballast = fill(small, leave=0)
    try:
        before = {path.name for path in small.iterdir()}
        code, err = run_in(small, COMMANDS[name])
        assert_said(name, code, err, may_work=not name.startswith(("to ", "run", "preflight")))
        left = {path.name for path in small.iterdir()} - before
        assert left <= {"runs"}, "a part of it is left"
    finally:
        ballast.unlink()
        shutil.rmtree(small / "runs", ignore_errors=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_is_read_only(name: str, small: Path, trained: Path) -> None:
    shutil.rmtree(small / "done")  # the one of the full disk has been thinned out
    shutil.copytree(trained, small / "done/checkpoints")
    remount(small, "ro")
    try:
        code, err = run_in(small, COMMANDS[name])
    finally:
        remount(small, "rw")
    assert_said(name, code, err, may_work=not name.startswith(("to ", "run", "preflight", "prune")))


def close_stdout() -> None:
    os.close(1)
    setattr(sys, "stdout", None)  # noqa: B010 - as Python does for a descriptor that is closed when it begins


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def break_stdout() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def lose_home() -> None:
    """As in a container whose user has no entry in /etc/passwd."""
    os.environ.pop("HOME", None)
    os.environ.pop("USER", None)
    os.environ.pop("LOGNAME", None)
    pwd.getpwuid = _no_user


def _no_user(uid: int) -> NoReturn:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def leave_nowhere() -> None:
    """The folder that the shell stands in is gone."""
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("stdout", [close_stdout, fill_stdout, break_stdout])
def test_results_that_do_not_arrive(stdout: Callable[[], None], name: str, place: Path) -> None:
    code, err = run_in(place, COMMANDS[name], stdout)
    shutil.rmtree(place / "runs", ignore_errors=True)
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").unlink(missing_ok=True)
    assert "Traceback" not in err
    assert code == 2, (code, err)
    assert name in QUIET or "piton: stdout: " in err or name == "nothing", err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_user_without_a_home(name: str, place: Path) -> None:
    code, err = run_in(place, COMMANDS[name], lose_home)
    shutil.rmtree(place / "runs", ignore_errors=True)
    shutil.rmtree(place / "out", ignore_errors=True)
    (place / "out").unlink(missing_ok=True)
    assert_said(name, code, err)
    assert (code == 0) is (name not in QUIET | {"nothing", "preflight"}), (code, err)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_is_gone(name: str, place: Path) -> None:
    code, err = run_in(place, COMMANDS[name], leave_nowhere)
    assert_said(name, code, err)


@pytest.mark.parametrize("kind", ["a folder", "no YAML", "no text", "a list", "nothing", "not there"])
def test_an_unreadable_kubeconfig_is_one_sentence(kind: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    if kind == "a folder":
        config.mkdir()
    elif kind != "not there":
        config.write_bytes({"no YAML": b"a: [", "no text": b"\xff\xfe\x00", "a list": b"[1]", "nothing": b""}[kind])

    code, err = run_in(tmp_path, ("operator",), lambda: os.environ.update(KUBECONFIG=str(config)))
    assert_said("operator", code, err, may_work=False)
    assert "piton: no cluster: " in err
