"""The chart as helm renders it: what it grants, what it refuses, what it carries."""

import json
import subprocess
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.install import tools
from hack.install.chart import CHART, NAMESPACE, RELEASE
from piton.api.spec import Tier
from piton.contract import names
from piton.kube.cache import watched_kinds
from piton.kube.settings import PitonSettings

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tools.helm()), *words], capture_output=True, text=True)


@cache
def rendered(*values: str) -> list[Object]:
    """Every object of the chart with these values."""
    sets = [word for value in values for word in ("--set", value)]
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *sets)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def of_kind(kind: str, *values: str) -> list[Object]:
    return [found for found in rendered(*values) if found["kind"] == kind]


def granted(*values: str) -> set[tuple[str, str]]:
    """Every (resource, verb) that the operator's roles allow."""
    rules = [rule for role in of_kind("ClusterRole", *values) for rule in role["rules"]]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def environment(*values: str) -> dict[str, str]:
    """The operator's variables; what the kubelet fills in from a field is the field's path."""
    (container,) = of_kind("Deployment", *values)[0]["spec"]["template"]["spec"]["containers"]
    return {
        v["name"]: v["value"] if "value" in v else v["valueFrom"]["fieldRef"]["fieldPath"] for v in container["env"]
    }


def test_helm_finds_nothing_to_complain_about() -> None:
    done = helm("lint", "--strict", str(CHART))

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("engine=docker", "engine"),
        ("bundled=true", "bundled"),
        ("operator.worker=3", "worker"),
        ("operator.workers=0", "workers"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("namespaces[0]=Not A Name", "namespaces"),
        ("deviceFaults.taintHours=0", "taintHours"),
        ("prices.p4d.Spot=12", "prices"),
        ("prices.p4d.Cheap=1", "Cheap"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, word: str) -> None:
    done = helm("template", RELEASE, str(CHART), "--set", value)

    assert done.returncode != 0
    assert word in done.stderr


def test_every_default_is_allowed_by_the_schema_and_nothing_else() -> None:
    """Each key of values.yaml is in the schema, and each of the schema's in values.yaml, where people look."""

    def keys(tree: Any, path: str = "") -> set[str]:
        if not isinstance(tree, dict) or not tree:
            return {path}
        return {key for name, below in tree.items() for key in keys(below, f"{path}.{name}")}

    def allowed(schema: Object, path: str = "") -> set[str]:
        if "properties" not in schema:
            return {path}
        return {key for name, below in schema["properties"].items() for key in allowed(below, f"{path}.{name}")}

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    free = ".operator.resources"
    wanted = {key for key in allowed(schema) if not key.startswith(free)} - {".global"}
    assert {key for key in keys(values) if not key.startswith(free)} == wanted


def test_the_operator_gets_no_secrets_no_wildcards_and_no_exec() -> None:
    for engine in ("bundled", "kubeflow"):
        for resource, verb in granted(f"engine={engine}"):
            assert "*" not in (resource, verb)
            assert resource not in {"secrets", "configmaps", "pods/exec", "pods/attach", "serviceaccounts/token"}
    bindings = of_kind("ClusterRoleBinding")
    assert {b["roleRef"]["name"] for b in bindings} == {r["metadata"]["name"] for r in of_kind("ClusterRole")}


def test_only_the_bundled_engine_may_create_pods() -> None:
    assert ("pods", "create") in granted("engine=bundled")
    assert ("pods", "create") not in granted("engine=kubeflow")
    assert not {resource for resource, _ in granted("engine=kubeflow")} & {"services", "pytorchjobs/status"}


def test_nodes_are_written_to_only_where_they_may_be_tainted() -> None:
    assert ("nodes", "patch") not in granted()
    assert ("nodes", "patch") in granted("deviceFaults.taintNodes=true")


@pytest.mark.parametrize(("tainted", "seconds"), [("false", None), ("true", 43_200)])
def test_the_operator_taints_nodes_for_as_long_as_the_chart_says(tainted: str, seconds: float | None) -> None:
    values = (f"deviceFaults.taintNodes={tainted}", "deviceFaults.taintHours=12")
    settings = PitonSettings.from_env(environment(*values))
    assert settings.timing.device_taint_seconds == seconds


def test_of_karpenter_the_operator_may_read_node_pools_and_nothing_else() -> None:
    rules = [rule for role in of_kind("ClusterRole") for rule in role["rules"] if rule["apiGroups"] == ["karpenter.sh"]]
    assert [(rule["resources"], rule["verbs"]) for rule in rules] == [(["nodepools"], ["get"])]


@pytest.mark.parametrize("engine", ["bundled", "kubeflow"])
def test_whatever_the_operator_watches_it_may_list_and_watch_and_quotas_are_never_changed(engine: str) -> None:
    found = granted(f"engine={engine}")
    watched = {kind.resource.plural for kind in watched_kinds(engine=engine == "bundled")}
    assert {(plural, verb) for plural in watched for verb in ("get", "list", "watch")} <= found
    assert {verb for plural, verb in found if plural == "resourcequotas"} == {"get", "list", "watch"}


def test_with_namespaces_named_the_rights_end_there() -> None:
    values = ("namespaces[0]=team-a", "namespaces[1]=team-b")

    everywhere = {binding["roleRef"]["name"] for binding in of_kind("ClusterRoleBinding", *values)}

    roles = {role["metadata"]["name"]: role for role in of_kind("ClusterRole", *values)}
    resources = {r for name in everywhere for rule in roles[name]["rules"] for r in rule["resources"]}
    assert resources == {"nodepools", "nodes", "resourceflavors", "tokenreviews", "workloadpriorityclasses"}
    assert {b["metadata"]["namespace"] for b in of_kind("RoleBinding", *values)} == {"team-a", "team-b", NAMESPACE}


def test_in_its_own_namespace_the_operator_may_lead_and_nothing_else() -> None:
    (role,) = of_kind("Role")
    rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert rights == {("leases", "create"), ("leases", "get"), ("leases", "patch"), ("pods", "list"), ("pods", "patch")}
    assert role["metadata"]["namespace"] == NAMESPACE
    (named,) = (rule for rule in role["rules"] if rule["verbs"] == ["get", "patch"])
    assert named["resourceNames"] == [environment()["PITON_OPERATOR_LEASE"]]


def test_two_operators_are_apart_and_one_is_always_there() -> None:
    (deployment,) = of_kind("Deployment")
    spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    keys = [term["podAffinityTerm"]["topologyKey"] for term in _apart(pod)]
    assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    (budget,) = of_kind("PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert not of_kind("PodDisruptionBudget", "operator.replicas=1")


def _apart(pod: Object) -> list[Object]:
    found: list[Object] = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    return found


def test_an_operator_leaves_a_node_that_is_silent_after_30_s() -> None:
    (deployment,) = of_kind("Deployment", "operator.replicas=1", "operator.tolerations[0].key=mine")
    tolerations = deployment["spec"]["template"]["spec"]["tolerations"]
    silent = {t["key"]: t["tolerationSeconds"] for t in tolerations if "tolerationSeconds" in t}
    assert silent == {"node.kubernetes.io/unreachable": 30, "node.kubernetes.io/not-ready": 30}
    assert "mine" in {t["key"] for t in tolerations}


def test_reports_go_to_the_operator_that_works() -> None:
    (service,) = of_kind("Service")
    assert service["spec"]["selector"][names.LABEL_LEADER] == environment()["PITON_OPERATOR_LEASE"]


def test_the_operator_gets_no_node_that_its_image_is_not_for() -> None:
    """Karpenter takes the cheapest machine that will do, and those of arm64 are cheaper than others of their size."""

    def selector(*values: str) -> Any:
        return of_kind("Deployment", *values)[0]["spec"]["template"]["spec"]["nodeSelector"]

    ours = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    assert selector() == ours
    assert selector("operator.nodeSelector.pool=system") == {**ours, "pool": "system"}
    assert selector(r"operator.nodeSelector.kubernetes\.io/arch=arm64") == {**ours, "kubernetes.io/arch": "arm64"}


def test_the_pod_is_as_restricted_as_a_pod_can_be() -> None:
    """Pod Security Standard `restricted`, and a root file system that nobody writes to."""
    pod = of_kind("Deployment")[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_operator_understands_its_environment() -> None:
    """What the chart sets are variables that the operator reads, with values that it accepts."""
    values = (
        "engine=kubeflow",
        "namespaces[0]=a",
        r"prices.p4d\.24xlarge.Spot=12.50",
        "prices.Standard_NC24ads_A100_v4.Spot=1.50",
        "deviceFaults.taintNodes=true",
    )
    env = environment(*values)

    settings = PitonSettings.from_env(env)

    assert (settings.engine, settings.namespaces) == ("kubeflow", ("a",))
    assert settings.prices.table == {
        "p4d.24xlarge": {Tier.SPOT: Fraction("12.50")},
        "Standard_NC24ads_A100_v4": {Tier.SPOT: Fraction("1.50")},
    }
    for name in env:  # a misspelt variable would be ignored
        read: set[str] = set()
        PitonSettings.from_env(_Recording(env, read))
        assert name in read


class _Recording(dict[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, env: dict[str, str], read: set[str]) -> None:
        super().__init__(env)
        self._read = read

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


def test_the_crds_of_the_chart_are_the_projects() -> None:
    (compact,) = (ROOT / "crds" / "bundled").glob("*.yaml")
    assert (CHART / "crds" / compact.name).read_text() == compact.read_text(), "say make crd"
    for ours in (ROOT / "crds").glob("*.yaml"):
        assert (CHART / "files" / ours.name).read_text() == ours.read_text(), "say make crd"


def test_no_crd_goes_with_the_chart() -> None:
    """With it would go every object of its kind. What lies in crds/ helm never deletes."""
    crds = of_kind("CustomResourceDefinition")

    assert {crd["metadata"]["name"] for crd in crds} == {"trainingruns.piton.dev", "trainingsweeps.piton.dev"}
    assert {crd["metadata"]["annotations"]["helm.sh/resource-policy"] for crd in crds} == {"keep"}
    assert not of_kind("CustomResourceDefinition", "crds.install=false")


def test_the_dashboards_carry_the_sidecars_label() -> None:
    (found,) = of_kind("ConfigMap")

    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {Path(name).suffix for name in found["data"]} == {".json"}
    for text in found["data"].values():
        assert json.loads(text)["title"]


def test_the_certificate_is_for_the_name_that_trainers_call() -> None:
    (secret,) = of_kind("Secret")
    (container,) = of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"]
    url = next(v["value"] for v in container["env"] if v["name"] == "PITON_OPERATOR_PROGRESS_URL")

    assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    assert url == f"https://{RELEASE}-operator.{NAMESPACE}.svc:8443"
    assert not of_kind("Secret", "progress.tls.secretName=mine")
    assert not of_kind("Secret", "progress.enabled=false")
