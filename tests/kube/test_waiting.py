"""What a run that waits says on a cluster, how soon, and what finding it out costs."""

from datetime import timedelta
from typing import Any

import pytest
from kmock import action

from piton.api.conditions import WAITING
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.kube.warning_events import ASKED_MAX, with_unread_events
from piton.observed import ReplicaState
from support.apiserver import EVENTS, JOBS, PODS, RUNS, Body, refusal
from support.builders import a_manifest, a_replica, later
from support.cluster import Runs, Waits
from support.pilot import Pilot

MASTER, FIRST, SECOND, THIRD = "ragcun-1-master-0", *(f"ragcun-1-worker-{number}" for number in range(3))
NO_WEBHOOK = (
    'Internal error occurred: failed calling webhook "validator.kubeflow.org": failed to call webhook: Post'
    ' "https://training-operator.kubeflow.svc:443/validate": dial tcp 10.0.0.1:443: connect: connection refused'
)


def told(pilot: Pilot) -> list[tuple[str, str]]:
    """The Events of the run."""
    about = [e for e in pilot.server.all(EVENTS) if e["involvedObject"]["kind"] == "TrainingRun"]
    return [(event["type"], event["reason"]) for event in about]


def reason(pilot: Pilot) -> Reason | None:
    """What it waits for."""
    status = pilot.status()
    found = status.condition(WAITING)
    return found.reason if found and status.is_true(WAITING) else None


