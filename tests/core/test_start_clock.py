"""limits.startTimeout: from when all replicas have a machine, without the pulls, and whether or not one runs."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from piton.api.conditions import WAITING
from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.core.decide import decide
from piton.core.effects import Decision, TaintNode
from piton.observed import AttemptSeen, ClusterMessage, ReplicaSeen, ReplicaState
from piton.timing import Timing
from support.builders import (
    NOW,
    a_record,
    a_replica,
    a_spec,
    a_status,
    an_attempt,
    an_ended,
    an_observed,
    failed,
    later,
)

SPEC = a_spec(workers={"nodes": 2}, limits={"startTimeout": "10m"})
MASTER, WORKER = "ragcun-1-master-0", "ragcun-1-worker-0"


def waits(name: str, *words: ClusterMessage, node: str | None = "node-1", zone: str | None = None) -> ReplicaSeen:
    return a_replica(
        ReplicaState.WAITING, name=name, node=node, zone=zone, words=words, waiting="ContainerCreating",
        never_started=True, placed_at=NOW if node else None,
    )  # fmt: skip


def pulling(since: datetime = NOW) -> ClusterMessage:
    return ClusterMessage(reason="Pulling", message='Pulling image "x"', first_time=since, last_time=since)


def says(reason: str, message: str = "no") -> ClusterMessage:
    return ClusterMessage(reason=reason, message=message, first_time=NOW, last_time=NOW)


def gang(*replicas: ReplicaSeen) -> AttemptSeen:
    return replace(an_attempt(*replicas), expected_replicas=2)


def look(
    status: RunStatus, seen: AttemptSeen, seconds: float = 0, timing: Timing | None = None, spec: Spec = SPEC
) -> Decision:
    return decide(an_observed(seen, status=status, spec=spec), now=later(seconds), timing=timing)


def starting() -> RunStatus:
    return a_status(a_record(state=AttemptState.STARTING), phase=Phase.STARTING)


def cut(number: int, minutes: float, **fields: Any) -> AttemptStatus:
    """An attempt that never came together, on machines that it held for so long."""
    ends = {"verdict": Verdict.INFRASTRUCTURE, "reason": Reason.GANG_INCOMPLETE, "ended_time": later(minutes * 60)}
    return an_ended(number, **{"placed_time": NOW, **ends, **fields})


def together(number: int, minutes: float, **fields: Any) -> AttemptStatus:
    """An attempt that ran, on machines that it had held for so long before."""
    return an_ended(number, placed_time=NOW, formed_time=later(minutes * 60), **fields)


def has_ended(decision: Decision) -> bool:
    return decision.rule == "half_a_gang"


def test_it_counts_from_when_all_have_a_machine_also_if_none_runs() -> None:
    part = gang(waits(MASTER), waits(WORKER, node=None))
    all_placed = gang(waits(MASTER), waits(WORKER))

    status = look(starting(), part).status
    assert not has_ended(look(status, part, 1700)), "a machine is looked for"
    status = look(status, all_placed, 1700).status
    assert not has_ended(look(status, all_placed, 2299))
    ended = look(status, all_placed, 2300)
    assert has_ended(ended)
    assert ended.status.current is not None
    assert ended.status.current.message.startswith("0 of 2 replicas of attempt 1 have run")


ZERO = SPEC.model_copy(update={"limits": SPEC.limits.model_copy(update={"start_timeout": "0h0m"})})


def test_zero_of_an_older_run_bounds_nothing_until_a_replica_runs() -> None:
    """Neither a node that waits, nor one alone, ever meets it."""
    waiting = gang(waits(MASTER), waits(WORKER))
    status = look(starting(), waiting, spec=ZERO).status
    assert not has_ended(look(status, waiting, 9000, spec=ZERO))
    half = gang(a_replica(name=MASTER), waits(WORKER))
    status = look(status, half, 9000, spec=ZERO).status
    assert not has_ended(look(status, gang(a_replica(name=MASTER), a_replica(name=WORKER)), 9001, spec=ZERO))
    ended = look(status, half, 9001, spec=ZERO)
    assert has_ended(ended)
    assert ended.status.current is not None
    assert "within limits.startTimeout of 0h0m" in ended.status.current.message


@pytest.mark.parametrize("before", ["cut", "together"])
def test_zero_of_an_older_run_is_never_doubled(before: str) -> None:
    record = (cut if before == "cut" else together)(1, 5)
    current = a_record(number=2, state=AttemptState.STARTING, placed_time=NOW, running_time=NOW)
    half = replace(gang(a_replica(name=MASTER), waits(WORKER)), number=2)
    ended = look(a_status(record, current, phase=Phase.STARTING), half, 1, spec=ZERO)
    assert has_ended(ended)
    assert ended.status.current is not None
    assert "within limits.startTimeout of 0h0m" in ended.status.current.message


@pytest.mark.parametrize("others", [1, 3])
def test_a_machine_that_starts_nothing_while_others_are_looked_for_is_not_kept_for_ever(others: int) -> None:
    """Its volume is never mounted, say, and its neighbours find no machine."""
    part = gang(waits(MASTER), *(waits(f"{WORKER}-{number}", node=None) for number in range(others)))

    status = look(starting(), part).status
    assert not has_ended(look(status, part, 3 * 600 - 1))
    ended = look(status, part, 3 * 600)
    assert has_ended(ended)
    assert ended.status.current is not None
    told = f"within 30m, three times limits.startTimeout of 10m, and {others} have no machine"
    assert told in ended.status.current.message


def test_a_late_machine_begins_it_anew() -> None:
    """The first replica has waited for nine minutes when the second gets its machine, and pulls an image there."""
    status = look(starting(), gang(a_replica(name=MASTER, node="n"), waits(WORKER, node=None))).status
    late = gang(a_replica(name=MASTER, node="n"), waits(WORKER))
    status = look(status, late, 540).status

    assert not has_ended(look(status, late, 700))
    assert has_ended(look(status, late, 1140))


def test_it_stands_still_while_an_image_is_pulled_and_goes_on_afterwards() -> None:
    pulls, pulled = gang(waits(MASTER, pulling()), waits(WORKER)), gang(waits(MASTER), waits(WORKER))
    status = look(starting(), pulls).status
    status = look(status, pulls, 900).status
    status = look(status, pulled, 1000).status

    assert not has_ended(look(status, pulled, 1599))
    assert has_ended(look(status, pulled, 1601))


def test_it_stands_still_for_at_most_twice_its_value() -> None:
    pulls = gang(waits(MASTER, pulling()), waits(WORKER))
    first = look(starting(), pulls)

    assert not has_ended(look(first.status, pulls, 1799))
    assert has_ended(look(first.status, pulls, 1800))
    assert look(first.status, pulls, 1795).look_again_seconds == 5


@pytest.mark.parametrize(
    ("before", "minutes"),
    [
        ((cut(1, 10),), 20),
        ((cut(1, 10), cut(2, 20.5)), 40),
        ((cut(1, 10), cut(2, 20), cut(3, 40)), 80),
        ((cut(1, 30, pull_seconds=1200),), 20),
        ((cut(1, 30, pull_time=NOW),), 20),
        ((cut(1, 10), together(2, 15)), 20),
        ((cut(1, 10), together(2, 15), together(3, 12)), 20),
        ((cut(1, 10), an_ended(2), together(3, 15)), 20),
        ((cut(1, 10), together(2, 5)), 10),
        (tuple(together(number, 15) for number in range(1, 20)), 20),  # the one that was cut is not listed any more
        ((together(1, 15), together(2, 12)), 20),
        ((together(1, 35),), 40),
        ((together(1, 35), together(2, 15)), 20),
        ((together(1, 15), together(2, 9)), 10),
        ((together(1, 35, pull_seconds=1200),), 20),
        ((cut(1, 10), together(2, 15, pull_seconds=600)), 10),
        ((together(1, 9),), 10),
        ((cut(1, 4),), 10),
        ((cut(1, 10, placed_time=None),), 10),
        ((cut(1, 10, reason=Reason.SANDBOX_FAILED),), 10),
        ((cut(1, 10, stage=Stage.PREPARE),), 10),
        ((cut(1, 10, stuck_on_node=True),), 20),
        (tuple(cut(1 + n, 10 * 2**n, stuck_on_node=True) for n in range(3)), 80),
    ],
)
def test_a_start_that_was_too_slow_has_twice_the_time_in_the_next_attempt(
    before: tuple[AttemptStatus, ...], minutes: float
) -> None:
    number = len(before) + 1
    seen = replace(gang(waits(MASTER, says("FailedMount")), waits(WORKER)), number=number)
    status = a_status(*before, a_record(number, AttemptState.STARTING), phase=Phase.STARTING)
    status = look(status, seen).status

    assert not has_ended(look(status, seen, minutes * 60 - 1))
    ended = look(status, seen, minutes * 60)
    assert has_ended(ended)
    assert ended.status.current is not None
    learned = f"{minutes}m, as limits.startTimeout of 10m was too short for the attempt before"
    assert (learned if minutes > 10 else "within limits.startTimeout of 10m") in (
        ended.status.current.message.replace("1h20m", "80m")
    )


@pytest.mark.parametrize(
    "word", [says("Unhealthy", "Startup probe failed: 503"), says("Started", "Started container cache"), None]
)
def test_a_start_that_is_slow_without_a_word_that_is_known_gets_more_than_half_an_hour(
    word: ClusterMessage | None,
) -> None:
    """A native sidecar whose startup probe passes after 45 minutes: the trainer is not begun before."""
    spec = a_spec(workers={"nodes": 2})
    silent = gang(waits(MASTER, *((word,) if word else ())), waits(WORKER))
    slow = replace(silent, number=2)
    status = a_status(cut(1, 30, stuck_on_node=True), a_record(2, AttemptState.STARTING), phase=Phase.STARTING)
    for seconds in (0, 30 * 60, 45 * 60, 60 * 60 - 1):
        decision = decide(an_observed(slow, status=status, spec=spec), now=later(seconds))
        assert not has_ended(decision), seconds
        status = decision.status
    assert has_ended(decide(an_observed(slow, status=status, spec=spec), now=later(60 * 60)))


def test_the_trouble_of_a_start_does_not_shorten_the_wait_for_evidence_on_peers() -> None:
    """A container could not be created for 200 s, then ran, and ended at once, as its peers do when a node is gone."""
    slow = "CreateContainerError: context deadline exceeded"
    refused = a_replica(ReplicaState.WAITING, name=WORKER, node="n", cannot_start=True, waiting=slow)
    status = look(starting(), gang(a_replica(name=MASTER, node="n"), refused)).status
    crashed = gang(a_replica(name=MASTER, node="n"), failed(1, name=WORKER))
    status = look(status, crashed, 200).status
    assert status.current is not None
    assert status.current.verdict is None

    assert look(status, crashed, 289).status.current == status.current
    ended = look(status, crashed, 290).status.current
    assert ended is not None
    assert ended.reason is Reason.CRASHED


def test_what_could_not_be_pulled_is_no_pull() -> None:
    failed = ClusterMessage(reason="Failed", message='Failed to pull image "x"', last_time=later(3))
    seen = gang(waits(MASTER, pulling(), failed), waits(WORKER))

    assert has_ended(look(look(starting(), seen).status, seen, 600))


@pytest.mark.parametrize(
    ("words", "is_node_named"),
    [
        ((), True),
        ((says("FailedMount"),), False),
        ((pulling(),), False),
        ((says("Unschedulable"),), False),
    ],
)
def test_a_node_is_named_only_if_nothing_else_explains_it(
    words: tuple[ClusterMessage, ...], is_node_named: bool
) -> None:
    seen = gang(waits(MASTER, *words, zone="a"), waits(WORKER, zone="a"))
    decision = look(look(starting(), seen).status, seen, 1800, Timing(device_taint_seconds=3600))

    assert has_ended(decision)
    assert any("kubectl taint node node-1" in news.message for news in decision.announcements) is is_node_named
    assert decision.effects == (), "a silence taints nothing"
    assert decision.status.current is not None
    assert bool(decision.status.current.stuck_on_node) is is_node_named


def test_a_sandbox_that_is_not_made_accuses_the_node_whose_zone_is_left() -> None:
    seen = gang(waits(MASTER, says("FailedCreatePodSandBox", "no CNI"), zone="a"), waits(WORKER, zone="a"))
    timing = Timing(device_taint_seconds=3600)
    status = look(starting(), seen, timing=timing).status
    assert status.current is not None
    assert status.current.verdict is None

    ended = look(status, seen, 300, timing)
    assert ended.status.current is not None
    assert ended.status.current.reason is Reason.SANDBOX_FAILED
    assert [type(effect) for effect in ended.effects] == [TaintNode]
    (news,) = ended.announcements
    assert "it gets the taint piton.dev/device-fault for 1h" in news.message
    assert "no CNI" in news.message


def test_a_gang_of_which_a_part_runs_trains_on_while_a_sandbox_is_tried_and_is_stopped_when_that_is_asked() -> None:
    seen = gang(a_replica(name=MASTER, node="n"), waits(WORKER, says("FailedCreatePodSandBox", "no CNI")))
    status = look(starting(), seen).status
    assert (status.phase, status.is_true(WAITING)) == (Phase.TRAINING, True)

    assert look(status, seen, 299).status.phase is Phase.TRAINING
    ended = look(status, seen, 300).status.current
    assert ended is not None
    assert ended.reason is Reason.SANDBOX_FAILED
    held = an_observed(seen, status=status, spec=SPEC.model_copy(update={"suspend": True}))
    assert decide(held, now=later(10)).rule == "stop_requested"
