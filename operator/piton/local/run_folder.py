"""The folder of a local run: what lies where, who may use it, and the state that survives from one command to the next.

state.json     the run's status and what else must survive; written aside, flushed, renamed
config.json    what the trainers are told            checkpoints/    theirs
token          what they report with
metrics.jsonl  every report                          loss.png        drawn from it
logs/attempt-<n>/trainer-<replica>/output.log        attempts/<n>/termination-<replica>.json
lock           held by the one `piton run` that works here
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from piton.api.fields import Model
from piton.api.spec import Spec
from piton.api.status import RunStatus
from piton.contract import InputError, names
from piton.contract.manifest import Complete
from piton.local import own_files
from piton.local.orphans import Process
from piton.local.own_files import ASIDE, FolderKind


class ProcessRecord(Model):
    """A trainer's process, as a later command finds it again."""

    pid: int
    started: str


class LocalState(Model):
    """All that one command leaves for the next."""

    name: str
    created: AwareDatetime
    spec: Spec
    status: RunStatus = RunStatus()
    held: bool = False
    drills_fired: tuple[str, ...] = ()
    processes: tuple[ProcessRecord, ...] = ()
    """Of the newest attempt."""

    @property
    def uid(self) -> str:
        """Name that no other run has, also none of this name that begins later or elsewhere."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.name} {self.created.isoformat()}"))

    @property
    def leftovers(self) -> tuple[Process, ...]:
        """The processes, so that none of them survives its attempt."""
        return tuple(Process(pid=record.pid, started=record.started) for record in self.processes)


@dataclass(frozen=True)
class RunFolder:
    """Paths of everything that belongs to a run."""

    root: Path

    @property
    def config_file(self) -> Path:
        """File with the assignment of the trainers."""
        return self.root / names.CONFIG_FILE

    @property
    def token_file(self) -> Path:
        """File with the token of the reports."""
        return self.root / names.PROGRESS_TOKEN_FILE

    @property
    def checkpoints(self) -> Path:
        """The trainers' checkpoint directory."""
        return self.root / own_files.CHECKPOINTS

    @property
    def metrics_file(self) -> Path:
        """File of all reports, one JSON object per line."""
        return self.root / own_files.METRICS_FILE

    @property
    def curve_file(self) -> Path:
        """Plot of the training curve."""
        return self.root / own_files.CURVE_FILE

    @property
    def mark(self) -> str:
        """Variable in the environment of every process of the run, by which they are recognised."""
        return f"{names.ENV_CHECKPOINT_DIR}={self.checkpoints}"

    def attempt(self, number: int) -> Path:
        """Folder of one attempt."""
        return self.root / own_files.ATTEMPTS / str(number)

    def logs(self, number: int) -> Path:
        """Return a new folder for the attempt's logs: an attempt may be started again after a crash."""
        base = self.root / own_files.LOGS / f"attempt-{number}"
        folder, again = base, 1
        while folder.exists():
            again += 1
            folder = base.with_name(f"{base.name}.{again}")
        return folder

    def complete(self) -> Complete | None:
        """Return the final manifest, if it exists and is valid."""
        try:
            return Complete.from_json((self.checkpoints / names.COMPLETE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def newest_checkpoint(self) -> Path | None:
        """Return the newest folder with a manifest; the trainer verifies it."""
        found = [
            (step, folder)
            for folder in self.checkpoints.glob(f"{names.STEP_PREFIX}*")
            if (step := names.parse_step_folder(folder.name)) is not None and _has_manifest(folder)
        ]
        return max(found)[1] if found else None

    def checkpoint(self, step: int | None) -> Path | None:
        """Return the checkpoint of that step, if it exists."""
        folder = None if step is None else self.checkpoints / names.step_folder(step)
        return folder if folder and _has_manifest(folder) else None

    def load(self) -> LocalState | None:
        """The state that an earlier command left; None in a new folder.

        Raises:
            ValueError: it cannot be read, by this version at least.
        """
        path = self.root / own_files.RUN.state_file
        try:
            text = path.read_text(encoding="utf-8")
            state = LocalState.model_validate_json(text, strict=True)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise own_files.RUN.unreadable(self.root, error) from error
        if state.status.unreadable:
            raise InputError(f"{path}: {state.status.unreadable}; use the version that wrote it")
        return state

    def save(self, state: LocalState) -> None:
        """Write the state so that a crash leaves the old one or the new one.

        Raises:
            OSError: the disk does not take it.
        """
        replace_text(self.root / own_files.RUN.state_file, state.model_dump_json(by_alias=True, indent=1))


def _has_manifest(folder: Path) -> bool:
    with suppress(OSError):
        return (folder / names.MANIFEST_FILE).exists()
    return False


def replace_text(path: Path, text: str) -> None:
    """Write aside, flush, rename."""
    aside = path.with_name(ASIDE.format(path.name))
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def opened(root: Path, name: str) -> Iterator[RunFolder]:
    """Take the folder of the run of this name for this command alone; see `taken`."""
    with taken(root, own_files.RUN, name) as path:
        yield RunFolder(path)


@contextmanager
def taken(root: Path, kind: FolderKind, name: str) -> Iterator[Path]:
    """Take the folder of this run or sweep for this command alone.

    Raises:
        ValueError: it cannot be read or written, is in use, or holds something else, or another run or sweep.
    """
    root = root.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _refuse_others_folder(root, kind, name)
        _replace_old_lock(root, kind, name)
        lock = os.open(root / kind.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(root, kind, error) from error
    try:
        _lock(lock, root, kind)
        yield root
    finally:
        os.close(lock)


def _unwritable(root: Path, kind: FolderKind, error: OSError) -> InputError:
    return InputError(
        f"the {kind.name} folder {root} cannot be written ({error.strerror}); name another one with --dir"
    )


def _replace_old_lock(root: Path, kind: FolderKind, name: str) -> None:
    """Remove the lock file of an earlier version from the folder of this sweep, unless its command works there.

    Raises:
        OSError: it cannot be removed.
        ValueError: a command of the earlier version works there.
    """
    path = root / own_files.OLD_SWEEP_LOCK
    if kind is not own_files.SWEEP or not path.is_file() or kind.owner(root) not in (name, None):
        return
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(lock, root, kind)
        path.unlink()
    finally:
        os.close(lock)


def _refuse_others_folder(root: Path, kind: FolderKind, name: str) -> None:
    """Refuse a folder that is not this run's. A folder is a run's when it has a state.

    An empty folder becomes one, and so does a folder with nothing but Piton's lock. In the folder of its sweep a run
    also takes a folder with files, because `--fresh` keeps what the script has written there. A folder with nothing but
    restored checkpoints is a run that has lost its machine.
    """
    try:
        owner = kind.owner(root)
    except OSError as error:
        raise InputError(
            f"{root / kind.state_file} cannot be read ({error.strerror}); name another folder with --dir"
        ) from error
    if owner == name or {path.name for path in root.iterdir()} <= _left_by_a_crash(kind):
        return
    if owner is None and (own_files.is_in_its_sweep(root, name) or own_files.is_restored(root, kind)):
        return
    if owner is not None:
        raise InputError(f"{root} holds the {kind.name} {owner}, not {name}; name another folder with --dir")
    raise InputError(
        f"the folder {root} holds something else than a {kind.name} (it has no {kind.state_file} that Piton wrote); "
        "name another one with --dir"
    )


def _left_by_a_crash(kind: FolderKind) -> set[str]:
    """Return the names of the files that a command makes before it writes the first state."""
    old = {own_files.OLD_SWEEP_LOCK} if kind is own_files.SWEEP else set()
    return {kind.lock_file, ASIDE.format(kind.state_file), *old}


def _lock(lock: int, root: Path, kind: FolderKind) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise InputError(
            f"another `piton run` (process {owner}) works in {root}; wait for it, or name another folder with --dir"
        ) from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise _unwritable(root, kind, error) from error
