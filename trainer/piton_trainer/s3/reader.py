"""Reads of objects piece by piece: a lost connection costs one piece, not the object."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from piton_trainer.s3 import PreconditionFailed, S3Error, Tuning
from piton_trainer.s3.answers import check_piece, condition_on
from piton_trainer.s3.client import S3Connection, translate_errors

PIECE_BYTES = 8 << 20
_AHEAD = 4
"""Number of pieces of one object that are requested in advance."""
_REFUSED = frozenset({"InvalidRange", "416"})


def whole_pieces(size: int) -> int:
    """Round a number of bytes down to whole pieces."""
    return size // PIECE_BYTES * PIECE_BYTES


class ObjectReader:
    """One object, in the version of its last listing or lookup. Safe to use from several threads."""

    def __init__(
        self, connection: S3Connection, bucket: str, key: str, *, size: int, etag: str, tuning: Tuning
    ) -> None:
        self._connection = connection
        self._at = {"Bucket": bucket, "Key": key}
        self._uri = f"s3://{bucket}/{key}"
        self._etag = etag
        self._tries = tuning.tries
        self.size = size

    def pieces(self, pool: ThreadPoolExecutor, first: int = 0) -> Iterator[bytes]:
        """Yield the object from byte `first` on, in order, while the pool fetches a few pieces ahead."""
        starts = iter(range(first, self.size, PIECE_BYTES))
        coming = deque(pool.submit(self.piece, start) for start in itertools.islice(starts, _AHEAD))
        try:
            while coming:
                yield coming.popleft().result()
                coming.extend(pool.submit(self.piece, start) for start in itertools.islice(starts, 1))
        finally:
            for piece in coming:
                piece.cancel()

    def piece(self, start: int) -> bytes:
        """Return the bytes from `start` on, up to the size of a piece.

        Raises:
            ObjectNotFound: the object does not exist any more.
            S3Error: the request failed, or the object has changed.
        """
        end, renewed = min(start + PIECE_BYTES, self.size), False
        for tries_left in reversed(range(self._tries)):
            client = self._connection.client
            try:
                return self._read(client, start, end)
            except PreconditionFailed as error:
                raise S3Error("PreconditionFailed", f"{self._uri} was written to while it was read") from error
            except S3Error as trouble:
                is_final = trouble.is_refusal and (renewed or not trouble.needs_new_client)
                if is_final or trouble.kind in _REFUSED or not tries_left:
                    raise
                self._connection.renew(trouble, client)
                if trouble.needs_new_client and not renewed:
                    renewed = True
                    continue
            threading.Event().wait(0.5 * 2.0 ** (self._tries - 1 - tries_left))
        raise AssertionError("there is a last try")

    def _read(self, client: Any, start: int, end: int) -> bytes:
        with translate_errors():
            answer = client.get_object(**self._at, Range=f"bytes={start}-{end - 1}", **condition_on(self._etag))
            with closing(answer["Body"]) as body:
                check_piece(self._uri, answer, first=start, end=end, size=self.size, etag=self._etag)
                data: bytes = body.read()
        if len(data) != end - start:
            raise S3Error("Short", f"{self._uri} gave {len(data)} bytes instead of {end - start}")
        return data
