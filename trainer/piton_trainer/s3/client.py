"""A connection to S3, and the rules for retries."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TypeVar

import boto3
import botocore.loaders
import botocore.session
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError

from piton_trainer.s3 import ObjectNotFound, PreconditionFailed, S3Error, Tuning
from piton_trainer.s3.answers import (
    CHECKED,
    check_answer,
    check_fields,
    check_version,
    condition_on,
    is_of_s3,
    no_server,
    unsupported,
)

Answer = TypeVar("Answer")
_MISSING = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchUpload"})
_OVERTAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_WORTH_ANOTHER_TRY = frozenset({429, 500, 502, 503, 504})
_ALSO_WORTH_IT = frozenset({"RequestTimeout", "SlowDown"})
"""Codes that some servers send with a status of other errors."""
_UNEXPLAINED = frozenset({"400", "401", "403"})


class S3Connection:
    """A client that can be replaced by one that reads the credentials anew. Safe to use from several threads."""

    def __init__(self, tuning: Tuning) -> None:
        """Connect.

        Raises:
            S3Error: the credentials or settings in the environment cannot work.
            ValueError: the endpoint is not valid.
        """
        self._tuning = tuning
        self._lock = threading.Lock()
        self._client = connect(tuning)

    @property
    def client(self) -> Any:
        """The client of this moment."""
        return self._client

    def call(self, request: Callable[[Any], Answer]) -> Answer:
        """Send a request, and once more by a new client if new credentials may help.

        Raises:
            ObjectNotFound, PreconditionFailed, S3Error: the request failed.
        """
        client = self.client
        try:
            with translate_errors():
                return request(client)
        except S3Error as trouble:
            if not trouble.needs_new_client:
                raise
            self.renew(trouble, client)
        with translate_errors():
            return request(self.client)

    def renew(self, trouble: S3Error, used: Any) -> None:
        """Replace the client `used` if new credentials may help; another thread may have done it already."""
        if not trouble.needs_new_client:
            return
        with self._lock, suppress(S3Error, ValueError):  # the old client then says what is wrong
            if self._client is used:
                self._client = connect(self._tuning, _new_session())

    def close(self) -> None:
        """Release the connections; otherwise they end with the process."""
        self._client.close()


def connect(tuning: Tuning, session: boto3.session.Session | None = None) -> Any:
    """Return a client that may be used from several threads.

    Without a session of its own it has the credentials that boto3 has read first in this process.

    Raises:
        S3Error: the credentials or settings in the environment cannot work.
        ValueError: the endpoint is not valid.
    """
    with translate_errors():
        client = (session or boto3).client(
            "s3",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=tuning.connect_seconds,
                read_timeout=tuning.read_seconds,
                max_pool_connections=2 * tuning.concurrency,
            ),
        )
    client.meta.events.register("needs-retry.s3", _Retry(tuning.tries))
    client.meta.events.register_first("before-parse.s3", check_answer)  # boto3 makes a 500 of what is no XML
    for operation in CHECKED:  # each by its name: boto3's own handlers take the fields for granted
        client.meta.events.register_first(f"after-call.s3.{operation}", check_fields)
    return client


def head_object(client: Any, bucket: str, key: str, *, version: str | None = None, **options: Any) -> dict[str, Any]:
    """Return the metadata of an object, in this version if one is given.

    A HEAD that fails has no body with the reason, so the reason is asked for by a GET of one byte: the true code, or
    that no S3 server has answered. A 404 without a header of S3's is asked about too: any server gives it.
    """
    at = {"Bucket": bucket, "Key": key}
    if version is not None:
        options |= condition_on(version)
    try:
        answer: dict[str, Any] = client.head_object(**at, **options)
    except ClientError as error:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        is_page = headers.get("content-type", "").startswith("text/html")
        if _code_of(error) in _UNEXPLAINED or is_page or not is_of_s3(headers):
            client.get_object(**at, Range="bytes=0-0")["Body"].close()
            if _code_of(error) in _MISSING:
                raise no_server("HeadObject", f"{key} is not there, and it sends it all the same") from error
        raise
    if version is not None:
        check_version(f"s3://{bucket}/{key}", answer, version)
    return answer


def list_objects(client: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    """Return the objects with this prefix, each with its `Key`, `Size` and `ETag`.

    Raises:
        S3Error: the request failed, or the server lists other objects too.
    """
    with translate_errors():
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        items = [item for page in pages for item in page.get("Contents", [])]
    strange = next((item["Key"] for item in items if not item["Key"].startswith(prefix)), None)
    if strange is not None:
        raise unsupported("ListObjectsV2", f"asked for the prefix {prefix}, it lists {strange}")
    return items


def _new_session() -> boto3.session.Session:
    """Return a session that remembers no credentials; it shares the descriptions of services, which load slowly."""
    session = botocore.session.get_session()
    session.register_component("data_loader", _loader())
    return boto3.session.Session(botocore_session=session)


@cache
def _loader() -> botocore.loaders.Loader:
    return botocore.loaders.create_loader()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate errors of boto3 to ObjectNotFound, PreconditionFailed or S3Error."""
    try:
        yield
    except ClientError as error:
        raise _described(error) from error
    except (Boto3Error, BotoCoreError, RetriesExceededError, ResponseParserError, HTTPError) as error:
        raise S3Error(type(error).__name__, " ".join(str(error).split())) from error


def _described(error: ClientError) -> Exception:
    code, text = _code_of(error), " ".join(str(error).split())
    if not error.response.get("Error", {}).get("Code"):  # a balancer's page
        text = f"the answer to {error.operation_name} is a page with status {code}"
    if code in _MISSING:
        return ObjectNotFound(text)
    if code in _OVERTAKEN:
        return PreconditionFailed(text)
    return S3Error(code, text, status=error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"))


def _code_of(error: ClientError) -> str:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(error.response.get("Error", {}).get("Code") or status or "Unknown")


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
        status, code = (0, "") if response is None else (response[0].status_code, _code_in(response[1]))
        is_passing = caught_exception is not None or status in _WORTH_ANOTHER_TRY or code in _ALSO_WORTH_IT
        if attempts >= self._tries or not is_passing:
            return None
        return self._random.uniform(0.5, 1.0) * 2.0 ** (attempts - 1)


def _code_in(parsed: dict[str, Any]) -> str:
    return str(parsed.get("Error", {}).get("Code", ""))
