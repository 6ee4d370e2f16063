"""What is executed: the AppDef and the objects made from it."""

import json
from typing import Any

import pytest

from piton.api.parse import meta_of
from piton.api.spec import Stage
from piton.contract import names
from piton.contract.assignment import Assignment, Encryption, MirrorPolicy, SavePolicy
from piton.contract.termination import Limit, StopAfter
from piton.kube.jobs import evaluated_step
from piton.rendering.appdef import (
    ELASTIC_SHUTDOWN_SECONDS,
    ReportEndpoint,
    TrainerPlace,
    appdef,
    assignment,
    interval,
)
from piton.rendering.pytorchjob import pytorchjob
from piton.rendering.volume_claim import volume_claim
from piton.timing import GRACE_SECONDS
from support.builders import a_spec, meta

SHARED = {"volume": {"size": "500Gi", "storageClassName": "fsx", "accessModes": ["ReadWriteMany"]}}


def job(**parts: Any) -> dict[str, Any]:
    return pytorchjob(meta(), a_spec(**parts), 3)


def pod(manifest: dict[str, Any], role: str = "Master") -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["pytorchReplicaSpecs"][role]["template"]["spec"]
    return spec


def container(manifest: dict[str, Any], role: str = "Master") -> dict[str, Any]:
    only: dict[str, Any] = pod(manifest, role)["containers"][0]
    return only


def env(manifest: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(manifest)["env"] if "value" in entry}


def test_an_attempts_job_is_used_once_and_never_retried_by_its_controller() -> None:
    manifest = job(workers={"nodes": 3, "gpusPerNode": 0}, checkpoint=SHARED)
    spec = manifest["spec"]

    assert manifest["metadata"]["name"] == "ragcun-3"
    assert spec["runPolicy"] == {"cleanPodPolicy": "Running"}
    assert {name: r["restartPolicy"] for name, r in spec["pytorchReplicaSpecs"].items()} == {
        "Master": "Never",
        "Worker": "Never",
    }
    assert {name: r["replicas"] for name, r in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 2}
    assert container(manifest)["name"] == "pytorch"


def test_a_single_node_has_no_workers() -> None:
    assert list(job()["spec"]["pytorchReplicaSpecs"]) == ["Master"]


