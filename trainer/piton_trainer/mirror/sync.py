"""Synchronization of the bucket with the volume, in the process of `process.py`, while training continues.

    restore    before the first step: fetch a newer checkpoint from the bucket, if there is one
    committed  a checkpoint is durable; wake up
    close      stop

Every error is retried with back-off, and logged once per kind.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import read
from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig, VolumeLost
from piton_trainer.mirror import class_of
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.messages import MirrorSettings, MirrorState, Transfer
from piton_trainer.mirror.ownership import NotOurs
from piton_trainer.mirror.restore import restore, sweep
from piton_trainer.mirror.transfer import TransferMeter
from piton_trainer.mirror.upload import RECORD_KINDS, Uploader, read_latest, read_lineage
from piton_trainer.s3 import S3Error

logger = logging.getLogger(__name__)


class BucketSync:
    """Uploads in a separate thread, and reports progress with `tell`."""

    def __init__(
        self, settings: MirrorSettings, *, clock: Clock, send: Callable[[MirrorState | Transfer], None]
    ) -> None:
        self._settings = settings
        self._patience = settings.patience
        self._clock = clock
        self._send = send
        self._bucket = Bucket(settings.place, settings.tuning, encryption=settings.encryption)
        self._restoring = TransferMeter(clock, send, is_restore=True)
        uploading = TransferMeter(clock, send, is_restore=False)
        self._uploader = Uploader(
            self._bucket,
            settings,
            disk=layout.Disk(),
            check_fence=self._check_fence,
            meter=uploading,
            note=self._note,
        )
        self._changed = threading.Condition()
        self._wanted: int | None = None
        self._errors: Counter[str] = Counter()
        self._successes = 0
        self._trouble: str | None = None
        self._logged: set[str] = set()
        self._is_idle = True
        self._has_begun = self._is_over = self._is_refused = False
        self._refusal: str | None = None
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def restore(self, newer_than: int | None) -> int | None:
        """Fetch a checkpoint from the bucket that is newer than this step of the volume (None: it has no good one).

        Raises:
            BadConfig: the bucket refuses access, and the volume has no checkpoint.
            OutOfSpace: the volume is full.
            VolumeLost: the volume fails; or the bucket does not answer until the timeout, so another attempt should
                try; or a newer version of Piton wrote its checkpoint.
        """
        if newer_than is None and self._settings.attempt == 1 and not self._knows_a_bucket():
            return None  # there was no attempt before
        delays = self._delays()
        renewed: set[str] = set()
        while True:
            try:
                return self._restore(-1 if newer_than is None else newer_than)
            except S3Error as trouble:
                self._count(trouble)
                self._bucket.renew(trouble)
                if trouble.needs_new_client and trouble.kind not in renewed:
                    renewed.add(trouble.kind)
                    continue
                self._log(trouble.kind, f"restoring from {self._settings.place}: {trouble}")
                if newer_than is not None:
                    return None
                self._wait_for_bucket(trouble, delays)

    def _knows_a_bucket(self) -> bool:
        """True if the volume had checkpoints of a bucket: those that were restored by hand may be lost again."""
        with layout.translate_os_errors(self._settings.directory):
            return read_lineage(self._settings.directory) is not None

    def _wait_for_bucket(self, trouble: S3Error, delays: Iterator[float | None]) -> None:
        """Wait before the next try to restore to a volume without a checkpoint.

        Raises:
            BadConfig: the bucket refuses access.
            VolumeLost: the patience is over.
        """
        if trouble.is_refusal:
            how = "cannot be used" if trouble.kind in RECORD_KINDS else "refuses"
            raise BadConfig(f"the volume has no checkpoint, and {self._settings.place} {how}: {trouble}") from trouble
        delay = next(delays)
        if delay is None:
            raise VolumeLost(
                f"the volume has no checkpoint, and {self._settings.place} is gone: {trouble}"
            ) from trouble
        self._clock.sleep(delay)

    def _delays(self) -> Iterator[float | None]:
        """Yield the delay before each further try to restore; None when the patience is over."""
        failing_since, delay = self._clock.monotonic(), self._patience.backoff
        while True:
            now, moved_at = self._clock.monotonic(), self._restoring.moved_at
            if moved_at is not None and moved_at > failing_since:  # data has arrived since the last failure
                failing_since, delay = now, self._patience.backoff
            yield None if now + delay > failing_since + self._patience.restore else delay
            delay = min(2 * delay, self._patience.backoff_max)

    def _restore(self, newer_than: int) -> int | None:
        latest, _ = read_latest(self._bucket)
        if latest is None or latest.newest is None:
            return None
        try:
            self._uploader.check(latest)
        except NotOurs as refusal:
            logger.warning("nothing is restored from the mirror: %s", refusal)
            with self._changed:
                self._refusal = str(refusal)  # said before the first save, which may be hours away
                self._report()
            return None
        directory = self._settings.directory
        with layout.translate_os_errors(directory):
            self._uploader.adopt(latest)
            return restore(self._bucket, latest, directory, newer_than=newer_than, meter=self._restoring)

    def committed(self, step: int) -> None:
        """Record that this step is durable on the volume. Returns at once."""
        with self._changed:
            self._wanted = step
            self._is_idle = False
            self._changed.notify_all()
            self._report()
            is_first, self._has_begun = not self._has_begun, True
        if is_first:
            with suppress(OSError):
                sweep(self._settings.directory)  # the training has a newer checkpoint, or needs none
            self._thread.start()

    def close(self) -> None:
        """Start no new work, and release the connections if the thread is idle."""
        self._stop()
        if self._is_idle:
            self._bucket.close()

    def _run(self) -> None:
        delay: float | None = None
        while self._is_due(delay):
            try:
                self._step()
                delay = None
            except NotOurs as refusal:
                self._log("NotOurs", f"nothing is mirrored any more: {refusal}")
                self._stop(str(refusal))
            except S3Error as trouble:
                delay = self._longer(delay)
                self._bucket.renew(trouble)
                self._fail(trouble.kind, trouble, is_refused=trouble.is_refusal)
            except Exception as error:  # noqa: BLE001 - an error of the mirror must not end the training
                delay = self._longer(delay)
                self._fail(type(error).__name__, error)

    def _longer(self, delay: float | None) -> float:
        """Double the time to the next attempt."""
        return min(self._patience.backoff if delay is None else 2 * delay, self._patience.backoff_max)

    def _is_due(self, delay: float | None) -> bool:
        """Wait until there is work to do, or for `delay` after a failure; return False if the mirror is stopped."""
        with self._changed:
            if delay is not None:
                self._changed.wait_for(lambda: self._is_over, delay)
            else:
                self._changed.wait_for(lambda: self._is_over or not self._is_idle)
            return not self._is_over

    def _step(self) -> None:
        """Upload one checkpoint, or find that none is left to upload."""
        with self._changed:
            wanted = self._wanted
        assert wanted is not None
        uploaded = self._uploader.sync(wanted, has_newer=lambda: self._wanted != wanted)
        with self._changed:
            self._is_idle = not uploaded and wanted == self._wanted
            self._is_refused, self._refusal, self._trouble = False, None, None
            self._successes += 1
            self._report()

    def _check_fence(self) -> None:
        holder = read(self._settings.directory)
        if holder is not None and holder != self._settings.fence:
            raise NotOurs(f"attempt {holder.attempt} has claimed {self._settings.directory}")

    def _stop(self, refusal: str | None = None) -> None:
        with self._changed:
            self._is_over, self._refusal = True, self._refusal or refusal
            self._changed.notify_all()
            self._report()

    def _fail(self, kind: str, error: Exception, *, is_refused: bool = False) -> None:
        with self._changed:
            self._is_refused, self._trouble = is_refused, str(error)
            self._count(error)
        self._log(kind, f"mirroring to {self._settings.place} fails, and is tried again: {error}")

    def _count(self, error: Exception) -> None:
        """Count a failure by its class, and report it."""
        with self._changed:
            self._errors[class_of(error)] += 1
            self._report()

    def _note(self, loss: str, trouble: S3Error) -> None:
        """Count and log trouble that costs no checkpoint."""
        self._count(trouble)
        self._log(f"{loss} {trouble.kind}", f"{self._settings.place}: {loss}: {trouble}")

    def _report(self) -> None:
        self._send(
            MirrorState(
                known=self._wanted,
                mirrored=self._uploader.mirrored_step,
                is_idle=self._is_idle,
                is_over=self._is_over,
                errors=dict(self._errors),
                successes=self._successes,
                trouble=self._trouble,
                is_refused=self._is_refused,
                refusal=self._refusal,
            )
        )

    def _log(self, kind: str, sentence: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning("%s", sentence)
