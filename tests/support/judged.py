"""Specs that are refused, and specs that are not: one table for `piton validate`, for CEL and for a real API server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from piton.api.validation import ZONES_FOR_PREPARE
from piton.contract import names
from support.builders import a_manifest
from support.sweeps import a_sweep

COMMAND = {"image": "i", "command": ["train"]}
RECIPE = {"image": "i", "recipe": "charlm"}
SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
GPU = {"nvidia.com/gpu": "1"}


@dataclass(frozen=True)
class Judged:
    """One manifest and what is said to it."""

    id: str
    says: tuple[str, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "judged"
    operator_only: bool = False
    """The API server takes it, because CEL cannot say it."""
    policy: str = ""
    """What the chart's ValidatingAdmissionPolicy says to it."""

    @property
    def run(self) -> dict[str, Any]:
        """As a TrainingRun."""
        return a_manifest(self.name, **self.parts)

    @property
    def sweep(self) -> dict[str, Any]:
        """As a TrainingSweep."""
        return a_sweep(self.name, **self.parts)


def env(*variables: dict[str, Any]) -> dict[str, Any]:
    return {"trainer": {**RECIPE, "env": list(variables)}}


def volume(**parts: Any) -> dict[str, Any]:
    return {"checkpoint": {"volume": parts}}


def encryption(**parts: Any) -> dict[str, Any]:
    mirror = {"uri": "s3://bucket/prefix", "encryption": parts}
    return {"checkpoint": {"volume": {"size": "1Gi"}, "mirror": mirror}}


def template(**parts: Any) -> dict[str, Any]:
    return {"workers": {"template": parts}}


def stages(trainer: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"trainer": trainer, "stages": parts}


def _long(name: str, most: int, why: str) -> str:
    return f"metadata.name: '{name}' is too long, since {why}; write at most {most}"


_NOT_YET = "this version of Piton does not act on it yet"
_NO_TIME = "is no time at all; write a duration such as"
_TOO_LONG = "is too long; write at most 3650d, which is ten years"
_TEMPLATE = "spec.workers.template"
_LOWER = "raise the limit, or lower the request"
_WRITE_A_VALUE = "write at most 63 letters, digits, dashes, dots and underscores, a letter or digit first and last"
_NO_SECONDS = "tolerationSeconds: only NoExecute has a time; write effect: NoExecute, or remove it"
_NO_GPU = "nvidia.com/gpu is"
_NO_RESOURCE = (
    "is no resource of a container; write cpu, memory, ephemeral-storage, or one with its domain, such as "
    "vpc.amazonaws.com/efa"
)
_WRITE_4 = "so write 4 here as well"
_SAME = "write the same amount for both"
_ENCRYPTION_KEY = "spec.checkpoint.mirror.encryption.keyId"
_A_KEY = "SSE-KMS needs the ID, the ARN or the alias of a key, such as alias/checkpoints"
_NO_KEY = (
    "is no key of a Secret or a ConfigMap; write letters, digits, dashes, underscores and dots, as the object has it"
)
_NO_NAME = "is no name of an object; write a letter or a digit first and last, and on both sides of a dot"
_TOO_FEW_MODES: tuple[dict[str, Any], ...] = ({}, {"accessModes": []}, {"accessModes": ["ReadWriteOnce"]})
_NO_COMMAND: tuple[dict[str, Any], ...] = ({}, {"command": []})
_PREPARES: dict[str, Any] = {"stages": {"prepare": {}}, **volume(size="1Gi")}
_KEY = {"name": "s", "key": "k"}