def test_the_run_owns_its_jobs() -> None:
    manifest = job()
    (owner,) = manifest["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("uid-of-the-run", True)
    assert manifest["metadata"]["labels"][names.LABEL_RUN] == "ragcun"


def test_a_claim_has_no_owner_that_would_take_it_along() -> None:
    metadata = volume_claim(meta(), a_spec())["metadata"]

    assert "ownerReferences" not in metadata
    assert metadata["labels"][names.LABEL_RUN] == "ragcun"
    assert metadata["annotations"][names.ANNOTATION_RUN_UID] == "uid-of-the-run"


def test_torchrun_is_done_before_the_kubelet_loses_patience() -> None:
    """torchrun kills its workers 30 s after SIGTERM unless it is told otherwise."""
    manifest = job()

    assert env(manifest)[names.ENV_ELASTIC_SHUTDOWN_TIMEOUT] == str(ELASTIC_SHUTDOWN_SECONDS)
    assert ELASTIC_SHUTDOWN_SECONDS < GRACE_SECONDS == pod(manifest)["terminationGracePeriodSeconds"] < 120


def test_what_an_attempt_compiles_is_kept_on_the_volume_beside_the_checkpoints() -> None:
    found = env(job())

    assert found[names.ENV_INDUCTOR_CACHE] == f"{found[names.ENV_CHECKPOINT_DIR]}/.cache/inductor"
    assert found[names.ENV_TRITON_CACHE] == f"{found[names.ENV_CHECKPOINT_DIR]}/.cache/triton"
    assert names.parse_step_folder(names.CACHE_FOLDER) is None


def test_where_the_user_wants_compiled_things_is_where_they_are() -> None:
    chosen = [
        {"name": names.ENV_INDUCTOR_CACHE, "value": "/scratch"},
        {"name": names.ENV_TRITON_CACHE, "valueFrom": {"configMapKeyRef": {"name": "caches", "key": "triton"}}},
    ]
    manifest = job(trainer={"image": "mine", "recipe": "charlm", "env": chosen})

    assert env(manifest)[names.ENV_INDUCTOR_CACHE] == "/scratch"
    assert [e["name"] for e in container(manifest)["env"]].count(names.ENV_TRITON_CACHE) == 1
    assert names.ENV_TRITON_CACHE not in env(manifest)


def test_saves_go_on_beside_the_training_unless_there_is_no_memory_for_that() -> None:
    assert names.ENV_SAVES not in env(job())
    assert env(pytorchjob(meta(), a_spec(), 3, blocking_saves=True))[names.ENV_SAVES] == "blocking"


def test_an_evaluations_job_names_the_checkpoint_that_the_operator_reads_from_it_again() -> None:
    spec = a_spec(stages={"evaluate": {}}, checkpoint=SHARED)
    assert evaluated_step(pytorchjob(meta(), spec, 3, stage=Stage.EVALUATE, checkpoint_step=1200)) == 1200
    assert evaluated_step(pytorchjob(meta(), spec, 3, stage=Stage.EVALUATE)) is None
    assert evaluated_step(pytorchjob(meta(), spec, 3, checkpoint_step=1200)) is None
    assert evaluated_step({"metadata": {}}) is None


@pytest.mark.parametrize(("gpus", "command"), [(0, ["python", "-m"]), (1, ["python", "-m"]), (8, ["torchrun", "-m"])])
def test_torchrun_is_used_only_where_a_node_has_several_processes(gpus: int, command: list[str]) -> None:
    manifest = job(workers={"gpusPerNode": gpus})

    assert container(manifest)["command"] == [*command, "piton_trainer"]
    assert manifest["spec"]["nprocPerNode"] == str(max(1, gpus))


def test_the_users_own_command_is_not_touched() -> None:
    manifest = job(trainer={"image": "mine", "command": ["python", "train.py", "--epochs", "3"]})

    assert container(manifest)["command"] == ["python", "train.py", "--epochs", "3"]


def test_the_trainers_are_told_of_the_mirror() -> None:
    checkpoint = {"volume": {"size": "1Gi"}, "mirror": {"uri": "s3://bucket/team", "maxMegabytesPerSecond": 200}}

    mirror = assignment(a_spec(checkpoint=checkpoint)).mirror

    assert mirror == MirrorPolicy(uri="s3://bucket/team", megabytes_per_second=200)
    assert assignment(a_spec()).mirror is None


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"type": "SSE-S3"}, Encryption(type="SSE-S3")),
        ({"type": "SSE-KMS", "keyId": "alias/checkpoints"}, Encryption(type="SSE-KMS", key_id="alias/checkpoints")),
    ],
    ids=["SSE-S3", "SSE-KMS"],
)
def test_the_trainers_are_told_of_the_encryption(written: dict[str, str], told: Encryption) -> None:
    mirror = {"uri": "s3://bucket/team", "encryption": written}

    policy = assignment(a_spec(checkpoint={"volume": {"size": "1Gi"}, "mirror": mirror})).mirror

    assert policy == MirrorPolicy(uri="s3://bucket/team", encryption=told)


def test_trainers_are_told_what_to_keep_and_how_long_to_go_on_without_saving() -> None:
    keep = {"last": 3, "best": 2, "weightsOnly": 10}
    save = assignment(a_spec(checkpoint={"volume": {"size": "1Gi"}, "keep": keep, "patience": "30m"})).save

    assert (save.keep_last, save.keep_best, save.keep_weights_only, save.patience_seconds) == (3, 2, 10, 1800.0)
    assert assignment(a_spec()).save.patience_seconds == 3600.0


def test_the_config_is_a_file_in_the_pod() -> None:
    manifest = job(trainer={"image": "i", "recipe": "charlm", "config": {"depth": 4}}, limits={"trainingTime": "31h"})
    template = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    assignment = Assignment.from_json(template["metadata"]["annotations"][names.ANNOTATION_CONFIG])

    assert assignment.config == {"depth": 4}
    assert assignment.training_seconds == 31 * 3600
    volume = next(v for v in pod(manifest)["volumes"] if v["name"] == "config")
    (item,) = volume["downwardAPI"]["items"]
    mount = next(m for m in container(manifest)["volumeMounts"] if m["name"] == "config")
    assert env(manifest)[names.ENV_CONFIG] == f"{mount['mountPath']}/{item['path']}"


