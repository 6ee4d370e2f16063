"""docs/failures.md, row by row: each end is played, and its verdict, its counter and what comes next are as it says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hack.failures import page
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract.termination import Outcome
from piton.core.decide import decide
from piton.core.effects import StopAttempt
from piton.observed import AttemptSeen, ClusterMessage, Observed, ReplicaState, ReservationSeen
from piton.timing import Timing
from support.builders import (
    NOW,
    a_failed_attempt,
    a_lost,
    a_record,
    a_replica,
    a_status,
    an_attempt,
    an_ended,
    an_observed,
    failed,
    later,
    meta,
    said,
)

STOPPED = an_attempt(failed(143, termination=said(Outcome.STOPPED, step=10, checkpoint_step=10)))
DONE = said(Outcome.FINISHED, step=100, weights_digest="sha256:abc")
COUNTERS = ("preemptions", "infrastructureFailures", "failures")
PATIENCE_SECONDS = 400
"""Longer than the core waits for better evidence, or for an image."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the page says of one reason."""

    verdict: Verdict
    counter: str
    then: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An attempt as it is seen; once Piton has told it to stop, as it is seen then."""

    seen: AttemptSeen | None
    stopped: AttemptSeen = STOPPED
    record: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the observation."""
    timing: Timing = field(default_factory=Timing)

    def observed(self, status: RunStatus, *, limits: Mapping[str, Any], is_stopped: bool) -> Observed:
        """The run with this attempt."""
        found = self.stopped if is_stopped else self.seen
        attempts = () if found is None or status.attempt > found.number else (found,)
        parts = {**self.spec, "limits": {**self.spec.get("limits", {}), **limits}}
        return an_observed(*attempts, status=status, spec_parts=parts, **self.fields)


def ended_as(outcome: Outcome) -> Scene:
    return Scene(seen=a_failed_attempt(failed(1, termination=said(outcome, detail="in its words"))))


