"""The newest checkpoint that is good, and its tensors, in one pass over its files.

Rank 0 lists and chooses. Each rank reads the files that it needs, once, and every file is verified by one of the ranks
while it is read; files that nobody needs are shared out. One that is not what its manifest says is named, and the next
older checkpoint is tried. A file that cannot be read is tried again, and never makes anything of an older checkpoint.

    open      every rank: state.json and the index, verified; then what it wants of which files
    read      every rank: its files, hashed. What is in use is not touched: its new numbers are kept aside
    agree     has any rank found anything wrong? Then all of them go on to the next older checkpoint
    settle    every rank: what was kept aside is copied into the tensors that are in use

So objects are what they were until all ranks know that a checkpoint is good, and stay so when none is. Keeping aside
costs a copy of the tensors in use: the model, but not the momenta, which are new tensors anyway. Where a rank has no
memory for it, all ranks read twice: first to verify, then in place.

Nothing is unpickled but torch's own index of the shards, and that by an allow-list.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
"""What to load, given a checkpoint's state.json. Raises ValueError when the checkpoint is one of something else."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint that has been read and is good. `settle` puts it into the tensors that were wanted."""

    checkpoint: CommittedCheckpoint
    document: Document
    settle: Callable[[], Mapping[str, Tensor]]
    """All that was wanted. It is called once, by each rank on its own."""


def load_newest(
    directory: Path,
    ranks: Ranks,
    wanted: Wanted,
    *,
    first: int | None = None,
    spare: Tensor | None = None,
    retry: Retry | None = None,
) -> Loaded | None:
    """Read the newest checkpoint that is good, or the `first` step if that is one; without any, nothing is changed.

    Args:
        directory: of checkpoints.
        ranks: which load together.
        wanted: says which tensors.
        first: a step that is preferred.
        spare: bytes in a row, to keep aside what is read, until it is settled. None: memory is allocated for it.
        retry: of reads that fail.

    Raises:
        BadConfig: it is one of something else.
        VolumeLost: a file cannot be read, or a newer Piton wrote it, so that nobody can tell whether it is good.
    """
    retry = retry or Retry()
    for checkpoint in _candidates(directory, ranks, first, retry):
        intake = RankLoader(checkpoint, spare=spare, retry=retry)
        problem = _read(intake, ranks, wanted)
        if problem is None:
            return Loaded(checkpoint=checkpoint, document=intake.document, settle=intake.settle)
        _pass_over(checkpoint.folder, problem, ranks)
    return None


def newest_good(directory: Path, ranks: Ranks) -> CommittedCheckpoint | None:
    """The newest checkpoint whose files are all there, unchanged; None when there is none."""
    loaded = load_newest(directory, ranks, lambda _: Targets())
    return None if loaded is None else loaded.checkpoint


def newest_step(directory: Path, retry: Retry | None = None) -> int | None:
    """The newest step whose folder looks like a checkpoint; what is in its files has not been looked at.

    Raises:
        VolumeLost: nobody can tell.
    """
    retry = retry or Retry()
    found = (_look(path, retry) for path in _folders(directory, None, retry))
    return next((manifest.step for manifest, problem in found if manifest and not problem), None)


def share_of_newest(directory: Path, ranks: Ranks) -> int:
    """About how many bytes this rank will save, if what it saves is like the newest checkpoint; 0 when there is none.

    Raises:
        OSError, ValueError: nobody can tell.
    """
    for checkpoint in layout.committed(directory):
        writers = checkpoint.manifest.world_size
        shares = [sum(entry.size for entry in layout.shards_of(checkpoint, rank).values()) for rank in range(writers)]
        return shares[ranks.rank] if writers == ranks.world_size else sum(shares) // ranks.world_size
    return 0


def load_tensors(checkpoint: CommittedCheckpoint, targets: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Fill the given tensors from a checkpoint that is known to be good, each with the part that this rank holds.

    A key without a tensor gets a new one on the CPU. Each rank loads on its own.

    Raises:
        ValueError: a tensor is not in the checkpoint, or has another shape there.
        OSError: a file cannot be read.
    """
    intake = RankLoader(checkpoint, retry=Retry())
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
    """Folders that look like checkpoints, newest first; that of one step may come before them."""
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
    """Open, read, agree; what any rank found wrong."""
    if problem := _first(ranks.together(intake.open)):
        return problem
    sizes = {name: entry.size for name, entry in intake.checkpoint.manifest.files.items()}
    if any(ranks.together(partial(_want, intake, wanted))):
        return _read_twice(intake, ranks, sizes)
    return _read_once(intake, ranks, sizes, ranks.together(partial(intake.stage, aside=True)))


def _read_twice(intake: RankLoader, ranks: Ranks, sizes: Mapping[str, int]) -> str | None:
    """Where there is no memory to keep anything aside: verify, then read again, in place."""
    if problem := _read_once(intake, ranks, sizes, [{}] * ranks.world_size):
        return problem
    needs = ranks.together(partial(intake.stage, aside=False))
    if late := _read_once(intake, ranks, {}, needs):
        raise RuntimeError(f"{intake.checkpoint.folder.name} was good a moment ago: {late}")
    return None


def _read_once(
    intake: RankLoader, ranks: Ranks, sizes: Mapping[str, int], needs: Sequence[Mapping[str, int]]
) -> str | None:
    """Each rank reads what it needs, and its share of the files of these sizes, which are verified."""
    shares = share_out(sizes, needs)
    cached = read_by_neighbours(needs, shares, ranks.rank, per_node=ranks_here())
    return _first(ranks.together(partial(intake.read, shares[ranks.rank], cached=cached)))


def _want(intake: RankLoader, wanted: Wanted) -> bool:
    """Say what is wanted; whether there is too little memory to keep it aside."""
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
