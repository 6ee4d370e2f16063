"""The objects of one place: small ones as text, files in parts, each with a SHA-256 that S3 compares."""

import os
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber

from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint.format.file_digest import FileDigest
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.s3 import ObjectNotFound, Tuning, always, uncounted
from piton_trainer.s3.checksums import fingerprint
from piton_trainer.s3.client import connect, translate_errors
from piton_trainer.s3.reader import ObjectReader

_DELETE_MAX = 1000
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Object:
    """What S3 says of an object."""

    size: int
    checksum: str | None
    """Of the whole, or of its parts' checksums and then `-<parts>`."""
    version: str


class Bucket:
    """The objects of one place. Safe to use from several threads."""

    def __init__(self, place: BucketPrefix, tuning: Tuning | None = None) -> None:
        self.place = place
        self._tuning = tuning = tuning or Tuning()
        self._client = connect(tuning)
        transfer = TransferConfig(
            multipart_threshold=tuning.chunk_bytes,
            multipart_chunksize=tuning.chunk_bytes,
            max_request_concurrency=tuning.concurrency,
            max_bandwidth=tuning.bytes_per_second,
        )
        self._manager = TransferManager(self._client, config=transfer)
        self._pool = ThreadPoolExecutor(tuning.concurrency, thread_name_prefix="s3")

    def read(self, *parts: str) -> tuple[str, str]:
        """An object's text, and the version that it is.

        Raises:
            Missing, Trouble: see above. So do all others.
        """
        with translate_errors():
            answer = self._client.get_object(Bucket=self.place.bucket, Key=self.place.key(*parts))
            return answer["Body"].read().decode(errors="replace"), answer["ETag"]

    def write(self, text: str, *parts: str, version: str | None = None, is_new: bool = False) -> str:
        """Write an object and return its version; with `version` only over that one, with `is_new` over none.

        Raises:
            Overtaken: another one is there.
        """
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"} if is_new else {}
        with translate_errors():
            answer = self._client.put_object(
                Bucket=self.place.bucket,
                Key=self.place.key(*parts),
                Body=text.encode(),
                ChecksumAlgorithm="SHA256",
                ContentType="application/json",
                **condition,
            )
            return str(answer["ETag"])

    def look(self, *parts: str) -> Object | None:
        """What S3 knows of an object; None when it is not there."""
        with suppress(ObjectNotFound), translate_errors():
            answer = self._client.head_object(
                Bucket=self.place.bucket, Key=self.place.key(*parts), ChecksumMode="ENABLED"
            )
            checksum = answer.get("ChecksumSHA256")
            return Object(size=answer["ContentLength"], checksum=checksum, version=answer["ETag"])
        return None

    def upload(
        self,
        path: Path,
        *parts: str,
        moved: Callable[[int], object] = uncounted,
        is_wanted: Callable[[], bool] = always,
    ) -> bool:
        """Send a file, in parts where it is large; False: given up, since it is not wanted any more.

        `moved` is told of bytes as they go, and of those that go again as fewer than none.
        """
        listener = _Listener(moved, is_wanted)
        extra = {"ChecksumAlgorithm": "SHA256"}
        at = str(path), self.place.bucket, self.place.key(*parts)
        with translate_errors(), suppress(CancelledError):
            self._manager.upload(*at, extra_args=extra, subscribers=[listener]).result()
            return True
        return False

    def download(
        self,
        path: Path,
        *parts: str,
        like: FileEntry | None = None,
        kept: Callable[[int], object] = uncounted,
        moved: Callable[[int], object] = uncounted,
    ) -> FileEntry:
        """Fetch an object into a file, durably; what its bytes are, with a digest of the kind that `like` has.

        What the file has already is kept for the beginning of the object: the digest tells whether it was that.
        `kept` is told of such bytes, `moved` of those that come.

        Raises:
            Missing: it is not there.
        """
        source, digest = self._source(parts), FileDigest(like)
        with path.open("a+b") as file:
            first = _digest_kept(file, source.size, digest, kept)
            for piece in source.pieces(self._pool, first):
                digest.update(piece)
                file.write(piece)
                moved(len(piece))
            file.flush()
            os.fsync(file.fileno())
        return FileEntry(size=source.size, digest=digest.text())

    def digest(self, *parts: str, like: FileEntry) -> FileEntry:
        """The same, all of them read and none kept.

        Raises:
            Missing: it is not there.
        """
        source, digest = self._source(parts), FileDigest(like)
        for piece in source.pieces(self._pool):
            digest.update(piece)
        return FileEntry(size=source.size, digest=digest.text())

    def _source(self, parts: tuple[str, ...]) -> ObjectReader:
        key, there = self.place.key(*parts), self.look(*parts)
        if there is None:
            raise ObjectNotFound(key)
        return ObjectReader(
            self._client, self.place.bucket, key, size=there.size, etag=there.version, tuning=self._tuning
        )

    def folders(self) -> dict[str, list[str]]:
        """The names of all objects here that are in a folder, by its name."""
        found: dict[str, list[str]] = {}
        with translate_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            )
            for page in pages:
                for item in page.get("Contents", []):
                    folder, _, name = item["Key"].removeprefix(self.place.prefix).partition("/")
                    if name:
                        found.setdefault(folder, []).append(name)
        return found

    def delete(self, folder: str, files: list[str]) -> None:
        """Delete objects of a folder."""
        with translate_errors():
            for start in range(0, len(files), _DELETE_MAX):
                keys = [{"Key": self.place.key(folder, name)} for name in files[start : start + _DELETE_MAX]]
                self._client.delete_objects(Bucket=self.place.bucket, Delete={"Objects": keys, "Quiet": True})

    def sweep(self) -> int:
        """Give up uploads in parts that nobody finishes any more; how many there were. They cost money, unseen."""
        with translate_errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            )
            left = [upload for page in pages for upload in page.get("Uploads", [])]
            for upload in left:
                with suppress(ObjectNotFound), translate_errors():
                    self._client.abort_multipart_upload(
                        Bucket=self.place.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        return len(left)

    def close(self) -> None:
        """Give the threads and connections back; without it they go when the process does."""
        self._manager.shutdown()
        self._pool.shutdown()
        self._client.close()

    def fingerprint(
        self, path: Path, like: FileEntry | None = None, *, hashed: Callable[[int], object] = uncounted
    ) -> tuple[FileEntry, str]:
        """A file's entry as a manifest has it, and the checksum that S3 will have of it once it is uploaded."""
        return fingerprint(path, self._tuning.chunk_bytes, like, hashed=hashed)


class _Listener(BaseSubscriber):  # type: ignore[misc]
    """Hears of an upload's bytes, and gives it up when it is not wanted any more."""

    def __init__(self, moved: Callable[[int], object], is_wanted: Callable[[], bool]) -> None:
        self._moved = moved
        self._is_wanted = is_wanted

    def on_progress(self, future: Any, bytes_transferred: int, **_: object) -> None:
        self._moved(bytes_transferred)
        if not self._is_wanted():
            future.cancel()


def _digest_kept(file: BinaryIO, size: int, digest: FileDigest, kept: Callable[[int], object]) -> int:
    """Read what a file has of so many bytes; how many. A longer file is another one, and emptied."""
    there = file.seek(0, os.SEEK_END)
    if there > size:
        there = file.truncate(0)
    file.seek(0)
    while data := file.read(_READ_BYTES):
        digest.update(data)
        kept(len(data))
    return there
