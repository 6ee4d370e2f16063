"""Two operators: one is killed in each phase of a preemption, and the other goes on; and a rollout without a gap.

PITON_LEADER_KILLS=50    kills so often, ten runs long
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from hack.cluster import api
from hack.install.chart import DEPLOYMENT, NAMESPACE
from support import audit
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for
from support.live_operator import Replicas, holder, two_replicas

KILLS = int(os.environ.get("PITON_LEADER_KILLS", "5"))
STEPS = 1000
"""At some six steps a second: time for five kills. Then the run hurries to its end."""
SAVE_EVERY = 10
SECONDS = {signal.SIGKILL: 20.0, signal.SIGTERM: 3.0}
"""Limits of a take-over."""

pytestmark = [pytest.mark.box, pytest.mark.timeout(600 + 120 * KILLS)]


@dataclass
class Preempted:
    """A run whose pods are evicted: a preemption without the loss of a node."""

    run: Training
    evictions: int = 0

    def starting(self) -> None:
        """Until its first pod is being created."""
        self._reach("Starting")

    def stopping(self) -> None:
        """Until a pod that is evicted is known to end."""
        self._train_on()
        self.evict()
        wait_for(lambda: self.run.phase != "Training", "the eviction is seen", seconds=90, say=self.run.say)

    def recovering(self) -> None:
        """Until the attempt is over; the next one follows at once."""
        self.stopping()
        wait_for(lambda: self.run.phase != "Stopping", "the attempt is over", seconds=60, say=self.run.say)

    def training(self) -> None:
        """Until it trains, and has saved something that is new."""
        self._train_on()

    def evict(self) -> None:
        """Have its pod evicted, as a drain does."""
        (pod,) = self.run.running()
        where = {"name": pod, "namespace": self.run.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": where}
        api.call("POST", f"/api/v1/namespaces/{self.run.namespace}/pods/{pod}/eviction", eviction)
        self.evictions += 1

    def _train_on(self) -> None:
        """Until the attempt after the last eviction trains. Before the new leader's first pass the status is old."""
        wait_for(
            lambda: self.run.status.get("attempt", 0) > self.evictions, "the next attempt", seconds=90, say=self.run.say
        )
        self._reach("Training")
        wait_for(lambda: len(self.run.running()) == 1, "a pod", seconds=60, say=self.run.say)
        self.run.wait_for_commit(max(self.run.commits(), default=0) + 1)

    def _reach(self, phase: str) -> None:
        wait_for(lambda: self.run.phase == phase, f"{self.run.name}: {phase}", seconds=90, say=self.run.say)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When the leader is killed, and what happens while nobody leads."""

    when: Callable[[Preempted], None]
    then: Callable[[Preempted], None] = lambda run: None
    name: str


MOMENTS = (
    Kill(name="Starting", when=Preempted.starting),
    Kill(name="Stopping", when=Preempted.stopping),
    Kill(name="Training", when=Preempted.training),
    Kill(name="evicted unseen", when=Preempted.training, then=Preempted.evict),
    Kill(name="Recovering", when=Preempted.recovering),
)


@pytest.fixture
def replicas(cluster: LiveCluster, digest_of: DigestOf) -> Iterator[Replicas]:
    digest_of(STEPS)  # trained before the operators of the chart go
    with two_replicas(cluster) as found:
        yield found


def test_whenever_the_leader_dies_the_other_goes_on(
    replicas: Replicas, training: NewTraining, namespace: str, digest_of: DigestOf
) -> None:
    kills = zip(itertools.cycle(MOMENTS), itertools.cycle((signal.SIGTERM, signal.SIGKILL)), range(KILLS), strict=False)
    for number, moments in itertools.groupby(kills, lambda kill: kill[2] // len(MOMENTS)):
        preempted = Preempted(training(f"run-{number}"))
        preempted.run.apply(paced(STEPS, 0.15, save_every=SAVE_EVERY))
        for moment, with_signal, _ in moments:
            moment.when(preempted)
            phase = preempted.run.phase
            seconds = replicas.take_over_seconds(with_signal, lambda: moment.then(preempted))  # noqa: B023 - called now
            print(f"{moment.name:16} ({phase}) {with_signal.name}: another leads after {seconds:.2f} s")
            assert seconds < SECONDS[with_signal]
        _ends_well(preempted, digest_of(STEPS))

    made = audit.creations(namespace)
    assert set(made["pytorchjobs"].values()) == {1}
    assert set(made["persistentvolumeclaims"].values()) == {1}
    assert set(made["pods"].values()) == {1}


def _ends_well(preempted: Preempted, digest: str) -> None:
    preempted.run.hurry()
    status = preempted.run.wait_for_phase("Succeeded")
    print("attempts, preemptions, failures, lost steps:", *_counts(status))
    assert _counts(status) == (preempted.evictions + 1, preempted.evictions, 0, 0)
    assert status["infrastructureFailures"] == 0
    assert status["result"]["weightsDigest"] == digest


def _counts(status: dict[str, Any]) -> tuple[int, int, int, int]:
    return status["attempt"], status["preemptions"], status["failures"], status["lost"]["steps"]


def test_a_rollout_hands_the_lease_and_the_reports_over(cluster: LiveCluster, training: NewTraining) -> None:
    run = training()
    run.apply(paced(6000, 0.1))
    run.wait_for_commit(10)
    before = holder(cluster)
    wait_for(lambda: _behind_the_service(cluster) == {before}, "the Service leads to the leader", seconds=60)

    cluster.kubectl("-n", NAMESPACE, "rollout", "restart", f"deployment/{DEPLOYMENT}")
    gap = _longest_without_a_leader(cluster, before)

    print(f"nobody led for {gap:.2f} s")
    assert gap < SECONDS[signal.SIGTERM]
    after = holder(cluster)
    wait_for(lambda: _behind_the_service(cluster) == {after}, "the Service leads to the leader", seconds=60)
    run.wait_for_progress(seconds=90)


def _longest_without_a_leader(cluster: LiveCluster, before: str) -> float:
    """Seconds, until all old pods are gone. The first standby to take over may be an old one itself."""
    longest, led_at = 0.0, time.monotonic()

    def done() -> bool:
        nonlocal longest, led_at
        if holder(cluster):
            longest, led_at = max(longest, time.monotonic() - led_at), time.monotonic()
        return _rolled_out(cluster) and holder(cluster) not in ("", before)

    wait_for(done, "the rollout", seconds=120)
    return longest


def _rolled_out(cluster: LiveCluster) -> bool:
    found = cluster.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{DEPLOYMENT}") or {}
    status, wanted = found["status"], found["spec"]["replicas"]
    up_to_date = found["metadata"]["generation"] == status.get("observedGeneration")
    counts = [status.get(name) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return up_to_date and counts == [wanted] * 3


def _behind_the_service(cluster: LiveCluster) -> set[str]:
    """The pods that get the reports."""
    selector = f"kubernetes.io%2Fservice-name%3D{DEPLOYMENT}"
    slices = cluster.items(f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?labelSelector={selector}")
    endpoints = [endpoint for found in slices for endpoint in found.get("endpoints") or []]
    return {endpoint["targetRef"]["name"] for endpoint in endpoints if endpoint["conditions"].get("ready")}
