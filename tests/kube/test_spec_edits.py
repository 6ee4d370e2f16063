"""What a user asks for in the middle of a run, and after it: each change is answered, good or bad."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from piton.api.conditions import ACCEPTED, SPEC_PENDING, with_accepted
from piton.api.parse import parse
from piton.api.reasons import Reason
from piton.api.status import AttemptState, RunStatus
from piton.api.status_base import Phase
from piton.contract.termination import Outcome
from piton.core.decide import decide
from piton.observed import LeavingPod
from support.apiserver import CLAIMS, EVENTS, JOBS, NODES, PODS, RUNS, refusal
from support.builders import (
    NOW,
    a_manifest,
    a_record,
    a_replica,
    a_spec,
    a_status,
    an_attempt,
    an_observed,
    later,
    meta,
    problems_of,
)
from support.cluster import Disrupted, Ends, Runs
from support.pilot import Pilot

Change = Callable[[dict[str, Any]], object]
MINUTE = "spec.checkpoint.every.minute: unknown field; did you mean minutes?"


def typo(spec: dict[str, Any]) -> None:
    spec["checkpoint"]["every"] = {"minute": 15}


def run_of(pilot: Pilot) -> dict[str, Any]:
    run = pilot.run()
    assert run is not None
    return run


async def trains(pilot: Pilot, **spec: Any) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until_phase(Phase.TRAINING)


async def edit(pilot: Pilot, *changes: Change) -> None:
    """Write the run as a user does, and let the operator look at it once."""
    run = run_of(pilot)
    for change in changes:
        change(run["spec"])
    await pilot.server.put(RUNS, run)
    await pilot.settle()


async def wait(pilot: Pilot, seconds: int) -> None:
    for _ in range(seconds // 10):
        await pilot.turn(10)


def events(pilot: Pilot, reason: str) -> list[str]:
    return [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == reason]


def image(pilot: Pilot, attempt: int) -> str:
    job = pilot.server.find(JOBS, f"ragcun-{attempt}", "team")
    assert job is not None
    template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    return str(template["spec"]["containers"][0]["image"])


async def test_a_spec_that_is_refused_in_mid_run_is_answered_at_once_and_training_goes_on(pilot: Pilot) -> None:
    await trains(pilot)
    await edit(pilot, typo)
    status = pilot.status()
    accepted = status.condition(ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason, status.phase) == ("False", Reason.INVALID_SPEC, Phase.TRAINING)
    assert accepted.message.startswith(MINUTE)
    assert status.is_true("Training")
    assert status.observed_generation == run_of(pilot)["metadata"]["generation"]
    await wait(pilot, 600)
    assert len(events(pilot, "InvalidSpec")) == 1
    again = pilot.status().condition(ACCEPTED)
    assert again is not None
    assert again.last_transition_time == accepted.last_transition_time


async def test_until_it_is_mended_the_next_attempt_has_the_spec_that_was_accepted_last(pilot: Pilot) -> None:
    await trains(pilot)
    await edit(pilot, typo, lambda spec: spec["trainer"].update(image="trainer:2"))
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    assert image(pilot, 2) == "trainer:1"
    await edit(pilot, lambda spec: spec["checkpoint"].pop("every"))
    assert pilot.status().is_true(ACCEPTED)
    pilot.cluster.script |= {2: Disrupted(), 3: Ends()}
    await pilot.until_phase(Phase.SUCCEEDED)
    assert image(pilot, 3) == "trainer:2"


async def test_suspend_acts_beside_a_mistake(pilot: Pilot) -> None:
    await trains(pilot)
    await edit(pilot, typo, lambda spec: spec.update(suspend=True))
    await pilot.until_phase(Phase.SUSPENDED)
    await pilot.turn()
    assert not pilot.server.all(PODS)
    pilot.cluster.script[2] = Runs()
    await edit(pilot, lambda spec: spec.update(suspend=False))
    await pilot.until_phase(Phase.TRAINING)
    assert not pilot.status().is_true(ACCEPTED)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"deadline": "10m"}, Reason.DEADLINE_EXCEEDED), ({"budget": {"usd": "1"}}, Reason.BUDGET_EXCEEDED)],
)
async def test_a_deadline_and_a_budget_act_beside_a_mistake(
    pilot: Pilot, limits: dict[str, Any], reason: Reason
) -> None:
    pilot.cluster.price = "20"
    await trains(pilot, capacity={"maxPricePerHour": "20"})
    await edit(pilot, typo, lambda spec: spec.update(limits=limits))
    await wait(pilot, 1200)
    assert pilot.status().attempts[0].reason is reason
    assert not pilot.server.all(PODS)


STAYS = "the spec that was accepted before stays in effect"


@pytest.mark.parametrize(
    ("before", "written", "told"),
    [
        ({}, {}, STAYS),
        ({}, None, STAYS),
        ({}, {"suspend": True}, f"{STAYS}, but for the new suspend"),
        ({}, {"suspend": "true"}, f"{STAYS}; the new suspend does not act yet"),
        (
            {"limits": {"deadline": "1h"}, "suspend": False},
            {"limits": {"deadline": "2h"}, "suspend": True},
            f"{STAYS}, but for the new suspend and limits.deadline",
        ),
        ({"limits": {"deadline": "1h"}}, {}, f"{STAYS}, but for the new limits.deadline"),
        (
            {"limits": {"deadline": "1h"}},
            {"limits": {"deadline": "soon"}},
            f"{STAYS}; the new limits.deadline does not act yet",
        ),
        (
            {},
            {"capacity": {"maxPricePerHour": "12"}, "limits": {"budget": {"usd": "10"}, "deadline": "9h"}},
            f"{STAYS}, but for the new limits.deadline; the new limits.budget does not act yet",
        ),
        (
            {"capacity": {"maxPricePerHour": "12"}},
            {"limits": {"budget": {"usd": "10"}}},
            f"{STAYS}, but for the new limits.budget",
        ),
        (
            {"capacity": {"maxPricePerHour": "12"}, "limits": {"budget": {"usd": "10"}}},
            {"limits": {"budget": {"usd": "lots", "warnAt": 50}}},
            f"{STAYS}, but for the new limits.budget.warnAt; the new limits.budget.usd does not act yet",
        ),
    ],
)
def test_it_is_told_which_parts_act_beside_a_mistake_and_which_do_not(
    before: dict[str, Any], written: dict[str, Any] | None, told: str
) -> None:
    status = a_status(a_record()).to_wire()
    status["accepted"] = {"generation": 1, "spec": a_manifest(**before)["spec"]}
    mistake = {"trainer": {"image": "trainer:1", "recipe": "charlm", "comand": ["x"]}}
    spec = None if written is None else a_manifest(**written)["spec"] | mistake
    parsed = parse(a_manifest() | {"spec": spec, "status": status})
    assert parsed.problems
    assert parsed.meanwhile == told

    observed = an_observed(status=parsed.status, spec=parsed.spec)
    observed = replace(observed, problems=parsed.problems, meanwhile=parsed.meanwhile)
    condition = decide(observed, now=later(1)).status.condition(ACCEPTED)
    assert condition is not None
    assert condition.message.endswith(f"(until that is mended, {told})")


GOOD = {"usd": "250", "warnAt": 80, "onExceeded": "Pause"}


@pytest.mark.parametrize(
    ("written", "budget", "deadline", "suspend"),
    [
        ({}, None, None, False),  # what is not asked for any more is not in effect
        ({"limits": {"deadline": "24h", "budget": GOOD}}, GOOD, "24h", False),
        ({"limits": {"deadline": "soon", "budget": {"usd": "300"}}}, {**GOOD, "usd": "300"}, "24h", False),
        ({"limits": {"deadline": "48h", "budget": {"usd": 300}}}, GOOD, "48h", False),
        ({"limits": {"deadline": "4000d", "budget": {"usd": "0"}}}, GOOD, "24h", False),
        ({"limits": {"budget": {"usd": "lots", "warnAt": 50}}}, {**GOOD, "warnAt": 50}, None, False),
        ({"limits": "none", "suspend": True}, GOOD, "24h", True),
        ({"limits": {"deadline": "48h", "bugdet": {"usd": "1"}}, "suspend": "yes"}, None, "48h", False),
        (None, GOOD, "24h", False),
    ],
)
def test_each_part_that_acts_at_once_does_so_by_itself(
    written: Mapping[str, Any] | None, budget: dict[str, Any] | None, deadline: str | None, suspend: bool
) -> None:
    parts: dict[str, Any] = {"capacity": {"maxPricePerHour": "12"}, "limits": {"deadline": "24h", "budget": GOOD}}
    accepted = a_manifest(**parts)
    spec = written if written is None else {**accepted["spec"], "limits": {}, "typo": 1, **written}
    status = {"attempt": 1, "accepted": {"generation": 1, "spec": accepted["spec"]}}
    found = parse({**accepted, "spec": spec, "status": status})
    assert found.problems
    assert found.spec is not None
    in_effect = found.spec.limits.budget
    assert (in_effect.model_dump(by_alias=True) if in_effect else None) == budget
    assert (found.spec.limits.deadline, found.spec.suspend) == (deadline, suspend)


BELOW_ITS_REQUEST = {"resources": {"requests": {"cpu": "4"}, "limits": {"cpu": "2"}}}
WORKED_BEFORE: list[dict[str, Any]] = [
    {"limits": {"deadline": "5000d"}},
    {"limits": {"startTimeout": "0s"}},
    {"limits": {"startTimeout": "0h0m", "hangTimeout": "0s"}},
    {"workers": {"template": {"tolerations": [{"value": "b"}]}}},
    {"workers": {"template": BELOW_ITS_REQUEST}},
    {"stages": {"evaluate": BELOW_ITS_REQUEST}},
    {"stages": {"evaluate": {"nodeSelector": {"pool": "gpu pool"}}}},
    {"stages": {"evaluate": {"resources": {"requests": {"example.com/rdma": "1"}}}}},
    {"stages": {"evaluate": {"resources": {"limits": {"gpus": "1"}}}}},
    {"stages": {"evaluate": {"config": {"table": "x" * 210_000}}}},
    {"trainer": {"image": "trainer:1 ", "recipe": "charlm"}},
    {"workers": {"template": {"serviceAccountName": "a..b"}}},
    {"checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany", "ReadWriteOncePod"]}}},
    {"trainer": {"image": "trainer:1", "recipe": "charlm", "config": {"table": "é" * 95_000}}},
    {"checkpoint": {"volume": {"size": "1Gi"}, "every": {"minutes": None, "steps": 5}}},
    {"checkpoint": {"volume": {"size": "1Gi"}, "every": {"minutes": 5, "steps": None}}},
]


@pytest.mark.parametrize("every", [{"minutes": None, "steps": 5}, {"minutes": 5, "steps": None}])
async def test_a_run_that_has_begun_with_a_null_in_its_interval_goes_on(pilot: Pilot, every: dict[str, Any]) -> None:
    """The operator before has noted it as it was written, and the API server keeps a null there."""
    await trains(pilot)
    run = run_of(pilot)
    run["spec"]["checkpoint"]["every"] = every
    run["status"]["accepted"] = {"generation": run["metadata"]["generation"] + 1, "spec": run["spec"]}
    await pilot.server.put(RUNS, run)
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)

    assert pilot.status().is_true("Accepted")
    assert problems_of(checkpoint={"volume": {"size": "1Gi"}, "every": every}), "a new run is refused"


@pytest.mark.parametrize("parts", WORKED_BEFORE)
async def test_a_run_of_an_older_operator_keeps_what_worked_then(pilot: Pilot, parts: dict[str, Any]) -> None:
    """It has no accepted spec in its status, and something that is refused today."""
    assert problems_of(**parts), "a new run is refused"
    await trains(pilot)
    run = run_of(pilot)
    del run["status"]["accepted"]
    run["spec"] |= parts
    await pilot.server.put(RUNS, run)
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)


@pytest.mark.parametrize(
    "parts",
    [
        {"limits": {"deadline": "9999999d"}},
        {"limits": {"startTimeout": "99999999999999h"}},
        {"limits": {"hangTimeout": "99999999999999h"}},
        {"ttlAfterFinished": "9999999d"},
    ],
)
async def test_a_duration_beyond_all_bounds_blinds_nobody(pilot: Pilot, parts: dict[str, Any]) -> None:
    await trains(pilot)
    await edit(pilot, lambda spec: spec.update(parts))
    assert not pilot.status().is_true(ACCEPTED)
    node = pilot.server.find(NODES, "node-of-ragcun-1-master-0", None)
    assert node is not None
    node["spec"]["taints"] = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]
    await pilot.server.put(NODES, node)
    await wait(pilot, 120)
    assert pilot.status().preemptions == 1
    fresh = a_manifest("fresh", **parts)
    await pilot.cluster.apply(fresh)
    await wait(pilot, 20)
    found = pilot.server.find(RUNS, "fresh", "team")
    assert found is not None
    assert found["status"]["phase"] == "Refused"


async def test_a_run_whose_job_is_refused_is_answered_as_well(pilot: Pilot) -> None:
    def deny(request: Any) -> Any:
        if request.method == "POST" and "pytorchjobs" in str(request.url):
            return refusal(403, "Forbidden", "exceeded quota: gpus, requested: pods=1, used: pods=4, limited: pods=4")
        return None

    pilot.server.refuse = deny
    await pilot.cluster.apply(a_manifest())
    await wait(pilot, 30)
    assert pilot.status().is_true("Waiting")
    await edit(pilot, typo)
    await wait(pilot, 10)
    status = pilot.status()
    assert (status.observed_generation, status.is_true(ACCEPTED), status.is_true("Waiting")) == (2, False, True)
    await edit(pilot, lambda spec: spec["checkpoint"].pop("every"))
    await wait(pilot, 10)
    status = pilot.status()
    assert (status.observed_generation, status.is_true(ACCEPTED), status.is_true("Waiting")) == (3, True, True)


async def test_after_the_end_each_spec_is_still_answered(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    await edit(pilot, lambda spec: spec.update(ttlAfterFinished="30d"))
    run = run_of(pilot)
    assert run["status"]["observedGeneration"] == run["metadata"]["generation"] == 2
    await edit(pilot, typo)
    run = run_of(pilot)
    assert run["status"]["observedGeneration"] == run["metadata"]["generation"] == 3
    assert not pilot.status().is_true(ACCEPTED)
    assert pilot.status().phase is Phase.SUCCEEDED
    await edit(pilot, lambda spec: spec["checkpoint"].pop("every"))
    assert pilot.status().is_true(ACCEPTED)


async def test_an_edit_that_only_the_next_attempt_has_says_so(pilot: Pilot) -> None:
    await trains(pilot)
    await edit(pilot, lambda spec: spec["trainer"].update(image="trainer:2"))
    pending = pilot.status().condition(SPEC_PENDING)
    assert pending is not None
    assert pending.status == "True"
    assert pending.message.startswith("spec.trainer: changed since attempt 1 was started")
    await wait(pilot, 600)
    assert len(events(pilot, "SpecPending")) == 1
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    assert (image(pilot, 2), pilot.status().is_true(SPEC_PENDING)) == ("trainer:2", False)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(ttlAfterFinished="30d"),
        lambda spec: spec.update(limits={"deadline": "24h", "failures": 7}),
        lambda spec: spec.update(capacity={"maxPricePerHour": "12"}),
        lambda spec: spec["checkpoint"]["volume"].update(reclaim="Delete"),
        lambda spec: spec.update(stages={"evaluate": {}}),
        lambda spec: spec["checkpoint"].update(patience="60m"),
    ],
)
async def test_an_edit_that_acts_at_once_or_later_by_itself_waits_for_nothing(pilot: Pilot, change: Change) -> None:
    await trains(pilot)
    await edit(pilot, change)
    assert pilot.status().condition(SPEC_PENDING) is None
    assert pilot.status().observed_generation == 2


def test_an_edit_of_an_attempt_that_an_older_operator_has_started_is_compared_with_the_text_it_noted() -> None:
    noted = {"workers": "2aae847c", "checkpoint": "773a166d"}
    status = a_status(a_record(1, spec_digests=noted, spec_generation=1))
    resources = {"limits": {"memory": "1024Mi", "cpu": "1000m"}}
    volume = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    spec = a_spec(workers={"template": {"resources": resources}}, checkpoint={"volume": volume, "patience": "60m"})
    observed = an_observed(an_attempt(a_replica()), status=status, spec=spec, run=meta(generation=2))
    assert not decide(observed, now=later(10)).status.is_true(SPEC_PENDING)
    other = a_spec(workers={"template": {"resources": {}}}, checkpoint={"volume": volume, "patience": "60m"})
    pending = decide(replace(observed, spec=other), now=later(10)).status.condition(SPEC_PENDING)
    assert pending is not None
    assert pending.message.startswith("spec.workers: changed")


async def test_a_claim_that_is_smaller_than_asked_for_is_told_with_the_command(pilot: Pilot) -> None:
    """Also in the next attempt, which has the new spec and the old claim."""
    await trains(pilot)
    await edit(pilot, lambda spec: spec["checkpoint"]["volume"].update(size="500Gi"))
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    pending = pilot.status().condition(SPEC_PENDING)
    assert pending is not None
    assert "the claim ragcun-checkpoints has 1Gi" in pending.message
    assert "kubectl patch persistentvolumeclaim ragcun-checkpoints -n team" in pending.message
    claim = pilot.server.find(CLAIMS, "ragcun-checkpoints", "team")
    assert claim is not None
    claim["spec"]["resources"]["requests"]["storage"] = "500Gi"
    await pilot.server.put(CLAIMS, claim)
    await pilot.settle()
    assert not pilot.status().is_true(SPEC_PENDING)


async def test_a_spec_that_no_object_could_hold_is_refused_before_anything_is_made(pilot: Pilot) -> None:
    large = {"image": "trainer:1", "recipe": "charlm", "config": {"table": ["x" * 1000] * 210}}
    await pilot.cluster.apply(a_manifest(trainer=large))
    await wait(pilot, 20)
    accepted = pilot.status().condition(ACCEPTED)
    assert accepted is not None
    assert "spec.trainer.config: its 205 KiB are more than a pod can be told, 200 KiB" in accepted.message
    script = {"image": "trainer:1", "command": ["sh", "-c", *["x" * 32_000] * 20]}
    await pilot.cluster.apply(a_manifest("script", trainer=script))
    await wait(pilot, 20)
    found = pilot.server.find(RUNS, "script", "team")
    assert found is not None
    assert "KiB are more than a job can hold, 600 KiB" in str(found["status"]["conditions"])
    assert not pilot.server.all(CLAIMS)


async def test_an_edit_of_a_run_that_has_failed_says_how_it_comes_into_effect(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Ends(outcome=Outcome.BAD_CONFIG), 2: Ends()}
    await pilot.cluster.apply(a_manifest(limits={"failures": 1}))
    await pilot.until_phase(Phase.FAILED)
    assert not pilot.status().is_true(SPEC_PENDING)

    await edit(pilot, lambda spec: spec["trainer"].update(image="trainer:2"))
    await wait(pilot, 60)
    pending = pilot.status().condition(SPEC_PENDING)
    assert pending is not None
    assert (pending.status, pilot.status().phase) == ("True", Phase.FAILED)
    assert "kubectl annotate trainingrun ragcun -n team --overwrite piton.dev/retry=" in pending.message
    assert len(events(pilot, "SpecPending")) == 1

    run = run_of(pilot)
    run["metadata"]["annotations"] = {"piton.dev/retry": "1"}
    await pilot.server.put(RUNS, run)
    await pilot.until_phase(Phase.SUCCEEDED)
    assert not pilot.status().is_true(SPEC_PENDING)
    assert image(pilot, 2) == "trainer:2"


@pytest.mark.parametrize(
    ("limits", "accepted", "generation"),
    [({"stuckPods": "ForceDelete"}, "True", 3), ({"stuckPods": "Force"}, "False", 3), ({}, "True", 3)],
)
def test_an_edit_of_a_run_whose_deletion_is_held_up_is_answered(
    limits: dict[str, Any], accepted: str, generation: int
) -> None:
    status = a_status(a_record(1, AttemptState.STOPPING, running_time=NOW)).to_wire() | {"observedGeneration": 1}
    status["accepted"] = {"generation": 1, "spec": a_manifest()["spec"]}
    manifest = a_manifest(limits=limits)
    gone = {"generation": 3, "deletionTimestamp": NOW.isoformat(), "finalizers": ["piton.dev/finalizer"]}
    parsed = parse(manifest | {"metadata": manifest["metadata"] | gone, "status": status})
    pod = LeavingPod(name="a", uid="a", node="n1", leaves_by=NOW, unshared_claims=(), is_node_closed=True)
    seen = an_attempt(a_replica(node="n1", deleting=True), deleting=True, job=None, leaving=(pod,))
    observed = an_observed(seen, status=parsed.status, spec=parsed.spec, run=parsed.meta)
    observed = replace(observed, problems=parsed.problems, meanwhile=parsed.meanwhile)

    soon, late = (decide(observed, now=later(seconds)).status for seconds in (10, 300))

    assert soon.observed_generation == 1, "nothing holds it up: its deletion alone is not worth a write"
    found = late.condition(ACCEPTED)
    assert found is not None
    assert (found.status, late.observed_generation) == (accepted, generation)


def test_a_deletion_that_is_held_up_repeats_no_refusal_but_tells_a_new_one() -> None:
    told = "spec.x: bad (until that is mended, the spec that was accepted before stays in effect)"
    status = with_accepted(
        a_status(a_record(1, AttemptState.STOPPING, running_time=NOW)), RunStatus(), told, now=NOW, generation=2
    )
    pod = LeavingPod(name="a", uid="a", node="n1", leaves_by=NOW, unshared_claims=(), is_node_closed=True)
    seen = an_attempt(a_replica(node="n1", deleting=True), deleting=True, job=None, leaving=(pod,))
    run = meta().model_copy(update={"deleting": True, "generation": 3})
    for problem, is_told in (("spec.x: bad", False), ("spec.y: worse", True)):
        observed = replace(an_observed(seen, status=status, run=run), problems=(problem,))
        reasons = [news.reason for news in decide(observed, now=later(300)).announcements]
        assert (Reason.INVALID_SPEC in reasons) is is_told, problem


@pytest.mark.parametrize(
    ("before", "parts", "named", "deadline"),
    [
        ({"deadline": "5h"}, {"suspend": False}, "", "5h"),
        ({"budget": {"usd": "5"}}, {"limits": {"budget": {"usd": "5", "warnAt": 80}}}, "", None),
        ({"deadline": "5h"}, {"limits": {"deadline": "300m"}}, "", "300m"),
        ({"budget": {"usd": "5"}}, {"limits": {"budget": {"usd": "5.00"}}}, "", None),
        ({"deadline": "5h"}, {"limits": {"deadline": "6h"}}, ", but for the new limits.deadline", "6h"),
        ({"deadline": "5h"}, {"limits": {"deadline": "soon"}}, "; the new limits.deadline does not act yet", "5h"),
        ({"deadline": "5h", "budget": {"usd": "5"}}, {"limits": None}, "", "5h"),
        ({"deadline": "5h"}, {"limits": {}}, ", but for the new limits.deadline", None),
    ],
)
def test_a_mistake_leaves_the_old_limits_and_names_only_parts_whose_values_are_new(
    before: dict[str, Any], parts: dict[str, Any], named: str, deadline: str | None
) -> None:
    status = a_status(a_record(1)).to_wire()
    good = a_manifest(limits=before, capacity={"maxPricePerHour": "10"})
    status["accepted"] = {"generation": 1, "spec": good["spec"]}
    parsed = parse(good | {"spec": {**good["spec"], "workers": {"nodes": 0}, **parts}, "status": status})
    assert parsed.spec is not None
    assert parsed.spec.limits.deadline == deadline
    assert parsed.meanwhile == f"the spec that was accepted before stays in effect{named}"
    assert (parsed.spec.limits.budget is not None) is ("budget" in before)


DELETE = {"reclaim": "Delete"}


def the_claim(pilot: Pilot) -> dict[str, Any] | None:
    return pilot.server.find(CLAIMS, "ragcun-checkpoints", "team")


def with_volume(**volume: Any) -> Change:
    return lambda spec: spec["checkpoint"]["volume"].update(volume)


def named_by_the_user(spec: dict[str, Any]) -> None:
    spec["checkpoint"]["volume"] = {"claimName": "ragcun-checkpoints"}


KEEPING = [
    [[with_volume(reclaim="Retain")], [typo]],  # accepted, and then a mistake
    [[with_volume(reclaim="Retain"), typo]],
    [[lambda spec: spec["checkpoint"]["volume"].pop("reclaim"), typo]],
    [[with_volume(reclaim="Retian")]],
    [[lambda spec: spec.pop("checkpoint")]],
    [[lambda spec: spec.update(checkpoint={"volume": "none"})]],
    [[named_by_the_user]],
    [[named_by_the_user], [typo]],
]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("edits", KEEPING)
async def test_a_mistake_deletes_no_claim_that_either_spec_keeps(
    edits: list[list[Change]], ended: bool, pilot: Pilot
) -> None:
    manifest = a_manifest()
    manifest["spec"]["checkpoint"]["volume"] |= DELETE
    if not ended:
        pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(manifest)
    await pilot.until_phase(Phase.SUCCEEDED if ended else Phase.TRAINING)
    await wait(pilot, 30)
    for changes in edits:
        await edit(pilot, *changes)
        await wait(pilot, 30)
    await pilot.server.delete(RUNS, "ragcun", "team")
    await wait(pilot, 120)
    assert pilot.run() is None
    assert the_claim(pilot) is not None


async def test_a_claim_goes_where_both_specs_say_so(pilot: Pilot) -> None:
    manifest = a_manifest()
    manifest["spec"]["checkpoint"]["volume"] |= DELETE
    await pilot.cluster.apply(manifest)
    await pilot.until_phase(Phase.SUCCEEDED)
    await edit(pilot, typo)
    await wait(pilot, 30)
    accepted = pilot.status().condition(ACCEPTED)
    assert accepted is not None
    assert "until that is mended, nothing is deleted that this spec or the one before it keeps" in accepted.message
    await pilot.server.delete(RUNS, "ragcun", "team")
    await wait(pilot, 60)
    assert the_claim(pilot) is None


@pytest.mark.parametrize(
    ("edits", "lives"),
    [
        ([[lambda spec: spec.update(ttlAfterFinished="30d")], [typo]], 20 * 86_400),
        ([[lambda spec: spec.update(ttlAfterFinished="30d"), typo]], 20 * 86_400),
        ([[lambda spec: spec.pop("ttlAfterFinished"), typo]], 40 * 86_400),
        ([[lambda spec: spec.update(ttlAfterFinished="soon")]], 40 * 86_400),
        ([[lambda spec: spec.update(ttlAfterFinished="")]], 40 * 86_400),
        ([[lambda spec: spec.update(ttlAfterFinished="1m"), typo]], 3000),  # never sooner than was accepted
    ],
)
async def test_a_mistake_deletes_no_run_before_both_specs_say_so(
    edits: list[list[Change]], lives: int, pilot: Pilot
) -> None:
    await pilot.cluster.apply(a_manifest(ttlAfterFinished="1h"))
    await pilot.until_phase(Phase.SUCCEEDED)
    for changes in edits:
        await edit(pilot, *changes)
    for _ in range(10):
        await pilot.turn(lives // 10)
    assert pilot.run() is not None


async def test_a_spec_too_large_to_be_kept_twice_is_not_and_the_run_goes_on(pilot: Pilot) -> None:
    await trains(pilot)
    run = run_of(pilot)
    run["status"].pop("accepted", None)
    run["spec"]["trainer"] = {"image": "trainer:1", "command": ["sh", "-c", *["x" * 32_000] * 28]}
    await pilot.server.put(RUNS, run)
    await wait(pilot, 60)
    assert "accepted" not in run_of(pilot)["status"]
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"trainingTime": "1h"}, "spec.limits.trainingTime: changed since"),
        ({"trainingTime": "31h", "hangTimeout": "5m"}, "spec.limits.hangTimeout: changed since"),
        ({}, "spec.limits.trainingTime: changed since"),
    ],
)
async def test_limits_that_the_trainer_keeps_wait_for_the_next_attempt_and_say_so(
    limits: dict[str, Any], named: str, pilot: Pilot
) -> None:
    await trains(pilot, limits={"trainingTime": "31h"})
    await edit(pilot, lambda spec: spec.update(limits=limits))
    pending = pilot.status().condition(SPEC_PENDING)
    assert pending is not None
    assert named in pending.message


@pytest.mark.parametrize(
    ("volume", "told"),
    [
        ({"size": "500Mi"}, "has 1Gi, and no claim can get smaller; write 1Gi again"),
        ({"size": "1Gi", "storageClassName": "fast"}, "is of standard, and no claim can change its class"),
        ({"size": "500Gi"}, "has 1Gi, and Piton resizes no claim"),
        (
            {"size": "1Gi", "accessModes": ["ReadWriteOnce"]},
            "has [ReadWriteMany] and not ReadWriteOnce, and no claim can",
        ),
    ],
)
async def test_what_a_claim_will_never_have_is_not_promised(volume: dict[str, Any], told: str, pilot: Pilot) -> None:
    await trains(pilot)
    claim = the_claim(pilot)
    assert claim is not None
    claim["spec"]["storageClassName"] = "standard"
    await pilot.server.put(CLAIMS, claim)
    await edit(pilot, with_volume(**volume))
    pending = pilot.status().condition(SPEC_PENDING)
    assert pending is not None
    assert told in pending.message
    assert "in effect with the next" not in pending.message


async def test_modes_that_a_claim_does_not_have_are_named_also_to_the_nodes_that_need_them(pilot: Pilot) -> None:
    await trains(pilot, checkpoint={"volume": {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}})
    shared = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    await edit(pilot, with_volume(**shared), lambda spec: spec.update(workers={"nodes": 4}))
    pilot.cluster.script |= {1: Disrupted(), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)
    pending = pilot.status().condition(SPEC_PENDING)
    assert pending is not None
    told = "spec.checkpoint.volume.accessModes: the claim ragcun-checkpoints has [ReadWriteOnce] and not ReadWriteMany"
    assert pending.message.startswith(told)


async def enlarge(pilot: Pilot, size: str) -> None:
    claim = the_claim(pilot)
    assert claim is not None
    claim["spec"]["resources"]["requests"]["storage"] = size
    await pilot.server.put(CLAIMS, claim)
    await pilot.settle()


@pytest.mark.parametrize("change", [lambda spec: spec.update(suspend=False), lambda spec: spec.update(limits={})])
async def test_a_claim_that_was_enlarged_is_no_wish_for_a_smaller_one(pilot: Pilot, change: Change) -> None:
    """Neither at once nor after an edit of something else."""
    await trains(pilot)
    await enlarge(pilot, "5Gi")
    assert pilot.status().condition(SPEC_PENDING) is None
    await edit(pilot, change)
    assert not pilot.status().is_true(SPEC_PENDING)


async def test_a_wish_for_a_smaller_claim_is_answered_until_it_is_withdrawn(pilot: Pilot) -> None:
    await trains(pilot)
    await edit(pilot, with_volume(size="500Mi"))
    await wait(pilot, 60)
    await edit(pilot, lambda spec: spec.update(limits={"deadline": "24h"}))
    assert pilot.status().is_true(SPEC_PENDING)
    await edit(pilot, with_volume(size="1Gi"))
    assert not pilot.status().is_true(SPEC_PENDING)
