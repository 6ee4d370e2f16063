"""Objects in S3 as files on this node: fetched once, cached, and fetched again if they have changed in S3.

    <cache>/<digest of bucket, key and version>        a complete object
    <cache>/<the same>.part                            a partial download; the next process continues it
    <cache>/<the same>.lock                            its holder downloads; the other ranks of the node wait
    <cache>/<digest of bucket and prefix>.listing      a listing whose objects are here, for a bucket that is away

A version is the ETag and size of an object. The cache may be deleted whenever no training runs. While the bucket does
not answer, the versions of the last listing are used, with a warning; otherwise the cache is never stale.
Large objects are fetched in pieces, several at a time, of one version only. The bytes are compared with the checksum in
S3: the SHA-256 if the object has one of the whole, otherwise the MD5 if the ETag is one. An object that was uploaded in
parts may have neither; then only the length of each piece is checked.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from piton.contract import names
from piton_trainer.checkpoint.format.layout import NO_SPACE
from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig
from piton_trainer.s3 import PreconditionFailed, S3Error, Tuning
from piton_trainer.s3.checksums import as_s3_writes
from piton_trainer.s3.client import S3Connection, head_object, list_objects
from piton_trainer.s3.reader import ObjectReader, whole_pieces

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_LOG_EVERY_SECONDS = 10.0
_MD5 = re.compile(r'"[0-9a-f]{32}"')


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One version of an object."""

    bucket: str
    key: str
    etag: str
    size: int

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """Name of its file in the cache."""
        return _digest(self.bucket, self.key, self.etag, str(self.size))


