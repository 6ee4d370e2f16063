"""S3, as little of it as is needed, with its errors in our words.

Missing      there is no such object
Overtaken    somebody else wrote it in between
Trouble      anything else: it may work later; `is_refusal` says that it will not without a person
"""

import base64
import hashlib
import queue
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.utils import ChunksizeAdjuster, OSUtils

from piton.contract.manifest import FileEntry
from piton_trainer.mirror.place import Place

_MISSING = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchUpload"})
_OVERTAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_REFUSALS = frozenset(
    {"AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentialsError", "403"}
)
_WORTH_ANOTHER_TRY = frozenset({429, 500, 502, 503, 504})
_READ_BYTES = 1 << 20
_DELETE_MAX = 1000


class Missing(Exception):  # noqa: N818 - a fact, as on a disk
    """There is no such object."""


class Overtaken(Exception):  # noqa: N818 - a fact
    """The object is not the one that was read."""


class Trouble(Exception):  # noqa: N818 - the bucket's, not ours
    """The bucket did not do it."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.is_refusal = kind in _REFUSALS


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How hard to try."""

    chunk_bytes: int = 32 << 20
    """Size of a part; what is smaller goes in one piece."""
    concurrency: int = 8
    bytes_per_second: int | None = None
    """For uploads; None does not hold back."""
    tries: int = 4
    """Of one request, with a back-off of seconds between them."""
    connect_seconds: float = 5.0
    read_seconds: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Object:
    """What S3 says of an object."""

    size: int
    checksum: str | None
    """Of the whole, or of its parts' checksums and then `-<parts>`."""