RUNS = an_attempt(a_replica())
CREATED_LONG_AGO = meta().model_copy(update={"created": later(-7200)})
COMMAND = {"trainer": {"image": "trainer:1", "command": ["python", "train.py"]}}
SCENES: Mapping[Reason, Scene] = {
    Reason.FINISHED: Scene(seen=an_attempt(a_replica(ReplicaState.SUCCEEDED, exit_code=0, termination=DONE))),
    Reason.EXITED_ZERO: Scene(seen=an_attempt(a_replica(ReplicaState.SUCCEEDED, exit_code=0)), spec=COMMAND),
    Reason.DISRUPTED: Scene(seen=a_failed_attempt(failed(143, disruption="EvictionByEvictionAPI"))),
    Reason.NODE_GONE: Scene(seen=a_failed_attempt(lost=(a_lost(node_gone=True),))),
    Reason.ZONE_SILENT: Scene(seen=an_attempt(a_replica(node="n1", node_gone=True, silent="5 of 9 nodes"))),
    Reason.NODE_RECLAIMED: Scene(seen=a_failed_attempt(failed(143, node_reclaimed=True))),
    Reason.POD_DELETED: Scene(seen=a_failed_attempt(failed(143))),
    Reason.JOB_VANISHED: Scene(seen=None),
    Reason.KILLED: Scene(seen=a_failed_attempt(failed(137))),
    Reason.NO_PROOF: Scene(seen=an_attempt(a_replica(ReplicaState.SUCCEEDED, exit_code=0))),
    Reason.NAME_TAKEN: Scene(seen=replace(RUNS, ours=False), record={"state": AttemptState.PENDING}),
    Reason.UNKNOWN_END: Scene(seen=a_failed_attempt(failed(94))),
    Reason.HUNG: ended_as(Outcome.HUNG),
    Reason.NODE_REFUSED: Scene(seen=a_failed_attempt(failed(None, node="n1", refused="OutOfcpu: no room"))),
    Reason.SANDBOX_FAILED: Scene(
        seen=an_attempt(
            a_replica(
                ReplicaState.WAITING,
                node="n1",
                words=(ClusterMessage(reason="FailedCreatePodSandBox", message="no runtime for nvidia"),),
            )
        ),
        stopped=a_failed_attempt(failed(143)),
    ),
    Reason.IMAGE_PULL_FAILED: Scene(
        seen=an_attempt(a_replica(ReplicaState.WAITING, waiting="ErrImagePull: i/o timeout", cannot_start=True)),
        stopped=a_failed_attempt(failed(143)),
    ),
    Reason.START_FAILED: Scene(
        seen=a_failed_attempt(
            failed(128, node="n1", waiting="StartError: error running prestart hook #0", cannot_start=True)
        ),
    ),
    Reason.INIT_CONTAINER_FAILED: Scene(
        seen=a_failed_attempt(failed(None, init_failure="init container istio-init of a ended with exit code 1")),
    ),
    Reason.GANG_INCOMPLETE: Scene(seen=a_failed_attempt(failed(1), expected_replicas=2)),
    Reason.STOPPED_EARLY: Scene(seen=a_failed_attempt(failed(143, over_time=True)), spec=COMMAND),
    Reason.NO_EVIDENCE: Scene(seen=a_failed_attempt()),
    Reason.FENCED: ended_as(Outcome.FENCED),
    Reason.VOLUME_LOST: ended_as(Outcome.VOLUME_LOST),
    Reason.NOT_MIRRORED: ended_as(Outcome.NOT_MIRRORED),
    Reason.DATA_UNAVAILABLE: ended_as(Outcome.DATA_UNAVAILABLE),
    Reason.DEVICE_LOST: ended_as(Outcome.DEVICE_LOST),
    Reason.PRICE_TOO_HIGH: Scene(
        seen=an_attempt(a_replica(node="n1", node_price=99, placed_at=NOW)),
        stopped=an_attempt(failed(143)),
        spec={"capacity": {"maxPricePerHour": "40"}},
    ),
    Reason.CRASHED: Scene(seen=a_failed_attempt(failed(1))),
    Reason.OUT_OF_MEMORY: Scene(seen=a_failed_attempt(failed(137, out_of_memory=True))),
    Reason.OUT_OF_DISK: Scene(seen=a_failed_attempt(failed(137, out_of_disk=True))),
    Reason.CANNOT_START: Scene(
        seen=an_attempt(a_replica(ReplicaState.WAITING, waiting="ImagePullBackOff", cannot_start=True)),
    ),
    Reason.BAD_CONFIG: ended_as(Outcome.BAD_CONFIG),
    Reason.DIVERGED: ended_as(Outcome.DIVERGED),
    Reason.OUT_OF_SPACE: ended_as(Outcome.OUT_OF_SPACE),
    Reason.SCRIPT_TIMEOUT: Scene(
        seen=RUNS, record={"trained_time": later(-7200)}, timing=Timing(after_training_seconds=3600)
    ),
    Reason.SUSPENDED: Scene(seen=RUNS, spec={"suspend": True}),
    Reason.DEADLINE_EXCEEDED: Scene(seen=RUNS, spec={"limits": {"deadline": "1h"}}, fields={"run": CREATED_LONG_AGO}),
    Reason.BUDGET_EXCEEDED: Scene(
        seen=RUNS,
        spec={"capacity": {"maxPricePerHour": "40"}, "limits": {"budget": {"usd": "1"}}},
        record={"price_per_hour": "40.00", "billed_machines": 1, "billed_from": later(-7200)},
    ),
    Reason.NOT_WANTED: Scene(
        seen=an_attempt(a_replica(), stage=Stage.PREPARE),
        stopped=replace(STOPPED, stage=Stage.PREPARE),
        record={"stage": Stage.PREPARE},
    ),
    Reason.QUOTA_TAKEN: Scene(
        seen=RUNS,
        fields={"reservation": ReservationSeen(exists=True, queue="gpus", held=True, admitted=True, evicted=True)},
    ),
    Reason.JOB_SUSPENDED: Scene(seen=replace(a_failed_attempt(failed(143, deleting=True)), suspended=True)),
}


