"""`--fresh`: the files that Piton has made in the folder of a run or a sweep. Only these are deleted.

A folder is Piton's when its state file is one that Piton wrote, of any version. Whatever else lies there stays: files
of the user, of a git checkout, of another run. Piton makes no links, so behind one there may be anybody's files.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from piton.contract import InputError, names

ASIDE = ".{}.new"
"""Name of a file while it is written."""
CHECKPOINTS, LOGS, ATTEMPTS = "checkpoints", "logs", "attempts"
RECORDS = "records"
"""The data that the recipe resnet50 has prepared, on the volume of a run."""
METRICS_FILE, CURVE_FILE = "metrics.jsonl", "loss.png"


_RUN_FILES = (names.CONFIG_FILE, names.PROGRESS_TOKEN_FILE, METRICS_FILE, CURVE_FILE)
_RUN_FOLDERS: Mapping[str, Sequence[str]] = {
    LOGS: ("attempt-*",),
    ATTEMPTS: ("[0-9]*",),
    RECORDS: ("*.records", "*.records.part", ".*.records.lock"),
    CHECKPOINTS: names.CHECKPOINT_FILES,
}
"""Files of Piton in the folders of a run, as patterns of names."""


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """A kind of folder: what a person calls it, its state file, and the keys of every such file since the first."""

    name: str
    state_file: str
    lock_file: str
    """Held by the one `piton run` that works there."""
    keys: frozenset[str]
    files: Sequence[str] = ()
    """Other files that Piton writes there."""
    folders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Folders that Piton writes to, and the patterns of what it writes."""

    def owner(self, root: Path) -> str | None:
        """Return the name of the run or sweep whose folder it is; None if Piton has not made it.

        Raises:
            OSError: the state file is there and cannot be read.
        """
        try:
            found = json.loads((root / self.state_file).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        is_ours = isinstance(found, Mapping) and self.keys <= found.keys() and isinstance(found["status"], Mapping)
        return found["name"] if is_ours and isinstance(found["name"], str) else None

    def unreadable(self, root: Path, error: Exception) -> InputError:
        """Return the error that its state is one that this version cannot read."""
        path, told = root / self.state_file, type(error).__name__
        try:
            is_ours = self.owner(root) is not None
        except OSError:
            is_ours = False
        advice = "say --fresh to start over" if is_ours else "name another folder with --dir"
        return InputError(f"{path} cannot be read ({told}); {advice}")

    def made(self, root: Path) -> list[Path]:
        """Return what Piton has made there, the state last: until then it is known whose the folder is.

        Raises:
            ValueError: there is a link in a place of Piton's.
        """
        state = root / self.state_file
        written = (self.state_file, *self.files)
        files = [path for name in written for path in (root / ASIDE.format(name), root / name) if path != state]
        for folder, patterns in self.folders.items():
            _refuse_link(root / folder)
            files += sorted({path for pattern in patterns for path in (root / folder).glob(pattern)})
        found = [path for path in (*files, state) if path.exists() or path.is_symlink()]
        for path in found:
            _refuse_link(path)
        return found


RUN = FolderKind(
    name="run",
    state_file="state.json",
    lock_file="lock",
    keys=frozenset({"name", "created", "spec", "status"}),
    files=_RUN_FILES,
    folders=_RUN_FOLDERS,
)
SWEEP = FolderKind(
    name="sweep", state_file="sweep.json", lock_file=".lock", keys=frozenset({"name", "created", "status"})
)
"""Each of its files has a dot in its name: a variant has none, so that no run's folder has the name of one."""
OLD_SWEEP_LOCK = "lock"
"""Lock file of earlier versions in the folder of a sweep: the name of the folder of a variant `lock`."""


def made_by_run(root: Path) -> list[Path]:
    """Return what Piton has made in the folder of a run."""
    return RUN.made(root)


def made_by_sweep(root: Path, sweep: str) -> list[Path]:
    """Return what Piton has made in the folder of a sweep, and in those of its runs, also of runs it has no more."""
    runs = [folder for folder in sorted(root.iterdir()) if _is_run_of(folder, sweep)]
    for folder in runs:
        _refuse_link(folder)
    below = [path for folder in runs for path in (*RUN.made(folder), folder / RUN.lock_file) if path.exists()]
    return [*below, *SWEEP.made(root)]


def is_in_its_sweep(root: Path, run: str) -> bool:
    """Return True if this is the folder of that run in the folder of its sweep."""
    with suppress(OSError):
        return f"{SWEEP.owner(root.parent)}-{root.name}" == run
    return False


def is_restored(root: Path, kind: FolderKind) -> bool:
    """True if the folder holds only checkpoints, and `piton checkpoint restore` put them there."""
    checkpoints = root / CHECKPOINTS
    others = {path.name for path in root.iterdir()} - {CHECKPOINTS, kind.lock_file, ASIDE.format(kind.state_file)}
    if kind is not RUN or others or checkpoints.is_symlink() or not (checkpoints / names.MIRROR_FILE).is_file():
        return False
    return all(any(fnmatch(path.name, p) for p in names.CHECKPOINT_FILES) for path in checkpoints.iterdir())


def describe(root: Path, made: Sequence[Path]) -> str:
    """Return one line that says what will be deleted, and what stays."""
    deleted = ", ".join(str(path.relative_to(root)) for path in made)
    stays = ", ".join(sorted(str(path.relative_to(root)) for path in _others(root, made)))
    return f"--fresh deletes in {root}: {deleted}" + (f"; not made by Piton, and kept: {stays}" if stays else "")


def delete(root: Path, made: Iterable[Path]) -> None:
    """Delete these files and folders, and the folders between them and the root that are empty then.

    Raises:
        ValueError: something cannot be deleted.
    """
    try:
        for path in made:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            _delete_empty(path.parent, root)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be removed ({error.strerror}); remove it yourself") from error


def _delete_empty(folder: Path, root: Path) -> None:
    with suppress(OSError):  # it is not empty, or a mount point
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _others(root: Path, made: Sequence[Path]) -> list[Path]:
    """Return the topmost files and folders that stay."""
    locks = {path for kind in (RUN, SWEEP) if (path := root / kind.lock_file).is_file()}
    ours, above = {*made, *locks}, {folder for path in made for folder in path.parents}
    found: list[Path] = []
    look_into = [root]
    while look_into:
        for path in look_into.pop().iterdir():
            if path in above:
                look_into.append(path)
            elif path not in ours:
                found.append(path)
    return found


def _is_run_of(folder: Path, sweep: str) -> bool:
    with suppress(OSError):
        return RUN.owner(folder) == f"{sweep}-{folder.name}"
    return False


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise InputError(
            f"{path} is a link, and Piton makes none, so --fresh deletes nothing; remove the link, and what it leads "
            "to if that may go, or name another folder with --dir"
        )