class Bucket:
    """The objects of one place. Safe to use from several threads."""

    def __init__(self, place: Place, tuning: Tuning | None = None) -> None:
        self.place = place
        self._tuning = tuning = tuning or Tuning()
        with _in_our_words():
            self._client = boto3.client(
                "s3",
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": 1},
                    connect_timeout=tuning.connect_seconds,
                    read_timeout=tuning.read_seconds,
                    max_pool_connections=2 * tuning.concurrency,
                ),
            )
        self._client.meta.events.register("needs-retry.s3", _Retry(tuning.tries))
        transfer = TransferConfig(
            multipart_threshold=tuning.chunk_bytes,
            multipart_chunksize=tuning.chunk_bytes,
            max_request_concurrency=tuning.concurrency,
            max_bandwidth=tuning.bytes_per_second,
        )
        self._manager = TransferManager(self._client, config=transfer, osutil=_Files(), executor_cls=_DaemonPool)

    def read(self, *parts: str) -> tuple[str, str]:
        """An object's text, and the version that it is.

        Raises:
            Missing, Trouble: see above. So do all others.
        """
        with _in_our_words():
            answer = self._client.get_object(Bucket=self.place.bucket, Key=self.place.key(*parts))
            return answer["Body"].read().decode(errors="replace"), answer["ETag"]

    def write(self, text: str, *parts: str, version: str | None = None, is_new: bool = False) -> str:
        """Write an object and return its version; with `version` only over that one, with `is_new` over none.

        Raises:
            Overtaken: another one is there.
        """
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"} if is_new else {}
        with _in_our_words():
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
        with suppress(Missing), _in_our_words():
            answer = self._client.head_object(
                Bucket=self.place.bucket, Key=self.place.key(*parts), ChecksumMode="ENABLED"
            )
            return Object(size=answer["ContentLength"], checksum=answer.get("ChecksumSHA256"))
        return None

    def upload(self, path: Path, *parts: str) -> None:
        """Send a file, in parts where it is large."""
        extra = {"ChecksumAlgorithm": "SHA256"}
        with _in_our_words():
            self._manager.upload(str(path), self.place.bucket, self.place.key(*parts), extra_args=extra).result()

    def download(self, path: Path, *parts: str) -> None:
        """Fetch an object, in parts where it is large."""
        with _in_our_words():
            self._manager.download(self.place.bucket, self.place.key(*parts), str(path)).result()

    def folders(self) -> dict[str, list[str]]:
        """The names of all objects here that are in a folder, by its name."""
        found: dict[str, list[str]] = {}
        with _in_our_words():
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
        with _in_our_words():
            for start in range(0, len(files), _DELETE_MAX):
                keys = [{"Key": self.place.key(folder, name)} for name in files[start : start + _DELETE_MAX]]
                self._client.delete_objects(Bucket=self.place.bucket, Delete={"Objects": keys, "Quiet": True})

    def sweep(self) -> int:
        """Give up uploads in parts that nobody finishes any more; how many there were. They cost money, unseen."""
        with _in_our_words():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            )
            left = [upload for page in pages for upload in page.get("Uploads", [])]
            for upload in left:
                with suppress(Missing), _in_our_words():
                    self._client.abort_multipart_upload(
                        Bucket=self.place.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        return len(left)

    def close(self) -> None:
        """Give the threads and connections back; without it they go when the process does."""
        self._manager.shutdown()
        self._client.close()

    def fingerprint(self, path: Path) -> tuple[FileEntry, str]:
        """A file's entry as a manifest has it, and the checksum that S3 will have of it once it is uploaded."""
        size = path.stat().st_size
        chunk = ChunksizeAdjuster().adjust_chunksize(self._tuning.chunk_bytes, size)
        whole, parts = hashlib.sha256(), []
        with path.open("rb") as file:
            for start in range(0, max(size, 1), chunk):
                part = hashlib.sha256()
                for offset in range(start, min(start + chunk, size), _READ_BYTES):
                    data = file.read(min(_READ_BYTES, start + chunk - offset))
                    whole.update(data)
                    part.update(data)
                parts.append(part.digest())
        is_whole = size < self._tuning.chunk_bytes
        checksum = (
            _base64(whole.digest()) if is_whole else f"{_base64(hashlib.sha256(b''.join(parts)).digest())}-{len(parts)}"
        )
        return FileEntry(size=size, sha256=whole.hexdigest()), checksum


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _said(error) from error
    except Boto3Error as error:
        raise Trouble(type(error).__name__, str(error)) from error
    except (BotoCoreError, RetriesExceededError) as error:
        raise Trouble(type(error).__name__, " ".join(str(error).split())) from error


def _said(error: ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", "Unknown"))
    if code in _MISSING:
        return Missing(str(error))
    if code in _OVERTAKEN:
        return Overtaken(str(error))
    return Trouble(code, str(error))


class _Retry:
    """Says of a request whether and when to try it again.

    botocore has this too, but draws its jitter from Python's own random numbers. Those are the training's: whoever
    draws one more of them changes what is trained.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._random = random.Random()  # noqa: S311 - jitter

    def __call__(
        self, *, attempts: int, response: Any = None, caught_exception: Exception | None = None, **_: object
    ) -> float | None:
        """Seconds to wait; None if it is not worth while."""
        status = 0 if response is None else response[0].status_code
        if attempts >= self._tries or not (caught_exception is not None or status in _WORTH_ANOTHER_TRY):
            return None
        return self._random.uniform(0.5, 1.0) * 2.0 ** (attempts - 1)


class _Files(OSUtils):  # type: ignore[misc]  # s3transfer has no types
    """s3transfer's files, with names that are not drawn from the training's random numbers."""

    def get_temp_filename(self, filename: str) -> str:
        """Where a download goes until it is whole."""
        return f"{filename}.part"


class _DaemonPool:
    """An executor whose threads do not keep a process alive that has been told to end."""

    def __init__(self, max_workers: int) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Any, Any] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name="mirror-io", daemon=True) for _ in range(max_workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """As in concurrent.futures."""
        future: Future[Any] = Future()
        self._work.put((future, task, args, kwargs))
        return future

    def shutdown(self, wait: bool = True) -> None:
        """As in concurrent.futures."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, task, args, kwargs = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                future.set_exception(error)
