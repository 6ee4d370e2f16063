"""Load of the newest good checkpoint and its tensors, in one pass over its files.

Rank 0 lists and selects. Each rank reads the files that it needs, once. One of the ranks verifies each file while
it is read; files that no rank needs are distributed. If a file differs from its manifest, it is logged, and the next
older checkpoint is tried. A file that cannot be read is retried, and never causes the use of an older checkpoint.

    open      every rank: read and verify state.json and the index; determine the data that it needs
    read      every rank: read and hash its files. Live tensors are not changed: their new values are staged
    agree     if any rank has found a problem, all of them continue with the next older checkpoint
    settle    every rank: copy the staged data into the live tensors

So objects stay unchanged until all ranks know that a checkpoint is good, and if none is. Staging costs a copy of the
live tensors: the model, but not the momenta, which are new tensors anyway. If a rank has no memory for it, all ranks
read twice: first to verify, then in place.

Only torch's index of the shards is unpickled, with an allow-list.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from piton.contract.manifest import Manifest, NewerFormatError
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load.rank_loader import GONE, Document, RankLoader, Targets
from piton_trainer.checkpoint.load.sharing import read_by_neighbours, share_out
from piton_trainer.errors import BadConfig, VolumeLost
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.runtime.resources import ranks_here

logger = logging.getLogger(__name__)

Wanted = Callable[[Document], Targets]
"""Function that returns the tensors to load for a state.json. Raises ValueError if the checkpoint does not match."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A good checkpoint that has been read. `settle` copies it into the target tensors."""

    checkpoint: CommittedCheckpoint
    document: Document
    dtypes: Mapping[str, torch.dtype]
    """The types that the tensors have in the checkpoint."""
    settle: Callable[[], Mapping[str, Tensor]]
    """Return all loaded tensors. Each rank calls it once, on its own."""


def load_newest(
    directory: Path,
    ranks: Ranks,
    wanted: Wanted,
    *,
    first: int | None = None,
    spare: Tensor | None = None,
    retry: Retry | None = None,
) -> Loaded | None:
    """Read the newest good checkpoint, or that of step `first` if it is good; without any, nothing is changed.

    Args:
        directory: the checkpoint directory.
        ranks: the ranks that load together.
        wanted: returns the tensors to load.
        first: a preferred step.
        spare: contiguous bytes for staged data, until it is settled. None: memory is allocated for it.
        retry: the retry of failed reads.

    Raises:
        BadConfig: the checkpoint does not match the objects of the session.
        VolumeLost: a file cannot be read, or a newer version of Piton wrote it, so that it cannot be verified.
    """
    retry = retry or Retry()
    for checkpoint in _candidates(directory, ranks, first, retry):
        intake = RankLoader(checkpoint, spare=spare, retry=retry)
        problem = _read(intake, ranks, wanted)
        if problem is None:
            dtypes = intake.dtypes()
            return Loaded(checkpoint=checkpoint, document=intake.document, dtypes=dtypes, settle=intake.settle)
        _pass_over(checkpoint.folder, problem, ranks)
    return None


def newest_good(directory: Path, ranks: Ranks) -> CommittedCheckpoint | None:
    """Return the newest checkpoint whose files are complete and unchanged; None if there is none."""
    loaded = load_newest(directory, ranks, lambda _: Targets())
    return None if loaded is None else loaded.checkpoint


def newest_step(directory: Path, retry: Retry | None = None) -> int | None:
    """Return the newest step with a valid manifest and files of the right sizes; the contents are not checked.

    Raises:
        VolumeLost: the volume cannot be read.
    """
    retry = retry or Retry()
    found = (_look(path, retry) for path in _folders(directory, None, retry))
    return next((manifest.step for manifest, problem in found if manifest and not problem), None)


def share_of_newest(directory: Path, ranks: Ranks) -> int:
    """Estimate the bytes that this rank will save from the newest checkpoint; 0 if there is none.

    Raises:
        OSError, ValueError: the checkpoint cannot be read.
    """
    for checkpoint in layout.committed(directory):
        writers = checkpoint.manifest.world_size
        shares = [sum(entry.size for entry in layout.shards_of(checkpoint, rank).values()) for rank in range(writers)]
        return shares[ranks.rank] if writers == ranks.world_size else sum(shares) // ranks.world_size
    return 0


