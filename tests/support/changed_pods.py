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
    unchanged = _created_pod(cluster, namespace)
    try:
        for thing in (policy, binding):
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(thing))
        wait_for(lambda: _created_pod(cluster, namespace) != unchanged, "the policy is in force", seconds=30)
        yield
    finally:
        for thing in (binding, policy):
            cluster.kubectl("delete", f"{thing['kind']}/starts-{namespace}", "--ignore-not-found")


def _created_pod(cluster: LiveCluster, namespace: str) -> Object:
    """Return the spec that the API server makes of a small pod; without a token, whose volume has a random name."""
    container: Object = {"name": "probe", "image": "none", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    spec = {
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "automountServiceAccountToken": False,
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace}, "spec": spec}
    created = cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))
    found: Object = json.loads(created)["spec"]
    return found