def test_a_pod_knows_where_to_report_whom_to_trust_and_who_it_is() -> None:
    """The three variables of KEP-2779; no object of the namespace has to be made for them."""
    server = ReportEndpoint(url="https://piton:8443", ca_pem="-----BEGIN CERTIFICATE-----\n")
    manifest = pytorchjob(meta(), a_spec(workers={"nodes": 2}, checkpoint=SHARED), 3, server)

    for role in ("Master", "Worker"):
        template = manifest["spec"]["pytorchReplicaSpecs"][role]["template"]
        (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "progress"]
        token, authority = volume["projected"]["sources"]
        mount = next(m["mountPath"] for m in container(manifest, role)["volumeMounts"] if m["name"] == "progress")
        assert template["metadata"]["annotations"][names.ANNOTATION_CA] == server.ca_pem
        assert authority["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"] == "metadata.annotations['piton.dev/ca']"
        assert token["serviceAccountToken"]["audience"] == "piton.dev"
        variables = env(manifest)
        assert variables[names.ENV_SERVER_URL] == "https://piton:8443/namespaces/team/trainingruns/ragcun/status"
        assert variables[names.ENV_SERVER_TOKEN] == f"{mount}/{token['serviceAccountToken']['path']}"
        assert variables[names.ENV_SERVER_CA_CERT] == f"{mount}/{authority['downwardAPI']['items'][0]['path']}"


def test_without_a_server_nothing_of_it_is_in_the_pod() -> None:
    assert names.ENV_SERVER_URL not in env(job())
    assert [v["name"] for v in pod(job())["volumes"]] == ["checkpoints", "config", "shm", "tmp"]
    assert [m["name"] for m in container(job())["volumeMounts"]] == ["checkpoints", "config", "shm", "tmp"]


def test_runs_that_share_a_claim_have_a_folder_each() -> None:
    manifest = job(checkpoint={"volume": {"claimName": "shared"}})

    claim = next(v for v in pod(manifest)["volumes"] if v["name"] == "checkpoints")
    assert claim["persistentVolumeClaim"]["claimName"] == "shared"
    assert env(manifest)[names.ENV_CHECKPOINT_DIR] == "/checkpoints/ragcun"


