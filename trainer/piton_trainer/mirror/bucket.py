"""The objects of one place: small ones as text, files in parts, each with a SHA-256 that S3 compares."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from s3transfer.manager import TransferConfig, TransferManager

from piton.contract.manifest import FileEntry
from piton_trainer.file_digest import FileDigest
from piton_trainer.mirror.place import Place
from piton_trainer.s3 import Missing, Tuning
from piton_trainer.s3.checksums import fingerprint
from piton_trainer.s3.client import connect, in_our_words
from piton_trainer.s3.reading import Source

_DELETE_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class Object:
    """What S3 says of an object."""

    size: int
    checksum: str | None
    """Of the whole, or of its parts' checksums and then `-<parts>`."""
    version: str


class Bucket:
    """The objects of one place. Safe to use from several threads."""

    def __init__(self, place: Place, tuning: Tuning | None = None) -> None:
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
        with in_our_words():
            answer = self._client.get_object(Bucket=self.place.bucket, Key=self.place.key(*parts))
            return answer["Body"].read().decode(errors="replace"), answer["ETag"]

    def write(self, text: str, *parts: str, version: str | None = None, is_new: bool = False) -> str:
        """Write an object and return its version; with `version` only over that one, with `is_new` over none.

        Raises:
            Overtaken: another one is there.
        """
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"} if is_new else {}
        with in_our_words():
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
        with suppress(Missing), in_our_words():
            answer = self._client.head_object(
                Bucket=self.place.bucket, Key=self.place.key(*parts), ChecksumMode="ENABLED"
            )
            checksum = answer.get("ChecksumSHA256")
            return Object(size=answer["ContentLength"], checksum=checksum, version=answer["ETag"])
        return None

    def upload(self, path: Path, *parts: str) -> None:
        """Send a file, in parts where it is large."""
        extra = {"ChecksumAlgorithm": "SHA256"}
        with in_our_words():
            self._manager.upload(str(path), self.place.bucket, self.place.key(*parts), extra_args=extra).result()

    def download(self, path: Path, *parts: str, like: FileEntry | None = None) -> FileEntry:
        """Fetch an object into a file, durably; what its bytes are, with a digest of the kind that `like` has.

        Raises:
            Missing: it is not there.
        """
        with path.open("wb") as file:
            entry = self._read(parts, file.write, like)
            file.flush()
            os.fsync(file.fileno())
        return entry

    def digest(self, *parts: str, like: FileEntry) -> FileEntry:
        """The same, all of them read and none kept.

        Raises:
            Missing: it is not there.
        """
        return self._read(parts, len, like)

    def _read(self, parts: tuple[str, ...], take: Callable[[bytes], object], like: FileEntry | None) -> FileEntry:
        there = self.look(*parts)
        if there is None:
            raise Missing(self.place.key(*parts))
        key = self.place.key(*parts)
        source = Source(self._client, self.place.bucket, key, size=there.size, etag=there.version, tuning=self._tuning)
        digest = FileDigest(like)
        for piece in source.pieces(self._pool):
            digest.update(piece)
            take(piece)
        return FileEntry(size=there.size, digest=digest.text())

    def folders(self) -> dict[str, list[str]]:
        """The names of all objects here that are in a folder, by its name."""
        found: dict[str, list[str]] = {}
        with in_our_words():
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
        with in_our_words():
            for start in range(0, len(files), _DELETE_MAX):
                keys = [{"Key": self.place.key(folder, name)} for name in files[start : start + _DELETE_MAX]]
                self._client.delete_objects(Bucket=self.place.bucket, Delete={"Objects": keys, "Quiet": True})

    def sweep(self) -> int:
        """Give up uploads in parts that nobody finishes any more; how many there were. They cost money, unseen."""
        with in_our_words():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            )
            left = [upload for page in pages for upload in page.get("Uploads", [])]
            for upload in left:
                with suppress(Missing), in_our_words():
                    self._client.abort_multipart_upload(
                        Bucket=self.place.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        return len(left)

    def close(self) -> None:
        """Give the threads and connections back; without it they go when the process does."""
        self._manager.shutdown()
        self._pool.shutdown()
        self._client.close()

    def fingerprint(self, path: Path, like: FileEntry | None = None) -> tuple[FileEntry, str]:
        """A file's entry as a manifest has it, and the checksum that S3 will have of it once it is uploaded."""
        return fingerprint(path, self._tuning.chunk_bytes, like)