RUNS: tuple[Judged, ...] = (
    Judged("the least"),
    Judged("the longest name", name="x" * 46),
    Judged(
        "a long name",
        (_long("x" * 47, 46, "its pods add up to 17 characters to it"),),
        name="x" * 47,
    ),
    Judged(
        "a dotted name",
        ("metadata.name: 'a.b' is no DNS label; write lower-case letters, digits and dashes, a letter first",),
        name="a.b",
    ),
    Judged(
        "a name that begins with a digit",
        ("metadata.name: '1st' is no DNS label; write lower-case letters, digits and dashes, a letter first",),
        name="1st",
    ),
    Judged("a command", parts={"trainer": COMMAND}),
    Judged(
        "no program",
        ("spec.trainer: exactly one of recipe and command is needed, neither is given; name a recipe such as charlm",),
        {"trainer": {"image": "i"}},
    ),
    Judged(
        "an empty command",
        ("spec.trainer: exactly one of recipe and command is needed, neither is given; name a recipe such as charlm",),
        {"trainer": {"image": "i", "command": []}},
    ),
    Judged(
        "two programs",
        ("spec.trainer: exactly one of recipe and command is needed, both are given; name a recipe such as charlm",),
        {"trainer": {**RECIPE, "command": ["train"]}},
    ),
    Judged("a recipe with an empty command", parts={"trainer": {**RECIPE, "command": []}}),
    Judged("a recipe's config", parts={"trainer": {**RECIPE, "config": {"depth": 4}}}),
    Judged("an empty config", parts={"trainer": {**COMMAND, "config": {}}}),
    Judged(
        "a command's config",
        ("spec.trainer.config: only a recipe has a config; pass your program its settings in spec.trainer.command",),
        {"trainer": {**COMMAND, "config": {"depth": 4}}},
    ),
    Judged("keys of the object store", parts=encryption(type="SSE-S3")),
    Judged("a key of one's own", parts=encryption(type="SSE-KMS", keyId="alias/checkpoints")),
    Judged(
        "the ARN of a key",
        parts=encryption(type="SSE-KMS", keyId="arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd"),
    ),
    Judged(
        "no key of one's own",
        (f"{_ENCRYPTION_KEY}: missing; {_A_KEY}",),
        encryption(type="SSE-KMS"),
    ),
    Judged(
        "a key of nothing",
        (f"{_ENCRYPTION_KEY}: only SSE-KMS takes a key; write type: SSE-KMS, or remove keyId",),
        encryption(type="SSE-S3", keyId="alias/checkpoints"),
    ),
    Judged("a claim", parts=volume(claimName="c")),
    Judged(
        "no volume",
        ("spec.checkpoint.volume: exactly one of claimName and size is needed; write size: 100Gi for a new claim",),
        volume(),
    ),
    Judged(
        "two volumes",
        ("spec.checkpoint.volume: exactly one of claimName and size is needed; write size: 100Gi for a new claim",),
        volume(claimName="c", size="1Gi", storageClassName="s"),
    ),
    Judged(
        "the class of a claim that exists",
        ("spec.checkpoint.volume: storageClassName and accessModes are for a new claim; remove them or claimName",),
        volume(claimName="c", storageClassName="s"),
    ),
    Judged(
        "the modes of a claim that exists",
        ("spec.checkpoint.volume: storageClassName and accessModes are for a new claim; remove them or claimName",),
        volume(claimName="c", accessModes=["ReadWriteMany"]),
    ),
    Judged("a claim that exists with no modes", parts=volume(claimName="c", accessModes=[])),
    Judged("a claim that exists is retained", parts=volume(claimName="c", reclaim="Retain")),
    Judged("a new claim that goes with the run", parts=volume(size="1Gi", reclaim="Delete")),
    Judged(
        "a claim that exists is to be deleted",
        ("spec.checkpoint.volume.reclaim: Delete is for claims that Piton has made; remove it or claimName",),
        volume(claimName="c", reclaim="Delete"),
    ),
    Judged("a volume for several", parts={"workers": {"nodes": 2}, **volume(**SHARED)}),
    Judged("a claim for several", parts={"workers": {"nodes": 2}, **volume(claimName="c")}),
    *(
        Judged(
            f"a volume for one with modes {modes}",
            (
                (
                    "spec.checkpoint.volume.accessModes: several nodes share the volume, which takes ReadWriteMany; "
                    "write "
                    "[ReadWriteMany] and a storage class that offers it, such as EFS or FSx for Lustre"
                ),
            ),
            {"workers": {"nodes": 2}, **volume(size="1Gi", **modes)},
        )
        for modes in _TOO_FEW_MODES
    ),
    Judged(
        "an interval of nothing",
        ("spec.checkpoint.every: neither minutes nor steps is given; write {minutes: 15}, or auto",),
        {"checkpoint": {"volume": SHARED, "every": {}}},
        operator_only=True,
        policy="spec.checkpoint.every: write {minutes: 15}, {steps: 500}, both, or auto",
    ),
    *(
        Judged(
            f"an interval with {null} of null",
            (f"spec.checkpoint.every.{null}: null is no number; remove it, or write {null}: {number}",),
            {"checkpoint": {"volume": SHARED, "every": {null: None, other: 5}}},
            operator_only=True,
            policy="spec.checkpoint.every: write {minutes: 15}, {steps: 500}, both, or auto",
        )
        for null, number, other in (("minutes", 15, "steps"), ("steps", 500, "minutes"))
    ),
    Judged(
        "an interval of nulls",
        (
            "spec.checkpoint.every: neither minutes nor steps is given; write {minutes: 15}, or auto",
            "spec.checkpoint.every.minutes: null is no number; remove it, or write minutes: 15",
            "spec.checkpoint.every.steps: null is no number; remove it, or write steps: 500",
        ),
        {"checkpoint": {"volume": SHARED, "every": {"minutes": None, "steps": None}}},
        operator_only=True,
        policy="spec.checkpoint.every: write {minutes: 15}, {steps: 500}, both, or auto",
    ),
    Judged(
        "a judge that is not steady",
        (
            (
                "spec.objective.patience: loss is judged whenever a save is due, and checkpoint.every: auto changes "
                "how often that is; write checkpoint.every: {steps: 500}, or name a metric of an evaluation, such as "
                "val_loss"
            ),
        ),
        {"objective": {"metric": "loss", "patience": 5}},
        operator_only=True,
    ),
    Judged(
        "good variables",
        parts=env(
            {"name": "A", "value": ""},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": _KEY}},
            {"name": "TOKENS", "value": "7"},
            {"name": "PITONS", "valueFrom": {"configMapKeyRef": _KEY}},
        ),
    ),
    *(Judged(f"the variable {name}, the user's", parts=env({"name": name, "value": "0"})) for name in names.USER_ENV),
    Judged("a secret that is empty", parts=env({"name": "HF_TOKEN", "value": ""})),
    *(
        Judged(
            f"the variable {name}",
            (f"spec.trainer.env: '{name}' is set by Piton; choose another name",),
            env({"name": name, "value": "0"}),
        )
        for name in ("RANK", "MASTER_PORT", "PITON_ATTEMPT", "PET_NNODES", "KUBEFLOW_TRAINER_X", "TORCHELASTIC_X")
    ),
    Judged(
        "a variable without a value",
        ("spec.trainer.env: exactly one of value and valueFrom is needed for B",),
        env({"name": "A", "value": "1"}, {"name": "B"}),
    ),
    Judged(
        "a variable with two values",
        ("spec.trainer.env: exactly one of value and valueFrom is needed for A",),
        env({"name": "A", "value": "1", "valueFrom": {"secretKeyRef": _KEY}}),
    ),
    *(
        Judged(
            f"the secret {name}",
            (
                (
                    f"spec.trainer.env: {name} looks like a secret; put it into a Secret and write "
                    "valueFrom: {secretKeyRef: {name: …, key: …}}"
                ),
            ),
            env({"name": name, "value": "x"}),
        )
        for name in ("HF_TOKEN", "wandb_api_key", "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY", "S3_ACCESS_KEY_ID")
    ),
    Judged(
        "a reference to nothing",
        ("spec.trainer.env: exactly one of secretKeyRef and configMapKeyRef is needed in valueFrom of A",),
        env({"name": "A", "valueFrom": {}}),
    ),
    Judged(
        "a reference to two things",
        ("spec.trainer.env: exactly one of secretKeyRef and configMapKeyRef is needed in valueFrom of A",),
        env({"name": "A", "valueFrom": {"secretKeyRef": _KEY, "configMapKeyRef": _KEY}}),
    ),
    Judged(
        "two bad variables",
        (
            "spec.trainer.env: 'RANK' is set by Piton; choose another name",
            "spec.trainer.env: exactly one of value and valueFrom is needed for B",
        ),
        env({"name": "RANK", "value": "0"}, {"name": "B"}),
    ),
    Judged("good durations", parts={"limits": {"deadline": "0h1m", "trainingTime": "31h"}}),
    *(
        Judged(
            f"no {path}",
            (f"spec.limits.{path}: '0h0m' {_NO_TIME} {example}",),
            {"limits": {path: "0h0m"}},
            operator_only=path == "hangTimeout",
        )
        for path, example in (
            ("deadline", "24h"),
            ("trainingTime", "24h"),
            ("startTimeout", "30m"),
            ("hangTimeout", "30m"),
        )
    ),
    *(
        Judged(
            f"{path} beyond all bounds",
            (f"spec.limits.{path}: '9999999d' {_TOO_LONG}",),
            {"limits": {path: "9999999d"}},
            operator_only=path == "hangTimeout",
        )
        for path in ("deadline", "trainingTime", "startTimeout", "stalled", "hangTimeout")
    ),
    *(
        Judged(
            f"{found} is too long", (f"spec.limits.deadline: '{found}' {_TOO_LONG}",), {"limits": {"deadline": found}}
        )
        for found in ("3651d", "87601h", "5256001m", "315360001s", "1d99999999999h")
    ),
    *(
        Judged(f"{found} is long", parts={"limits": {"deadline": found}})
        for found in ("3650d", "0003650d", "87600h", "5256000m", "315360000s", "9s", "3649d23h59m59s")
    ),
    Judged(
        "a life beyond all bounds",
        (f"spec.ttlAfterFinished: '4000d' {_TOO_LONG}",),
        {"ttlAfterFinished": "4000d"},
    ),
    Judged(
        "patience beyond all bounds",
        (f"spec.checkpoint.patience: '4000d' {_TOO_LONG}",),
        {"checkpoint": {"volume": SHARED, "patience": "4000d"}},
    ),
    *(
        Judged(
            f"time beyond all bounds to {stage}",
            (f"spec.stages.{stage}.deadline: '4000d' {_TOO_LONG}",),
            stages(RECIPE, **{stage: {"deadline": "4000d"}}),
        )
        for stage in ("prepare", "evaluate")
    ),
    Judged("whole amounts", parts=template(resources={"requests": {"cpu": 4}, "limits": {"cpu": 4, "memory": "8Gi"}})),
    *(
        Judged(
            f"{request} and {limit}", parts=template(resources={"requests": {"cpu": request}, "limits": {"cpu": limit}})
        )
        for request, limit in (("700m", "0.7"), ("2300m", "2.3"), ("9m", "0.009"), ("1.1", "1100m"))
    ),
    Judged(
        "a limit below its request",
        (f"{_TEMPLATE}.resources.limits.cpu: 500m is below the request of 2; {_LOWER}",),
        template(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}}),
        operator_only=True,
    ),
    *(
        Judged(f"the amount {amount}", parts=template(resources={"requests": {"cpu": amount, "memory": amount}}))
        for amount in (".5", "5.", "+5", "1e9", "1E-3", "1Ei", "1E", "3u", "2n")
    ),
    *(
        Judged(
            f"the resource {name}",
            (f"{_TEMPLATE}.resources.limits: '{name}' {_NO_RESOURCE}",),
            template(resources={"limits": {name: "1"}}),
            operator_only=True,
        )
        for name in (
            "gpus",
            "cpus",
            "a b",
            "storage",
            "a b/c",
            "A.com/b",
            "requests.a.com/b",
            "hugepages-x",
            "d" * 250 + "/x",
        )
    ),
    *(
        Judged(
            f"{name} without a limit",
            (f"{_TEMPLATE}.resources.limits.{name}: missing; a request of it needs the same limit, {_WRITE_4}",),
            template(resources={"requests": {name: "4", "cpu": 1}}),
            operator_only=True,
        )
        for name in ("example.com/rdma", "vpc.amazonaws.com/efa", "hugepages-1")
    ),
    *(
        Judged(
            f"{least} and {most} of a device",
            (f"{_TEMPLATE}.resources.limits.example.com/rdma: {most} is not the request of {least}; {_SAME}",),
            template(resources={"requests": {"example.com/rdma": least}, "limits": {"example.com/rdma": most}}),
            operator_only=True,
        )
        for least, most in (("1", "2"), ("2", "1"))
    ),
    Judged(
        "half a device",
        (f"{_TEMPLATE}.resources.limits.a.com/b: 500m is no whole number, and nobody gets a part of one; write one",),
        template(resources={"limits": {"a.com/b": "500m"}}),
        operator_only=True,
    ),
    Judged(
        "a page and a half",
        (f"{_TEMPLATE}.resources.limits.hugepages-2Mi: 3Mi are no whole pages; write a multiple of 2Mi",),
        template(resources={"limits": {"hugepages-2Mi": "3Mi", "memory": "1Gi"}}),
        operator_only=True,
    ),
    Judged(
        "huge pages alone",
        ("spec.stages.prepare.resources: huge pages go with CPU or memory only; write requests of these as well",),
        stages(RECIPE, prepare={"resources": {"limits": {"hugepages-2Mi": "4Mi"}}}),
        operator_only=True,
    ),
    Judged(
        "devices and huge pages",
        parts=template(
            resources={
                "requests": {"a.com/b": "1k", "hugepages-1Gi": "2Gi", "cpu": 1, "kubernetes.io/batch-cpu": "1500m"},
                "limits": {"a.com/b": 1000, "hugepages-1Gi": "2048Mi", "kubernetes.io/batch-cpu": "2", "c.com/d": 1},
            }
        ),
    ),
    *(
        Judged(
            f"the image {image!r}",
            (f"spec.trainer.image: '{image}' begins or ends with a blank; remove it",),
            {"trainer": {"image": image, "recipe": "charlm"}},
            operator_only=True,
        )
        for image in ("trainer:1 ", " trainer:1", " ", "trainer:1\n")
    ),
    *(
        Judged(
            f"the key {key}",
            (f"spec.trainer.env: in valueFrom of A '{key}' {_NO_KEY}",),
            env({"name": "A", "valueFrom": {of: {"name": "s", "key": key}}}),
            operator_only=True,
        )
        for of in ("secretKeyRef", "configMapKeyRef")
        for key in ("my key", ".", "..", "..a", "a/b", "k" * 254)
    ),
    Judged(
        "keys",
        parts=env({"name": "A", "valueFrom": {"secretKeyRef": {"name": "a.b-c", "key": ".dockerconfig_json-1"}}}),
    ),
    *(
        Judged(
            f"the name {name} of {path}",
            (f"spec.{path}{'' if 'env' in path else ':'} '{name}' {_NO_NAME}",),
            parts,
            operator_only=True,
        )
        for name in ("a..b", "a.-b", "a-.b")
        for path, parts in (
            ("workers.template.serviceAccountName", template(serviceAccountName=name)),
            ("checkpoint.volume.storageClassName", volume(size="1Gi", storageClassName=name)),
            ("checkpoint.volume.claimName", volume(claimName=name)),
            (
                "trainer.env: in valueFrom of A",
                env({"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}),
            ),
        )
    ),
    *(
        Judged(
            f"a volume of {size}",
            (f"spec.checkpoint.volume.size: {size} is no size of a volume; write one such as 100Gi",),
            volume(size=size),
            operator_only=True,
        )
        for size in ("0", "0Gi", "0.0", "0e5")
    ),
    Judged("a volume of much", parts=volume(size="1e12")),
    *(
        Judged(
            f"the modes {modes}",
            ("spec.checkpoint.volume.accessModes: ReadWriteOncePod goes with no other mode; write one of them",),
            volume(size="1Gi", accessModes=modes),
            operator_only=True,
        )
        for modes in (["ReadWriteOncePod", "ReadWriteOnce"], ["ReadWriteMany", "ReadWriteOncePod"])
    ),
    Judged("one pod's volume", parts=volume(size="1Gi", accessModes=["ReadWriteOncePod"])),
    Judged(
        "a label with a long domain",
        (f"{_TEMPLATE}.nodeSelector: '{'x' * 300}/a' is no name of a label; write one such as example.com/pool",),
        template(nodeSelector={"x" * 300 + "/a": "b", "y" * 253 + "/a": "b"}),
        operator_only=True,
    ),
    Judged(
        "a limit of a stage below its request",
        (f"spec.stages.prepare.resources.limits.memory: 1Gi is below the request of 2000Mi; {_LOWER}",),
        stages(RECIPE, prepare={"resources": {"requests": {"memory": "2000Mi"}, "limits": {"memory": "1Gi"}}}),
        operator_only=True,
    ),
    Judged(
        "selectors that no node can match",
        (
            f"{_TEMPLATE}.nodeSelector: 'a/b/c' is no name of a label; write one such as example.com/pool",
            f"{_TEMPLATE}.nodeSelector.pool: 'gpu pool' is no value of a label; {_WRITE_A_VALUE}",
        ),
        template(nodeSelector={"a/b/c": "x", "pool": "gpu pool", "example.com/pool": "gpus"}),
        operator_only=True,
    ),
    Judged(
        "tolerations that no pod can have",
        (
            f"{_TEMPLATE}.tolerations[0].value: Exists looks at no value; remove it, or write operator: Equal",
            f"{_TEMPLATE}.tolerations[1].operator: without a key only Exists is possible; name the key of the taint",
            f"{_TEMPLATE}.tolerations[2].{_NO_SECONDS}",
        ),
        template(
            tolerations=[
                {"key": "a", "operator": "Exists", "value": "b"},
                {"value": "b"},
                {"key": "a", "operator": "Exists", "tolerationSeconds": 5},
                {"operator": "Exists"},
            ]
        ),
        operator_only=True,
    ),
    Judged("a time to live", parts={"ttlAfterFinished": "7d"}),
    Judged("no time to live", (f"spec.ttlAfterFinished: '0s' {_NO_TIME} 7d",), {"ttlAfterFinished": "0s"}),
    Judged(
        "no patience",
        (f"spec.checkpoint.patience: '0m' {_NO_TIME} 1h",),
        {"checkpoint": {"volume": SHARED, "patience": "0m"}},
    ),
    *(
        Judged(
            f"no time to {stage}",
            (f"spec.stages.{stage}.deadline: '0s' {_NO_TIME} 6h",),
            stages(RECIPE, **{stage: {"deadline": "0s"}}),
        )
        for stage in ("prepare", "evaluate")
    ),
    Judged("a budget", parts={"limits": {"budget": {"usd": "0.01"}}, "capacity": {"maxPricePerHour": "0.5"}}),
    Judged(
        "no money",
        ("spec.limits.budget.usd: '0.00' buys nothing; write a positive amount of dollars, such as \"250\"",),
        {"limits": {"budget": {"usd": "0.00"}}, "capacity": {"maxPricePerHour": "1"}},
    ),
    Judged(
        "a free node",
        ("spec.capacity.maxPricePerHour: '0' gets no node; write what you pay for one, such as \"12.50\"",),
        {"capacity": {"maxPricePerHour": "0"}},
    ),
    *(
        Judged(
            f"a budget without a price {capacity}",
            (
                (
                    "spec.capacity.maxPricePerHour: missing; limits.budget counts with it where nobody knows what a "
                    "node "
                    'costs; write the most that you pay for a node per hour, such as "12.50"'
                ),
            ),
            {"limits": {"budget": {"usd": "250"}}, **capacity},
        )
        for capacity in ({}, {"capacity": {"tiers": ["Spot"]}})
    ),
    Judged("resources", parts=template(resources={"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}})),
    *(
        Judged(
            f"GPUs in the {part} of the workers",
            (f"spec.workers.template.resources.{part}: {_NO_GPU} set by spec.workers.gpusPerNode; remove it",),
            template(resources={part: GPU}),
        )
        for part in ("requests", "limits")
    ),
    *(
        Judged(
            f"GPUs in the {part} of {stage}",
            (f"spec.stages.{stage}.resources.{part}: {_NO_GPU} {why}; remove it",),
            stages(RECIPE, **{stage: {"resources": {part: GPU}}}),
        )
        for part in ("requests", "limits")
        for stage, why in (("prepare", "not for this stage"), ("evaluate", "set by spec.stages.evaluate.gpus"))
    ),
    Judged("not root", parts=template(securityContext={"runAsNonRoot": True, "runAsUser": 1000})),
    Judged("root", parts=template(securityContext={"runAsNonRoot": False, "runAsUser": 0})),
    Judged(
        "root and not root",
        (
            (
                "spec.workers.template.securityContext: runAsUser 0 is root, and runAsNonRoot forbids root; "
                "remove one of them"
            ),
        ),
        template(securityContext={"runAsNonRoot": True, "runAsUser": 0}),
    ),
    Judged("stages of a recipe", parts=stages(RECIPE, prepare={}, evaluate={"config": {"k": 1}})),
    Judged("stages of a command", parts=stages(COMMAND, prepare={"command": ["a"]}, evaluate={"command": ["b"]})),
    Judged("an evaluation by a recipe", parts=stages(COMMAND, evaluate={"recipe": "charlm", "config": {"k": 1}})),
    Judged("an evaluation with an empty config", parts=stages(COMMAND, evaluate={"command": ["b"], "config": {}})),
    *(
        Judged(
            f"{stage} {own} without a program",
            (f"spec.stages.{stage}.command: missing; only a recipe has a program for this stage",),
            stages(COMMAND, **{stage: own}),
        )
        for stage in ("prepare", "evaluate")
        for own in _NO_COMMAND
    ),
    Judged(
        "an evaluation by two programs",
        ("spec.stages.evaluate: at most one of recipe and command is needed, both are given; remove one",),
        stages(COMMAND, evaluate={"recipe": "charlm", "command": ["b"]}),
    ),
    Judged(
        "the config of a command's evaluation",
        ("spec.stages.evaluate.config: only a recipe has a config; pass your program its settings in the command",),
        stages(COMMAND, evaluate={"command": ["b"], "config": {"k": 1}}),
    ),
    Judged("zones", parts={"workers": {"zones": ["us-east-1a", "us-east-1b"]}}),
    Judged(
        "zones and instance types as other clouds spell them",
        parts={"workers": {"zones": ["PHX-AD-1", "dc1.room_2", "0"], "instanceTypes": ["Standard_NC24ads_A100_v4"]}},
    ),
    Judged("prepare on a volume of one zone, wherever that comes to be", (ZONES_FOR_PREPARE,), _PREPARES),
    Judged("the same, said", (ZONES_FOR_PREPARE,), {**_PREPARES, **volume(size="1Gi", accessModes=["ReadWriteOnce"])}),
    Judged(
        "the same, for CPU machines of a kind that few zones have",
        (ZONES_FOR_PREPARE,),
        {**_PREPARES, "workers": {"gpusPerNode": 0, "instanceTypes": ["hpc7a.96xlarge"]}},
    ),
    Judged("prepare in zones that are named", parts={**_PREPARES, "workers": {"zones": ["us-east-1a"]}}),
    Judged("prepare before any CPU machine", parts={**_PREPARES, "workers": {"gpusPerNode": 0}}),
    Judged("prepare on a volume for all zones", parts={**_PREPARES, **volume(**SHARED)}),
    Judged("prepare on a volume that is there, as far as the spec tells", parts={**_PREPARES, **volume(claimName="c")}),
    Judged("evaluate alone, which follows the volume", parts={**_PREPARES, "stages": {"evaluate": {}}}),
    Judged("minNodes", (f"spec.workers.minNodes: {_NOT_YET}; remove it",), {"workers": {"minNodes": 1}}),
    Judged("one tier", parts={"capacity": {"tiers": ["Spot"]}}),
    Judged(
        "two tiers",
        (f"spec.capacity.tiers: {_NOT_YET}; name one tier",),
        {"capacity": {"tiers": ["Spot", "OnDemand"]}},
    ),
    Judged("patience", (f"spec.capacity.patience: {_NOT_YET}; remove it",), {"capacity": {"patience": "1h"}}),
)

_TOO_MANY = (
    "spec: variants, matrix, folds and seeds make more than the 200 runs that a sweep may have; make several sweeps"
)
_SEEDS = list(range(10))

SWEEPS: tuple[Judged, ...] = (
    Judged("the least"),
    Judged("the longest name", name="x" * 44, parts={"variants": []}, operator_only=True, says=(
        (f"metadata.name: the run '{'x' * 44}-template' would have 53 characters, and its pods add up to 17 to it; "
        "shorten the names of the sweep and of template to 46 together"),
    )),
    Judged(
        "a long name",
        (_long('x' * 45, 44, 'the names of its runs are longer'),),
        name="x" * 45,
    ),
    Judged(
        "a dotted name",
        ("metadata.name: 'a.b' is no DNS label; write lower-case letters, digits and dashes, a letter first",),
        name="a.b",
    ),
    Judged("as many runs as may be", parts={"variants": [], "folds": 20, "seeds": _SEEDS}),
    Judged("too many runs", (_TOO_MANY,), {"variants": [], "folds": 21, "seeds": _SEEDS}),
    Judged("too many variants", (_TOO_MANY,), {"variants": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "folds": 67}),
    Judged(
        "too many by the matrix",
        (_TOO_MANY,),
        {"variants": [], "folds": 21, "matrix": {"trainer.config.depth": _SEEDS}},
        operator_only=True,
    ),
    Judged("a deadline", parts={"limits": {"deadline": "1h"}}),
    Judged("too much time", (f"spec.limits.deadline: '4000d' {_TOO_LONG}",), {"limits": {"deadline": "4000d"}}),
    Judged("no time", (f"spec.limits.deadline: '0h' {_NO_TIME} 24h",), {"limits": {"deadline": "0h"}}),
    Judged(
        "no money",
        ("spec.limits.budget.usd: '0' buys nothing; write a positive amount of dollars, such as \"250\"",),
        {"limits": {"budget": {"usd": "0"}}},
    ),
    Judged(
        "a path that is none",
        ("spec.matrix: 'a..b' is no path in a run's spec; write one such as trainer.config.learningRate",),
        {"matrix": {"a..b": [1]}},
        operator_only=True,
    ),
)  # fmt: skip
