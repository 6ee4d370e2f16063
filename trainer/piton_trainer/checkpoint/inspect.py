"""What is in a checkpoint directory, for people and their tools. It only reads, and needs no torch.

A look at names and sizes is cheap and finds what is torn or missing; `verify` hashes every file, and finds all.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from piton.contract import names
from piton.contract.manifest import Complete, FileEntry, Manifest, NewerFormatError
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import read as read_fence

_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A folder that is named like a checkpoint, whole or thin."""

    folder: Path
    step: int
    manifest: Manifest | None
    problem: str | None
    """What is wrong with it as far as names and sizes tell; None if nothing."""

    @property
    def is_thin(self) -> bool:
        """Whether its weights are all that is left."""
        return names.parse_weights_folder(self.folder.name) is not None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A file that has been hashed, or a manifest that has been read."""

    found: CheckpointInfo
    size: int
    problem: str | None


Look = Callable[[CheckpointInfo, str, FileEntry], str | None]


def survey(directory: Path) -> list[CheckpointInfo]:
    """Everything that is named like a checkpoint, newest first.

    Raises:
        ValueError: there is no such directory.
    """
    try:
        folders = sorted(layout.step_folders(directory) + layout.weights_folders(directory), reverse=True)
    except OSError as error:
        raise ValueError(f"{directory} cannot be listed ({error.strerror}); name a checkpoint directory") from error
    return [_found(step, folder) for step, folder in folders]


def _found(step: int, folder: Path) -> CheckpointInfo:
    try:
        manifest, problem = layout.look(folder)
    except OSError as error:
        manifest, problem = None, f"its files cannot be read: {error}"
    except NewerFormatError as error:
        manifest, problem = None, str(error)
    return CheckpointInfo(folder=folder, step=step, manifest=manifest, problem=problem)


def problem_of(found: CheckpointInfo, name: str, entry: FileEntry) -> str | None:
    """What a file's bytes have against its entry in the manifest; None if nothing."""
    return layout.what_is_wrong(found.folder / name, entry)


def verify(checkpoints: list[CheckpointInfo], problem_of: Look = problem_of) -> Iterator[Checked]:
    """Hash every file of these checkpoints, several at a time, and say of each how it was, in no order.

    Args:
        checkpoints: what `survey` has found, or whoever else.
        problem_of: reads and hashes one file, wherever the checkpoints lie.
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
    """Whether every byte of a checkpoint is what its manifest says."""
    return found.problem is None and not any(check.problem for check in verify([found]))


def newest_good(checkpoints: list[CheckpointInfo]) -> CheckpointInfo | None:
    """The first of them that is good, hashed; those before it are not."""
    return next((found for found in checkpoints if is_good(found)), None)


def best_step(found: CheckpointInfo) -> int | None:
    """The best step as of a checkpoint, by its run's own objective."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        step = layout.read_document(found.folder)["train"]["best_step"]
        return step if isinstance(step, int) else None
    return None


def fence(directory: Path) -> int | None:
    """The attempt that may commit here; None when nobody ever claimed, or nobody can tell."""
    with suppress(OSError, ValueError):
        holder = read_fence(directory)
        return None if holder is None else holder.attempt
    return None


def complete(directory: Path) -> Complete | None:
    """The proof that the run is finished; None when it is not."""
    with suppress(OSError, ValueError):
        return Complete.from_json((directory / names.COMPLETE_FILE).read_text(encoding="utf-8"))
    return None