def test_a_whole_p4d_gets_its_gpus_and_its_network() -> None:
    resources = container(job(workers={"instanceTypes": ["p4d.24xlarge"]}))["resources"]

    assert resources["limits"] == {"nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "4"}
    assert int(resources["requests"]["cpu"]) < 95.690  # what a p4d can give to pods


@pytest.mark.parametrize(("amount", "devices"), [("2", {}), (2, {"example.com/rdma": "1"}), ("0", {})])
def test_who_wants_less_of_a_machines_devices_requests_less(amount: str | int, devices: dict[str, str]) -> None:
    """The API server takes a device only with a request that is its limit."""
    limits = {"vpc.amazonaws.com/efa": amount, **devices}
    workers = {"instanceTypes": ["p4d.24xlarge"], "template": {"resources": {"limits": limits}}}
    resources = container(job(workers=workers))["resources"]

    assert resources["limits"] == {"nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": str(amount), **devices}
    assert resources["requests"]["vpc.amazonaws.com/efa"] == str(amount)
    assert resources["requests"]["nvidia.com/gpu"] == "8"


def test_eight_runs_fit_on_one_p4d() -> None:
    resources = container(job(workers={"gpusPerNode": 1, "instanceTypes": ["p4d.24xlarge"]}))["resources"]

    assert resources["limits"] == {"nvidia.com/gpu": "1"}
    assert 8 * int(resources["requests"]["cpu"]) <= 95
    assert 8 * int(resources["requests"]["memory"].removesuffix("Mi")) <= 1_082_712


@pytest.mark.parametrize("gpus_at_a_time", ["all", "one"])
@pytest.mark.parametrize(
    ("instance_type", "vcpus", "memory_gib", "gpus", "most_pods"),
    [
        ("g4dn.xlarge", 4, 16, 1, 29),
        ("g4dn.12xlarge", 48, 192, 4, 234),
        ("g5.xlarge", 4, 16, 1, 58),
        ("g5.2xlarge", 8, 32, 1, 58),
        ("g5.12xlarge", 48, 192, 4, 737),
        ("g5.48xlarge", 192, 768, 8, 737),
        ("g6e.xlarge", 4, 32, 1, 58),
        ("p3.2xlarge", 8, 61, 1, 58),
        ("p3.8xlarge", 32, 244, 4, 234),
        ("p3.16xlarge", 64, 488, 8, 234),
        ("p3dn.24xlarge", 96, 768, 8, 737),
        ("p4d.24xlarge", 96, 1152, 8, 737),
        ("p4de.24xlarge", 96, 1152, 8, 737),
        ("p5.48xlarge", 192, 2048, 8, 737),
    ],
)
def test_pods_with_all_gpus_of_a_machine_fit_on_it(
    instance_type: str, vcpus: int, memory_gib: int, gpus: int, most_pods: int, gpus_at_a_time: str
) -> None:
    per_pod = gpus if gpus_at_a_time == "all" else 1
    resources = container(job(workers={"gpusPerNode": per_pod, "instanceTypes": [instance_type]}))["resources"]

    pods = gpus // per_pod
    assert pods * int(resources["requests"]["cpu"]) <= _allocatable_cores(vcpus)
    assert pods * int(resources["requests"]["memory"].removesuffix("Mi")) <= _allocatable_mib(memory_gib, most_pods)


def _allocatable_cores(vcpus: int) -> float:
    """Of EKS's machine image, less 0.3 for daemonsets: 6 % of the first core are reserved, 1 % of the second, ..."""
    reserved = 0.06 + 0.01 * (vcpus > 1) + 0.005 * min(2, max(0, vcpus - 2)) + 0.0025 * max(0, vcpus - 4)
    return vcpus - reserved - 0.3


def _allocatable_mib(memory_gib: int, most_pods: int) -> float:
    """The same of memory, less 512 Mi for daemonsets; the machine has 7.5 % less than is said, as Karpenter reckons."""
    reserved, evicts_below, daemonsets = 255 + 11 * most_pods, 100, 512
    return memory_gib * 1024 * (1 - 0.075) - reserved - evicts_below - daemonsets


def test_a_pod_is_told_how_many_gpus_it_asked_for_on_a_cluster() -> None:
    assert env(job(workers={"gpusPerNode": 2}))[names.ENV_GPUS] == "2"
    assert names.ENV_GPUS not in env(job(workers={"gpusPerNode": 0}))


def test_only_the_pod_of_rank_0_is_scraped() -> None:
    manifest = job(workers={"nodes": 2})
    master, worker = (manifest["spec"]["pytorchReplicaSpecs"][role]["template"] for role in ("Master", "Worker"))

    assert container(manifest)["ports"] == [{"name": "metrics", "containerPort": 9401}]
    assert master["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert master["metadata"]["annotations"]["prometheus.io/port"] == env(manifest)["PITON_METRICS_PORT"] == "9401"
    assert "PITON_METRICS_PORT" not in {variable["name"] for variable in container(manifest, "Worker")["env"]}
    assert "ports" not in container(manifest, "Worker")
    assert "prometheus.io/scrape" not in worker["metadata"]["annotations"]


def test_nobody_may_empty_a_machine_under_an_attempt() -> None:
    manifest = pytorchjob(meta(), a_spec(workers={"nodes": 2}, stages={"prepare": {}}), 3)
    prepare = pytorchjob(meta(), a_spec(stages={"prepare": {}}), 1, stage=Stage.PREPARE)
    for role in (*manifest["spec"]["pytorchReplicaSpecs"].values(), *prepare["spec"]["pytorchReplicaSpecs"].values()):
        annotations = role["template"]["metadata"]["annotations"]
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_spot_is_recognised_in_all_spellings() -> None:
    manifest = job(
        capacity={"tiers": ["Spot"]},
        workers={"instanceTypes": ["p4d.24xlarge", "p4de.24xlarge"], "zones": ["us-east-1a"]},
    )
    required = pod(manifest)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = [{e["key"]: e["values"] for e in term["matchExpressions"]} for term in required["nodeSelectorTerms"]]

    bought = [{**term} for term in terms]
    for term in bought:
        del term["node.kubernetes.io/instance-type"], term["topology.kubernetes.io/zone"]
    assert bought == [
        {"karpenter.sh/capacity-type": ["spot"]},
        {"eks.amazonaws.com/capacityType": ["SPOT"]},
        {"node.kubernetes.io/lifecycle": ["spot"]},
        {"cloud.google.com/gke-spot": ["true"]},
        {"cloud.google.com/gke-preemptible": ["true"]},
        {"kubernetes.azure.com/scalesetpriority": ["spot"]},
    ]
    assert all(term["node.kubernetes.io/instance-type"] == ["p4d.24xlarge", "p4de.24xlarge"] for term in terms)
    assert all(term["topology.kubernetes.io/zone"] == ["us-east-1a"] for term in terms)


@pytest.mark.parametrize(("policy", "kind"), [("Pack", "podAffinity"), ("Spread", "podAntiAffinity")])
def test_pods_of_a_group_prefer_each_others_nodes_or_avoid_them(policy: str, kind: str) -> None:
    """A preference and no more: a run that finds no room beside the others starts elsewhere."""
    template = {"placement": {"group": "ablation", "policy": policy}}
    manifest = job(workers={"gpusPerNode": 1, "zones": ["us-east-1a"], "template": template})
    labels = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]["labels"]
    affinity = pod(manifest)["affinity"]

    assert labels[names.LABEL_GROUP] == "ablation"
    assert set(affinity) == {"nodeAffinity", kind}
    (term,) = affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"] == {
        "labelSelector": {"matchLabels": {names.LABEL_GROUP: "ablation"}},
        "topologyKey": "kubernetes.io/hostname",
    }


