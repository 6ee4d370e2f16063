"""Nodes that Karpenter launches for runs and takes away from them: which it launches, and what becomes of the runs.

Pods on its nodes are played: nothing is trained in them. Only the first story boots a machine of the box for each node.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import Any

import pytest
import yaml

from hack.cluster import api, nodes
from hack.cluster.layout import KUBECONFIG, ZONES, Node
from hack.cluster.shell import run as command
from hack.install import chart, tools
from hack.neighbours import instance_types, karpenter, kwok
from piton.api.validation import ZONES_FOR_PREPARE
from support.launched import (
    TIER,
    ZONE,
    Pool,
    a_run,
    careless,
    create,
    documented,
    drain,
    events,
    labels_of,
    managed_node,
    names,
    play_to_its_end,
)
from support.live import DigestOf, LiveCluster, NewTraining, Object, Training, paced, wait_for
from support.live_operator import without_operator

pytestmark = [pytest.mark.neighbours, pytest.mark.timeout(900)]

PRICES = {"g5.48xlarge": {"Spot": "50.00", "OnDemand": "60.00"}}
"""What the operator is told; Karpenter's provider has it for less, so that without the cap it would be launched."""
HERE, THERE = ZONES
NewPool = Callable[..., Pool]


@pytest.fixture(scope="module")
def launching(cluster: LiveCluster) -> Iterator[None]:
    """Karpenter and kwok beside the box, until none of its nodes is left."""
    with chart.changed(KUBECONFIG, {"prices": PRICES}):
        try:
            kwok.start()
            karpenter.start()
            karpenter.create_node_class()
            yield
            wait_for(lambda: not api.call("GET", karpenter.CLAIMS)["items"], "no NodeClaim is left", seconds=180)
        finally:
            karpenter.stop()
            kwok.stop()


@pytest.fixture
def pool(launching: None) -> Iterator[NewPool]:
    """Makes NodePools; they go with the test."""
    with ExitStack() as stack:

        def new(published: Object | None = None, **fields: Any) -> Pool:
            made = create(published or careless(), **fields)
            stack.callback(karpenter.delete_pool, made.name)
            return made

        yield new


# --- with a machine behind the node ----------------------------------------------------------------------------------

STEPS = 2000
"""At ten steps a second: time for three machines to boot. Then the run hurries to its end."""
REAL = {kwok.REAL: "true"}


def test_pods_save_in_time_with_the_operator_and_on_the_documented_pool_without_it(
    cluster: LiveCluster, pool: NewPool, training: NewTraining, digest_of: DigestOf
) -> None:
    """Three machines, two of which Karpenter takes. The first NodePool gives pods that may stay no time at all."""
    undisturbed = digest_of(STEPS)  # while there are no nodes on which pods are only played
    first, run = pool(labels=REAL), training()
    numbers = iter((41, 42, 43))
    with ExitStack() as stack:
        run.apply(on_nodes(first, paced(STEPS, 0.1)))
        claim = boot(first, next(numbers), stack)
        run.wait_for_commit(20)
        # Not always 1: Kubernetes may evict a pod that it has placed the moment Karpenter took its first taint away.
        began = run.status
        number = began["attempt"]
        (warning,) = events(run.namespace, "NodePoolWarning")
        assert f"NodePool {first.name} has no terminationGracePeriod" in warning
        second = pool(documented(), labels=REAL)
        run.patch({"workers": {"template": {"nodeSelector": {karpenter.POOL_LABEL: second.name}}}})

        with watched(run, number, claim) as seen:
            karpenter.interrupt(claim["metadata"]["name"])
            wait_for(lambda: seen.tainted and seen.told, "the attempt is told to stop", seconds=60, say=run.say)
        assert seen.told - seen.tainted < 2.0
        claim = boot(second, next(numbers), stack)
        run.wait_for_node(number + 1)
        status = run.status
        assert (status["attempts"][number - 1]["verdict"], status["lost"]["steps"]) == ("Preempted", 0)

        run.wait_for_commit(max(run.commits()) + 10)
        with without_operator(cluster), watched(run, number + 1, claim) as seen:
            karpenter.interrupt(claim["metadata"]["name"])
            second.wait_until_gone(claim["metadata"]["name"])
        print(f"Karpenter told the pod to stop {seen.told - seen.tainted:.1f} s after the taint")
        assert seen.told - seen.tainted > 5, "110 s less the pods' 100 s, and Karpenter's back-off"
        run.hurry()
        boot(second, next(numbers), stack, but=(claim["metadata"]["name"],))
        status = run.wait_for_phase("Succeeded")

    assert (status["attempt"], status["preemptions"]) == (number + 2, began.get("preemptions", 0) + 2)
    assert (status["failures"], status["lost"]["steps"]) == (0, 0)
    assert status["result"]["weightsDigest"] == undisturbed


