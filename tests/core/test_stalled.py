"""A run that gets nowhere is not ended: it waits longer, says so, and holds after `limits.stalled`."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from piton.api.conditions import STALLED
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.core import transitions
from piton.core.decide import decide
from piton.core.effects import Decision, StartAttempt
from piton.core.evidence import Judgement
from piton.observed import Observed
from piton.timing import Timing
from support.builders import NOW, a_progress, a_replica, a_spec, an_attempt, an_observed, later

TIMING = Timing()
TROUBLE = Judgement(
    verdict=Verdict.INFRASTRUCTURE, reason=Reason.NO_EVIDENCE, message="Pod was rejected: UnexpectedAdmissionError"
)
TAKEN = Judgement(verdict=Verdict.PREEMPTED, reason=Reason.NODE_GONE, message="ip-10-0-0-1 is gone")
CRASH = Judgement(verdict=Verdict.USER_FAILURE, reason=Reason.CRASHED, message="exit code 1")
HALF = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.GANG_INCOMPLETE, message="1 of 2 replicas have run")
MEMORY = Judgement(verdict=Verdict.USER_FAILURE, reason=Reason.OUT_OF_MEMORY, message="too little")
DEAR = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.PRICE_TOO_HIGH, message="too dear")
SHARED = {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
TWO: dict[str, Any] = {"workers": {"nodes": 2}, "checkpoint": SHARED}
ORDER = Judgement(verdict=Verdict.STOPPED, reason=Reason.QUOTA_TAKEN, message="told to stop")
AGES = timedelta(days=3)


def life(*ends: tuple[Judgement, int | None], stage: Stage = Stage.TRAIN, status: RunStatus | None = None) -> RunStatus:
    """The status after attempts that ended so, each with that durable step."""
    status = status or RunStatus()
    for judgement, step in ends:
        status = transitions.begin(status, (), stage, now=NOW, timing=TIMING)
        told = None if step is None else a_progress(step + 5, checkpoint=step)
        status = transitions.end(transitions.report(status, told, None, now=NOW), judgement, now=NOW, timing=TIMING)
    return status


def looked_at(status: RunStatus, *, now: datetime = NOW, **spec: Any) -> Decision:
    return decide(an_observed(status=status, spec=a_spec(**spec)), now=now)


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ([(TROUBLE, None)] * 4, 0),
        ([(TROUBLE, None)] * 5, 5),
        ([(TAKEN, None), (TROUBLE, None), (CRASH, None), (TAKEN, None), (TROUBLE, None)], 5),
        ([(TROUBLE, 10), *[(TROUBLE, 10)] * 4], 0),
        ([(TROUBLE, 10), *[(TROUBLE, 10)] * 5], 5),
        ([(TROUBLE, step) for step in (10, 20, 30, 40, 50, 60)], 0),
        ([*[(TROUBLE, None)] * 3, (ORDER, None), *[(TROUBLE, None)] * 2], 5),
        ([*[(TROUBLE, None)] * 4, (ORDER, 10), *[(TROUBLE, 10)] * 2], 0),
    ],
)
def test_attempts_of_any_verdict_count_from_the_newest_durable_step(
    ends: list[tuple[Judgement, int | None]], count: int
) -> None:
    decision = looked_at(life(*ends), limits={"failures": 100})

    assert decision.status.is_true(STALLED) == (count > 0)
    assert decision.status.phase in (Phase.RECOVERING, Phase.STARTING)
    condition = decision.status.condition(STALLED)
    assert count == 0 or (condition is not None and condition.message.startswith(f"{count} attempts in a row"))


@pytest.mark.parametrize(
    ("end", "stage", "spec", "advice"),
    [
        (TAKEN, Stage.TRAIN, {}, "set capacity.tiers to [OnDemand], or save more often with checkpoint.every"),
        (TAKEN, Stage.TRAIN, {"capacity": {"tiers": ["OnDemand"]}}, "save more often with checkpoint.every"),
        (TAKEN, Stage.PREPARE, {"workers": {"zones": ["a"]}}, "allow more zones in spec.workers"),
        (TAKEN, Stage.PREPARE, {"workers": {"instanceTypes": ["p5.48xlarge"]}}, "look at the log of the last attempt"),
        (HALF, Stage.TRAIN, {}, "raise limits.startTimeout"),
        (HALF, Stage.TRAIN, TWO, "train on fewer spec.workers.nodes, which come together sooner, or raise limits."),
        (HALF, Stage.PREPARE, TWO, "raise limits.startTimeout"),
        (
            DEAR,
            Stage.TRAIN,
            {"workers": {"instanceTypes": ["p5.48xlarge"]}},
            "raise capacity.maxPricePerHour, or allow ",
        ),
        (MEMORY, Stage.TRAIN, {}, "raise spec.workers.template.resources, or make the batch smaller"),
        (MEMORY, Stage.PREPARE, {}, "raise spec.stages.prepare.resources"),
    ],
)
def test_it_advises_only_what_the_stage_and_the_spec_have(
    end: Judgement, stage: Stage, spec: dict[str, Any], advice: str
) -> None:
    stages = {"prepare": {"command": ["prepare"]}}
    found = looked_at(life(*[(end, None)] * 6, stage=stage), stages=stages, limits={"failures": 100}, **spec).status

    condition = found.condition(STALLED)
    assert condition is not None
    assert f"; the last: {end.message}; {advice}" in condition.message


def test_it_says_what_was_seen_and_what_helps_in_one_event() -> None:
    stalled = looked_at(life((TAKEN, 10), *[(TAKEN, 10)] * 5))

    (event,) = [news for news in stalled.announcements if news.reason is Reason.NO_PROGRESS]
    assert event.message.startswith(
        "5 attempts in a row ended without a checkpoint newer than step 10; the last: ip-10"
    )
    assert event.message.endswith("; set capacity.tiers to [OnDemand], or save more often with checkpoint.every")
    again = decide(an_observed(status=stalled.status), now=later(1))
    assert Reason.NO_PROGRESS not in [news.reason for news in again.announcements]


def test_each_wait_is_longer_and_none_is_longer_than_an_hour() -> None:
    status, waits = RunStatus(), []
    for _ in range(14):
        status = life((TROUBLE, None), status=status)
        waits.append(looked_at(status).look_again_seconds)

    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600, 3600, 3600]


def test_152_seconds_of_trouble_or_a_day_of_it_end_no_run() -> None:
    """A kubelet that refuses pods, a device plugin that starts again, a network plugin that is away."""
    status, now = RunStatus(), NOW
    for _ in range(20):
        status = transitions.begin(status, (), Stage.TRAIN, now=now, timing=TIMING)
        status = transitions.end(status, TROUBLE, now=now, timing=TIMING)
        decision = decide(an_observed(status=status), now=now)
        status, now = decision.status, now + timedelta(seconds=decision.look_again_seconds or 0)

    assert now - NOW > timedelta(hours=10)
    assert status.phase is Phase.RECOVERING
    assert status.is_true(STALLED)


def in_flight(status: RunStatus, checkpoint: int) -> Decision:
    """The next attempt runs, and says which step is durable."""
    status = transitions.begin(status, (), Stage.TRAIN, now=later(1), timing=TIMING)
    status = transitions.change(status, state=AttemptState.RUNNING)
    assert status.current is not None
    seen = an_attempt(a_replica(), number=status.current.number)
    return decide(an_observed(seen, status=status, progress=a_progress(50, checkpoint=checkpoint)), now=later(2))


def test_a_newer_durable_step_ends_it_while_the_attempt_runs() -> None:
    stalled = looked_at(life((TROUBLE, 10), *[(TROUBLE, 10)] * 5)).status

    assert in_flight(stalled, 10).status.is_true(STALLED)
    assert not in_flight(stalled, 20).status.is_true(STALLED)


def held() -> RunStatus:
    stalled = looked_at(life(*[(TROUBLE, None)] * 6)).status
    return looked_at(stalled, now=NOW + timedelta(hours=24)).status


def test_after_the_limit_it_holds_and_says_how_to_go_on() -> None:
    stalled = looked_at(life(*[(TROUBLE, None)] * 6)).status

    before = looked_at(stalled, now=NOW + timedelta(hours=24, seconds=-1))
    after = looked_at(stalled, now=NOW + timedelta(hours=24))

    assert before.status.attempt == 7
    assert (after.status.phase, after.status.attempt, after.effects) == (Phase.SUSPENDED, 6, ())
    (event,) = after.announcements
    assert event.message.startswith("limits.stalled of 24h has passed: 6 attempts in a row")
    assert "to go on, raise limits.stalled, or annotate the run with piton.dev/retry" in event.message
    assert decide(an_observed(status=after.status), now=NOW + AGES).announcements == ()


def test_a_raised_limit_lets_it_go_on() -> None:
    assert looked_at(held(), now=NOW + AGES).status.attempt == 6
    assert looked_at(held(), now=NOW + AGES, limits={"stalled": "240h"}).status.attempt == 7


def test_a_user_who_suspends_and_resumes_it_starts_it_anew() -> None:
    suspended = looked_at(held(), now=NOW + AGES, suspend=True).status
    resumed = looked_at(suspended, now=NOW + AGES).status

    assert not suspended.is_true(STALLED)
    assert resumed.attempt == 7
    assert resumed.stage(Stage.TRAIN).fruitless_attempts == 0


def test_a_run_on_a_machine_without_a_cluster_fails_instead() -> None:
    status = life(*[(TROUBLE, None)] * 5)

    decision = decide(an_observed(status=status), now=NOW, timing=Timing(fails_when_stalled=True))

    assert decision.status.phase is Phase.FAILED
    assert decision.announcements[0].reason is Reason.NO_PROGRESS


RAN: dict[str, Any] = {"running_time": NOW, "formed_time": NOW}


@pytest.mark.parametrize(
    ("minutes", "record", "count"),
    [
        (59, RAN, 1),
        (61, RAN, 0),
        (61, {"trained_from": NOW}, 0),
        (180, {}, 1),
        (180, {"running_time": NOW, "trained_from": NOW}, 1),
        (180, {**RAN, "last_words_time": NOW}, 1),
        (61, {**RAN, "step": 5, "trained_time": NOW}, 0),
    ],
    ids=["short", "long", "nobody saw it run", "it never ran", "half a gang", "its last words have no step", "script"],
)
def test_a_program_that_never_says_how_far_it_is_came_far_in_more_than_an_hour(
    minutes: int, record: dict[str, Any], count: int
) -> None:
    begun = transitions.begin(RunStatus(), (), Stage.TRAIN, now=NOW, timing=TIMING)
    status = transitions.change(begun, billed_from=NOW, **record)

    ended = transitions.end(status, TROUBLE, now=NOW + timedelta(minutes=minutes), timing=TIMING)

    assert ended.stage(Stage.TRAIN).fruitless_attempts == count


def test_one_that_says_how_far_it_is_and_saves_nothing_did_not() -> None:
    begun = transitions.begin(RunStatus(), (), Stage.TRAIN, now=NOW, timing=TIMING)
    status = transitions.report(transitions.change(begun, billed_from=NOW, **RAN), a_progress(5), None, now=NOW)

    ended = transitions.end(status, TAKEN, now=NOW + timedelta(hours=2), timing=TIMING)

    assert ended.stage(Stage.TRAIN).fruitless_attempts == 1


def test_a_stage_has_its_own_count() -> None:
    prepared = life(*[(TROUBLE, None)] * 4, stage=Stage.PREPARE)
    done = Judgement(verdict=Verdict.FINISHED, reason=Reason.EXITED_ZERO, message="")

    status = life((done, None), stage=Stage.PREPARE, status=prepared)
    status = life((TROUBLE, None), status=status)

    assert not looked_at(status, stages={"prepare": {"command": ["make"]}}).status.is_true(STALLED)


def test_a_stage_beside_the_training_misses_its_end() -> None:
    status = life(*[(TROUBLE, None)] * 5, stage=Stage.PREPARE)

    condition = looked_at(status, stages={"prepare": {"command": ["make"]}}).status.condition(STALLED)

    assert condition is not None
    assert condition.message.startswith("5 attempts in a row ended without an end of the stage Prepare; the last: Pod")


def test_a_run_that_has_ended_is_not_stalled() -> None:
    stalled = looked_at(life(*[(TROUBLE, None)] * 5)).status
    failed = looked_at(life((CRASH, None), status=stalled), limits={"failures": 1})

    assert failed.status.phase is Phase.FAILED
    assert not failed.status.is_true(STALLED)
    assert observed_again(failed.status).status == failed.status


def observed_again(status: RunStatus) -> Decision:
    seen: Observed = an_observed(status=status, spec=a_spec(limits={"failures": 1}))
    return decide(seen, now=later(1))


def preempted_in(*zones: str | None, saved: int | None = None) -> RunStatus:
    """The status after as many preemptions, one in each of these zones; the last has saved that step."""
    status = RunStatus()
    for number, zone in enumerate(zones, start=1):
        status = transitions.change(transitions.begin(status, (), Stage.TRAIN, now=NOW, timing=TIMING), zone=zone)
        if saved is not None and number == len(zones):
            status = transitions.report(status, a_progress(saved + 5, checkpoint=saved), None, now=NOW)
        status = transitions.end(status, TAKEN, now=NOW, timing=TIMING)
    return status


def started_after(status: RunStatus) -> tuple[tuple[str, ...], str]:
    """Which zones the next attempt avoids, and what is said of it."""
    pending = transitions.begin(status, (), Stage.TRAIN, now=NOW, timing=TIMING)
    decision = decide(an_observed(status=pending), now=NOW)
    (effect,) = [found for found in decision.effects if isinstance(found, StartAttempt)]
    return effect.avoid_zones, decision.announcements[0].message


@pytest.mark.parametrize(
    ("status", "zones"),
    [
        (preempted_in("a"), ()),
        (preempted_in("a", "b"), ()),
        (preempted_in("a", "a"), ("a",)),
        (preempted_in("a", "b", "a", "b"), ("a", "b")),
        (preempted_in(None, None, None), ()),
        (preempted_in("a", "a", saved=10), ()),
    ],
)
def test_a_zone_in_which_attempts_lose_their_machines_and_save_nothing_is_avoided(
    status: RunStatus, zones: tuple[str, ...]
) -> None:
    avoided, message = started_after(status)

    assert avoided == zones
    said = f"outside {', '.join(zones)} if it can be, where attempts have lost their machines"
    assert (said in message) == bool(zones)


def short_in(*zones: str | None, no_room: bool | None = True) -> RunStatus:
    """The status after as many gangs that did not form within limits.startTimeout, one in each of these zones."""
    status = RunStatus()
    for zone in zones:
        status = transitions.begin(status, (), Stage.TRAIN, now=NOW, timing=TIMING)
        status = transitions.change(status, zone=zone, short_of_room=no_room)
        status = transitions.end(status, HALF, now=NOW, timing=TIMING)
    return status


def not_started(zone: str, reason: Reason, **fields: bool) -> RunStatus:
    """The status after an attempt in that zone that has not started."""
    status = transitions.begin(RunStatus(), (), Stage.TRAIN, now=NOW, timing=TIMING)
    judgement = Judgement(verdict=Verdict.INFRASTRUCTURE, reason=reason, message="it did not start")
    return transitions.end(transitions.change(status, zone=zone, **fields), judgement, now=NOW, timing=TIMING)


@pytest.mark.parametrize(
    ("status", "zones"),
    [
        (not_started("a", Reason.START_FAILED), ("a",)),
        (not_started("a", Reason.SANDBOX_FAILED), ("a",)),
        (not_started("a", Reason.GANG_INCOMPLETE, stuck_on_node=True), ("a",)),
        (not_started("a", Reason.GANG_INCOMPLETE), ()),
        (not_started("a", Reason.IMAGE_PULL_FAILED), ()),
        (life((TAKEN, 10), status=not_started("a", Reason.START_FAILED)), ()),
    ],
    ids=["a runtime", "a sandbox", "a silence", "a volume", "a registry", "a newer step is durable"],
)
def test_the_zone_of_a_node_that_starts_nothing_is_avoided(status: RunStatus, zones: tuple[str, ...]) -> None:
    assert started_after(status)[0] == zones


@pytest.mark.parametrize(
    ("status", "zones"),
    [
        (short_in("a"), ("a",)),
        (short_in("a", "b"), ("a", "b")),
        (short_in("a", no_room=None), ()),
        (short_in(None), ()),
        (life((TAKEN, 10), status=short_in("a")), ()),
    ],
    ids=["one", "two", "its peer had a machine", "no zone is named", "a newer step is durable"],
)
def test_a_zone_in_which_a_gang_finds_no_room_is_avoided_at_once(status: RunStatus, zones: tuple[str, ...]) -> None:
    avoided, message = started_after(status)

    assert avoided == zones
    assert (f"outside {', '.join(zones)} if it can be" in message) == bool(zones)


def test_the_zone_of_its_machines_is_written_down_and_stays() -> None:
    begun = transitions.begin(RunStatus(), (), Stage.TRAIN, now=NOW, timing=TIMING)
    placed = a_replica(zone="a", node="n1", placed_at=NOW)

    status = transitions.place(begun, an_attempt(placed), now=NOW)
    status = transitions.place(status, an_attempt(a_replica(node="n1", placed_at=NOW)), now=NOW)

    assert status.current is not None
    assert status.current.zone == "a"
