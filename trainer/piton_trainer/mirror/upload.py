"""Upload of checkpoints from the volume to the bucket, and deletion in the bucket.

Each pass compares the volume with the bucket, newest checkpoint first: there is no state that a crash could lose. A
folder whose manifest is in the bucket is complete, because the manifest is uploaded last. `latest` is updated after
that, by a write that fails if another process has written it meanwhile.

An upload that will update `latest` is always completed: otherwise a bucket that takes longer than the time between two
commits would never have a checkpoint. The upload of an older checkpoint is cancelled at once for a newer one.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.retention import steps_to_delete
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.keys import LATEST, Latest, NewerRecordError, Pointer, folder_of, parse_folder
from piton_trainer.mirror.messages import MirrorSettings
from piton_trainer.mirror.ownership import Claimant, Lineage, NotOurs, claim
from piton_trainer.mirror.transfer import TransferMeter
from piton_trainer.s3 import ObjectNotFound, PreconditionFailed, Remedy, S3Error, always

logger = logging.getLogger(__name__)

_FILES_AT_ONCE = 4
_HOUSEKEEPING_TRIES = 3
NO_RECORD, NEWER_RECORD = "NoRecord", "NewerRecord"
RECORD_KINDS = frozenset({NO_RECORD, NEWER_RECORD})
"""Errors of the record alone: the checkpoints beside it may be whole."""


def read_latest(bucket: Bucket) -> tuple[Latest | None, str | None]:
    """Return the record in the bucket and its version; None for both if the bucket is new.

    Raises:
        S3Error: the bucket does not answer; or of a kind of `RECORD_KINDS`: the record is not valid.
    """
    try:
        text, version = bucket.read(LATEST)
    except ObjectNotFound:
        return None, None
    try:
        return Latest.from_json(text), version
    except NewerRecordError as error:
        raise S3Error(NEWER_RECORD, str(error)) from error
    except ValueError as error:
        raise S3Error(NO_RECORD, str(error)) from error


def read_lineage(directory: Path) -> Lineage | None:
    """Return from which bucket the checkpoints of a volume come; None if the volume does not say."""
    with suppress(FileNotFoundError):
        return Lineage.parse((directory / names.MIRROR_FILE).read_text(encoding="utf-8"))
    return None


def write_lineage(directory: Path, lineage: Lineage, disk: layout.Disk) -> None:
    """Write to a volume from which bucket its checkpoints come."""
    disk.write(directory / names.MIRROR_FILE, lineage.text())


class Damaged(Exception):  # noqa: N818 - a fact about the volume
    """A file on the volume differs from its manifest."""


class GivesWay(Exception):  # noqa: N818 - a fact
    """There is a newer checkpoint to upload."""


class Uploader:
    """Keeps the bucket in sync with the volume, as long as this process owns it."""

    def __init__(
        self,
        bucket: Bucket,
        settings: MirrorSettings,
        *,
        disk: layout.Disk,
        check_fence: Callable[[], None],
        meter: TransferMeter,
        note: Callable[[str, S3Error], None],
    ) -> None:
        """Upload from `settings.directory`; `note` is called with what cannot be done and is not needed, and why."""
        self._bucket = bucket
        self._settings = settings
        self._directory = settings.directory
        self._disk = disk
        self._check_fence = check_fence
        self._meter = meter
        self._note = note
        self._latest: Latest | None = None
        self._version: str | None = None
        self._manifests: dict[str, Manifest | None] = {}
        self._unwanted: set[str] = set()
        """Folders that are not uploaded again: the rules delete them, or they are damaged on the volume."""
        self._is_tidy = True
        """False while folders may be in the bucket that the rules do not keep."""
        self._tries: dict[str, int] = {}
        """Tries of each kind of housekeeping that have failed."""

    @property
    def mirrored_step(self) -> int | None:
        """Newest step in the bucket; None before this process owns it."""
        return None if self._latest is None or self._latest.newest is None else self._latest.newest.step

    def check(self, found: Latest) -> None:
        """Check that the checkpoints in the bucket belong to this run.

        Raises:
            NotOurs: they do not.
        """
        self._claimed(found)

    def adopt(self, found: Latest) -> None:
        """Write the lineage of the bucket to the volume, before anything is restored from it."""
        lineage = self._lineage
        if lineage is None or lineage.id != found.lineage:
            write_lineage(self._directory, Lineage(id=found.lineage), self._disk)

    def sync(self, newest: int, *, has_newer: Callable[[], bool]) -> bool:
        """Upload the newest checkpoint, up to this step, that the bucket lacks; return True if there was any.

        If the bucket has a newer one already, the upload is cancelled for a commit after this step.

        Raises:
            NotOurs: this process may not write to the bucket.
            S3Error: a request to the bucket failed.
        """
        self._hold()
        for checkpoint in layout.committed(self._directory):
            if checkpoint.manifest.step > newest:
                continue
            try:
                if self._put(checkpoint, has_newer):
                    return True
            except GivesWay:
                return True
            except Damaged as damage:
                logger.warning("%s is not mirrored: %s", checkpoint.folder.name, damage)
            except FileNotFoundError:
                continue  # retention has deleted it; then there is a newer one
        self._tidy_up()
        return False

    def _hold(self) -> None:
        """Check that this process owns the volume and the bucket; the first time, claim the bucket."""
        self._check_fence()
        found, version = read_latest(self._bucket)
        if (
            found is not None
            and self._latest is not None
            and found.owner != self._settings.owner
            and found.attempt >= self._latest.attempt
        ):
            raise NotOurs(f"attempt {found.attempt} has taken over {self._bucket.place}")
        ours = self._claimed(found)
        # First on the volume: after a crash in between, the next attempt still recognizes the bucket.
        self.adopt(ours)
        # The answer to a write is the proof that the bucket encrypts, so a process begins with one.
        has_no_proof = self._latest is None and self._settings.encryption is not None
        if ours != found or has_no_proof:
            try:
                version = self._bucket.write(ours.to_json(), LATEST, version=version, is_new=found is None)
            except PreconditionFailed as error:
                raise S3Error("PreconditionFailed", "somebody else claimed the bucket at the same moment") from error
        if self._latest is None:
            # Leftovers of earlier attempts or processes. Not every server can list them.
            self._housekeep("abandoned uploads stay in the bucket", self._bucket.sweep)
        self._latest, self._version = ours, version

    def _claimed(self, found: Latest | None) -> Latest:
        settings = self._settings
        claimant = Claimant(
            run=settings.run,
            attempt=settings.attempt,
            owner=settings.owner,
            durable_step=settings.durable_step,
            is_empty=settings.is_empty,
        )
        return claim(found, claimant, self._lineage, self._bucket.place)

    @property
    def _lineage(self) -> Lineage | None:
        return read_lineage(self._directory)

    def _put(self, checkpoint: CommittedCheckpoint, has_newer: Callable[[], bool]) -> bool:
        pointer, text = _pointer(checkpoint)
        if pointer.folder in self._unwanted:
            return False
        is_there = self._bucket.look(pointer.folder, names.MANIFEST_FILE) is not None
        if not is_there:
            is_old = self.mirrored_step is not None and pointer.step < self.mirrored_step
            self._put_files(checkpoint, pointer.folder, is_wanted=(lambda: not has_newer()) if is_old else always)
            self._hold()
            self._bucket.write(text, pointer.folder, names.MANIFEST_FILE)
        if self.mirrored_step is None or self.mirrored_step < pointer.step:
            self._move(pointer)
            self._is_tidy = False
            self._tidy_up()
        return not is_there

    def _put_files(self, checkpoint: CommittedCheckpoint, folder: str, *, is_wanted: Callable[[], bool]) -> None:
        """Upload several files at a time: while one is hashed, another is sent.

        Raises:
            GivesWay: the checkpoint is not wanted any more.
        """
        self._meter.begin(checkpoint.manifest.step, checkpoint.manifest.size)
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="mirror") as pool:
            files = checkpoint.manifest.files.items()
            puts = [
                pool.submit(self._put_file, checkpoint.folder / name, entry, folder, is_wanted) for name, entry in files
            ]
            try:
                for put in as_completed(puts):
                    put.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _put_file(self, path: Path, entry: FileEntry, folder: str, is_wanted: Callable[[], bool]) -> None:
        def hashed(size: int) -> None:
            self._meter.hashed(size)
            if not is_wanted():
                raise GivesWay

        found, checksum = self._bucket.fingerprint(path, like=entry, hashed=hashed)
        if found != entry:
            self._unwanted.add(folder)
            raise Damaged(f"{path.name} is not what its manifest says")
        if self._has(folder, path.name, entry, checksum):
            self._meter.kept(entry.size)
            return
        if not self._bucket.upload(path, folder, path.name, moved=self._meter.moved, is_wanted=is_wanted):
            raise GivesWay
        if not self._has(folder, path.name, entry, checksum):
            raise S3Error("Checksum", f"{path.name} is in the bucket with another checksum than on the volume")

    def _has(self, folder: str, name: str, entry: FileEntry, checksum: str) -> bool:
        """True if the bucket has this file.

        Some servers keep no checksum, or one of another kind for an upload in parts. Then the object is read back.
        """
        there = self._bucket.look(folder, name)
        if there is None or there.size != entry.size:
            return False
        if there.checksum == checksum:
            return True
        is_comparable = there.checksum is not None and ("-" in there.checksum) == ("-" in checksum)
        return not is_comparable and self._bucket.digest(folder, name, like=entry) == entry

    def _move(self, pointer: Pointer) -> None:
        assert self._latest is not None
        moved = self._latest.move(pointer)
        try:
            self._version = self._bucket.write(moved.to_json(), LATEST, version=self._version)
        except PreconditionFailed as error:
            raise S3Error("PreconditionFailed", "somebody else wrote to the bucket at the same moment") from error
        self._latest = moved

    def _tidy_up(self) -> None:
        """Delete what the rules do not keep. What the bucket does not delete stays there, and is said."""
        pointer = None if self._latest is None else self._latest.newest
        if self._is_tidy or pointer is None:
            return
        self._housekeep("more checkpoints stay in the bucket than checkpoint.keep says", lambda: self._tidy(pointer))
        self._is_tidy = True

    def _housekeep(self, loss: str, work: Callable[[], object]) -> None:
        """Do what no checkpoint depends on; what fails for good is said, with the loss, and stops nothing.

        Raises:
            S3Error: another try may succeed.
        """
        try:
            work()
        except S3Error as trouble:
            self._tries[loss] = self._tries.get(loss, 0) + 1
            may_pass = trouble.remedy in (Remedy.TRY_AGAIN, Remedy.NEW_CREDENTIALS)
            if may_pass and self._tries[loss] < _HOUSEKEEPING_TRIES:
                raise
            self._note(loss, trouble)
        self._tries[loss] = 0

    def _tidy(self, newest: Pointer) -> None:
        """Delete folders that the rules do not keep, and abandoned uploads. Manifests are deleted first."""
        folders = self._bucket.folders()
        read = {name: self._manifest(name) for name, files in folders.items() if names.MANIFEST_FILE in files}
        whole = {name: manifest for name, manifest in read.items() if manifest is not None}
        steps = {name: step for name in folders if (step := parse_folder(name)) is not None and step <= newest.step}
        # Of the checkpoints of two attempts at one step, only that of the later attempt may still be wanted.
        by_step: dict[int, str] = {}
        for name, step in steps.items():
            other = by_step.get(step)
            if name in whole and (other is None or whole[name].attempt > whole[other].attempt):
                by_step[step] = name
        by_step[newest.step] = newest.folder
        measured = [(step, whole[name].metrics) for step, name in by_step.items() if name in whole]
        gone = set(steps_to_delete(measured, policy=self._settings.policy, objective=self._settings.objective))
        kept = {name for step, name in by_step.items() if step not in gone}
        unfinished = self._on_volume() - whole.keys() - self._unwanted
        refused = None
        for name in sorted(steps.keys() - kept - unfinished):
            files = folders[name]
            try:
                if names.MANIFEST_FILE in files:
                    self._bucket.delete(name, [names.MANIFEST_FILE])
                self._bucket.delete(name, files)
            except S3Error as trouble:
                if not trouble.is_refusal:
                    raise
                refused = refused or trouble  # one that is locked does not keep the others
            else:
                self._unwanted.add(name)
        if refused is not None:
            raise refused

    def _on_volume(self) -> set[str]:
        """Return the bucket folders of the checkpoints on the volume, uploaded or not."""
        found = set()
        for checkpoint in layout.committed(self._directory):
            with suppress(FileNotFoundError):
                found.add(_pointer(checkpoint)[0].folder)
        return found

    def _manifest(self, folder: str) -> Manifest | None:
        """Return the manifest of a folder, read once; None if it is not valid."""
        if folder not in self._manifests:
            manifest = None
            with suppress(ObjectNotFound, ValueError):
                manifest = Manifest.from_json(self._bucket.read(folder, names.MANIFEST_FILE)[0])
            self._manifests[folder] = manifest
        return self._manifests[folder]


def _pointer(checkpoint: CommittedCheckpoint) -> tuple[Pointer, str]:
    """Return the location of a checkpoint in the bucket, and the text of its manifest."""
    text = (checkpoint.folder / names.MANIFEST_FILE).read_bytes().decode()
    return Pointer(step=checkpoint.manifest.step, folder=folder_of(checkpoint.manifest.step, text)), text