def on_nodes(pool: Pool, spec: Object) -> Object:
    spec["workers"]["template"]["nodeSelector"] = pool.selector
    return spec


def boot(pool: Pool, number: int, stack: ExitStack, *, but: tuple[str, ...] = ()) -> Object:
    """A machine for the node that the pool has launched."""
    claim = pool.wait_for_claim(but=but, seconds=120)
    node = Node(number=number, launched_as=claim["status"]["nodeName"])
    stack.callback(nodes.discard, node)
    nodes.start(node)
    nodes.wait_until_ready(node)
    return claim


class Seen:
    """When Karpenter's taint, and the pod's deletion, were first seen."""

    tainted = 0.0
    told = 0.0


@contextmanager
def watched(run: Training, attempt: int, claim: Object) -> Iterator[Seen]:
    """Look at the node and the attempt's pod all the time."""
    seen, done = Seen(), False
    node = f"/api/v1/nodes/{claim['status']['nodeName']}"
    (pod,) = run.pods(attempt)
    path = f"/api/v1/namespaces/{run.namespace}/pods/{pod['metadata']['name']}"

    def watch() -> None:
        while not done and not (seen.tainted and seen.told):
            taints = (run.cluster.get(node) or {}).get("spec", {}).get("taints", [])
            if not seen.tainted and any(taint["key"] == karpenter.DISRUPTED for taint in taints):
                seen.tainted = time.monotonic()
            found = run.cluster.get(path)
            if not seen.told and (found is None or "deletionTimestamp" in found["metadata"]):
                seen.told = time.monotonic()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done = True
        thread.join()


# --- what is launched ------------------------------------------------------------------------------------------------


def test_a_node_is_launched_that_fits_tier_zone_type_price_and_gpus(pool: NewPool, training: NewTraining) -> None:
    """Of the types that will do, g5.48xlarge is the cheapest for Karpenter; for Piton it is over the cap."""
    spot, bought = pool(), pool()
    types = ["p4d.24xlarge", "p5.48xlarge", "g5.48xlarge"]
    training("spot").apply(a_run(
        spot, workers={"instanceTypes": types, "zones": [THERE], "template": {"nodeSelector": spot.selector}},
        capacity={"tiers": ["Spot"], "maxPricePerHour": "12.00"},
    ))  # fmt: skip
    training("bought").apply(a_run(bought, gpus=4, capacity={"tiers": ["OnDemand"]}))

    assert labels_of(spot.wait_for_claim()) == ("p4d.24xlarge", THERE, "spot")
    kind, _, tier = labels_of(bought.wait_for_claim())
    assert (kind, tier) == ("g4dn.12xlarge", "on-demand")
    training("spot").wait_for_phase("Training", seconds=120)
    training("bought").wait_for_phase("Training", seconds=120)


def test_no_pod_of_ours_gets_the_cheaper_machines_that_its_image_is_not_for(
    pool: NewPool, training: NewTraining, namespace: str
) -> None:
    machines, run = pool(), training()
    machines.change_disruption(consolidateAfter="10m")  # what was launched is there in the end
    system = pool()
    stage = {"command": ["work"], "nodeSelector": machines.selector, "resources": {"requests": {"cpu": "1"}}}
    run.apply(a_run(machines, gpus=1, stages={"prepare": stage, "evaluate": stage}))
    an_operator_on(system, namespace)

    for attempt in (1, 2, 3):
        play_to_its_end(run, attempt)
    run.wait_for_phase("Succeeded", seconds=120)

    launched = {labels_of(claim)[0] for claim in [*machines.launched(), system.wait_for_claim()]}
    assert launched == {"m5.xlarge", "g4dn.xlarge"}


