"""A real cluster as the e2e tests see it: what users do is done with kubectl, what tests look at is read from the API.

Works on any cluster that KUBECONFIG names. Only `Training.folder`, which looks at a volume, needs the box.
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hack.cluster.layout import VOLUMES
from hack.cluster.shell import BoxError
from hack.install import tools
from piton.contract import names
from piton.contract.manifest import Complete, Manifest

T = TypeVar("T")
Object = dict[str, Any]
POLL_SECONDS = 0.1
PACED = (Path(__file__).parents[1] / "e2e" / "paced.py").read_text()
TRAINER = "ghcr.io/piton-dev/trainer:0.1.0"
_OK, _NOT_FOUND = 200, 404
_RUNS = f"/apis/{names.API_GROUP}/{names.API_VERSION}"


class LiveCluster:
    """One cluster."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        configuration = Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.retries = False  # an API server that restarts is asked again by whoever waits
        self._client = ApiClient(configuration)

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """What kubectl prints; an error is quoted."""
        done = self._kubectl(words, stdin)
        assert done.returncode == 0 or not check, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def refusal(self, *words: str, stdin: str = "") -> str:
        """Why kubectl fails; nothing where it does not."""
        done = self._kubectl(words, stdin)
        return done.stderr if done.returncode else ""

    def _kubectl(self, words: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
        command = [str(tools.kubectl()), "--kubeconfig", str(self.kubeconfig), *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=180)

    def get(self, path: str) -> Object | None:
        """An object or a list by its path; None while it does not exist."""
        _, url, headers, _, _ = self._client.param_serialize(
            "GET", path, header_params={"Accept": "application/json"}, auth_settings=["BearerToken"]
        )
        response = self._client.call_api("GET", url, header_params=headers, _request_timeout=10)
        if response.status == _NOT_FOUND:
            return None
        if response.status != _OK:
            raise ApiException(http_resp=response)
        found: Object = json.loads(response.read())
        return found

    def items(self, path: str) -> list[Object]:
        """The items of a list."""
        found: list[Object] = (self.get(path) or {}).get("items", [])
        return found


@dataclass(frozen=True)
class Training:
    """A TrainingRun on the cluster, and the ways to look at it."""

    cluster: LiveCluster
    namespace: str
    name: str

    def apply(self, spec: Mapping[str, Any], *, labels: Mapping[str, str] | None = None) -> None:
        """Apply it, as a user does."""
        manifest = {
            "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
            "kind": names.KIND,
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": dict(labels or {})},
            "spec": spec,
        }
        self.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))

    def patch(self, spec: Mapping[str, Any]) -> None:
        """Change the spec, as a user does."""
        patch = json.dumps({"spec": spec})
        self.cluster.kubectl("-n", self.namespace, "patch", "trun", self.name, "--type=merge", "-p", patch)

    def delete(self, *options: str) -> None:
        """Delete it; that it is gone already is as good."""
        words = ["delete", "trun", self.name, "--ignore-not-found", "--timeout=150s", *options]
        self.cluster.kubectl("-n", self.namespace, *words)

    @property
    def status(self) -> Object:
        """Its status; empty while there is none."""
        found = self.cluster.get(f"{_RUNS}/namespaces/{self.namespace}/{names.PLURAL}/{self.name}") or {}
        status: Object = found.get("status") or {}
        return status

    @property
    def phase(self) -> str:
        """Its phase."""
        return str(self.status.get("phase", ""))

    def pods(self, attempt: int | None = None) -> list[Object]:
        """The pods that are there, of one attempt or of all."""
        selector = f"{names.LABEL_RUN}%3D{self.name}" + (f",{names.LABEL_ATTEMPT}%3D{attempt}" if attempt else "")
        return self.cluster.items(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}")

    def node(self, attempt: int) -> str | None:
        """Where the attempt's first pod runs or ran; None before it has started."""
        started = [pod for pod in self.pods(attempt) if pod["status"].get("phase") not in (None, "Pending")]
        return min((str(pod["spec"]["nodeName"]) for pod in started), default=None)

    def running(self) -> list[str]:
        """The pods that run. The kubelet says Running of one that is deleted until it has cleaned up after its end."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods()
            if pod["status"].get("phase") == "Running"
            and not all(
                "terminated" in found["state"] for found in pod["status"].get("containerStatuses", [{"state": {}}])
            )
        ]

    def leftovers(self) -> list[str]:
        """Everything of the run that still exists, but events."""
        paths = {
            "PyTorchJob": f"/apis/kubeflow.org/v1/namespaces/{self.namespace}/pytorchjobs",
            "Pod": f"/api/v1/namespaces/{self.namespace}/pods",
            "Service": f"/api/v1/namespaces/{self.namespace}/services",
            "PersistentVolumeClaim": f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims",
        }
        selector = f"?labelSelector={names.LABEL_RUN}%3D{self.name}"
        return [
            f"{k} {item['metadata']['name']}"
            for k, path in paths.items()
            for item in self.cluster.items(path + selector)
        ]

    # --- its volume ---------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path | None:
        """Its checkpoint directory on the box's shared storage; None while it has no volume."""
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{self.name}-checkpoints"
        volume = ((self.cluster.get(path) or {}).get("spec") or {}).get("volumeName")
        return VOLUMES / volume / self.name if volume else None

    def commits(self) -> dict[int, int]:
        """The committed checkpoints on the volume: which attempt committed which step."""
        found = {}
        for path in (self.folder or Path("/nowhere")).glob(f"{names.STEP_PREFIX}*/{names.MANIFEST_FILE}"):
            try:
                manifest = Manifest.from_json(path.read_text())
            except FileNotFoundError:  # retention was quicker
                continue
            found[manifest.step] = manifest.attempt
        return found

    def hurry(self) -> None:
        """Let `paced.py` train without waits from now on, in this attempt and in those that follow."""
        folder = self.folder
        assert folder is not None, f"{self.name} has no volume"
        (folder / "hurry").touch()

    def fence(self) -> int:
        """The attempt that holds the fence; 0 while nobody does."""
        folder = self.folder
        path = (folder or Path("/nowhere")) / names.FENCE_FILE
        return int(json.loads(path.read_text())["attempt"]) if path.exists() else 0

    def complete(self) -> Complete:
        """The final manifest on the volume."""
        folder = self.folder
        assert folder is not None, f"{self.name} has no volume"
        return Complete.from_json((folder / names.COMPLETE_FILE).read_text())

    # --- waiting ------------------------------------------------------------------------------------------------------

    def wait_for_commit(self, step: int, *, seconds: float = 120) -> None:
        """Until a checkpoint of at least that step is on the volume."""
        wait_for(
            lambda: max(self.commits(), default=0) >= step, f"{self.name}: a checkpoint at {step}", seconds=seconds
        )

    def wait_for_progress(self, *, seconds: float = 30) -> None:
        """Until its status has a newer step than now."""
        step = self.status["progress"]["step"]
        wait_for(lambda: self.status["progress"]["step"] > step, "a report", seconds=seconds, say=self.say)

    def wait_for_node(self, attempt: int, *, seconds: float = 240) -> str:
        """Until that attempt has started; where."""
        return wait_for(lambda: self.node(attempt), f"attempt {attempt} of {self.name}", seconds=seconds, say=self.say)

    def wait_for_phase(self, *phases: str, seconds: float = 240) -> Object:
        """Until it is in one of these phases; its status then. Ends early when it can no longer get there."""
        final = {"Succeeded", "Failed", *phases}

        def reached() -> Object | None:
            status = self.status
            return status if status.get("phase") in final else None

        seen = wait_for(reached, f"{self.name}: {' or '.join(phases)}", seconds=seconds, say=self.say)
        assert seen["phase"] in phases, f"{self.name} is {seen['phase']}: {self.say()}"
        return seen

    def say(self) -> str:
        """All that may tell why it is not where it should be."""
        return yaml.safe_dump(self.status) + self.cluster.kubectl(
            "-n", self.namespace, "get", "events,pods,pytorchjobs", "-o", "wide", check=False
        )


