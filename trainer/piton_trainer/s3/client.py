"""A connection to S3, and the rules for retries."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError

from piton_trainer.s3 import ObjectNotFound, PreconditionFailed, S3Error, Tuning

_MISSING = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchUpload"})
_OVERTAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_WORTH_ANOTHER_TRY = frozenset({429, 500, 502, 503, 504})


def connect(tuning: Tuning) -> Any:
    """Return a client that may be used from several threads.

    Raises:
        S3Error: the credentials or settings in the environment cannot work.
        ValueError: the endpoint is not valid.
    """
    with translate_errors():
        client = boto3.client(
            "s3",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=tuning.connect_seconds,
                read_timeout=tuning.read_seconds,
                max_pool_connections=2 * tuning.concurrency,
            ),
        )
    client.meta.events.register("needs-retry.s3", _Retry(tuning.tries))
    return client


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate errors of boto3 to ObjectNotFound, PreconditionFailed or S3Error."""
    try:
        yield
    except ClientError as error:
        raise _described(error) from error
    except (Boto3Error, BotoCoreError, RetriesExceededError) as error:
        raise S3Error(type(error).__name__, " ".join(str(error).split())) from error


def _described(error: ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", "Unknown"))
    if code in _MISSING:
        return ObjectNotFound(str(error))
    if code in _OVERTAKEN:
        return PreconditionFailed(str(error))
    return S3Error(code, str(error))


class _Retry:
    """Decides if and when to retry a request.

    botocore has this too, but takes its jitter from Python's global random number generator. In a trainer that reads
    its data that is the generator of the training: one more number drawn from it changes the training.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._random = random.Random()  # noqa: S311 - jitter

    def __call__(
        self, *, attempts: int, response: Any = None, caught_exception: Exception | None = None, **_: object
    ) -> float | None:
        """Return the seconds to wait; None for no retry."""
        status = 0 if response is None else response[0].status_code
        if attempts >= self._tries or not (caught_exception is not None or status in _WORTH_ANOTHER_TRY):
            return None
        return self._random.uniform(0.5, 1.0) * 2.0 ** (attempts - 1)
