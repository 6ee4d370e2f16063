"""The checkpoint volume when an attempt begins: it has the patience, and the words, that it has in the middle of a run.

    read-only, no permission   the run may have saved there: tried again, then VolumeLost. Nothing was ever saved there:
                               BadConfig, before torch is imported, with what would let this process write
    full                       the run may have saved there: tried again, then OutOfSpace; at once otherwise
    no answer                  tried again, then VolumeLost. A call that hangs is left behind with its thread
    a path through a file      BadConfig
    not shared by the ranks    VolumeLost within 10 s, with both paths

A run may have saved if the operator knows a durable step, or if the volume shows it: in a first attempt by a claim or a
checkpoint, later by anything, or by a directory that cannot be listed. Not each attempt before has run a trainer, and
one that has leaves its claim. If a later attempt finds nothing, only a volume of somebody else's ends it at once.
"""

import errno
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from piton.contract import names
from piton.contract.duration import format_duration
from piton.contract.termination import EXIT_CODES, Outcome, Termination
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.retry import READ_SECONDS, Retry
from piton_trainer.clock import Clock
from piton_trainer.config import termination_log
from piton_trainer.errors import BadConfig, OutOfSpace, VolumeLost

if TYPE_CHECKING:  # it imports torch, which this module is there to come before
    from piton_trainer.runtime.process_group import Ranks

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_OURS = frozenset({errno.EACCES, errno.EPERM})
FORBIDDEN = _NOT_OURS | {errno.EROFS}
_WRONG_PATH = frozenset({errno.ENOTDIR, errno.EEXIST})
_CACHES = (names.ENV_INDUCTOR_CACHE, names.ENV_TRITON_CACHE)
_PROBE_SECONDS = 30.0
"""Seconds for which a first look waits for an answer. The claim that follows waits for longer."""
_SILENT_SECONDS = 30.0
SHARED_SECONDS = 10.0
"""Seconds after which a file of rank 0's has to be seen by all."""
_LOOK_SECONDS = 0.1


def claim_directory(
    directory: Path,
    *,
    attempt: int | None,
    durable_step: int | None,
    disk: layout.Disk,
    clock: Clock,
    is_stopping: Callable[[], bool],
) -> Fence:
    """Create the directory if necessary, and claim the right to commit in it. A failing volume is tried again.

    Raises:
        Fenced: a higher attempt has already claimed the directory.
        BadConfig: checkpoints cannot be kept there: a wrong path, or no permission and nothing saved yet.
        OutOfSpace: the volume is full.
        VolumeLost: the volume fails for too long.
    """

    def claim() -> Fence:
        directory.mkdir(parents=True, exist_ok=True)
        fence = Fence(directory, disk=disk, attempt=attempt)
        fence.claim()
        return fence

    at_once = _WRONG_PATH | _hopeless(directory, attempt=attempt, durable_step=durable_step)
    try:
        with layout.raise_out_of_space(directory):
            return Retry(clock, answers=at_once, is_stopping=is_stopping)(
                lambda: answered(claim, directory, seconds=READ_SECONDS), directory
            )
    except (OSError, ValueError) as error:
        raise BadConfig(_explained(directory, error)) from error
    except VolumeLost as lost:
        cause = lost.__cause__
        if isinstance(cause, OSError) and cause.errno in layout.NO_SPACE:
            raise OutOfSpace(f"the disk of {directory} is full; the checkpoints that are there are untouched") from lost
        if isinstance(cause, OSError) and cause.errno in FORBIDDEN:
            raise VolumeLost(f"{_explained(directory, cause)}. What it holds is untouched") from lost
        raise


