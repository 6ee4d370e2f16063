"""Objects under one prefix: small ones as text, files in parts, each with a SHA-256 that S3 verifies."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber

from piton.contract import InputError
from piton.contract.assignment import Encryption
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint.format.file_digest import FileDigest
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.s3 import ObjectNotFound, S3Error, Tuning, always, uncounted
from piton_trainer.s3.answers import is_weak, is_web_page, no_server, unsupported
from piton_trainer.s3.checksums import fingerprint
from piton_trainer.s3.client import S3Connection, head_object, list_objects, translate_errors
from piton_trainer.s3.reader import ObjectReader

_DELETE_MAX = 1000
_ALGORITHM, _KEY = "ServerSideEncryption", "SSEKMSKeyId"
_ALGORITHMS = {"SSE-S3": "AES256", "SSE-KMS": "aws:kms"}
_GONE = frozenset({"NoSuchKey", "NoSuchVersion"})
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Object:
    """Metadata of an object in S3."""

    size: int
    checksum: str | None
    """SHA-256 of the whole object, or of the checksums of its parts with the suffix `-<parts>`; None if S3 has none."""
    version: str


class Bucket:
    """Objects under one prefix. Safe to use from several threads."""

    def __init__(
        self, place: BucketPrefix, tuning: Tuning | None = None, *, encryption: Encryption | None = None
    ) -> None:
        """Connect; each object that is written is encrypted like this (None: as the bucket does by itself).

        Raises:
            S3Error: the credentials or settings in the environment cannot work.
            ValueError: the endpoint is not valid, or the encryption is not known.
        """
        self.place = place
        self._encryption = write_options(encryption)
        self._tuning = tuning = tuning or Tuning()
        self._connection = S3Connection(tuning)
        self._manager = self._new_manager()
        self._pool = ThreadPoolExecutor(tuning.concurrency, thread_name_prefix="s3")

    @property
    def has_key(self) -> bool:
        """True if objects are encrypted with a key of the user's, which needs permissions of its own."""
        return _KEY in self._encryption

    @property
    def _client(self) -> Any:
        return self._connection.client

    def _new_manager(self) -> TransferManager:
        transfer = TransferConfig(
            multipart_threshold=self._tuning.chunk_bytes,
            multipart_chunksize=self._tuning.chunk_bytes,
            max_request_concurrency=self._tuning.concurrency,
            max_bandwidth=self._tuning.bytes_per_second,
        )
        return TransferManager(self._client, config=transfer)

    def renew(self, trouble: S3Error) -> None:
        """Read the credentials anew, if that may help against this trouble. No transfer may be under way."""
        before = self._client
        self._connection.renew(trouble, before)
        if self._client is not before:
            self._manager.shutdown()
            self._manager = self._new_manager()

    def read(self, *parts: str) -> tuple[str, str]:
        """Return the text of an object, and its version.

        Raises:
            ObjectNotFound, S3Error: see `piton_trainer.s3`. All other methods can raise S3Error too.
        """
        with translate_errors():
            answer = self._client.get_object(Bucket=self.place.bucket, Key=self.place.key(*parts))
            with closing(answer["Body"]) as body:
                text = body.read().decode(errors="replace")
        if is_web_page(text):
            raise no_server("GetObject", f"{'/'.join(parts)} is a web page")
        return text, answer["ETag"]

    def write(self, text: str, *parts: str, version: str | None = None, is_new: bool = False) -> str:
        """Write an object and return its version; replace only `version` if given; with `is_new`, replace nothing.

        Raises:
            PreconditionFailed: the object has another version.
            S3Error: the request failed, or the object is not encrypted as it should be.
        """
        if version is not None and is_weak(version):
            raise unsupported("PutObject", f"the ETag of {'/'.join(parts)} is weak, {version}, and guards no write")
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"} if is_new else {}
        with translate_errors():
            answer = self._client.put_object(
                Bucket=self.place.bucket,
                Key=self.place.key(*parts),
                Body=text.encode(),
                ChecksumAlgorithm="SHA256",
                ContentType="application/json",
                **self._encryption,
                **condition,
            )
        check_encrypted(answer, self._encryption)
        return str(answer["ETag"])

    def look(self, *parts: str) -> Object | None:
        """Return the metadata of an object; None if it does not exist."""
        with suppress(ObjectNotFound), translate_errors():
            key = self.place.key(*parts)
            answer = head_object(self._client, self.place.bucket, key, ChecksumMode="ENABLED")
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
        """Upload a file, in parts if it is large; return False if cancelled because it is not wanted any more.

        `moved` is called with the number of bytes as they are sent, negative for bytes that are sent again.
        """
        subscriber = _Subscriber(moved, is_wanted)
        extra = {"ChecksumAlgorithm": "SHA256", **self._encryption}
        at = str(path), self.place.bucket, self.place.key(*parts)
        with translate_errors(), suppress(CancelledError):
            self._manager.upload(*at, extra_args=extra, subscribers=[subscriber]).result()
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
        """Download an object to a file, durably; return its size and digest, with the algorithm of `like`.

        Existing bytes of the file are taken as the start of the object: the digest tells if they were.
        `kept` is called with the number of such bytes, `moved` with that of downloaded bytes.

        Raises:
            ObjectNotFound: the object does not exist.
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
        """Read a whole object without storing it; return its size and digest, with the algorithm of `like`.

        Raises:
            ObjectNotFound: the object does not exist.
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
            self._connection, self.place.bucket, key, size=there.size, etag=there.version, tuning=self._tuning
        )

    def folders(self) -> dict[str, list[str]]:
        """Return the names of the objects in each folder, by the name of the folder."""
        found: dict[str, list[str]] = {}
        for item in list_objects(self._client, self.place.bucket, self.place.prefix):
            folder, _, name = item["Key"].removeprefix(self.place.prefix).partition("/")
            if name:
                found.setdefault(folder, []).append(name)
        return found

    def delete(self, folder: str, files: list[str]) -> None:
        """Delete objects of a folder.

        Raises:
            S3Error: one of them is not deleted, which the bucket says in an answer with status 200.
        """
        with translate_errors():
            for start in range(0, len(files), _DELETE_MAX):
                keys = [{"Key": self.place.key(folder, name)} for name in files[start : start + _DELETE_MAX]]
                answer = self._client.delete_objects(Bucket=self.place.bucket, Delete={"Objects": keys, "Quiet": True})
                refused = [error for error in answer.get("Errors", []) if error.get("Code") not in _GONE]
                if refused:
                    code, message = refused[0].get("Code") or "Unknown", refused[0].get("Message", "")
                    raise S3Error(code, f"{refused[0].get('Key')} cannot be deleted ({code}: {message})")

    def sweep(self) -> int:
        """Abort abandoned multipart uploads, because they cost money unnoticed; return their number."""
        with translate_errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            )
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            left = [upload for upload in uploads if upload["Key"].startswith(self.place.prefix)]
            for upload in left:
                with suppress(ObjectNotFound), translate_errors():
                    self._client.abort_multipart_upload(
                        Bucket=self.place.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        return len(left)

    def close(self) -> None:
        """Release threads and connections; otherwise they end with the process."""
        self._manager.shutdown()
        self._pool.shutdown()
        self._connection.close()

    def fingerprint(
        self, path: Path, like: FileEntry | None = None, *, hashed: Callable[[int], object] = uncounted
    ) -> tuple[FileEntry, str]:
        """Return the manifest entry of a file, and the checksum that S3 will have after its upload."""
        return fingerprint(path, self._tuning.chunk_bytes, like, hashed=hashed)


def write_options(encryption: Encryption | None) -> dict[str, str]:
    """Return the options of PutObject and CreateMultipartUpload that ask for this encryption.

    Raises:
        ValueError: this version does not know its type.
    """
    if encryption is None:
        return {}
    if encryption.type not in _ALGORITHMS:
        raise InputError(
            f"encryption.type: this trainer does not know {encryption.type}; use an image of the operator's version"
        )
    key = {} if encryption.key_id is None else {_KEY: encryption.key_id}
    return {_ALGORITHM: _ALGORITHMS[encryption.type], **key}


def check_encrypted(answer: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Check that the answer to a write says that the object is encrypted as `options` ask.

    The key is not compared, because a server may name it in another form.

    Raises:
        S3Error: it does not: there are servers that pass over headers that they do not know.
    """
    asked, done = options.get(_ALGORITHM), answer.get(_ALGORITHM)
    if asked is not None and done != asked:
        raise S3Error(
            "NotEncrypted",
            f"this server does not encrypt as checkpoint.mirror.encryption asks: {asked} is asked for, and its answer "
            f"says {done or 'nothing'}",
        )


class _Subscriber(BaseSubscriber):  # type: ignore[misc]
    """Counts the bytes of an upload, and cancels it when it is not wanted any more."""

    def __init__(self, moved: Callable[[int], object], is_wanted: Callable[[], bool]) -> None:
        self._moved = moved
        self._is_wanted = is_wanted

    def on_progress(self, future: Any, bytes_transferred: int, **_: object) -> None:
        self._moved(bytes_transferred)
        if not self._is_wanted():
            future.cancel()


def _digest_kept(file: BinaryIO, size: int, digest: FileDigest, kept: Callable[[int], object]) -> int:
    """Hash the existing bytes of a file; return their number. A file longer than `size` is wrong, and is emptied."""
    there = file.seek(0, os.SEEK_END)
    if there > size:
        there = file.truncate(0)
    file.seek(0)
    while data := file.read(_READ_BYTES):
        digest.update(data)
        kept(len(data))
    return there
