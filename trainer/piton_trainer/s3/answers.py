"""Checks that an answer comes from an S3 server: boto3 parses a web page to an empty result, and raises nothing.

A listing that is a login page would be an empty bucket, and a 404 of another server an object that does not exist.
"""

import re
from typing import Any

from piton_trainer.s3.errors import S3Error

_HAVE_ETAG = frozenset({"GetObject", "HeadObject", "PutObject", "UploadPart"})
_HAVE_BODY = frozenset(
    {"CompleteMultipartUpload", "CreateMultipartUpload", "DeleteObjects", "ListMultipartUploads", "ListObjectsV2"}
)
_HEADS = frozenset({"HeadBucket", "HeadObject"})
"""Requests whose answers have no body, so that their errors look alike."""
_PAGES = frozenset({"body", "head", "html"})
"""Root elements of web pages, in small letters. Servers differ in the names of their own."""
_ERROR = "Error"
_ROOT = re.compile(rb"<(?![?!])(?:\w+:)?([\w.-]+)")
_MOVED = 301
_NO_REDIRECTS = frozenset({304, 307})
"""Not modified; and S3's own word for a bucket that is not known everywhere yet."""
_BUSY = frozenset({408, 429})
_HEAD_BYTES = 4096
"""The root element stands within so many bytes."""


def check_answer(response_dict: dict[str, Any], operation_model: Any, **_: object) -> None:
    """Check an answer before boto3 parses it. A handler of its event `before-parse`.

    Raises:
        S3Error: no S3 server has answered, or the answer is cut.
    """
    operation, status = operation_model.name, response_dict["status_code"]
    if status >= 500 or status in _BUSY:
        return  # a balancer's page says this too
    if 300 <= status < 400:
        _check_redirect(operation, response_dict)
    elif status >= 400:
        _check_error(operation, response_dict)
    elif operation in _HAVE_ETAG:
        if "etag" not in response_dict["headers"]:
            raise no_server(operation, "its answer has no ETag")
    elif operation in _HAVE_BODY:
        _check_root(operation, response_dict["body"])


def no_server(operation: str, why: str) -> S3Error:
    """Return the error that something else than an S3 server has answered."""
    return S3Error("NoServer", f"that is no S3 server: {why} ({operation})")


def is_web_page(text: str) -> bool:
    """True if a text that should be JSON is markup."""
    return text.lstrip("\ufeff \r\n\t").startswith("<")


def _check_redirect(operation: str, answer: dict[str, Any]) -> None:
    """Refuse a redirect that does not name a region: boto3 would ask for the region, and be redirected, for ever."""
    headers = answer["headers"]
    if "x-amz-bucket-region" in headers or answer["status_code"] in _NO_REDIRECTS:
        return
    if _root_of(answer["body"]) == _ERROR or (answer["status_code"] == _MOVED and not answer["body"]):
        raise S3Error("PermanentRedirect", f"the bucket is reached at another endpoint ({operation})")
    raise no_server(operation, f"it redirects to {headers.get('location', 'another address')}")


def _check_error(operation: str, answer: dict[str, Any]) -> None:
    root, kind = _root_of(answer["body"]), answer["headers"].get("content-type", "")
    if operation not in _HEADS and root != _ERROR and (_is_page(root) or kind.startswith("text/html")):
        raise no_server(operation, f"its answer with status {answer['status_code']} is a web page")


def _check_root(operation: str, body: bytes) -> None:
    root = _root_of(body)
    if not body.strip():
        raise S3Error("Short", f"the answer to {operation} is empty")
    if root is None or _is_page(root):
        raise no_server(operation, f"its answer is {'a web page' if root else 'no XML'}")


def _is_page(root: str | None) -> bool:
    return root is not None and root.lower() in _PAGES


def _root_of(body: bytes) -> str | None:
    match = _ROOT.search(body.lstrip()[:_HEAD_BYTES])
    return None if match is None else match[1].decode(errors="replace")