def an_operator_on(machines: Pool, namespace: str) -> None:
    """The operator's Deployment as the chart makes it, on the pool's nodes; what it mounts is not there."""
    said = command([tools.helm(), "template", "another", chart.CHART, "--namespace", namespace])
    (made,) = [found for found in yaml.safe_load_all(said) if found and found["kind"] == "Deployment"]
    pod = made["spec"]["template"]["spec"]
    pod["nodeSelector"] |= machines.selector
    del pod["serviceAccountName"], pod["volumes"]
    for container in pod["containers"]:
        del container["volumeMounts"]
    api.call("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", made)


def test_prepare_makes_a_zonal_volume_where_the_training_can_get_nodes(pool: NewPool, training: NewTraining) -> None:
    """CPU nodes are cheapest in the first zone; the workers' are in the second."""
    machines, run = pool(), training()
    stage = {"command": ["work"], "nodeSelector": machines.selector, "resources": {"requests": {"cpu": "1"}}}
    zonal = {"volume": {"size": "1Gi", "storageClassName": "zonal"}}
    workers = {"instanceTypes": ["p4d.24xlarge"], "template": {"nodeSelector": machines.selector}}
    spec = a_run(machines, workers=workers, stages={"prepare": stage}, checkpoint=zonal)

    with pytest.raises(AssertionError, match=re.escape(ZONES_FOR_PREPARE)):
        run.apply(spec)
    run.apply({**spec, "workers": {**workers, "zones": [THERE]}})
    assert labels_of(machines.wait_for_claim())[1] == THERE
    play_to_its_end(run, 1)
    run.wait_for_node(2, seconds=120)

    def kinds() -> set[tuple[str, str]]:
        return {(kind, zone) for kind, zone, _ in map(labels_of, machines.launched())}

    # Karpenter names the node in its claim only after the scheduler may use it.
    wait_for(
        lambda: ("p4d.24xlarge", THERE) in kinds(), "the workers' node in its claim", seconds=120, say=machines.say
    )
    assert {zone for _, zone in kinds()} == {THERE}


def test_the_nodes_of_an_attempt_are_of_one_zone_also_where_another_is_cheaper(
    pool: NewPool, training: NewTraining
) -> None:
    """One run has to have both of its nodes launched. The other finds one of its two there, in the dearer zone."""
    both, one = training("both"), training("one")
    two = {"nodes": 2, "instanceTypes": ["p4d.24xlarge"]}
    there = {"eks.amazonaws.com/nodegroup": one.namespace}
    first, second = pool(documented()), pool(documented(), labels=there)
    managed_node(one.namespace, one.namespace, zone=THERE)
    try:
        both.apply(a_run(first, workers={**two, "template": {"nodeSelector": first.selector}}))
        one.apply(a_run(second, workers={**two, "template": {"nodeSelector": there}}))

        zones_of_one, zones_of_both = zones_of(one), zones_of(both)
        assert (len(zones_of_one), set(zones_of_one.values())) == (2, {THERE}), zones_of_one
        assert one.namespace in zones_of_one
        assert (len(zones_of_both), len(set(zones_of_both.values()))) == (2, 1), zones_of_both
        one.delete()
    finally:
        api.delete(f"/api/v1/nodes/{one.namespace}")


def zones_of(run: Training) -> Object:
    """The nodes of the first attempt's two pods, when both have one, with their zones."""

    def found() -> Object | None:
        placed = {pod["spec"]["nodeName"] for pod in run.pods(1) if pod["spec"].get("nodeName")}
        if len(placed) < 2:
            return None
        return {name: api.call("GET", f"/api/v1/nodes/{name}")["metadata"]["labels"][ZONE] for name in placed}

    return wait_for(found, "two nodes", seconds=90, say=run.say)


