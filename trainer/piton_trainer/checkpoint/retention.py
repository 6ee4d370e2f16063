"""Retention of checkpoints: which ones the rules keep (pure), how the others are deleted. It needs no torch.

    policy       what_goes: steps and metrics in, steps to delete out
    thin         a whole checkpoint is reduced to its weights by one rename
    directory    RetentionManager: retention after a commit, free space before a save

A successful commit means that every byte was written, not that the volume returns it. So the newest checkpoint that was
read back after its commit and matched its manifest always stays whole: it is the *verified* one. Another checkpoint is
read back only when the rules would delete the verified one, which is about once in `keep_last` saves. Reading stops if
a save is requested meanwhile; then one checkpoint more than the rules specify stays for a while.

A damaged checkpoint does not count, and is deleted when a newer one is verified. A checkpoint that cannot be read is
not considered damaged: then nothing is deleted at all.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from piton.contract import names
from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import Manifest
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.errors import OutOfSpace

logger = logging.getLogger(__name__)

_WAITING_MAX = 1
"""With more checkpoints than this to delete, reading back is no longer postponed."""
Measured = Sequence[tuple[int, Mapping[str, float]]]
"""Steps of whole checkpoints, and the metrics measured there."""


@dataclass(frozen=True, kw_only=True)
class Deletions:
    """Steps of the checkpoints that the rules delete or make thin."""

    thin: Sequence[int] = field(default_factory=list)
    """Whole checkpoints that are reduced to their weights."""
    whole: Sequence[int] = field(default_factory=list)
    """Whole checkpoints that are deleted."""
    weights: Sequence[int] = field(default_factory=list)
    """Thin checkpoints that are deleted."""


def steps_to_delete(checkpoints: Measured, *, policy: SavePolicy, objective: Objective | None) -> list[int]:
    """Return the steps whose checkpoints are neither among the last nor among the best.

    The newest always stays, regardless of the policy: the next attempt resumes from it.
    """
    newest_first = sorted((step for step, _ in checkpoints), reverse=True)
    kept = set(newest_first[: max(1, policy.keep_last)])
    kept.update(_best(checkpoints, objective)[: policy.keep_best])
    return sorted(step for step, _ in checkpoints if step not in kept)


def what_goes(
    checkpoints: Measured,
    *,
    thin: Collection[int] = (),
    can_be_thin: Collection[int] = (),
    spared: Collection[int] = (),
    policy: SavePolicy,
    objective: Objective | None,
) -> Deletions:
    """Return the deletions. Of those not kept whole, the newest `keep_weights_only` keep their weights.

    Args:
        checkpoints: the whole checkpoints.
        thin: the steps of thin checkpoints.
        can_be_thin: the steps of whole checkpoints that can be made thin.
        spared: steps that stay unchanged, regardless of the policy.
        policy: the numbers of checkpoints to keep.
        objective: the metric that defines the best checkpoints.
    """
    going = [s for s in steps_to_delete(checkpoints, policy=policy, objective=objective) if s not in spared]
    candidates = {*thin, *(step for step in going if step in can_be_thin)}
    kept = set(sorted(candidates, reverse=True)[: policy.keep_weights_only])
    return Deletions(
        thin=[step for step in going if step in kept and step in can_be_thin],
        whole=[step for step in going if step not in kept or step not in can_be_thin],
        weights=sorted(step for step in thin if step not in kept),
    )


def _best(checkpoints: Measured, objective: Objective | None) -> list[int]:
    """Return the measured steps, best first; of equal ones the older first."""
    if objective is None:
        return []
    sign = 1.0 if objective.goal == "Minimize" else -1.0
    measured = [
        (sign * metrics[objective.metric], step) for step, metrics in checkpoints if objective.metric in metrics
    ]
    return [step for value, step in sorted(measured) if value == value]


def can_be_thin(manifest: Manifest) -> bool:
    """Return True if its weights are in separate files: the rules already required that when it was saved."""
    return layout.WEIGHTS_INDEX_FILE in manifest.files


def make_thin(checkpoint: CommittedCheckpoint, disk: layout.Disk) -> Path:
    """Make a whole checkpoint thin, and return its new folder. No byte is moved.

        step-000001200/      MANIFEST.json  .metadata  state.json  __0_0.distcp     files that only a resume needs
                             weights.metadata  weights.json  weights_0_0.distcp     files that stay
          + WEIGHTS.json                                                            the manifest of the files that stay
        weights-000001200/   by one rename; then files that WEIGHTS.json does not name are deleted

    Before the rename it is a whole checkpoint with one extra file, after it a thin one with some extra files. The
    folder has a different name, so that a search for a checkpoint to resume from does not find it.

    Raises:
        OSError: the volume failed. The checkpoint is either whole or thin.
    """
    directory = checkpoint.folder.parent
    target = directory / names.weights_folder(checkpoint.manifest.step)
    manifest = _of_weights(checkpoint.manifest)
    text = manifest.to_json()
    disk.write(checkpoint.folder / names.WEIGHTS_FILE, text)
    # There may be a thin checkpoint of this step from before a resume from an earlier step.
    layout.discard(target)
    layout.rename(checkpoint.folder, target, witness=names.WEIGHTS_FILE, text=text)
    layout.sync_folder(directory)
    strip(CommittedCheckpoint(folder=target, manifest=manifest))
    return target


def strip(checkpoint: CommittedCheckpoint) -> None:
    """Delete the files that do not belong to a thin checkpoint. Files that cannot be deleted are retried next time."""
    for path in checkpoint.folder.iterdir():
        if path.name not in checkpoint.manifest.files and path.name != names.WEIGHTS_FILE:
            with suppress(OSError):
                path.unlink()


def _of_weights(manifest: Manifest) -> Manifest:
    files = {
        name: entry
        for name, entry in manifest.files.items()
        if name in layout.WEIGHTS_FILES or name.startswith(layout.WEIGHTS_SHARD)
    }
    return replace(manifest, files=files, weights_only=True)


def with_overhead(size: int) -> int:
    """Return the size of a checkpoint with this many bytes of tensors, manifest, index and file system overhead."""
    return size + size // 64 + (64 << 10)


def room_lacks(what: str, size: int, free: int | None) -> str:
    """Return how much room something of this size needs on a volume, how much is free, and what is missing."""
    needed = with_overhead(size)
    missing = max(0, needed - (free or 0))
    return f"{what} needs {needed:,} bytes with its manifest and index, {free or 0:,} are free, {missing:,} are missing"


def never() -> bool:
    """Return False: no other work is pending."""
    return False


class RetentionManager:
    """Applies the retention rules to a directory. Only one process of one attempt does so."""

    def __init__(self, directory: Path, *, policy: SavePolicy, objective: Objective | None, disk: layout.Disk) -> None:
        self._directory = directory
        self._policy = policy
        self._objective = objective
        self._disk = disk
        self._verified: int | None = None
        self._damaged: set[int] = set()
        self._has_stripped = False
        self.free: int | None = None
        """Free bytes before the newest save, in addition to what the rules keep."""

    def committed(self, step: int) -> None:
        """Note that there is a new checkpoint of this step, and forget the state of an earlier one."""
        self._damaged.discard(step)
        if self._verified == step:
            self._verified = None

    def retain(self, newest: int, *, is_wanted: Callable[[], bool] = never) -> None:
        """Delete what the rules allow, up to this step: a later one was skipped by a resume, which proves nothing.

        `is_wanted` returns True if this process has more urgent work.
        """
        try:
            self._strip()
            self._retain(newest, self._policy, is_wanted)
        except OSError as error:
            logger.warning("checkpoints that may go stay for now: %s", error)

    def make_room(self, step: int, size: int) -> None:
        """Make sure that a checkpoint fits; if necessary, delete checkpoints earlier than the rules do.

        Raises:
            OutOfSpace: it still does not fit.
        """
        if self._fits(size):
            return
        for policy in self._sterner():
            self._retain(step, policy, never)
            if self._fits(size):
                logger.warning(
                    "%s is full: what would have gone later is gone, so that step %d fits", self._directory, step
                )
                return
        raise OutOfSpace(
            f"the disk of {self._directory} is full: {room_lacks(f'step {step}', size, self.free)}; "
            "the checkpoints that are there are untouched"
        )

    def _fits(self, size: int) -> bool:
        self.free = self._disk.free_bytes(self._directory)
        return self.free is None or self.free >= with_overhead(size)

    def _sterner(self) -> Iterator[SavePolicy]:
        """Yield stricter policies: first keep only the newest of the last ones, then fewer thin ones; the best stay."""
        policy = replace(self._policy, keep_last=1)
        yield policy
        thin = min(policy.keep_weights_only, len(layout.weights_folders(self._directory)))
        for number in reversed(range(thin)):
            yield replace(policy, keep_weights_only=number)

    def _retain(self, newest: int, policy: SavePolicy, is_wanted: Callable[[], bool]) -> None:
        whole = [c for c in layout.committed(self._directory) if c.manifest.step <= newest]
        if self._verified not in {c.manifest.step for c in whole}:
            self._verified = None  # another process has deleted it
        gone = steps_to_delete(self._measured(whole), policy=policy, objective=self._objective)
        if gone and (self._verified is None or self._verified in gone):
            self._verify(whole, is_wanted if len(gone) <= _WAITING_MAX else never)
        self._let_go(self._going(whole, newest, policy), {c.manifest.step: c for c in whole})

    def _measured(self, whole: Sequence[CommittedCheckpoint]) -> Measured:
        return [(c.manifest.step, c.manifest.metrics) for c in whole if c.manifest.step not in self._damaged]

    def _going(self, whole: Sequence[CommittedCheckpoint], newest: int, policy: SavePolicy) -> Deletions:
        steps = {c.manifest.step for c in whole}
        verified = self._verified
        going = what_goes(
            self._measured(whole),
            thin=[step for step, _ in layout.weights_folders(self._directory) if step <= newest],
            can_be_thin=[c.manifest.step for c in whole if can_be_thin(c.manifest)],
            spared=steps if verified is None else {verified},
            policy=policy,
            objective=self._objective,
        )
        damaged = [step for step in steps & self._damaged if verified is not None and step < verified]
        return replace(going, whole=[*going.whole, *damaged])

    def _verify(self, whole: Sequence[CommittedCheckpoint], is_wanted: Callable[[], bool]) -> None:
        """Read back the newest checkpoint, and each earlier one as long as damage is found."""
        for checkpoint in whole:
            step, files = checkpoint.manifest.step, checkpoint.manifest.files
            if self._verified is not None and step <= self._verified:
                return
            for name, entry in files.items():
                if is_wanted():
                    return
                if problem := layout.flaw(checkpoint.folder / name, entry):
                    logger.warning("%s is damaged, and nothing older goes for it: %s", checkpoint.folder.name, problem)
                    self._damaged.add(step)
                    break
            else:
                self._verified = step
                return

    def _let_go(self, going: Deletions, whole: dict[int, CommittedCheckpoint]) -> None:
        for step in going.thin:
            _try(step, "made thin", partial(make_thin, whole[step], self._disk))
        for step in going.whole:
            _try(step, "deleted", partial(layout.discard, whole[step].folder))
        for step in going.weights:
            _try(step, "deleted", partial(layout.discard, self._directory / names.weights_folder(step)))

    def _strip(self) -> None:
        """Delete, once, the files that a terminated process has left in thin checkpoints."""
        if self._has_stripped:
            return
        for _, folder in layout.weights_folders(self._directory):
            try:
                strip(CommittedCheckpoint(folder=folder, manifest=layout.read_manifest(folder)))
            except ValueError as error:
                logger.warning("%s is no checkpoint: %s", folder.name, error)
        self._has_stripped = True


def _try(step: int, what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        logger.warning("the checkpoint of step %d cannot be %s: %s", step, what, error)