def test_without_wishes_any_node_will_do_that_can_run_the_image() -> None:
    assert "affinity" not in pod(job())
    assert pod(job())["nodeSelector"] == {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}


def test_an_image_for_another_architecture_is_said_by_the_node_selector_and_holds_for_all_stages() -> None:
    """The stages run the same image, also on nodes that the selector of the workers is not for."""
    image = {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"}
    selector = {**image, "pool": "gpu"}
    parts = {"workers": {"template": {"nodeSelector": selector}}, "checkpoint": SHARED}
    own = {"pool": "cpu"}

    assert pod(job(**parts))["nodeSelector"] == selector
    assert pod(a_stage(Stage.PREPARE, {"nodeSelector": own}, **parts))["nodeSelector"] == {**image, "pool": "cpu"}
    both = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    assert pod(a_stage(Stage.PREPARE, {"nodeSelector": both}, **parts))["nodeSelector"] == both


def test_a_pod_has_no_rights_and_only_the_fields_that_a_user_may_set() -> None:
    manifest = job(
        workers={
            "gpusPerNode": 0,
            "template": {
                "serviceAccountName": "trainer",
                "nodeSelector": {"disk": "fast"},
                "tolerations": [{"key": "team", "operator": "Exists"}],
                "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi"}},
            },
        }
    )

    assert pod(manifest)["automountServiceAccountToken"] is False
    assert pod(manifest)["enableServiceLinks"] is False
    assert pod(manifest)["serviceAccountName"] == "trainer"
    assert pod(manifest)["nodeSelector"] == {"disk": "fast", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    assert pod(manifest)["tolerations"][0] == {"key": "team", "operator": "Exists"}
    assert container(manifest)["resources"] == {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi"}}


def test_a_secret_travels_by_reference() -> None:
    reference = {"secretKeyRef": {"name": "hf", "key": "token"}}
    manifest = job(
        trainer={
            "image": "i",
            "recipe": "charlm",
            "env": [{"name": "HF_TOKEN", "valueFrom": reference}, {"name": "A", "value": "1"}],
        }
    )

    assert {"name": "HF_TOKEN", "valueFrom": reference} in container(manifest)["env"]
    assert env(manifest)["A"] == "1"


def test_a_limit_travels_with_the_attempt_as_seconds() -> None:
    """A moment would be compared with the clock of a machine that may be a day ahead."""
    after = StopAfter(seconds=86_400.4, limit=Limit.DEADLINE)
    found = env(pytorchjob(meta(), a_spec(), 1, None, stop_after=after))
    assert (found[names.ENV_STOP_AFTER], found[names.ENV_STOP_LIMIT]) == ("86400", "deadline")
    assert not {names.ENV_STOP_AT, names.ENV_STOP_AFTER, names.ENV_STOP_LIMIT} & set(env(job()))


def test_the_same_run_gives_the_same_job() -> None:
    assert json.dumps(job(), sort_keys=True) == json.dumps(job(), sort_keys=True)


def test_the_trainers_know_the_newest_durable_step_and_whether_they_may_start_without_it() -> None:
    run = meta().model_copy(update={"allows_fresh_start": True})
    told = env(pytorchjob(run, a_spec(), 3, checkpoint_step=400))
    assert (told[names.ENV_DURABLE_STEP], told[names.ENV_ALLOW_FRESH_START]) == ("400", "true")
    assert env(pytorchjob(meta(), a_spec(), 3)).keys().isdisjoint({names.ENV_DURABLE_STEP, names.ENV_ALLOW_FRESH_START})


def test_a_fresh_start_is_allowed_by_an_annotation() -> None:
    metadata = {"name": "ragcun", "creationTimestamp": "2026-01-01T00:00:00Z"}
    annotation = {names.ANNOTATION_ALLOW_FRESH_START: "true"}
    assert meta_of({**metadata, "annotations": annotation}).allows_fresh_start
    assert not meta_of({**metadata, "annotations": {names.ANNOTATION_ALLOW_FRESH_START: "no"}}).allows_fresh_start
    assert not meta_of(metadata).allows_fresh_start


def test_a_place_decides_where_things_lie() -> None:
    place = TrainerPlace(
        python="/usr/bin/python3", checkpoint_dir="/data/ckpt", config_file="/data/config.json", env={"RANK": "0"}
    )

    (role,) = appdef(meta(), a_spec(), 1, place).roles

    assert role.env[names.ENV_CHECKPOINT_DIR] == "/data/ckpt"
    assert role.env["RANK"] == "0"
    assert role.entrypoint == "torchrun"


@pytest.mark.parametrize(
    ("every", "policy", "words"),
    [
        (
            None,
            SavePolicy(auto=True),
            "as often as pays, by what saves cost and how often training is interrupted (auto)",
        ),
        (
            "auto",
            SavePolicy(auto=True),
            "as often as pays, by what saves cost and how often training is interrupted (auto)",
        ),
        ({"minutes": 15}, SavePolicy(every_seconds=900), "every 15m"),
        ({"steps": 500}, SavePolicy(every_steps=500), "every 500 steps"),
        (
            {"minutes": 90, "steps": 500},
            SavePolicy(every_seconds=5400, every_steps=500),
            "every 1h30m and every 500 steps",
        ),
    ],
)
def test_trainers_are_told_how_often_to_save_and_so_are_people(every: Any, policy: SavePolicy, words: str) -> None:
    spec = a_spec(checkpoint=SHARED if every is None else SHARED | {"every": every})

    assert assignment(spec).save == policy
    assert interval(spec) == words


# --- what an attempt at another stage is made of ---------------------------------------------------------------------

ON_GPUS = {
    "workers": {
        "nodes": 2,
        "gpusPerNode": 8,
        "instanceTypes": ["p4d.24xlarge"],
        "zones": ["us-east-1a"],
        "template": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "serviceAccountName": "data-reader",
            "resources": {"requests": {"cpu": "90"}},
        },
    },
    "capacity": {"tiers": ["Spot"]},
    "checkpoint": SHARED,
}


def a_stage(stage: Stage, own: dict[str, Any], **parts: Any) -> dict[str, Any]:
    spec = a_spec(**{**ON_GPUS, **parts}, stages={stage.lower(): own})
    return pytorchjob(meta(), spec, 3, ReportEndpoint(url="https://o", ca_pem="PEM"), stage=stage, checkpoint_step=90)


def test_preparing_asks_for_any_cheap_node_of_the_zone_with_the_same_volume_and_rights() -> None:
    manifest = a_stage(Stage.PREPARE, {"resources": {"requests": {"cpu": "16"}}, "nodeSelector": {"pool": "cpu"}})
    training = pytorchjob(meta(), a_spec(**ON_GPUS), 4, ReportEndpoint(url="https://o", ca_pem="PEM"))
    spec, (term,) = pod(manifest), terms(manifest)

    assert {name: r["replicas"] for name, r in manifest["spec"]["pytorchReplicaSpecs"].items()} == {"Master": 1}
    assert container(manifest)["resources"] == {"requests": {"cpu": "16"}}
    assert term == [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-east-1a"]}]
    assert spec["nodeSelector"] == {"pool": "cpu", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    assert {t["key"] for t in spec["tolerations"]} == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
    assert manifest["metadata"]["labels"]["piton.dev/stage"] == "Prepare"
    for same in ("volumes", "serviceAccountName", "securityContext", "terminationGracePeriodSeconds"):
        assert spec[same] == pod(training)[same]
    for same in ("image", "volumeMounts"):
        assert container(manifest)[same] == container(training)[same]
    assert env(manifest)["PITON_CHECKPOINT_DIR"] == env(training)["PITON_CHECKPOINT_DIR"]


def terms(manifest: dict[str, Any]) -> list[Any]:
    affinity = pod(manifest)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in affinity["nodeSelectorTerms"]]


def test_an_evaluation_with_gpus_asks_for_a_node_like_those_of_the_training() -> None:
    manifest = a_stage(Stage.EVALUATE, {"gpus": 4})

    assert container(manifest)["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert container(manifest)["command"][:3] == ["torchrun", "-m", "piton_trainer.evaluate"]
    assert pod(manifest)["nodeSelector"] == {"pool": "gpu", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    assert {"spot", "nvidia.com/gpu"} <= {t["key"] for t in pod(manifest)["tolerations"]}
    assert all("p4d.24xlarge" in str(term) for term in terms(manifest))
    assert any("karpenter.sh/capacity-type" in str(term) for term in terms(manifest))


def test_an_evaluation_knows_its_checkpoint_and_nobody_scrapes_it() -> None:
    manifest = a_stage(Stage.EVALUATE, {})

    assert env(manifest)["PITON_CHECKPOINT"] == "/checkpoints/ragcun/step-000000090"
    assert "ports" not in container(manifest)
    assert "PITON_METRICS_PORT" not in env(manifest)
    assert "PITON_CHECKPOINT" not in env(job())
    assert "piton.dev/stage" not in job()["metadata"]["labels"], "a job of an older operator is still the run's"


@pytest.mark.parametrize(
    ("stage", "own", "command"),
    [
        (Stage.PREPARE, {}, ["python", "-m", "piton_trainer.prepare"]),
        (Stage.EVALUATE, {}, ["python", "-m", "piton_trainer.evaluate"]),
        (Stage.PREPARE, {"command": ["bash", "get.sh"]}, ["bash", "get.sh"]),
    ],
)
def test_a_stage_runs_what_its_recipe_has_or_the_users_command(
    stage: Stage, own: dict[str, Any], command: list[str]
) -> None:
    assert container(a_stage(stage, own))["command"] == command


@pytest.mark.parametrize(
    ("own", "recipe", "config"),
    [
        pytest.param({}, "charlm", {"steps": 9, "evalTokens": 10}, id="the training's"),
        pytest.param({"config": {"evalTokens": 99}}, "charlm", {"steps": 9, "evalTokens": 99}, id="but for a few"),
        pytest.param({"recipe": "other", "config": {"k": 1}}, "other", {"k": 1}, id="another recipe has its own"),
    ],
)
def test_an_evaluation_has_the_settings_of_the_training_and_its_own(
    own: dict[str, Any], recipe: str, config: dict[str, Any]
) -> None:
    trainer = {"image": "i", "recipe": "charlm", "config": {"steps": 9, "evalTokens": 10}}
    manifest = a_stage(Stage.EVALUATE, own, trainer=trainer)
    annotations = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]["annotations"]
    told = Assignment.from_json(annotations[names.ANNOTATION_CONFIG])

    assert (told.recipe, told.config) == (recipe, config)


def test_a_trainer_of_an_older_run_watches_nothing_in_place_of_no_time_at_all() -> None:
    spec = a_spec()
    spec = spec.model_copy(update={"limits": spec.limits.model_copy(update={"hang_timeout": "0s"})})
    found = {each["name"]: each.get("value") for each in container(pytorchjob(meta(), spec, 3))["env"]}
    assert found[names.ENV_HANG_TIMEOUT] == names.HANGS_OFF
