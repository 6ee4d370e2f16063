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
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from piton.api.fields import Model
from piton.api.spec import Spec
from piton.api.status import RunStatus
from piton.contract import InputError, names
from piton.contract.manifest import Complete
from piton.local.orphans import Process

LOCK_FILE = "lock"
STATE_FILE = "state.json"


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
        return self.root / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """File of all reports, one JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def curve_file(self) -> Path:
        """Plot of the training curve."""
        return self.root / "loss.png"

    @property
    def mark(self) -> str:
        """Variable in the environment of every process of the run, by which they are recognised."""
        return f"{names.ENV_CHECKPOINT_DIR}={self.checkpoints}"

    def attempt(self, number: int) -> Path:
        """Folder of one attempt."""
        return self.root / "attempts" / str(number)

    def logs(self, number: int) -> Path:
        """Return a new folder for the attempt's logs: an attempt may be started again after a crash."""
        base = self.root / "logs" / f"attempt-{number}"
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
            if (step := names.parse_step_folder(folder.name)) is not None and (folder / names.MANIFEST_FILE).exists()
        ]
        return max(found)[1] if found else None

    def checkpoint(self, step: int | None) -> Path | None:
        """Return the checkpoint of that step, if it exists."""
        folder = None if step is None else self.checkpoints / names.step_folder(step)
        return folder if folder and (folder / names.MANIFEST_FILE).exists() else None

    def load(self) -> LocalState | None:
        """The state that an earlier command left; None in a new folder.

        Raises:
            ValueError: it cannot be read, by this version at least.
        """
        try:
            text = (self.root / STATE_FILE).read_text(encoding="utf-8")
            state = LocalState.model_validate_json(text, strict=True)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.root / STATE_FILE} cannot be read ({type(error).__name__}); say --fresh to start over"
            ) from error
        if state.status.unreadable:
            raise InputError(f"{self.root / STATE_FILE}: {state.status.unreadable}; use the version that wrote it")
        return state

    def save(self, state: LocalState) -> None:
        """Write the state so that a crash leaves the old one or the new one.

        Raises:
            OSError: the disk does not take it.
        """
        replace_text(self.root / STATE_FILE, state.model_dump_json(by_alias=True, indent=1))

    def clear(self) -> None:
        """Remove everything, so that the run starts over.

        Raises:
            ValueError: something cannot be removed.
        """
        clear(self.root, STATE_FILE)


def replace_text(path: Path, text: str) -> None:
    """Write aside, flush, rename."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def clear(root: Path, state_file: str) -> None:
    """Remove everything in there. The state goes last: until then it is known whose the folder is.

    Raises:
        ValueError: something cannot be removed.
    """
    try:
        for path in sorted(root.iterdir(), key=lambda path: path.name == state_file):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
    except OSError as error:
        raise InputError(f"{error.filename} cannot be removed ({error.strerror}); remove it yourself") from error


@contextmanager
def opened(root: Path) -> Iterator[RunFolder]:
    """Take a run's folder for this command alone; see `taken`."""
    with taken(root, STATE_FILE, "run") as path:
        yield RunFolder(path)


@contextmanager
def taken(root: Path, state_file: str, what: str) -> Iterator[Path]:
    """Take the folder for this command alone.

    Raises:
        ValueError: it cannot be written, is in use, or holds something else than a run, or a sweep.
    """
    root = root.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _refuse_others_folder(root, state_file, what)
        lock = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(
            f"the {what} folder {root} cannot be written ({error.strerror}); name another one with --dir"
        ) from error
    try:
        _lock(lock, root)
        yield root
    finally:
        os.close(lock)


def _refuse_others_folder(root: Path, state_file: str, what: str) -> None:
    """A folder is a run's when it has a state; an empty one, or one that holds nothing but our lock, becomes one."""
    if (root / state_file).exists() or {path.name for path in root.iterdir()} <= {LOCK_FILE, f".{state_file}.new"}:
        return
    raise InputError(
        f"the folder {root} holds something else than a {what} (it has no {state_file}); name another one with --dir"
    )


def _lock(lock: int, root: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise InputError(
            f"another `piton run` (process {owner}) works in {root}; wait for it, or name another folder with --dir"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
