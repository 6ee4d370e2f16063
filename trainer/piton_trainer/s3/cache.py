"""Objects in S3 as files on this machine: fetched once, kept, and fetched again when they have changed there.

    <cache>/<digest of bucket, key and version>        an object, whole
    <cache>/<the same>.part                            what there is of it so far; the next process goes on from there
    <cache>/<the same>.lock                            whoever holds it fetches; the other ranks of the node wait

A version is an object's ETag and size: what is in the cache is never stale, and may be deleted whenever nobody trains.
Large objects are fetched in pieces, several at a time, of one version only. What S3 says of the bytes is compared: the
SHA-256 where the object has one of the whole, else the MD5 where the ETag is one. An object that was uploaded in parts
may have neither; then each piece's length is all that is checked.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piton.contract import names
from piton_trainer.checkpoint.format.layout import NO_SPACE
from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig
from piton_trainer.s3 import S3Error, Tuning
from piton_trainer.s3.checksums import as_s3_writes
from piton_trainer.s3.client import connect, translate_errors
from piton_trainer.s3.reader import ObjectReader, whole_pieces

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_SAID_EVERY_SECONDS = 10.0
_MD5 = re.compile(r'"[0-9a-f]{32}"')


@dataclass(frozen=True, kw_only=True)
class Remote:
    """An object, in one version."""

    bucket: str
    key: str
    etag: str
    size: int

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """Of its file in the cache."""
        text = "\0".join((self.bucket, self.key, self.etag, str(self.size)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """The objects of S3, through a folder of this machine."""

    def __init__(self, folder: Path, *, tuning: Tuning | None = None, clock: Clock | None = None) -> None:
        """Keep them there.

        Raises:
            Trouble: the environment's credentials or settings cannot work.
        """
        self._folder = folder
        self._tuning = tuning or Tuning()
        self._clock = clock or Clock()
        self._client = connect(self._tuning)

    def below(self, bucket: str, prefix: str) -> list[Remote]:
        """What there is, in the order of the keys.

        Raises:
            Trouble: S3 did not say.
        """
        with translate_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            items = [item for page in pages for item in page.get("Contents", [])]
        found = [Remote(bucket=bucket, key=item["Key"], etag=item["ETag"], size=item["Size"]) for item in items]
        return sorted(found, key=lambda remote: remote.key)

    def fetch(self, remotes: list[Remote], what: str) -> list[Path]:
        """Their files, in the same order; what is not in the cache yet is fetched, and the log says how far that is.

        Raises:
            BadConfig: they have no room here.
            Missing: one of them is gone.
            Trouble: S3 did not do it.
        """
        wanted = [remote for remote in remotes if not self._is_there(remote)]
        self._make_room(wanted, what)
        counter = _Counter(what, sum(remote.size for remote in wanted), self._clock)
        objects, pieces = (ThreadPoolExecutor(self._tuning.concurrency) for _ in range(2))
        with _full_is_a_wrong_setting(self._folder, what), pieces, objects:
            return list(objects.map(lambda remote: self._fetch(remote, pieces, counter), remotes))

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
        client, at = self._client, {"Bucket": remote.bucket, "Key": remote.key}
        with translate_errors():
            head = client.head_object(**at, ChecksumMode="ENABLED", IfMatch=remote.etag)
        source = ObjectReader(client, *at.values(), size=remote.size, etag=remote.etag, tuning=self._tuning)
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


class _Counter:
    """Says in the log, now and then, how much has come."""

    def __init__(self, what: str, total: int, clock: Clock) -> None:
        self._what = what
        self._total = total
        self._clock = clock
        self._began = self._said = clock.monotonic()
        self._come = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """So many bytes more."""
        with self._lock:
            self._come += size
            now = self._clock.monotonic()
            if now - self._said < _SAID_EVERY_SECONDS:
                return
            self._said = now
        speed = self._come / (now - self._began) / 1e6
        logger.info(
            "%s: %.2f of %.2f GB are here, at %.0f MB/s", self._what, self._come / 1e9, self._total / 1e9, speed
        )


def _what_is_wrong(path: Path, remote: Remote, head: dict[str, Any]) -> str | None:
    """What a file has against what S3 says of the object; None if nothing, or if it says nothing."""
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