NewTraining = Callable[..., Training]
"""Makes the handle of a run in the test's namespace; the name is optional."""
DigestOf = Callable[[int], str]
"""The digest of `paced.py` after so many steps, trained without any disturbance."""


def wait_for(true: Callable[[], T | None], what: str, *, seconds: float, say: Callable[[], str] = str) -> T:
    """Until it returns something true. An API server that is away is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except (HTTPError, ApiException, BoxError, OSError):
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}\n{say()}")
        time.sleep(POLL_SECONDS)


def paced(
    steps: int,
    seconds_per_step: float,
    *,
    save_every: int = 10,
    gpus: int = 1,
    limits: Mapping[str, Any] | None = None,
    template: Mapping[str, Any] | None = None,
    volume: Mapping[str, Any] | None = None,
) -> Object:
    """The spec of a run of `paced.py` on one node; its weights in the end depend on `steps` alone."""
    return {
        "trainer": {"image": TRAINER, "command": ["python", "-c", PACED, str(steps), str(seconds_per_step)]},
        "workers": {"nodes": 1, "gpusPerNode": gpus, "template": dict(template or {})},
        "checkpoint": {
            "volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"], "reclaim": "Delete", **(volume or {})},
            "every": {"steps": save_every},
            "keep": {"last": 3},
        },
        "limits": {"failures": 3, **(limits or {})},
    }