def test_a_run_waits_for_capacity_that_is_nowhere_and_goes_where_there_is_some(
    pool: NewPool, training: NewTraining
) -> None:
    machines = pool()
    spec: Object = {"capacity": {"tiers": ["Spot"]}, "workers": {"template": {"nodeSelector": machines.selector}}}
    run, zone, tier = (training(name) for name in ("nowhere", "zone", "tier"))
    try:
        karpenter.delete_node_class()
        run.apply(a_run(machines, **spec))
        says_that_no_node_is_there(run)
        assert machines.claims() == []

        karpenter.start(instance_types.document(lambda o: o.zone == THERE or o.tier == instance_types.ON_DEMAND))
        karpenter.create_node_class()
        run.wait_for_phase("Training", seconds=120)
        assert {labels_of(claim)[1:] for claim in machines.launched()} == {(THERE, "spot")}

        karpenter.start(instance_types.document(lambda o: o.tier == instance_types.ON_DEMAND))
        zone.apply(a_run(machines, **{**spec, "capacity": {"tiers": ["OnDemand"]}}))
        tier.apply(a_run(machines, **spec))
        zone.wait_for_phase("Training", seconds=120)
        says_that_no_node_is_there(tier)
        assert tier.running() == []
    finally:
        karpenter.create_node_class()
        karpenter.start()

    status = tier.wait_for_phase("Training", seconds=120)
    assert (status["attempt"], status["failures"], status["preemptions"]) == (1, 0, 0)


def says_that_no_node_is_there(run: Training) -> None:
    said = wait_for(lambda: events(run.namespace, "Unschedulable", of=run.name), "its Event", seconds=120, say=run.say)
    assert "nodes are available" in said[0]


# --- what is taken away ----------------------------------------------------------------------------------------------


def trained_on(pool: Pool, run: Training, **parts: Any) -> Object:
    """The run is started and trains; the NodeClaim of its node."""
    run.apply(a_run(pool, **parts))
    run.wait_for_phase("Training", seconds=120)
    return pool.wait_for_claim()


def wait_until_moved(run: Training, *, seconds: float = 60) -> Object:
    """Until the second attempt trains; the first was preempted, and nobody is to blame."""
    run.wait_for_node(2, seconds=seconds)
    status = run.status
    assert (status["attempts"][0]["verdict"], status["failures"]) == ("Preempted", 0), run.say()
    return status


def test_an_interruption_is_a_preemption_and_training_goes_on_elsewhere(pool: NewPool, training: NewTraining) -> None:
    machines, run = pool(documented()), training()
    claim = trained_on(machines, run)

    karpenter.interrupt(claim["metadata"]["name"])

    assert wait_until_moved(run)["preemptions"] == 1
    machines.wait_until_gone(claim["metadata"]["name"])


def test_a_zone_in_which_a_run_loses_one_node_after_the_other_is_left(pool: NewPool, training: NewTraining) -> None:
    """It saves nothing on either, and nodes are cheapest there."""
    machines, run = pool(documented()), training()
    first = trained_on(machines, run)
    zone = labels_of(first)[1]
    karpenter.interrupt(first["metadata"]["name"])
    wait_until_moved(run)
    second = machines.wait_for_claim(but=(first["metadata"]["name"],))
    assert labels_of(second)[1] == zone
    run.wait_for_phase("Training")
    karpenter.interrupt(second["metadata"]["name"])

    run.wait_for_node(3, seconds=120)

    wait_for(lambda: run.status["attempts"][-1].get("zone"), "the zone of attempt 3", seconds=10, say=run.say)
    zones = [attempt["zone"] for attempt in run.status["attempts"]]
    assert zones[0] == zones[1] != zones[2]
    assert any(f"outside {zones[0]} if it can be" in told for told in events(run.namespace, "Starting"))


def test_an_expired_node_is_a_preemption_and_training_goes_on_elsewhere(pool: NewPool, training: NewTraining) -> None:
    machines, run = pool(documented(), expireAfter="12s"), training()
    trained_on(machines, run)

    assert wait_until_moved(run)["preemptions"] >= 1