async def an_event(pilot: Pilot, why: str, message: str, *, pod_name: str = MASTER, **fields: Any) -> None:
    """An event about a pod of the attempt, as its component writes it."""
    pod = pilot.server.find(PODS, pod_name, "team")
    assert pod is not None
    meta = {"name": f"{pod['metadata']['name']}.{why}", "namespace": "team"}
    about = {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    time = pilot.clock.now().isoformat()
    times = {} if "eventTime" in fields else {"firstTimestamp": time, "lastTimestamp": time}
    body: Body = {"metadata": meta, "involvedObject": about, "reason": why, "message": message, **times, **fields}
    await pilot.server.put(EVENTS, body)


async def wait(pilot: Pilot, seconds: int) -> None:
    for _ in range(seconds // 10):
        await pilot.settle()
        pilot.advance(10)
    await pilot.settle()


async def a_waiting_run(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Waits(reason="ContainerCreating", message="")
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: "ContainerCreating" in str(pilot.server.all(PODS)))
    await pilot.settle()


async def test_a_webhook_that_does_not_answer_is_named_and_the_run_goes_on_when_it_does(pilot: Pilot) -> None:
    down = True
    pilot.server.refuse = lambda request: (
        refusal(500, "InternalError", NO_WEBHOOK)
        if down and request.resource == JOBS and request.method == "POST"
        else None
    )
    await pilot.cluster.apply(a_manifest())
    await pilot.settle()

    assert reason(pilot) is Reason.WEBHOOK_UNAVAILABLE
    assert told(pilot) == [("Warning", "WebhookUnavailable")]
    assert "training-operator.kubeflow.svc run" in str(pilot.status().condition(WAITING))
    down = False
    await pilot.until_phase(Phase.SUCCEEDED)
    assert not pilot.status().is_true(WAITING)


async def test_a_refusal_whose_text_varies_makes_no_hot_loop(pilot: Pilot) -> None:
    """Each write of the status wakes the run again."""
    number = 0

    def refuse(request: Any) -> Any:
        nonlocal number
        number += 1
        denied = f'admission webhook "policy" denied the request: request 7f{number}-0a1 at 12:00:{number}'
        creates = request.resource == JOBS and request.method == "POST"
        return refusal(403, "Forbidden", denied) if creates else None

    pilot.server.refuse = refuse
    await pilot.cluster.apply(a_manifest())
    await pilot.settle()
    written = pilot.count("PUT")["trainingruns"]
    for _ in range(10):
        await pilot.settle()

    assert pilot.count("PUT")["trainingruns"] == written
    assert told(pilot) == [("Warning", "PolicyDenied")]


async def test_a_deletion_that_is_refused_is_told(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    down = True
    pilot.server.refuse = lambda request: (
        refusal(500, "InternalError", NO_WEBHOOK)
        if down and request.resource == JOBS and request.method == "DELETE"
        else None
    )
    await pilot.client.request("DELETE", "/apis/piton.dev/v1alpha1/namespaces/team/trainingruns/ragcun")
    await pilot.settle()

    assert reason(pilot) is Reason.WEBHOOK_UNAVAILABLE
    assert ("Warning", "WebhookUnavailable") in told(pilot)
    down = False
    await pilot.until(lambda: pilot.run() is None)


EVENTS_OF_PODS = [
    ("FailedMount", 'MountVolume.SetUp failed: configmap "words" not found', Reason.VOLUME_MOUNTING),
    ("FailedAttachVolume", "Volume is already exclusively attached to one node", Reason.VOLUME_ATTACHING),
    ("FailedCreatePodSandBox", "Failed to create pod sandbox: no CNI", Reason.SANDBOX_FAILED),
    ("Pulling", 'Pulling image "trainer:1"', Reason.IMAGE_PULLING),
]


@pytest.mark.parametrize(("why", "message", "expected"), EVENTS_OF_PODS, ids=[case[0] for case in EVENTS_OF_PODS])
async def test_an_event_of_its_pod_is_told_within_5_s_although_it_wakes_nobody(
    pilot: Pilot, why: str, message: str, expected: Reason
) -> None:
    await a_waiting_run(pilot)
    await an_event(pilot, why, message)
    pilot.advance(5)
    await pilot.settle(resync=False)

    assert reason(pilot) is expected
    assert message in str(pilot.status().condition(WAITING))
    assert expected in [word for _, word in told(pilot)]
    assert pilot.status().phase is Phase.STARTING


async def test_times_of_the_newer_kind_of_event_are_read(pilot: Pilot) -> None:
    await a_waiting_run(pilot)
    await an_event(pilot, "FailedMount", "no such secret", eventTime=pilot.clock.now().isoformat(), lastTimestamp=None)
    pilot.advance(5)
    await an_event(pilot, "Pulling", 'Pulling image "a:1"', eventTime=pilot.clock.now().isoformat())
    await pilot.settle(resync=False)

    assert reason(pilot) is Reason.IMAGE_PULLING


@pytest.mark.parametrize("hours", [-24, -2, 0, 2, 24])
async def test_the_order_and_age_of_events_are_by_the_clock_of_the_control_plane(pilot: Pilot, hours: int) -> None:
    """The attach controller says that a volume is late. Then a kubelet whose clock is off pulls the image."""
    await a_waiting_run(pilot)
    await an_event(pilot, "FailedAttachVolume", "Multi-Attach error for volume pvc-1")
    pilot.advance(20)
    by_its_clock = (pilot.clock.now() + timedelta(hours=hours)).isoformat()
    await an_event(
        pilot, "Pulling", 'Pulling image "trainer:1"', firstTimestamp=by_its_clock, lastTimestamp=by_its_clock
    )
    pilot.advance(40)
    await pilot.settle(resync=False)

    waits = pilot.status().condition(WAITING)
    assert waits is not None
    assert waits.reason is Reason.IMAGE_PULLING
    assert "for more than 30s" in waits.message


KUBELET = {"source": {"component": "kubelet", "host": "node-of-ragcun-1-master-0"}}
KUBELET_OF = {"source": {"component": "kubelet"}}
NEWER_KUBELET = {"reportingComponent": "kubelet", "reportingInstance": "node-of-ragcun-1-master-0"}


@pytest.mark.parametrize(
    ("by", "is_told"),
    [
        (KUBELET, False),
        (NEWER_KUBELET, False),
        ({"source": {"component": "kubelet", "host": "another-node"}}, True),
        ({"source": {"component": "secret-syncer"}}, True),
        ({"reportingComponent": "example.com/secret-syncer", "reportingInstance": "secret-syncer-0"}, True),
        ({}, True),
    ],
)
async def test_what_another_controller_says_again_and_again_does_not_hide_that_the_kubelet_is_silent(
    pilot: Pilot, by: dict[str, Any], is_told: bool
) -> None:
    await a_waiting_run(pilot)
    for _ in range(10):
        await an_event(pilot, "Synced", "the secrets are there", type="Normal", **by)
        pilot.advance(30)
        await pilot.settle(resync=False)

    assert (reason(pilot) is Reason.KUBELET_SILENT) is is_told
    if not is_told:
        pilot.advance(120)
        await pilot.settle(resync=False)
        assert reason(pilot) is Reason.KUBELET_SILENT


async def a_waiting_gang(pilot: Pilot, fate: Waits, **spec: Any) -> None:
    """Four pods that got their nodes one after the other, and the master, whose name is the first, last."""
    pilot.cluster.script[1] = fate
    await pilot.cluster.apply(a_manifest(workers={"nodes": 4}, **spec))
    await pilot.until(lambda: str(pilot.server.all(PODS)).count(f"'{fate.reason}'") == 4)
    begun = pilot.clock.now()
    for number, name in enumerate((FIRST, SECOND, THIRD, MASTER)):
        pod = pilot.server.find(PODS, name, "team")
        assert pod is not None
        placed = {"type": "PodScheduled", "status": "True"}
        pod["status"]["conditions"] = [
            {**placed, "lastTransitionTime": (begun + timedelta(seconds=10 * number)).isoformat()}
        ]
        await pilot.server.put(PODS, pod)
    pilot.advance(30)
    await pilot.settle()


async def begins(pilot: Pilot, name: str) -> None:
    pod = pilot.server.find(PODS, name, "team")
    assert pod is not None
    pod["status"] |= {"phase": "Running", "startTime": pilot.clock.now().isoformat()}
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": pilot.clock.now().isoformat()}}
    await pilot.server.put(PODS, pod)


async def test_of_a_gang_a_kubelet_is_called_silent_only_after_the_events_of_its_pod_were_read(pilot: Pilot) -> None:
    await a_waiting_gang(pilot, Waits(reason="ContainerCreating", message=""))
    assert reason(pilot) is None
    pilot.advance(120)
    await pilot.settle(resync=False)
    assert reason(pilot) is Reason.KUBELET_SILENT
    assert f"{FIRST}: the kubelet of node-of-{FIRST} has not said" in str(pilot.status().condition(WAITING))

    for name in (FIRST, SECOND):
        await an_event(pilot, "Created", "Created container vault-agent", pod_name=name, type="Normal", **KUBELET_OF)
    pilot.advance(5)
    await pilot.settle()
    assert reason(pilot) is None, "nobody knows what is said of the others"

    await begins(pilot, FIRST)
    await begins(pilot, SECOND)
    pilot.advance(5)
    await pilot.settle()
    assert reason(pilot) is Reason.KUBELET_SILENT
    assert f"{THIRD}: the kubelet of node-of-{THIRD} has not said" in str(pilot.status().condition(WAITING))


async def test_of_a_gang_that_has_no_image_the_replica_is_told_whose_events_say_why(pilot: Pilot) -> None:
    """Kubelets before 1.32 say only in an Event why they cannot pull an image."""
    await a_waiting_gang(pilot, Waits())
    why = 'Failed to pull image "trainer:1": failed to resolve reference "docker.io/trainer:1": not found'
    for name in (FIRST, SECOND):
        await an_event(pilot, "Failed", why, pod_name=name, type="Warning", **KUBELET_OF)
    await wait(pilot, 600)

    ended = pilot.status().attempts[0]
    assert ended.reason is Reason.CANNOT_START
    assert f"{FIRST} on node-of-{FIRST} cannot start" in ended.message
    assert why in ended.message


async def test_of_a_gang_that_never_starts_the_node_is_named_of_a_pod_whose_events_were_read(pilot: Pilot) -> None:
    await a_waiting_gang(pilot, Waits(reason="ContainerCreating", message=""), limits={"startTimeout": "60s"})
    await wait(pilot, 60)

    assert pilot.status().attempts[0].reason is Reason.GANG_INCOMPLETE
    accused = [e["message"] for e in pilot.server.all(EVENTS) if e["message"].startswith("node ")]
    assert [message.partition(":")[0] for message in accused] == [f"node node-of-{FIRST} did not start {FIRST}"]


async def test_of_a_gang_that_comes_together_too_late_the_words_are_told_that_say_why(pilot: Pilot) -> None:
    await a_waiting_gang(pilot, Waits(reason="ContainerCreating", message=""), limits={"startTimeout": "60s"})
    await an_event(pilot, "FailedMount", "timed out", pod_name=SECOND, type="Warning", **KUBELET_OF)
    await wait(pilot, 60)

    assert pilot.status().attempts[0].reason is Reason.GANG_INCOMPLETE
    assert pilot.status().attempts[0].message.endswith(f": {SECOND}: FailedMount: timed out")


async def test_a_run_that_waits_for_the_same_thing_is_not_written_again(pilot: Pilot) -> None:
    await a_waiting_run(pilot)
    await an_event(pilot, "FailedMount", "no such secret")
    pilot.advance(5)
    await pilot.settle()
    written = len(pilot.server.writes)
    for _ in range(20):
        pilot.advance(30)
        await pilot.settle()

    assert len(pilot.server.writes) == written


@pytest.mark.parametrize("phase", [Phase.TRAINING, Phase.SUCCEEDED])
async def test_no_events_are_read_for_a_run_that_does_not_wait(pilot: Pilot, phase: Phase) -> None:
    if phase is Phase.TRAINING:
        pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(phase)
    await pilot.settle()
    asked = len(pilot.server.asked)
    for _ in range(3):
        pilot.advance(60)
        await pilot.settle()

    read = [r for r in pilot.server.asked[asked:] if r.resource == EVENTS and r.action is action.LIST]
    assert read == []


async def test_no_events_are_listed_for_a_run_that_waits_and_is_deleted(pilot: Pilot) -> None:
    """A live list of those about one pod costs the API server a look at every Event of the namespace, in etcd."""
    await a_waiting_run(pilot)
    pilot.server.asked.clear()
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.settle()

    listed = {r.resource for r in pilot.server.asked if r.action is action.LIST}
    assert PODS in listed, "what is to be deleted is read live"
    assert EVENTS not in listed


def test_the_events_of_a_large_gang_are_read_for_a_few_of_its_pods_only() -> None:
    unplaced = [a_replica(ReplicaState.WAITING, name=f"a{n}") for n in range(64)]
    placed = [a_replica(ReplicaState.WAITING, name=f"b{n}", node="n", placed_at=later(-n)) for n in range(64)]
    others = [
        a_replica(name="runs", node="n"),
        a_replica(ReplicaState.WAITING, name="says why itself", cannot_start=True),
        a_replica(ReplicaState.WAITING, name="leaves", deleting=True),
    ]

    asked = [replica.name for replica in with_unread_events([*others, *unplaced, *placed])]
    assert asked == ["a0", "a1", "b63", "b62"]
    assert len(asked) == 2 * ASKED_MAX


async def test_what_is_refused_is_not_tried_at_each_wake_up_and_counts_as_an_error(pilot: Pilot) -> None:
    """Words that vary without numbers are written each time, and each write of the status wakes the run."""
    words = iter("abcdefghijklmnopqrstuvwxyz")

    def refuse(request: Any) -> Any:
        if request.resource != JOBS or request.method != "POST":
            return None
        return refusal(403, "Forbidden", f'admission webhook "policy" denied the request: {next(words)}')

    pilot.server.refuse = refuse
    await pilot.cluster.apply(a_manifest())
    for _ in range(10):
        await pilot.settle()
    assert next(words) == "b"

    pilot.advance(4)
    for _ in range(10):
        await pilot.settle()
    assert next(words) == "d"
    errors = {"controller": "run", "fault": "api"}
    assert pilot.meter.registry.get_sample_value("piton_reconcile_errors_total", errors) == 2