def load_tensors(
    checkpoint: CommittedCheckpoint, targets: Mapping[str, Tensor | None], *, retry: Retry | None = None
) -> dict[str, Tensor]:
    """Fill the given tensors from a checkpoint that is known to be good, each with the part that this rank holds.

    A key without a tensor gets a new one on the CPU. Each rank loads on its own.

    Raises:
        ValueError: a tensor is not in the checkpoint, or has a different shape there.
        OSError: a file cannot be read.
    """
    intake = RankLoader(checkpoint, retry=retry or Retry())
    try:
        intake.open_index()
        intake.want(Targets(fresh=targets))
        intake.stage(aside=False)
        problem = intake.read(verified=())
        if problem is None:
            return intake.settle()
    except VolumeLost as error:
        problem = str(error)
    raise OSError(f"{checkpoint.folder.name} cannot be loaded: {problem}")


def _candidates(directory: Path, ranks: Ranks, first: int | None, retry: Retry) -> Iterator[CommittedCheckpoint]:
    """Yield the folders that look like checkpoints, newest first; that of step `first` comes before them."""
    for folder in ranks.on_main(partial(_folders, directory, first, retry)):
        manifest, problem = ranks.on_main(partial(_look, folder, retry))
        if manifest is not None and problem is None:
            yield CommittedCheckpoint(folder=folder, manifest=manifest)
        else:
            _pass_over(folder, problem, ranks)


def _folders(directory: Path, first: int | None, retry: Retry) -> list[Path]:
    try:
        found = retry(partial(layout.step_folders, directory), directory)
    except FileNotFoundError as error:
        raise VolumeLost(f"{directory} is gone") from error
    return [folder for _, folder in sorted(found, key=lambda item: item[0] != first)]


def _look(folder: Path, retry: Retry) -> tuple[Manifest | None, str | None]:
    try:
        return retry(partial(layout.look, folder), folder)
    except FileNotFoundError:
        return None, GONE
    except NewerFormatError as error:
        raise layout.too_new(folder, error) from error


def _pass_over(folder: Path, problem: str | None, ranks: Ranks) -> None:
    if ranks.is_main:
        logger.warning("%s is passed over: %s", folder.name, problem)


def _read(intake: RankLoader, ranks: Ranks, wanted: Wanted) -> str | None:
    """Open, read and agree; return the problem that any rank found, or None."""
    if problem := _first(ranks.together(intake.open)):
        return problem
    sizes = {name: entry.size for name, entry in intake.checkpoint.manifest.files.items()}
    if any(ranks.together(partial(_want, intake, wanted))):
        return _read_twice(intake, ranks, sizes)
    return _read_once(intake, ranks, sizes, ranks.together(partial(intake.stage, aside=True)))


def _read_twice(intake: RankLoader, ranks: Ranks, sizes: Mapping[str, int]) -> str | None:
    """Verify, then read again, in place, because there is no memory for staged data."""
    if problem := _read_once(intake, ranks, sizes, [{}] * ranks.world_size):
        return problem
    needs = ranks.together(partial(intake.stage, aside=False))
    if late := _read_once(intake, ranks, {}, needs):
        raise RuntimeError(f"{intake.checkpoint.folder.name} was good a moment ago: {late}")
    return None


def _read_once(
    intake: RankLoader, ranks: Ranks, sizes: Mapping[str, int], needs: Sequence[Mapping[str, int]]
) -> str | None:
    """Read the data that each rank needs, and verify the files of these sizes, each on one rank."""
    shares = share_out(sizes, needs)
    cached = read_by_neighbours(needs, shares, ranks.rank, per_node=ranks_here())
    return _first(ranks.together(partial(intake.read, shares[ranks.rank], cached=cached)))


def _want(intake: RankLoader, wanted: Wanted) -> bool:
    """Set the tensors to load; return True if there is too little memory to stage them."""
    try:
        targets = wanted(intake.document)
        try:
            intake.want(targets)
        except ValueError:
            targets.explain()
            raise
    except ValueError as error:
        raise BadConfig(f"{intake.checkpoint.folder} cannot be resumed from: {error}") from error
    return intake.is_short_of_memory


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)
