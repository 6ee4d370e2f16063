"""Rules on sizes: the API server takes no annotations above 256 KiB, and etcd no object above 1.5 MiB.

What counts is the size of what is made of a spec, in the form in which it is sent or stored.
"""

import json
from collections.abc import Iterator

from pydantic_core import to_json

from piton.api.cel import not_in_cel
from piton.api.spec import EvaluateStage, Spec, Stage
from piton.api.stages import staged, wanted

CONFIG_MAX, SPEC_MAX = 200 * 1024, 600 * 1024
"""Bytes. A pod has the config as an annotation, beside others. A job has its part of the spec twice, for rank 0 and for
the others; a run has all of it twice, as it is written and as it was accepted."""
_GROWTH_MAX = 6
"""Times that a text may grow in any of these forms: JSON for the API server escapes `<`, and the config is ASCII."""


@not_in_cel("it would have to write the spec as JSON")
def good_size(spec: Spec) -> Iterator[str]:
    """Check that the API server will take the run, the jobs of all stages, and their pods."""
    if len(to_json(spec)) * _GROWTH_MAX <= CONFIG_MAX:
        return
    for stage in wanted(spec.stages):
        size = len(_told(spec, stage))
        if size > CONFIG_MAX:
            yield (
                f"{_name(spec, stage)} {size // 1024} KiB are more than a pod can be told, {CONFIG_MAX // 1024} KiB; "
                "put large tables into a file on the volume, or into the image, and name it in the config"
            )
            return
    whole = max(_stored(spec), *(_of_job(spec, stage) for stage in wanted(spec.stages)))
    if whole > SPEC_MAX:
        yield (
            f"spec: its {whole // 1024} KiB are more than a job can hold, {SPEC_MAX // 1024} KiB; put scripts and long "
            "values into the image, onto the volume, or into a ConfigMap"
        )


def is_too_large(spec: Spec) -> bool:
    """True if a run with such a spec has no room for a second copy of it."""
    return _stored(spec) > SPEC_MAX


def _told(spec: Spec, stage: Stage) -> str:
    """Return the config as the annotation of the stage's pods has it (`Assignment.to_json`)."""
    return json.dumps(staged(spec, stage).trainer.config)


def _name(spec: Spec, stage: Stage) -> str:
    """Return how a message about the config of the stage's pods begins."""
    own = spec.stages.of(stage)
    if not isinstance(own, EvaluateStage):
        return "spec.trainer.config: its"
    is_merged = staged(spec, stage).trainer.config != own.config
    return f"spec.stages.evaluate.config: {'with spec.trainer.config ' if is_merged else ''}its"


def _of_job(spec: Spec, stage: Stage) -> int:
    """Return the bytes of one of the two replicas in the stage's job, whose config is JSON inside JSON."""
    found = staged(spec, stage)
    trainer = found.trainer.model_copy(update={"config": {}})
    return _stored(_told(spec, stage)) + _stored(trainer) + _stored(found.workers)


def _stored(part: object) -> int:
    """Return the bytes of a part in etcd, where Go has written the JSON: it escapes what has a meaning in HTML."""
    text = to_json(part)
    return len(text) + (len("\\u003c") - 1) * sum(text.count(letter) for letter in (b"<", b">", b"&"))
