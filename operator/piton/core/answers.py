"""Answers to what the user asks for: each change of the spec is seen in the status within a pass, in every phase.

Accepted             whether the spec is good. While it is refused, the one that was accepted last stays in effect
observedGeneration   the generation that the operator has looked at
SpecPending          parts of the spec that the attempt in flight does not have, or a run that has Failed
OperatorError        what could not be read for long; False again where the operator got through a pass and read all

The spec that was accepted last is kept in the status: nobody else remembers it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from piton.api.conditions import (
    ACCEPTED,
    FAILED,
    OPERATOR_ERROR,
    POD_STUCK,
    SPEC_PENDING,
    WAITING,
    settled,
    with_accepted,
)
from piton.api.one_form import in_one_form
from piton.api.problems import in_brief
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.stages import called, staged, wanted
from piton.api.status import AcceptedSpec, RunStatus
from piton.api.validation_sizes import is_too_large
from piton.contract import names
from piton.contract.quantity import parse_quantity
from piton.core import programs
from piton.core.context import Context
from piton.core.effects import Announcement, Decision
from piton.core.wait_reasons import without_numbers
from piton.observed import Observed
from piton.timing import Timing

_LATE = ("trainer", "workers", "capacity", "checkpoint", "objective")
"""Parts of a spec that an attempt has from its start."""
_LATE_LIMITS = ("training_time", "hang_timeout")
"""The limits that the trainer keeps, as it was told at its start. The operator keeps the others."""
_NO_SMALLER = "no claim can get smaller"
_OF_THE_CLAIM = ("size", "storage_class_name", "access_modes", "reclaim")
"""Parts of a volume that no attempt has: Piton makes the claim once."""
_LOOK_AGAIN_SECONDS = 60.0
"""Seconds until the next look while something cannot be read."""


def digests(spec: Spec, stage: Stage) -> dict[str, str]:
    """Return a digest of each part of the spec that an attempt at this stage has from its start, in one form."""
    return _digests(in_one_form(spec), stage)


def _digests(spec: Spec, stage: Stage) -> dict[str, str]:
    document = programs.document(staged(spec, stage), programs.YOUNGER_FIELDS)
    document["capacity"].pop("max_price_per_hour")  # a machine that is too dear is left at once
    for part in _OF_THE_CLAIM:
        document["checkpoint"]["volume"].pop(part)
    found = {part: programs.digest(document[part])[:8] for part in _LATE}
    limits = spec.limits.model_dump(mode="json", by_alias=True, include=set(_LATE_LIMITS))
    return found | {f"limits.{name}": programs.digest(value)[:8] for name, value in limits.items()}


def answer(context: Context, decision: Decision) -> Decision:
    """Return the decision with the answers to the current spec, once anything is known of the run."""
    if not decision.status.conditions:
        return decision
    decision = _note_unread(context, decision)
    status, generation = decision.status, context.meta.generation
    if context.meta.deleting and not (status.is_true(WAITING) or status.is_true(POD_STUCK)):
        return decision  # a deletion is no edit, though it is a generation: only one that is held up is worth a write
    status = status.model_copy(update={"observed_generation": generation})
    problem = _problem(context)
    status = with_accepted(status, context.status, problem, now=context.now, generation=generation)
    status = _remembered(context, status)
    pending = None if problem else "; ".join(_pending(context, status)) or None
    status = context.with_trouble(status, SPEC_PENDING, Reason.SPEC_PENDING, pending)
    news = (*decision.announcements, *_news(context, decision, problem, pending))
    return replace(decision, status=status, announcements=news)


def answer_alone(observed: Observed, *, now: datetime, timing: Timing | None = None) -> Decision:
    """Return the answers without a decision: they are told also where the world fails its effects."""
    context = Context(observed=observed, now=now, timing=timing or Timing())
    decision = Decision(rule="answered", status=observed.status)
    return decision if observed.status.unreadable else answer(context, decision)


def _note_unread(context: Context, decision: Decision) -> Decision:
    """Return the decision with the condition OperatorError as it is now. Nothing tells when a read works again."""
    why = context.observed.unread
    if not why:
        return replace(decision, status=context.with_trouble(decision.status, OPERATOR_ERROR, Reason.NOT_YET, None))
    message = (
        f"what belongs to this run cannot be read: {why}. Limits, suspension and deletion act on what is known; no "
        "attempt starts and no claim is given up without knowing the claim. If the operator lacks a right, install or "
        "upgrade Piton's chart again; else look at the API server and its webhooks"
    )
    known = [seconds for seconds in (decision.look_again_seconds, _LOOK_AGAIN_SECONDS) if seconds is not None]
    decision = replace(decision, look_again_seconds=min(known))
    if not _is_new(context, OPERATOR_ERROR, Reason.CLUSTER_UNREADABLE, message):
        return decision
    status = context.with_trouble(decision.status, OPERATOR_ERROR, Reason.CLUSTER_UNREADABLE, message)
    news = Announcement(severity="Warning", reason=Reason.CLUSTER_UNREADABLE, message=message)
    return replace(decision, status=status, announcements=(*decision.announcements, news))


def _problem(context: Context) -> str | None:
    """Return why the spec is refused, and what happens meanwhile; None: it is not."""
    problems = in_brief(context.observed.problems)
    if not problems or context.status.attempt == 0 or context.meta.deleting:
        return problems or None
    if settled(context.status):
        return f"{problems} (until that is mended, nothing is deleted that this spec or the one before it keeps)"
    if context.spec is not None:
        meanwhile = context.observed.meanwhile
    elif context.flying is not None:
        meanwhile = "the attempt that runs goes on, and no other starts"
    else:
        return problems
    return f"{problems} (until that is mended, {meanwhile})"


def _remembered(context: Context, status: RunStatus) -> RunStatus:
    """Return the status with the spec as the one that was accepted last, if it is."""
    spec, generation, known = context.spec, context.meta.generation, status.accepted
    if spec is None or context.observed.problems:
        return status
    if known.generation == generation if known else status == context.status:  # not a write for that alone
        return status
    if is_too_large(spec):  # of a run from before that rule: etcd would not take the spec and a copy of it
        return status.model_copy(update={"accepted": None})
    written = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return status.model_copy(update={"accepted": AcceptedSpec(generation=generation, spec=written)})


def _pending(context: Context, status: RunStatus) -> Iterator[str]:
    """Yield what the spec asks for and the run does not have yet."""
    record, spec = context.flying, context.spec
    if status.is_true(FAILED):
        yield from _changed_too_late(context)
    if settled(status) or spec is None or context.meta.deleting:
        return
    if record is not None and record.spec_digests and record.spec_generation != context.meta.generation:
        yield from _changed(context, spec, record.spec_digests)
    yield from _volume(context, spec)


def _changed_too_late(context: Context) -> Iterator[str]:
    """Yield what a run that has Failed needs to have the spec that was written since; until it is taken up again."""
    status = context.status
    if not status.is_true(FAILED) or context.meta.deleting:
        return
    if status.observed_generation != context.meta.generation or status.is_true(SPEC_PENDING):
        yield (
            "spec: changed since the run has Failed. What keeps or deletes it acts at once. To start it with the rest: "
            f"kubectl annotate trainingrun {context.meta.name} -n {context.meta.namespace} --overwrite "
            f"{names.ANNOTATION_RETRY}=$(date +%s)"
        )


def _changed(context: Context, spec: Spec, known: Mapping[str, str]) -> Iterator[str]:
    assert context.flying is not None
    if context.flying.stage not in wanted(spec.stages):
        return
    stage = context.flying.stage
    found, older = digests(spec, stage), _digests(spec, stage)  # older operators noted the text as it is written
    parts = [f"spec.{part}" for part in found if part in known and known[part] not in (found[part], older[part])]
    if parts:
        yield (
            f"{', '.join(parts)}: changed since {called(context.flying)} was started, and in effect with the next. To "
            "have that now, set spec.suspend to true, and back once the run is Suspended: it saves first"
        )


def _volume(context: Context, spec: Spec) -> Iterator[str]:
    """Yield in what the claim is not as the spec says: Piton makes it, and then leaves it to its owner."""
    volume, size = context.observed.volume, spec.checkpoint.volume.size
    if not (volume.made and volume.ours and volume.requested and size):
        return
    where, has = "spec.checkpoint.volume.size", f"the claim {volume.name} has {volume.requested}"
    if parse_quantity(size) > parse_quantity(volume.requested):
        patch = f'{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}'
        yield (
            f"{where}: {has}, and Piton resizes no claim; where its storage class allows that: "
            f"kubectl patch persistentvolumeclaim {volume.name} -n {context.meta.namespace} -p '{patch}'"
        )
    elif _is_made_smaller(context, size):
        yield f"{where}: {has}, and {_NO_SMALLER}; write {volume.requested} again"
    wanted_class = spec.checkpoint.volume.storage_class_name
    if wanted_class and volume.storage_class and wanted_class != volume.storage_class:
        yield (
            f"spec.checkpoint.volume.storageClassName: the claim {volume.name} is of {volume.storage_class}, and no "
            f"claim can change its class; write {volume.storage_class} again"
        )
    missing = [mode for mode in spec.checkpoint.volume.access_modes if mode not in volume.access_modes]
    if missing and volume.access_modes:
        known = ", ".join(volume.access_modes)
        yield (
            f"spec.checkpoint.volume.accessModes: the claim {volume.name} has [{known}] and not {', '.join(missing)}, "
            f"and no claim can change its modes; write [{known}] again, with as many nodes as can share that"
        )


def _is_made_smaller(context: Context, size: str) -> bool:
    """True if the user has asked for less than before. A claim that somebody has enlarged is no smaller wish."""
    accepted, pending = context.status.accepted, context.status.condition(SPEC_PENDING)
    if pending is not None and _NO_SMALLER in pending.message:
        return parse_quantity(size) < parse_quantity(context.observed.volume.requested)
    found: Any = accepted.spec if accepted else {}
    for step in ("checkpoint", "volume", "size"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return isinstance(found, str) and parse_quantity(size) < parse_quantity(found)


def _news(context: Context, decision: Decision, problem: str | None, pending: str | None) -> Iterator[Announcement]:
    """Yield an Event for what is said for the first time."""
    told = problem if decision.rule != "unacceptable" else None
    if told is not None and _is_new(context, ACCEPTED, Reason.INVALID_SPEC, told):
        yield Announcement(severity="Warning", reason=Reason.INVALID_SPEC, message=told)
    if pending is not None and _is_new(context, SPEC_PENDING, Reason.SPEC_PENDING, pending):
        yield Announcement(reason=Reason.SPEC_PENDING, message=pending)


def _is_new(context: Context, kind: str, reason: Reason, message: str) -> bool:
    """True if that was not said before, by itself or with more: a deletion leaves out what happens meanwhile."""
    known = context.status.condition(kind)
    told = known.message if known and known.reason is reason else None
    return told is None or not without_numbers(told).startswith(without_numbers(message))
