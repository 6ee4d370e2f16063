"""Contents of a checkpoint directory, for the command line and other tools. Reads only, and needs no torch.

A check of names and sizes is cheap and finds truncated or missing files; `verify` hashes every file, and finds all
damage.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from piton.contract import InputError, names
from piton.contract.manifest import Complete, FileEntry, Manifest, NewerFormatError
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import read as read_fence

_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A folder with the name of a checkpoint, whole or thin."""

    folder: Path
    step: int
    manifest: Manifest | None
    problem: str | None
    """Problem found by names and sizes; None if there is none."""

    @property
    def is_thin(self) -> bool:
        """True if only its weights are left."""
        return names.parse_weights_folder(self.folder.name) is not None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Result for a hashed file, or for a checkpoint without a valid manifest."""

    found: CheckpointInfo
    size: int
    problem: str | None


Look = Callable[[CheckpointInfo, str, FileEntry], str | None]


def survey(directory: Path) -> list[CheckpointInfo]:
    """Return all folders with the name of a checkpoint, newest first.

    Raises:
        ValueError: the directory cannot be listed.
    """
    try:
        folders = sorted(layout.step_folders(directory) + layout.weights_folders(directory), reverse=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be listed ({error.strerror}); name a checkpoint directory") from error
    return [_found(step, folder) for step, folder in folders]


def sessions(directory: Path) -> list[Path]:
    """Return the folders of the named trainings of a script whose checkpoint directory this is, by name."""
    with suppress(OSError):
        return sorted(folder for folder in (directory / names.SESSIONS_FOLDER).iterdir() if folder.is_dir())
    return []


def _found(step: int, folder: Path) -> CheckpointInfo:
    try:
        manifest, problem = layout.look(folder)
    except OSError as error:
        manifest, problem = None, f"its files cannot be read: {error}"
    except NewerFormatError as error:
        manifest, problem = None, str(error)
    return CheckpointInfo(folder=folder, step=step, manifest=manifest, problem=problem)


def problem_of(found: CheckpointInfo, name: str, entry: FileEntry) -> str | None:
    """Return the difference between a file and its manifest entry; None if there is none."""
    return layout.what_is_wrong(found.folder / name, entry)


def verify(checkpoints: list[CheckpointInfo], problem_of: Look = problem_of) -> Iterator[Checked]:
    """Hash every file of these checkpoints, several at a time, and yield the results in no order.

    Args:
        checkpoints: the result of `survey`, or of an equivalent function.
        problem_of: reads and hashes one file, on the volume or in a bucket.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        checks = {}
        for found in checkpoints:
            if found.manifest is None:
                yield Checked(found=found, size=0, problem=found.problem)
                continue
            for name, entry in sorted(found.manifest.files.items(), key=lambda item: -item[1].size):
                checks[pool.submit(problem_of, found, name, entry)] = found, entry.size
        for done in as_completed(checks):
            found, size = checks[done]
            yield Checked(found=found, size=size, problem=done.result())


def is_good(found: CheckpointInfo) -> bool:
    """Return True if every byte of a checkpoint matches its manifest."""
    return found.problem is None and not any(check.problem for check in verify([found]))


def newest_good(checkpoints: list[CheckpointInfo]) -> CheckpointInfo | None:
    """Return the first checkpoint that is good; each one before it is hashed and found damaged."""
    return next((found for found in checkpoints if is_good(found)), None)


def best_step(found: CheckpointInfo) -> int | None:
    """Return the best step so far that a checkpoint records, by the objective of its run."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        step = layout.read_document(found.folder)["train"]["best_step"]
        return step if isinstance(step, int) else None
    return None


def fence(directory: Path) -> int | None:
    """Return the attempt that may commit here; None if FENCE does not exist or cannot be read."""
    with suppress(OSError, ValueError):
        holder = read_fence(directory)
        return None if holder is None else holder.attempt
    return None


def complete(directory: Path) -> Complete | None:
    """Return the record that the run is finished; None if it is not."""
    with suppress(OSError, ValueError):
        return Complete.from_json((directory / names.COMPLETE_FILE).read_text(encoding="utf-8"))
    return None