class Cache:
    """Cache of S3 objects in a folder of this node."""

    def __init__(self, folder: Path, *, tuning: Tuning | None = None, clock: Clock | None = None) -> None:
        """Cache objects in this folder.

        Raises:
            S3Error: the credentials or settings in the environment cannot work.
        """
        self._folder = folder
        self._tuning = tuning or Tuning()
        self._clock = clock or Clock()
        self._connection = S3Connection(self._tuning)
        self._listings: dict[Path, list[Remote]] = {}
        """Listings whose objects are not all here yet."""

    def below(self, bucket: str, prefix: str) -> list[Remote]:
        """Return the objects with this prefix, sorted by key; those of the last listing if the bucket does not answer.

        Raises:
            S3Error: the listing failed, and there is none from before; or the bucket refuses.
        """
        remembered = self._folder / f"{_digest(bucket, prefix)}.listing"
        try:
            found = self._list(bucket, prefix)
        except S3Error as trouble:
            before = None if trouble.is_refusal else _remembered(remembered)
            if before is None:
                raise
            logger.warning("s3://%s/%s: its last listing and the cache are used: %s", bucket, prefix, trouble)
            return before
        self._listings[remembered] = found
        return found

    def _list(self, bucket: str, prefix: str) -> list[Remote]:
        items = self._connection.call(lambda client: list_objects(client, bucket, prefix))
        found = [Remote(bucket=bucket, key=item["Key"], etag=item["ETag"], size=item["Size"]) for item in items]
        return sorted(found, key=lambda remote: remote.key)

    def fetch(self, remotes: list[Remote], what: str) -> list[Path]:
        """Return the files of these objects, in the same order; fetch missing ones, and log the progress.

        Raises:
            BadConfig: the cache folder has no room for them, or cannot be used.
            ObjectNotFound: one of them does not exist any more.
            S3Error: a request failed.
        """
        wanted = [remote for remote in remotes if not self._is_there(remote)]
        self._make_room(wanted, what)
        counter = _Counter(what, sum(remote.size for remote in wanted), self._clock)
        objects, pieces = (ThreadPoolExecutor(self._tuning.concurrency) for _ in range(2))
        with _full_is_a_wrong_setting(self._folder, what), pieces, objects:
            files = list(objects.map(lambda remote: self._fetch(remote, pieces, counter), remotes))
        while self._listings:
            _remember(*self._listings.popitem())
        return files

    def _is_there(self, remote: Remote) -> bool:
        path = self._folder / remote.name
        return path.exists() and path.stat().st_size == remote.size

    def _make_room(self, wanted: list[Remote], what: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise BadConfig(f"{names.ENV_DATA_CACHE}: {what} cannot be kept in {self._folder}: {error}") from error
        size = sum(remote.size for remote in wanted)
        if size > free:
            raise _no_room(self._folder, f"{what} is {size / 1e9:.1f} GB")

    def _fetch(self, remote: Remote, pool: ThreadPoolExecutor, counter: "_Counter") -> Path:
        path = self._folder / remote.name
        if not self._is_there(remote):
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._is_there(remote):
                    self._download(remote, path.with_suffix(".part"), pool, counter)
                    path.with_suffix(".part").replace(path)
        return path

    def _download(self, remote: Remote, part: Path, pool: ThreadPoolExecutor, counter: "_Counter") -> None:
        at, version = (remote.bucket, remote.key), remote.etag
        try:
            head = self._connection.call(
                lambda client: head_object(client, *at, version=version, ChecksumMode="ENABLED")
            )
        except PreconditionFailed as error:
            raise S3Error("PreconditionFailed", f"{remote} was written to while it was read") from error
        source = ObjectReader(self._connection, *at, size=remote.size, etag=version, tuning=self._tuning)
        with part.open("ab") as file:
            file.truncate(whole_pieces(file.tell()))
            for data in source.pieces(pool, os.fstat(file.fileno()).st_size):
                file.write(data)
                counter.add(len(data))
            file.flush()
            os.fsync(file.fileno())
        if problem := _what_is_wrong(part, remote, head):
            part.unlink()
            raise S3Error("Checksum", f"{remote} {problem}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _remember(path: Path, remotes: list[Remote]) -> None:
    """Keep a listing. A cache that cannot be written to is reported by the downloads."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        aside.write_text(json.dumps([asdict(remote) for remote in remotes]), encoding="utf-8")
        aside.replace(path)


def _remembered(path: Path) -> list[Remote] | None:
    with suppress(OSError, ValueError, TypeError):
        return [Remote(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    return None


class _Counter:
    """Logs the progress of a download periodically."""

    def __init__(self, what: str, total: int, clock: Clock) -> None:
        self._what = what
        self._total = total
        self._clock = clock
        self._began = self._logged_at = clock.monotonic()
        self._come = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count downloaded bytes."""
        with self._lock:
            self._come += size
            now = self._clock.monotonic()
            if now - self._logged_at < _LOG_EVERY_SECONDS:
                return
            self._logged_at = now
        speed = self._come / (now - self._began) / 1e6
        logger.info(
            "%s: %.2f of %.2f GB are here, at %.0f MB/s", self._what, self._come / 1e9, self._total / 1e9, speed
        )


def _what_is_wrong(path: Path, remote: Remote, head: dict[str, Any]) -> str | None:
    """Return the problem if a file differs from the checksum in S3; None if it matches or if there is none."""
    whole = head.get("ChecksumSHA256")
    if whole is not None and "-" not in whole:
        with path.open("rb") as file:
            found = as_s3_writes(hashlib.file_digest(file, "sha256").digest())
        return None if found == whole else "arrived with another SHA-256 than S3 has of it"
    is_md5 = _MD5.fullmatch(remote.etag) and head.get("ServerSideEncryption", "AES256") == "AES256"
    if is_md5 and "SSECustomerAlgorithm" not in head:
        with path.open("rb") as file:
            etag = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return None if f'"{etag}"' == remote.etag else "arrived with another MD5 than S3 has of it"
    return None


@contextmanager
def _full_is_a_wrong_setting(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise _no_room(folder, f"not all of {what} fits") from error


def _no_room(folder: Path, detail: str) -> BadConfig:
    mend = f"name another folder with {names.ENV_DATA_CACHE}"
    return BadConfig(f"trainer.config.data: {detail}, and {folder} has no room for it; {mend}")
