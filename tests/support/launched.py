"""Nodes that Karpenter launches in tests: the NodePools, and the ways to look at what it does."""

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import api
from hack.neighbours import karpenter, kwok
from support.live import TRAINER, Training, wait_for

Object = dict[str, Any]
ZONE, TYPE, TIER = "topology.kubernetes.io/zone", "node.kubernetes.io/instance-type", "karpenter.sh/capacity-type"
_DOCS = Path(__file__).parents[2] / "docs" / "karpenter.md"


def documented() -> Object:
    """The NodePool that the documentation recommends, as it is written there."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", _DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in map(yaml.safe_load, blocks) if block.get("kind") == "NodePool"]
    return dict(found)


def careless() -> Object:
    """A NodePool of any machine, which is free to replace it for a cheaper one, with no time for pods that may stay."""
    wanted = [{"key": TIER, "operator": "In", "values": ["spot", "on-demand"]}]
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "spec": {
            "template": {"spec": {"requirements": wanted, "expireAfter": "Never"}},
            "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "0s"},
        },
    }


@dataclass(frozen=True)
class Pool:
    """A NodePool of the test's own."""

    name: str
    document: Object

    @property
    def selector(self) -> dict[str, str]:
        """What a pod selects to be on its nodes, and on no others of the box."""
        return {karpenter.POOL_LABEL: self.name}

    def claims(self) -> list[Object]:
        """Its NodeClaims."""
        return karpenter.claims(self.name)

    def launched(self) -> list[Object]:
        """Those that have a node."""
        return [claim for claim in self.claims() if claim.get("status", {}).get("nodeName")]

    def change(self, **template: Any) -> None:
        """Change fields of the template's spec."""
        self.document["spec"]["template"]["spec"].update(template)
        karpenter.create_pool(self.document)

    def change_disruption(self, **fields: Any) -> None:
        """Change when it may take nodes away."""
        self.document["spec"]["disruption"].update(fields)
        karpenter.create_pool(self.document)

    def wait_for_claim(self, *, but: tuple[str, ...] = (), seconds: float = 120) -> Object:
        """Until it has a NodeClaim with a node, other than these."""

        def found() -> Object | None:
            return next((c for c in self.launched() if c["metadata"]["name"] not in but), None)

        return wait_for(found, f"a node of {self.name}", seconds=seconds, say=self.say)

    def wait_until_gone(self, claim: str, *, seconds: float = 120) -> None:
        """Until that NodeClaim is gone."""
        wait_for(lambda: claim not in names(self.claims()), f"{claim} is gone", seconds=seconds, say=self.say)

    def say(self) -> str:
        """All that may tell why it is not as it should be."""
        return yaml.safe_dump([{c["metadata"]["name"]: c.get("status")} for c in self.claims()])


def create(published: Object, *, labels: Mapping[str, str] | None = None, **template: Any) -> Pool:
    """Make a NodePool, with these labels on its nodes and these fields in its template's spec."""
    name = f"pool-{secrets.token_hex(3)}"
    document: Object = json.loads(json.dumps(karpenter.pool(name, published)))
    document["spec"]["template"]["spec"].update(template)
    if labels:
        document["spec"]["template"]["metadata"] = {"labels": dict(labels)}
    karpenter.create_pool(document)
    return Pool(name, document)


def names(objects: list[Object]) -> list[str]:
    """Their names."""
    return [found["metadata"]["name"] for found in objects]


def labels_of(claim: Object) -> tuple[str, str, str]:
    """Instance type, zone and tier of what was launched."""
    labels = api.call("GET", f"/api/v1/nodes/{claim['status']['nodeName']}")["metadata"]["labels"]
    return labels[TYPE], labels[ZONE], labels[TIER]


def a_run(pool: Pool, *, gpus: int = 8, **parts: Any) -> Object:
    """A run whose pods are played on the pool's nodes: they run for ever and save nothing."""
    workers = {"gpusPerNode": gpus, "template": {"nodeSelector": pool.selector}, **parts.pop("workers", {})}
    return {
        "trainer": {"image": TRAINER, "command": ["train"]},
        "workers": workers,
        "checkpoint": {
            "volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"], "reclaim": "Delete"},
            "every": {"minutes": 5},
        },
        **parts,
    }


def play_to_its_end(run: Training, attempt: int) -> None:
    """The attempt's only pod exits with 0, as no kubelet will tell."""
    pod = wait_for(lambda: next(iter(run.pods(attempt)), None), f"a pod of attempt {attempt}", seconds=120, say=run.say)
    wait_for(lambda: run.node(attempt), f"attempt {attempt}", seconds=120, say=run.say)
    name = pod["metadata"]["name"]
    over = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ")}}
    containers = [{"name": c["name"], "image": c["image"], "imageID": "", "ready": False, "restartCount": 0,
                   "state": over} for c in pod["spec"]["containers"]]  # fmt: skip
    api.patch(
        f"/api/v1/namespaces/{run.namespace}/pods/{name}/status",
        {"status": {"phase": "Succeeded", "containerStatuses": containers}},
    )


def events(namespace: str, reason: str, *, of: str | None = None) -> list[str]:
    """Messages of the events with that reason, of all objects or of those with that name."""
    selector = f"reason%3D{reason}" + (f",involvedObject.name%3D{of}" if of else "")
    found = api.call("GET", f"/api/v1/namespaces/{namespace}/events?fieldSelector={selector}")["items"]
    return [event["message"] for event in found]


def drain(node: str) -> None:
    """As a managed node group goes: cordoned, then every pod of it evicted."""
    api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
    for pod in api.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]:
        meta = {key: pod["metadata"][key] for key in ("name", "namespace")}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
        api.call("POST", f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction", eviction)


def managed_node(name: str, group: str, zone: str = "us-east-1a") -> None:
    """A spot p4d of a managed node group on EKS, played."""
    labels = {
        "eks.amazonaws.com/nodegroup": group,
        "eks.amazonaws.com/capacityType": "SPOT",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        TYPE: "p4d.24xlarge",
        ZONE: zone,
    }
    resources = {"cpu": "96", "memory": "1152Gi", "pods": "110", "nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "4"}
    api.create("/api/v1/nodes", kwok.node(name, labels=labels, resources=resources))
