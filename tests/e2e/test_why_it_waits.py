"""What a run says while nothing happens: each of these is told within 5 s, with what helps, and is over when mended."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from support.live import LiveCluster, NewTraining, Object, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 20
PROMISE_SECONDS = 5
RESOLUTION_SECONDS = 1
"""Times of the API are whole seconds."""


def waiting(run: Training) -> Object:
    """The condition Waiting while it is True."""
    found = [c for c in run.status.get("conditions", []) if (c["type"], c["status"]) == ("Waiting", "True")]
    return found[0] if found else {}


def told(run: Training, reason: str) -> Object:
    """What the run waits for, once it says so, with the Event about it."""
    wait_for(lambda: waiting(run).get("reason") == reason, f"the reason {reason}", seconds=60, say=run.say)
    events = wait_for(lambda: events_about(run, "TrainingRun", reason), f"the Event {reason}", seconds=10, say=run.say)
    assert len(events) == 1
    return events[0]


def events_about(run: Training, kind: str, reason: str) -> list[Object]:
    """The Events about things of this kind."""
    about = f"involvedObject.kind%3D{kind},reason%3D{reason}"
    return run.cluster.items(f"/api/v1/namespaces/{run.namespace}/events?fieldSelector={about}")


def time_of(thing: Mapping[str, Any], *fields: str) -> datetime:
    """The first of these times that it has."""
    return datetime.fromisoformat(next(str(thing[field]) for field in fields if thing.get(field))).astimezone(UTC)


def seconds_after(event: Object, known: datetime) -> float:
    """How long after the cluster knew it the run has told it."""
    seconds = (time_of(event, "firstTimestamp") - known).total_seconds()
    print(f"{event['reason']} was told after {seconds:.0f} s: {event['message']}")
    return seconds


def in_time(event: Object, known: datetime) -> bool:
    """Whether the run told it soon enough."""
    return seconds_after(event, known) <= PROMISE_SECONDS + RESOLUTION_SECONDS


def applied(run: Training) -> datetime:
    """When the run was created."""
    path = f"/apis/piton.dev/v1alpha1/namespaces/{run.namespace}/trainingruns/{run.name}"
    found = run.cluster.get(path)
    assert found is not None
    return time_of(found["metadata"], "creationTimestamp")


def apply(cluster: LiveCluster, namespace: str, kind: str, name: str, version: str = "v1", **body: Any) -> None:
    """Apply an object."""
    manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **body}
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(manifest))


@contextmanager
def no_webhook(cluster: LiveCluster, namespace: str, *operations: str) -> Iterator[None]:
    """The jobs of this namespace want the word of a webhook whose service does not exist."""
    name = f"{namespace}.piton.test"
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "resources": ["pytorchjobs"]}
    webhook = {
        "name": name,
        "clientConfig": {"service": {"namespace": namespace, "name": "nobody", "path": "/"}},
        "rules": [{**rule, "operations": list(operations)}],
        "namespaceSelector": here,
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 3,
    }
    kind, version = "ValidatingWebhookConfiguration", "admissionregistration.k8s.io/v1"
    apply(cluster, namespace, kind, name, version, webhooks=[webhook])
    try:
        yield
    finally:
        cluster.kubectl("delete", kind, name)


def test_a_quota_is_named(cluster: LiveCluster, training: NewTraining, namespace: str) -> None:
    apply(cluster, namespace, "ResourceQuota", "none", spec={"hard": {"pods": "0"}})
    path = f"/api/v1/namespaces/{namespace}/resourcequotas/none"
    wait_for(lambda: (cluster.get(path) or {}).get("status"), "the quota is in force", seconds=60)
    run = training()
    run.apply(paced(STEPS, 0.0))

    event = told(run, "QuotaExceeded")
    assert "Raise the ResourceQuota none" in event["message"]
    (known,) = events_about(run, "PyTorchJob", "FailedCreatePod")
    assert in_time(event, time_of(known, "firstTimestamp", "eventTime"))
    cluster.kubectl("-n", namespace, "delete", "resourcequota", "none")
    run.wait_for_phase("Succeeded")


def test_pod_security_is_named(cluster: LiveCluster, training: NewTraining, namespace: str) -> None:
    level = "pod-security.kubernetes.io/enforce"
    cluster.kubectl("label", "namespace", namespace, f"{level}=restricted")
    run = training()
    run.apply(paced(STEPS, 0.0))

    event = told(run, "PodSecurity")
    assert 'enforces Pod Security "restricted"' in event["message"]
    (known,) = events_about(run, "PyTorchJob", "FailedCreatePod")
    assert in_time(event, time_of(known, "firstTimestamp", "eventTime"))
    cluster.kubectl("label", "namespace", namespace, f"{level}-")
    run.wait_for_phase("Succeeded")


def test_more_gpus_than_any_node_has_are_named(cluster: LiveCluster, training: NewTraining) -> None:
    run = training()
    run.apply(paced(STEPS, 0.0, gpus=64))

    event = told(run, "Unschedulable")
    assert "No node has enough nvidia.com/gpu free" in event["message"]
    scheduled = next(c for c in run.pods()[0]["status"]["conditions"] if c["type"] == "PodScheduled")
    assert in_time(event, time_of(scheduled, "lastTransitionTime"))
    head, line = cluster.kubectl("-n", run.namespace, "get", "trainingruns").splitlines()
    assert head.split()[:3] == ["NAME", "PHASE", "REASON"]
    assert line.split()[:3] == ["run", "Starting", "Unschedulable"]
    assert waiting(run)["message"] in cluster.kubectl("-n", run.namespace, "get", "trainingruns", "-o", "wide")


def test_an_image_that_does_not_exist_is_named_and_the_run_stops_in_seconds(training: NewTraining) -> None:
    run = training()
    spec = paced(STEPS, 0.0)
    run.apply({**spec, "trainer": {**spec["trainer"], "image": "localhost:1/nobody/knows:1"}})

    event = told(run, "ImagePullFailed")
    assert "localhost:1/nobody/knows:1" in event["message"]
    failed = events_about(run, "Pod", "Failed")
    assert in_time(event, min(time_of(found, "firstTimestamp", "eventTime") for found in failed))
    run.patch({"suspend": True})
    run.wait_for_phase("Suspended", seconds=90)


def test_a_secret_that_does_not_exist_is_named(cluster: LiveCluster, training: NewTraining, namespace: str) -> None:
    run = training()
    spec = paced(STEPS, 0.0)
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    run.apply({**spec, "trainer": {**spec["trainer"], "env": [token]}})

    event = told(run, "ContainerConfig")
    assert "Create the secret hub in this namespace" in event["message"]
    apply(cluster, namespace, "Secret", "hub", stringData={"token": "t"})
    run.wait_for_phase("Succeeded")


def test_a_claim_that_does_not_exist_is_named(cluster: LiveCluster, training: NewTraining, namespace: str) -> None:
    run = training()
    spec = paced(STEPS, 0.0)
    run.apply({**spec, "checkpoint": {**spec["checkpoint"], "volume": {"claimName": "mine"}}})

    event = told(run, "ClaimMissing")
    assert "there is no claim 'mine'" in event["message"]
    assert in_time(event, applied(run))
    resources = {"requests": {"storage": "1Gi"}}
    apply(
        cluster, namespace, "PersistentVolumeClaim", "mine",
        spec={"accessModes": ["ReadWriteMany"], "resources": resources},
    )  # fmt: skip
    run.wait_for_phase("Succeeded")


def test_a_webhook_that_does_not_answer_is_named(cluster: LiveCluster, training: NewTraining, namespace: str) -> None:
    run = training()
    with no_webhook(cluster, namespace, "CREATE"):
        run.apply(paced(STEPS, 0.0))
        event = told(run, "WebhookUnavailable")
        assert f"the service nobody.{namespace}.svc" in event["message"]
        assert in_time(event, applied(run))

    run.wait_for_phase("Succeeded")


def test_a_deletion_that_a_webhook_holds_up_says_so(
    cluster: LiveCluster, training: NewTraining, namespace: str
) -> None:
    run = training()
    run.apply(paced(10_000, 0.1, save_every=5))
    run.wait_for_commit(5)  # before that it imports torch, and does not hear a signal
    with no_webhook(cluster, namespace, "DELETE"):
        cluster.kubectl("-n", namespace, "delete", "trun", run.name, "--wait=false")
        told(run, "WebhookUnavailable")

    wait_for(lambda: not run.status, "the run to go", seconds=150, say=run.say)
