"""Probe a bucket for `piton preflight`: list it, then write, read and delete one object.

It is a process with the environment of the trainer, because credentials and endpoint come from there. It reads one JSON
object from stdin: `uri`, `below` (the names under the URI) and `encryption` (the fields of `Encryption`, or null). It
prints one with the fields of `Problem`, or null.
"""

import json
import re
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from piton.contract.assignment import Encryption
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.s3.errors import ObjectNotFound, PreconditionFailed, S3Error

if TYPE_CHECKING:  # it needs boto3, which may be missing
    from piton_trainer.mirror.bucket import Bucket

_FOLDER = "preflight"
"""No name of a checkpoint: a run passes over what a probe could not delete."""
_DENIED = frozenset({"403", "AccessDenied", "Forbidden"})
_ACTION = re.compile(r"\b(?:s3|kms):[A-Z][A-Za-z]+")
"""Amazon names the action that is not allowed."""
_OF_THE_KEY = {"s3:PutObject": "kms:GenerateDataKey", "s3:GetObject": "kms:Decrypt"}
_ALLOW = "grant this to the identity of these credentials; docs/mirror.md has the minimal policy"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Reason why the bucket does not allow everything that the mirror does."""

    text: str
    fix: str | None = None
    """Next action for the user, unless the text says it."""


def problem_of(bucket: "Bucket") -> Problem | None:
    """Return what the mirror cannot do in this bucket; None if it can do everything that is tried here."""
    name, missing, is_there = uuid.uuid4().hex, list[str](), True
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("s3:ListBucket", bucket.folders),
        ("s3:PutObject", lambda: bucket.write("{}", _FOLDER, name, is_new=True)),
        ("s3:GetObject", lambda: bucket.read(_FOLDER, name)),
        ("s3:DeleteObject", lambda: bucket.delete(_FOLDER, [name])),
    )
    for action, request in steps:
        if action == "s3:GetObject" and not is_there:
            continue  # its answer would say nothing
        try:
            request()
        except (ObjectNotFound, PreconditionFailed) as error:
            return _other(bucket, name, action, f"it does not do what S3 does: {error}")
        except S3Error as trouble:
            if trouble.kind not in _DENIED:
                return _other(bucket, name, action, str(trouble))
            is_there = is_there and action != "s3:PutObject"
            missing.append(_missing(bucket, action, trouble))
    if not missing:
        return None
    are = "are" if len(missing) > 1 else "is"
    stays = f"; {bucket.place}/{_FOLDER}/{name} stays there" if is_there and "s3:DeleteObject" in missing else ""
    return Problem(text=f"{bucket.place}: {' and '.join(missing)} {are} missing{stays}", fix=_ALLOW)


def _other(bucket: "Bucket", name: str, action: str, text: str) -> Problem:
    """Return trouble that is no missing permission, and delete the object, which a write that fails may leave too."""
    stays = ""
    if action != "s3:ListBucket":
        try:
            bucket.delete(_FOLDER, [name])
        except (ObjectNotFound, PreconditionFailed, S3Error):
            stays = f"; {_FOLDER}/{name} {'may stay' if action == 's3:PutObject' else 'stays'} there"
    return Problem(text=f"{bucket.place}: {text}{stays}")


def _missing(bucket: "Bucket", action: str, trouble: S3Error) -> str:
    """Return the action that the server names, or else those that the request needs."""
    named = _ACTION.search(str(trouble))
    if named is not None:
        return named[0]
    key = _OF_THE_KEY.get(action) if bucket.has_key else None
    return action if key is None else f"{action}, or {key} of the key,"


def main() -> None:
    """Probe the bucket that the input names, and print the problem with it."""
    order = json.load(sys.stdin)
    encryption = order["encryption"]
    problem: Problem | None
    if find_spec("boto3") is None:
        problem = Problem(text="checkpoint.mirror needs boto3, which is not installed here", fix="pip install boto3")
    else:
        from piton_trainer.mirror.bucket import Bucket

        try:
            place = BucketPrefix.parse(order["uri"], *order["below"])
            problem = problem_of(Bucket(place, encryption=None if encryption is None else Encryption(**encryption)))
        except (S3Error, ValueError) as error:
            problem = Problem(text=f"checkpoint.mirror: {error}")
    print(json.dumps(None if problem is None else asdict(problem)))


if __name__ == "__main__":
    main()
