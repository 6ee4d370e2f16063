"""Check the bucket of a run's mirror, for `piton preflight`: list it, then write, read and delete one object.

The trainer's own code does it, in a process with the environment that `piton run` would give to the trainer. The
credentials are those of this machine, which may not be those of the pods.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from piton.api.checkpoint_spec import Mirror
from piton.api.spec import Meta, Spec
from piton.contract import InputError
from piton.local import environment

_PROBE = "piton_trainer.mirror.probe"
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class BucketCheck:
    """Finding about a bucket."""

    is_good: bool
    text: str
    fix: str | None = None
    """Next action for the user, unless the text says it."""


def check_bucket(name: str, spec: Spec) -> BucketCheck | None:
    """Check the bucket that a run of this name mirrors to; None if it mirrors to none."""
    mirror = spec.checkpoint.mirror
    if mirror is None:
        return None
    below = (Meta.model_fields["namespace"].default, name)
    order = {"uri": mirror.uri, "below": below, "encryption": _encryption(mirror)}
    try:
        answer = subprocess.run(
            [sys.executable, "-m", _PROBE],
            input=json.dumps(order),
            env=_environment(spec),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        problem = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return BucketCheck(
            is_good=False,
            text=f"spec.checkpoint.mirror: {mirror.uri} has not answered for {_TIMEOUT_SECONDS:.0f} s",
            fix="look at AWS_ENDPOINT_URL and the network",
        )
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        raise InputError(
            f"spec.checkpoint.mirror: the check of the bucket has ended ({_last_line(error)}); run "
            f"python -m {_PROBE} to see why"
        ) from error
    if problem is not None:
        return BucketCheck(is_good=False, text=problem["text"], fix=problem["fix"])
    encrypted = "" if mirror.encryption is None else f" with {mirror.encryption.type}"
    place = "/".join((mirror.uri.rstrip("/"), *below))
    text = f"{place} was listed; one object was written{encrypted}, read and deleted"
    return BucketCheck(is_good=True, text=text)


def _encryption(mirror: Mirror) -> dict[str, str | None] | None:
    encryption = mirror.encryption
    return None if encryption is None else {"type": encryption.type.value, "key_id": encryption.key_id}


def _environment(spec: Spec) -> Mapping[str, str]:
    written = {variable.name: variable.value for variable in spec.trainer.env if variable.value is not None}
    return {**os.environ, **written, **environment.secrets(spec, os.environ)}


def _last_line(error: Exception) -> str:
    """Return the last words of a process that has died, or the error itself."""
    words = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    return (words.strip() or str(error)).splitlines()[-1]
