"""Short ways to say what matters in a test; everything else is a good default."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from piton.api.conditions import in_phase
from piton.api.parse import parse
from piton.api.reasons import Reason
from piton.api.spec import Meta, Spec
from piton.api.status import AttemptState, AttemptStatus, RunStatus, StageStatus, Verdict
from piton.api.status_base import Phase
from piton.contract.manifest import Complete
from piton.contract.progress import Progress
from piton.contract.termination import Outcome, Termination
from piton.observed import AttemptSeen, JobState, LostReplica, Observed, ReplicaSeen, ReplicaState, VolumeSeen

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def a_manifest(name: str = "ragcun", **spec: Any) -> dict[str, Any]:
    """A TrainingRun as the API server gives it; keyword arguments replace whole parts of the spec."""
    return {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": "uid-of-the-run",
            "generation": 1,
            "creationTimestamp": "2026-11-21T12:00:00Z",
        },
        "spec": {
            "trainer": {"image": "trainer:1", "recipe": "charlm"},
            "checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
            **spec,
        },
    }


def a_spec(**parts: Any) -> Spec:
    parsed = parse(a_manifest(**parts))
    assert parsed.spec is not None, parsed.problems
    return parsed.spec


def problems_of(name: str = "ragcun", **parts: Any) -> tuple[str, ...]:
    return parse(a_manifest(name, **parts)).problems


def meta(*, deleting: bool = False, held: bool = True, generation: int = 1) -> Meta:
    return Meta(
        name="ragcun",
        namespace="team",
        uid="uid-of-the-run",
        generation=generation,
        created=NOW,
        deleting=deleting,
        held=held,
    )


def a_record(number: int = 1, state: AttemptState = AttemptState.RUNNING, **fields: Any) -> AttemptStatus:
    return AttemptStatus(number=number, state=state, created_time=NOW, **fields)


def an_ended(number: int = 1, verdict: Verdict = Verdict.PREEMPTED, **fields: Any) -> AttemptStatus:
    fields = {"reason": Reason.DISRUPTED, "ended_time": NOW, **fields}
    return a_record(number, AttemptState.ENDED, verdict=verdict, **fields)


def a_status(*attempts: AttemptStatus, phase: Phase = Phase.TRAINING, **fields: Any) -> RunStatus:
    number = attempts[-1].number if attempts else 0
    fields = {"stages": _stages(attempts, fields.get("failures", 0)), **fields}
    status = RunStatus(attempt=number, attempts=attempts, **fields)
    return in_phase(status, phase, Reason.TRAINING, "", now=NOW, generation=1)


def _stages(attempts: Sequence[AttemptStatus], failures: int) -> tuple[StageStatus, ...]:
    """The stages that these attempts are for; the failures are the newest one's."""
    found = []
    for name in dict.fromkeys(attempt.stage for attempt in attempts):
        own = [attempt for attempt in attempts if attempt.stage is name]
        found.append(
            StageStatus(
                name=name,
                attempts=len(own),
                failures=failures if own[-1] is attempts[-1] else 0,
                failures_since_progress=failures if own[-1] is attempts[-1] else 0,
                fruitless_attempts=_fruitless(own),
                start_time=own[0].created_time,
                end_time=own[-1].ended_time if own[-1].verdict is Verdict.FINISHED else None,
            )
        )
    return tuple(found)


def _fruitless(attempts: Sequence[AttemptStatus]) -> int:
    """How many of the newest have ended without a newer durable step."""
    count = highest = 0
    for attempt in attempts:
        saved, highest = (attempt.checkpoint_step or 0) > highest, max(highest, attempt.checkpoint_step or 0)
        failed = attempt.state is AttemptState.ENDED and attempt.verdict not in (Verdict.STOPPED, Verdict.FINISHED)
        count = 0 if saved else count + failed
    return count


def a_replica(
    state: ReplicaState = ReplicaState.RUNNING, name: str = "ragcun-1-master-0", **fields: Any
) -> ReplicaSeen:
    return ReplicaSeen(name=name, state=state, **{"uid": f"uid-of-{name}", **fields})


def a_lost(name: str = "ragcun-1-master-0", **fields: Any) -> LostReplica:
    return LostReplica(name=name, **{"node": "n1", **fields})


def failed(exit_code: int | None = 1, **fields: Any) -> ReplicaSeen:
    return a_replica(ReplicaState.FAILED, exit_code=exit_code, **fields)


def said(outcome: Outcome, **fields: Any) -> Termination:
    return Termination(outcome=outcome, **fields)


def an_attempt(*replicas: ReplicaSeen, number: int = 1, **fields: Any) -> AttemptSeen:
    fields = {"expected_replicas": max(1, len(replicas)), **fields}
    return AttemptSeen(number=number, uid=f"uid-of-{number}", replicas=replicas, **fields)


def a_failed_attempt(*replicas: ReplicaSeen, **fields: Any) -> AttemptSeen:
    return an_attempt(*replicas, job=JobState.FAILED, **fields)


def a_progress(step: int, *, checkpoint: int | None = None, resumed: int | None = None, **metrics: float) -> Progress:
    return Progress(
        updated=NOW.isoformat(),
        step=step,
        total_steps=1000,
        percentage=min(99, step // 10),
        checkpoint_step=checkpoint,
        resumed_from=resumed,
        metrics=metrics,
    )


def a_complete(step: int = 100) -> Complete:
    return Complete(
        attempt=1, step=step, weights_digest="sha256:abc", best_step=90, best_metric=0.24, reason="all steps done"
    )


def an_observed(
    *attempts: AttemptSeen,
    status: RunStatus | None = None,
    spec: Spec | None = None,
    run: Meta | None = None,
    spec_parts: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Observed:
    problems = fields.get("problems", ())
    return Observed(
        meta=run or meta(),
        spec=None if problems else (spec or a_spec(**(spec_parts or {}))),
        status=status or RunStatus(),
        attempts=attempts,
        **{"volume": VolumeSeen(exists=True), **fields},
    )
