"""Pods of one namespace that the API server changes, so that their kubelet meets what happens in other clusters."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from support.live import LiveCluster, Object, wait_for

API = "admissionregistration.k8s.io/v1"


@contextmanager
def changed_pods(cluster: LiveCluster, namespace: str, patch: str) -> Iterator[None]:
    """While it lasts, the API server changes each new pod of a run in this namespace."""
    named = {"apiVersion": API, "metadata": {"name": f"starts-{namespace}"}}
    policy = {
        **named,
        "kind": "MutatingAdmissionPolicy",
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ],
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }
    binding = {**named, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": f"starts-{namespace}"}}
    try:
        for thing in (policy, binding):
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(thing))
        wait_for(lambda: _is_in_force(cluster, namespace), "the policy is in force", seconds=30)
        yield
    finally:
        for thing in (binding, policy):
            cluster.kubectl("delete", f"{thing['kind']}/starts-{namespace}", "--ignore-not-found")


def _is_in_force(cluster: LiveCluster, namespace: str) -> bool:
    """True if a pod comes back from the API server changed."""
    container: Object = {"name": "probe", "image": "none", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    spec = {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace}, "spec": spec}
    created = cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(probe))
    found = json.loads(created)["spec"]
    first = found["containers"][0]
    is_added = len(found["containers"]) > 1 or "initContainers" in found or "hostAliases" in found
    is_changed = first["image"] != "none" or first["volumeMounts"][0].get("readOnly", False)
    return is_added or is_changed or any("hostPath" in volume for volume in found["volumes"])
