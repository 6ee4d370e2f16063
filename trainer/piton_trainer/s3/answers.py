"""Checks that an answer comes from an S3 server and is whole: boto3 parses anything to a result, and raises nothing.

A listing that is a login page would be an empty bucket, one that is cut a smaller one, and a 404 of another server an
object that does not exist. Whoever takes a field from an answer relies on these checks.

    check_answer   the raw answer, before boto3 parses it
    check_fields   the fields that callers rely on, after that
    check_piece    the range and the version of a part of an object
"""

import re
from collections.abc import Mapping
from typing import Any

from piton_trainer.s3.errors import PreconditionFailed, S3Error

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
_NOT_FOUND = 404
_NO_REDIRECTS = frozenset({304, 307})
"""Not modified; and S3's own word for a bucket that is not known everywhere yet."""
_BUSY = frozenset({408, 429})
_HEAD_BYTES = 4096
"""The root element stands within so many bytes."""
_WRONG_SIZE = re.compile(rb"<(?:\w+:)?Size>(?!\s*[0-9]+\s*<)")
_LISTED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ListObjectsV2": ("Contents", ("Key", "Size", "ETag")),
    "ListMultipartUploads": ("Uploads", ("Key", "UploadId")),
}
"""The list in the answer to each operation, and the fields of its items."""
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "CreateMultipartUpload": ("UploadId",),
    "GetObject": ("ETag",),
    "HeadObject": ("ContentLength", "ETag"),
    "PutObject": ("ETag",),
    "UploadPart": ("ETag",),
}
CHECKED = frozenset({*_LISTED, *_NEEDED})
"""Operations whose answers `check_fields` knows."""
_NEXT: Mapping[str, str] = {"ListObjectsV2": "NextContinuationToken", "ListMultipartUploads": "NextKeyMarker"}
"""The field that says where the next page of a list begins."""
_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<size>\d+|\*)")
_OK, _PARTIAL = 200, 206


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
    elif operation in _HAVE_BODY:
        _check_root(operation, response_dict["body"])


def check_fields(parsed: dict[str, Any], model: Any, **_: object) -> None:
    """Check the fields of an answer that is no error. A handler of boto3's event `after-call`.

    Raises:
        S3Error: a field is missing, or a list is cut and does not say how it goes on.
    """
    operation = model.name
    if parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", _OK) >= 300:
        return
    for name in _NEEDED.get(operation, ()):
        if parsed.get(name) in (None, ""):
            raise no_server(operation, f"its answer has no {name}")
    if operation not in _LISTED:
        return
    members, fields = _LISTED[operation]
    for item in parsed.get(members, ()):
        for name in fields:
            if item.get(name) in (None, ""):
                raise no_server(operation, f"its list has an item without {name}")
    if parsed.get("IsTruncated") and not parsed.get(_NEXT[operation]):
        raise unsupported(operation, f"its list is cut, and has no {_NEXT[operation]}")


def check_piece(uri: str, answer: dict[str, Any], *, first: int, end: int, size: int, etag: str) -> None:
    """Check that an answer to GetObject has the bytes from `first` to `end` of an object, in this version.

    Raises:
        PreconditionFailed: it is another version.
        S3Error: it is another range, or there is none.
    """
    check_version(uri, answer, etag)
    is_whole = (first, end) == (0, size)
    status, said = answer["ResponseMetadata"]["HTTPStatusCode"], answer.get("ContentRange", "")
    if not said and status == _PARTIAL:
        raise no_server("GetObject", f"it does not say which bytes of {uri} it sends")
    if not said and not is_whole:
        raise unsupported("GetObject", f"it ignores ranges, and sends all of {uri}")
    match = _RANGE.fullmatch(said)
    sent = None if match is None else (int(match["first"]), int(match["last"]) + 1)
    if said and (match is None or sent != (first, end) or match["size"] not in (str(size), "*")):
        raise no_server("GetObject", f"it sends {said} of {uri} instead of bytes {first}-{end - 1}/{size}")


def check_version(uri: str, answer: dict[str, Any], etag: str) -> None:
    """Check that an answer is about this version. Not every server heeds the condition of a request.

    Raises:
        PreconditionFailed: it is another version.
    """
    if _opaque(answer["ETag"]) != _opaque(etag):
        raise PreconditionFailed(f"{uri} has the ETag {answer['ETag']} now instead of {etag}")


def condition_on(etag: str) -> dict[str, str]:
    """Return the condition of a read of this version: none for a weak ETag, which no condition ever matches."""
    return {} if is_weak(etag) else {"IfMatch": etag}


def is_weak(etag: str) -> bool:
    """True if an ETag does not promise equal bytes."""
    return etag.startswith("W/")


def _opaque(etag: str) -> str:
    """Return an ETag without quotes and the mark of a weak one, in which listings and headers may differ."""
    return etag.removeprefix("W/").strip('"')


def unsupported(operation: str, why: str) -> S3Error:
    """Return the error that a server lacks a part of S3."""
    return S3Error("Unsupported", f"this server is not like S3: {why} ({operation})")


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
    """Refuse an error that is none of S3's, which has XML. A HEAD has no body, see `client.head_object`."""
    if operation in _HEADS:
        return
    status, body, headers = answer["status_code"], answer["body"], answer["headers"]
    root, is_empty = _root_of(body), not body.strip()
    if root != _ERROR and (_is_page(root) or headers.get("content-type", "").startswith("text/html")):
        raise no_server(operation, f"its answer with status {status} is a web page")
    if (root is None and not is_empty) or (is_empty and status == _NOT_FOUND and not is_of_s3(headers)):
        raise no_server(operation, f"its answer with status {status} is {'empty' if is_empty else 'no XML'}")


def is_of_s3(headers: Mapping[str, str]) -> bool:
    """True if these headers are those of an S3 server without doubt. Not every one sends this header."""
    return "x-amz-request-id" in headers


def _check_root(operation: str, body: bytes) -> None:
    root = _root_of(body)
    if not body.strip():
        raise S3Error("Short", f"the answer to {operation} is empty")
    if root is None or _is_page(root):
        raise no_server(operation, f"its answer is {'a web page' if root else 'no XML'}")
    if operation == "ListObjectsV2" and _WRONG_SIZE.search(body):
        raise no_server(operation, "its list has a size that is no number")


def _is_page(root: str | None) -> bool:
    return root is not None and root.lower() in _PAGES


def _root_of(body: bytes) -> str | None:
    match = _ROOT.search(body.lstrip()[:_HEAD_BYTES])
    return None if match is None else match[1].decode(errors="replace")