def test_drift_waits_for_the_run_until_the_budget_of_the_documented_pool_is_lifted(
    pool: NewPool, training: NewTraining
) -> None:
    machines, run = pool(documented()), training()
    claim = trained_on(machines, run)["metadata"]["name"]

    machines.document["spec"]["template"]["metadata"] = {"labels": {"release": "2"}}
    machines.change()
    wait_for(lambda: "Drifted" in conditions_of(machines, claim), "the node has drifted", seconds=120, say=machines.say)
    wait_for(
        lambda: [told for told in events("default", "DisruptionBlocked", of=machines.name) if "Drifted" in told],
        "Karpenter would take the node, and its budget forbids it",
        seconds=120,
        say=machines.say,
    )
    assert (run.status["attempt"], run.phase) == (1, "Training"), run.say()
    machines.change_disruption(budgets=[{"nodes": "100%"}])

    assert wait_until_moved(run)["preemptions"] == 1
    assert conditions_of(machines, claim).get("Drifted", "True") == "True"


def conditions_of(pool: Pool, claim: str) -> dict[str, str]:
    found = next((c for c in pool.claims() if c["metadata"]["name"] == claim), {})
    return {c["type"]: c["status"] for c in found.get("status", {}).get("conditions", [])}


def test_consolidation_leaves_a_run_alone_and_takes_what_is_empty_or_could_be_had_for_less(
    pool: NewPool, training: NewTraining, namespace: str
) -> None:
    """Three nodes on demand, in a pool that may then have them on spot: the run's is the dearest, and it stays."""
    machines, run = pool(requirements=[{"key": TIER, "operator": "In", "values": ["on-demand"]}]), training()
    kept = trained_on(machines, run, gpus=1)["metadata"]["name"]
    for name in ("short", "long"):
        a_stranger(name, machines, namespace)
    wait_for(lambda: len(machines.launched()) == 3, "each has a node", seconds=120, say=machines.say)
    others = set(names(machines.claims())) - {kept}

    api.delete(f"/api/v1/namespaces/{namespace}/pods/short", grace_seconds=0)
    machines.change(requirements=[{"key": TIER, "operator": "In", "values": ["spot", "on-demand"]}])
    for claim in others:
        machines.wait_until_gone(claim, seconds=120)

    assert kept in names(machines.claims())
    assert (run.status["attempt"], run.phase) == (1, "Training"), run.say()


def a_stranger(name: str, pool: Pool, namespace: str) -> None:
    """A pod that is nobody's, and that nobody protects; it needs a node of its own."""
    resources = {"requests": {"cpu": "3"}}
    api.create(f"/api/v1/namespaces/{namespace}/pods", {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {**pool.selector, "node.kubernetes.io/instance-type": "m5.xlarge"},
            "containers": [{"name": "one", "image": "x", "resources": resources}],
        },
    })  # fmt: skip


def test_a_node_of_a_managed_group_that_is_drained_is_a_preemption(launching: None, training: NewTraining) -> None:
    """It has no NodePool, and says in EKS's own words that it is spot. Drained: cordoned, and its pods evicted."""
    run = training()
    group = run.namespace
    spare = {"eks.amazonaws.com/nodegroup": group}
    made = [f"{group}-1", f"{group}-2"]
    workers = {"instanceTypes": ["p4d.24xlarge"], "zones": [HERE], "template": {"nodeSelector": spare}}
    try:
        for name in made:
            managed_node(name, group)
        run.apply(a_run(Pool("none", {}), workers=workers, capacity={"tiers": ["Spot"]}))
        run.wait_for_phase("Training", seconds=120)  # a pod that is evicted before that is replaced in its attempt
        (first,) = {pod["spec"]["nodeName"] for pod in run.pods(1)}

        drain(first)
        wait_until_moved(run)
        second = run.node(2)
        assert {first, second} == set(made)

        api.patch(f"/api/v1/nodes/{first}", {"spec": {"unschedulable": False}})
        taint = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}
        api.patch(f"/api/v1/nodes/{second}", {"spec": {"taints": [taint]}})
        assert run.wait_for_node(3, seconds=120) == first
        assert run.status["preemptions"] == 2
    finally:
        for name in made:
            api.delete(f"/api/v1/nodes/{name}")