def check_shared(directory: Path, *, ranks: "Ranks", durable_step: int | None, disk: layout.Disk, clock: Clock) -> None:
    """Check that all ranks see one directory: rank 0 writes a file, and the others look for it. All ranks call it.

    A run that has saved before is warned only; it has been through this, or has shown that it can save.

    Raises:
        VolumeLost: a rank sees another directory.
    """
    if ranks.world_size == 1:
        return
    place = f"{directory} on {socket.gethostname()}"
    written = ranks.on_main(partial(_write_nonce, directory, place, durable_step, disk))
    if written is None:
        return
    answers = ranks.gather((_sees(directory / written.name, clock), place))
    if ranks.is_main:
        with suppress(OSError):
            (directory / written.name).unlink()
    others = [(rank, where) for rank, (is_seen, where) in enumerate(answers) if not is_seen]
    if not others:
        return
    rank, where = others[0]
    told = (
        f"the ranks do not share the checkpoint directory: what rank 0 writes to {written.place} is not in "
        f"{where}, where rank {rank} looked for {format_duration(SHARED_SECONDS)}; mount one volume "
        "into all nodes (ReadWriteMany), under one path"
    )
    if not written.has_saved:
        raise VolumeLost(told)
    if ranks.is_main:
        logger.warning(told)


@dataclass(frozen=True, kw_only=True)
class _Nonce:
    name: str
    place: str
    has_saved: bool


def _write_nonce(directory: Path, place: str, durable_step: int | None, disk: layout.Disk) -> _Nonce | None:
    """Write a file of a new name, durably; None from a volume in trouble, of which a save will say more."""
    name = f"{names.CLAIM_PREFIX}{uuid.uuid4().hex}"
    try:
        has_saved = durable_step is not None or next(layout.committed(directory), None) is not None
        disk.write(directory / name, place)
    except OSError as error:
        logger.warning("whether the ranks share %s is not checked: %s", directory, error)
        return None
    return _Nonce(name=name, place=place, has_saved=has_saved)


def _sees(path: Path, clock: Clock) -> bool:
    """Look for a file until it appears; False if there is none where this rank can see. No answer is no evidence."""
    end = clock.monotonic() + SHARED_SECONDS
    while True:
        try:
            # The list as well: some clients of network volumes remember for a while that a name was not there.
            if answered(lambda: path.exists() or path in path.parent.iterdir(), path, seconds=SHARED_SECONDS):
                return True
        except FileNotFoundError:
            pass
        except OSError:
            return True
        if clock.monotonic() >= end:
            return False
        _forget_listing(path.parent)
        clock.sleep(_LOOK_SECONDS)


def _forget_listing(directory: Path) -> None:
    """Write into a directory, so that a client of NFS asks for its content anew, which it remembers for 30 s."""
    path = directory / f"{names.CLAIM_PREFIX}{uuid.uuid4().hex}"
    with suppress(OSError):
        path.touch()
        path.unlink()


def _hopeless(directory: Path, *, attempt: int | None, durable_step: int | None) -> frozenset[int]:
    """Return the errors of a first write that no patience mends.

    A later attempt has found a volume that is read-only or full by accident, where nobody knows of any that was not.
    """
    if may_have_saved(directory, attempt=attempt, durable_step=durable_step):
        return frozenset()
    return FORBIDDEN | layout.NO_SPACE if (attempt or 1) == 1 else _NOT_OURS


def may_have_saved(directory: Path, *, attempt: int | None, durable_step: int | None) -> bool:
    """True if an earlier attempt may have saved in this directory. A volume that does not answer may hold anything."""
    if durable_step is not None:
        return True
    is_first = (attempt or 1) == 1

    def look() -> bool:
        if not is_first:
            return next(directory.iterdir(), None) is not None
        return (directory / names.FENCE_FILE).exists() or next(layout.committed(directory), None) is not None

    try:
        return answered(look, directory, seconds=_PROBE_SECONDS)
    except OSError as error:
        return error.errno not in {errno.ENOENT, *(FORBIDDEN | _WRONG_PATH if is_first else ())}


