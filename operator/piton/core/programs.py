"""Remember what has run in this run: an image, and a program in pods of a certain shape.

A trouble at the start is judged by it: what has run once can run again. So each attempt's record has the identity of
what it runs, and the stage the identities of what has run, of the newest 16. Settings that shape no pod (limits, a
budget, suspend, a recipe's config) are no part of it; resources, rights, environment and the service account are.
"""

import hashlib
import json
from collections.abc import Collection
from typing import Any

from piton.api.one_form import in_one_form
from piton.api.spec import Spec, Stage
from piton.api.stages import staged
from piton.api.status import AttemptStatus, RunStatus, StageStatus
from piton.observed import AttemptSeen

YOUNGER_FIELDS = frozenset({"checkpoint.mirror.encryption"})
"""Fields of the spec, by their path (also in the items of a list), that are younger than digests in the statuses of
runs. A new field belongs here: otherwise each program counts as one that has never run, and each attempt in flight as
one whose spec has changed."""
_OTHERS_MOST = 15
"""Programs of a stage that are remembered beside the newest: people go back to an image that worked."""


def identify(spec: Spec, stage: Stage, status: RunStatus) -> str:
    """Return the identity of what an attempt at this stage runs: a digest of its image, and one of all the rest.

    An older operator identified the text of the spec. What has run under it keeps that identity.
    """
    older = _identity(spec, stage)
    return older if older in _programs(status.stage(stage)) else _identity(in_one_form(spec), stage)


def _identity(spec: Spec, stage: Stage) -> str:
    spec = staged(spec, stage)
    found = document(spec, YOUNGER_FIELDS)
    image = [spec.trainer.image, spec.workers.template.service_account_name]
    trainer = {field: value for field, value in found["trainer"].items() if field not in ("image", "config")}
    workers = {field: found["workers"][field] for field in ("gpus_per_node", "instance_types", "template")}
    return f"{digest(image)}-{digest([image, stage, trainer, workers])}"


def document(spec: Spec, younger: Collection[str]) -> dict[str, Any]:
    """Return the spec as JSON, to make digests of: without those younger fields that have their default."""
    found, chosen = spec.model_dump(mode="json"), spec.model_dump(mode="json", exclude_defaults=True)
    for path in younger:
        _drop_default(found, chosen, path.split("."))
    return found


def _drop_default(found: object, chosen: object, path: list[str]) -> None:
    """Remove the value at the path, unless it is in what differs from its default."""
    if isinstance(found, list):
        others = chosen if isinstance(chosen, list) else [None] * len(found)
        for item, other in zip(found, others, strict=True):
            _drop_default(item, other, path)
    elif isinstance(found, dict) and path[0] in found:
        known = chosen if isinstance(chosen, dict) else {}
        if path[1:]:
            _drop_default(found[path[0]], known.get(path[0]), path[1:])
        elif path[0] not in known:
            del found[path[0]]


def remember(status: RunStatus, seen: AttemptSeen | None) -> RunStatus:
    """Write down what the current attempt runs, once a replica of it has run."""
    record = status.current
    if record is None or record.program is None or seen is None:
        return status
    stage = status.stage(record.stage)
    if stage.has_run == record.program or not any(replica.has_run for replica in seen.replicas):
        return status
    others = [program for program in _programs(stage) if program != record.program][:_OTHERS_MOST]
    changed = stage.model_copy(update={"has_run": record.program, "had_run": " ".join(others) or None})
    return status.model_copy(update={"stages": tuple(changed if known is stage else known for known in status.stages)})


def image_has_run(status: RunStatus) -> bool:
    """True if the image of the current attempt has run in this run, at any stage."""
    record = status.current
    known = {_image(program) for stage in status.stages for program in _programs(stage)}
    if record is None:
        return False
    return _image(record.program) in known if known else _ran_before_it_was_noted(status)


def program_has_run(status: RunStatus) -> bool:
    """True if the program of the current attempt has run in this run, in such pods."""
    record = status.current
    if record is None:
        return False
    known = _programs(status.stage(record.stage))
    return record.program in known if known else _ran_before_it_was_noted(status, record.stage)


def _programs(stage: StageStatus) -> list[str]:
    """Return what is known to have run of the stage, the newest first."""
    return f"{stage.has_run or ''} {stage.had_run or ''}".split()


def _ran_before_it_was_noted(status: RunStatus, stage: Stage | None = None) -> bool:
    """True if a replica has run, and an older operator did not write down what it was."""
    return any(_has_run(record) for record in status.attempts if stage is None or record.stage is stage)


def _has_run(record: AttemptStatus) -> bool:
    return record.running_time is not None and record.program is None


def _image(program: str | None) -> str | None:
    return None if program is None else program.partition("-")[0]


def digest(value: object) -> str:
    """Return 12 hexadecimal digits that identify a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