def rows() -> Iterator[tuple[Reason, Row]]:
    """The table of the page."""
    for line in page().splitlines():
        if line.startswith("| `"):
            reason, _, verdict, counter, then = (cell.strip(" `") for cell in line.strip("|").split(" | "))
            yield Reason(reason), Row(verdict=Verdict(verdict), counter=counter, then=then)


ROWS = dict(rows())


def test_each_row_is_played() -> None:
    assert list(SCENES) == list(ROWS)


def play(scene: Scene, **limits: Any) -> RunStatus:
    """Decide again and again, until the attempt has ended; the seconds that pass are those that the core waits."""
    status = a_status(a_record(formed_time=None, **scene.record))
    if scene.seen is None or scene.seen.expected_replicas == 1:
        status = a_status(a_record(**{"formed_time": NOW, **scene.record}))
    is_stopped = False
    for seconds in (0, 1, 2, PATIENCE_SECONDS, PATIENCE_SECONDS + 1, PATIENCE_SECONDS + 2):
        observed = scene.observed(status, limits=limits, is_stopped=is_stopped)
        decision = decide(observed, now=later(seconds), timing=scene.timing)
        status = decision.status
        is_stopped = is_stopped or any(isinstance(effect, StopAttempt) for effect in decision.effects)
        if status.attempts[0].state is AttemptState.ENDED:
            return status
    raise AssertionError(f"the attempt has not ended: {status.attempts[0]}")


@pytest.mark.parametrize("reason", ROWS)
def test_the_end_is_counted_as_the_page_says(reason: Reason) -> None:
    status = play(SCENES[reason])

    ended = status.attempts[0]
    assert (ended.reason, ended.verdict) == (reason, ROWS[reason].verdict)
    wire = status.to_wire()
    assert {name for name in COUNTERS if wire[name]} == ({ROWS[reason].counter} - {"none"})


@pytest.mark.parametrize("reason", ROWS)
def test_what_comes_next_is_what_the_page_says(reason: Reason) -> None:
    scene, then = SCENES[reason], ROWS[reason].then
    status = play(scene)
    ended = status.attempts[0].ended_time
    assert ended is not None

    def after(seconds: float) -> RunStatus:
        return decide(
            scene.observed(status, limits={}, is_stopped=True), now=later(seconds), timing=scene.timing
        ).status

    now = (ended - NOW).total_seconds()
    if then.startswith("the next attempt, at once"):
        assert after(now).attempt == 2
    elif then.startswith("the next attempt, after the back-off"):
        assert after(now + 9).attempt == 1
        assert after(now + 11).attempt == 2
    elif then.startswith("the next stage"):
        assert after(now).phase is Phase.SUCCEEDED
    elif then.startswith("permanent"):
        assert after(now).phase is Phase.FAILED
    else:
        assert ROWS[reason].verdict is Verdict.STOPPED
        assert status.failures + status.infrastructure_failures + status.preemptions == 0


@pytest.mark.parametrize("reason", [reason for reason, row in ROWS.items() if row.counter == "failures"])
def test_a_failure_of_the_program_spends_its_limit(reason: Reason) -> None:
    scene, limits = SCENES[reason], {"failures": 1}
    spent = scene.observed(play(scene, **limits), limits=limits, is_stopped=True)
    assert decide(spent, now=later(PATIENCE_SECONDS + 3)).status.phase is Phase.FAILED


@pytest.mark.parametrize("reason", [reason for reason, row in ROWS.items() if row.counter != "failures"])
def test_no_other_end_does(reason: Reason) -> None:
    assert play(SCENES[reason], failures=1).phase is not Phase.FAILED or ROWS[reason].verdict is Verdict.STOPPED


def test_a_preemption_that_follows_one_without_a_save_waits() -> None:
    status = a_status(an_ended(1), a_record(2, formed_time=NOW), preemptions=1)
    seen = replace(SCENES[Reason.DISRUPTED].seen or RUNS, number=2)
    status = decide(an_observed(seen, status=status), now=later(1)).status
    assert status.attempts[1].verdict is Verdict.PREEMPTED
    assert decide(an_observed(status=status), now=later(2)).status.attempt == 2
    assert decide(an_observed(status=status), now=later(12)).status.attempt == 3