def answered(work: Callable[[], T], directory: Path, *, seconds: float) -> T:
    """Return the result of work on a volume that may not answer at all.

    Raises:
        TimeoutError: it has not answered in time. Its thread is left behind, and ends with the process.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="volume", daemon=True)
    thread.start()
    first = min(seconds, _SILENT_SECONDS)
    thread.join(first)
    if thread.is_alive() and seconds > first:
        logger.warning("the volume of %s has not answered for %s", directory, format_duration(first))
        thread.join(seconds - first)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(errno.ETIMEDOUT, f"the volume has not answered for {format_duration(seconds)}")
    return found[0]


def look_before_torch(environment: MutableMapping[str, str]) -> None:
    """End an attempt that cannot write to its volume, with a sentence; torch would die in its own words.

    A volume in any other trouble is left to `claim_directory`.

    Raises:
        SystemExit: this process may not write there, and nothing was ever saved there.
    """
    error = drop_unusable_caches(environment)
    directory = Path(environment.get(names.ENV_CHECKPOINT_DIR, ""))
    attempt, step = _number(environment, names.ENV_ATTEMPT), _number(environment, names.ENV_DURABLE_STEP)
    if error is None or error.errno not in FORBIDDEN:
        return
    if error.errno in _hopeless(directory, attempt=attempt, durable_step=step):
        _end(environment, _explained(directory, error))


def drop_unusable_caches(environment: MutableMapping[str, str]) -> OSError | None:
    """Take torch's caches off a volume that cannot be written to; return why it cannot.

    torch makes these folders when its compiler is imported, the first optimizer does that, and it dies if it cannot.
    """
    text = environment.get(names.ENV_CHECKPOINT_DIR)
    if not text:
        return None
    directory = Path(text)
    try:
        answered(lambda: _write_something(directory, environment), directory, seconds=_PROBE_SECONDS)
    except OSError as error:
        for name in _caches_in(text, environment):
            del environment[name]
        return error
    return None


def _write_something(directory: Path, environment: Mapping[str, str]) -> None:
    """Create the directory and the folders of torch's caches, and write and delete a file."""
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".probe-{environment.get('RANK', '0')}"
    probe.write_bytes(b"")
    probe.unlink(missing_ok=True)
    for name in _caches_in(str(directory), environment):
        Path(environment[name]).mkdir(parents=True, exist_ok=True)


def _caches_in(directory: str, environment: Mapping[str, str]) -> list[str]:
    """Return the variables of torch's caches that lie in the directory."""
    return [name for name in _CACHES if environment.get(name, "").startswith(directory)]


def _end(environment: Mapping[str, str], detail: str) -> None:
    """Leave last words, as a session does, and end."""
    sys.stderr.write(f"piton: {detail}\n")
    log = termination_log(environment)
    if log is not None and environment.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):
            log.write_text(Termination(outcome=Outcome.BAD_CONFIG, detail=detail).to_json(), encoding="utf-8")
    raise SystemExit(int(EXIT_CODES[Outcome.BAD_CONFIG]))


def _explained(directory: Path, error: Exception) -> str:
    """Return what is wrong with the directory, and what would let this process write to it."""
    sentence = f"checkpoints cannot be kept in {directory}: {error}"
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM):
        return sentence
    user, group = os.geteuid(), os.getegid()
    return (
        f"{sentence}. {_owner(directory)}this process is user {user}, groups "
        f"{', '.join(map(str, sorted({group, *os.getgroups()})))}. Let it write: with fsGroup in "
        f"spec.workers.template.securityContext; on EFS and other NFS, which ignore fsGroup, with an access point of "
        f"user {user} and group {group}, or with chown {user}:{group} on the server"
    )


def _owner(directory: Path) -> str:
    for folder in (directory, *directory.parents):
        with suppress(OSError):
            found = folder.stat()
            return f"{folder} belongs to {found.st_uid}:{found.st_gid} with mode {found.st_mode & 0o7777:04o}, and "
    return ""


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
