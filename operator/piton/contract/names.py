"""Names that both sides spell the same way: the API group, environment variables, labels, files.

The limits on names come from Kubernetes: a pod's name doubles as its DNS label, so `<run>-<attempt>-worker-<n>`
has to fit into 63 characters.
"""

API_GROUP = "piton.dev"
API_VERSION = "v1alpha1"
KIND = "TrainingRun"
PLURAL = "trainingruns"
SHORT_NAME = "trun"
SWEEP_KIND = "TrainingSweep"
SWEEP_PLURAL = "trainingsweeps"
SWEEP_SHORT_NAME = "tsweep"
FINALIZER = f"{API_GROUP}/finalizer"

# Labels of Kubernetes on nodes.
HOSTNAME = "kubernetes.io/hostname"

# Environment of every trainer process.
ENV_RUN = "PITON_RUN"
ENV_RUN_UID = "PITON_RUN_UID"
"""Of the run: a later run of the same name has another one."""
ENV_NAMESPACE = "PITON_NAMESPACE"
ENV_ATTEMPT = "PITON_ATTEMPT"
ENV_CHECKPOINT_DIR = "PITON_CHECKPOINT_DIR"
ENV_CONFIG = "PITON_CONFIG"
ENV_STOP_AT = "PITON_STOP_AT"
"""Time at which to stop, UTC, ISO 8601, by the clock of the trainer's machine. Older operators set it."""
ENV_STOP_AFTER = "PITON_STOP_AFTER"
"""Seconds from the start of the training process until a limit of the run's is reached: clocks of machines differ."""
ENV_STOP_LIMIT = "PITON_STOP_LIMIT"
"""The limit that is reached then: deadline or budget."""
ENV_CHECKPOINT = "PITON_CHECKPOINT"
"""Of an evaluation only: the folder of the checkpoint that it is about."""
ENV_DURABLE_STEP = "PITON_DURABLE_STEP"
"""The newest step that earlier attempts have reported as durable. Without any checkpoint of it nothing is trained."""
ENV_GO_ON_AFTER = "PITON_GO_ON_AFTER"
"""An attempt's number: where it, or one before it, has left its loop by `break`, training goes on."""
ENV_ALLOW_FRESH_START = "PITON_ALLOW_FRESH_START"
"""`true`: train from step 0 where no checkpoint can be restored, though there was one."""
ENV_TERMINATION_LOG = "PITON_TERMINATION_LOG"
ENV_REPORT_SECONDS = "PITON_REPORT_SECONDS"
ENV_METRICS_PORT = "PITON_METRICS_PORT"
ENV_GPUS = "PITON_GPUS"
"""Number of GPUs that the pod requests; absent if it requests none, and outside a cluster."""
ENV_COLLECTIVE_SECONDS = "PITON_COLLECTIVE_SECONDS"
ENV_JOIN_SECONDS = "PITON_JOIN_SECONDS"
"""Seconds that a rank waits for the others before training begins."""
ENV_HANG_TIMEOUT = "PITON_HANG_TIMEOUT"
"""Seconds without a step after which the trainers are ended, or one of these words."""
HANGS_AUTO, HANGS_OFF = "auto", "off"
ENV_RENDEZVOUS = "PET_RDZV_CONF"
"""torchrun's own settings of the same: key=value pairs, of which `timeout` is in seconds."""
ENV_SAVES = "PITON_SAVES"
SAVES_BACKGROUND, SAVES_BLOCKING = "background", "blocking"
"""Training goes on while a checkpoint is written, from a copy of the state in memory; or it waits, and needs none."""
ENV_DATA_CACHE = "PITON_DATA_CACHE"
"""Folder of downloads; by default below the user's caches."""
ENV_REHEARSAL = "PITON_REHEARSAL"

USER_ENV = (ENV_DATA_CACHE, ENV_COLLECTIVE_SECONDS, ENV_SAVES)
"""Variables that the user may set, in a spec and in the environment of `piton run`; Piton sets all others."""

# KEP-2779 (kubeflow/trainer): where progress is pushed to. transformers 5 reads the same three.
ENV_SERVER_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_SERVER_CA_CERT = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_SERVER_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - the name of a variable

# torchrun kills its workers this many seconds after SIGTERM, whatever Kubernetes allows (30 by default).
ENV_ELASTIC_SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

# Where torch.compile and Triton keep what they have compiled. By default that is in /tmp, and gone with the pod.
ENV_INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
ENV_TRITON_CACHE = "TRITON_CACHE_DIR"

LABEL_RUN = f"{API_GROUP}/run"
LABEL_ATTEMPT = f"{API_GROUP}/attempt"
LABEL_STAGE = f"{API_GROUP}/stage"
"""On what is not for training: Prepare or Evaluate."""
LABEL_SWEEP = f"{API_GROUP}/sweep"
LABEL_VARIANT = f"{API_GROUP}/variant"
LABEL_GROUP = f"{API_GROUP}/group"
"""Of pods that want to be on one node, or on different ones."""
LABEL_LEADER = f"{API_GROUP}/leader"
"""Of the operator's pod that works, among those that stand by; its value is the lease's name."""
TAINT_DEVICE_FAULT = f"{API_GROUP}/device-fault"
"""Of a node on which an attempt has found a broken device; its value is the attempt's name."""
ANNOTATION_DEVICE_FAULT_UNTIL = f"{API_GROUP}/device-fault-until"
"""On such a node that Piton has tainted: when it takes the taint back."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY_CLASS = "kueue.x-k8s.io/priority-class"
"""Kueue's labels, on a run or a sweep: in which LocalQueue it waits for quota, and how important it is there."""
ANNOTATION_HELD = f"{API_GROUP}/held-by"
"""On a run: who has suspended it, and will let it go on. A run that a person has suspended does not carry it."""
ANNOTATION_OLDER_RULES = f"{API_GROUP}/older-rules"
"""On a run, `true`: its sweep has begun before some rules were there, and the run is not asked for what they say."""
ANNOTATION_ALLOW_FRESH_START = f"{API_GROUP}/allow-fresh-start"
"""On a run, `true`: its trainers may start from step 0 where no checkpoint can be restored, though there was one."""
ANNOTATION_RETRY = f"{API_GROUP}/retry"
"""On a run, any text: it is taken up again when it has failed, holds since it got nowhere, or was left by `break`; once
for each text."""
ANNOTATION_SAVE = f"{API_GROUP}/save"
"""On a run, any text: its trainer saves now; once for each text."""
ANNOTATION_RUN_UID = f"{API_GROUP}/run-uid"
"""On a claim that Piton has made: the uid of the run that it was made for, which it may outlive."""
ANNOTATION_DESCRIPTION = "kubernetes.io/description"
ANNOTATION_PRICE = f"{API_GROUP}/price-per-hour"
"""On a node, as an annotation or a label: dollars per hour of all of it, such as 12.50."""
ANNOTATION_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
ANNOTATION_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
ANNOTATION_CONFIG = f"{API_GROUP}/config"
ANNOTATION_CA = f"{API_GROUP}/ca"

METRICS_PORT = 9401
METRICS_PORT_NAME = "metrics"
ANNOTATION_SCRAPE = "prometheus.io/scrape"
ANNOTATION_SCRAPE_PORT = "prometheus.io/port"

GPU = "nvidia.com/gpu"
"""The resource of a GPU, and the key of the taint on nodes that have some."""
CONTAINER = "pytorch"
CHECKPOINT_MOUNT = "/checkpoints"
CONFIG_MOUNT = "/etc/piton"
CONFIG_FILE = "config.json"
PROGRESS_MOUNT = "/var/run/secrets/piton.dev"
PROGRESS_CA_FILE = "ca.crt"
PROGRESS_TOKEN_FILE = "token"  # noqa: S105 - the name of a file
TOKEN_AUDIENCE = API_GROUP
"""The only thing that the token in a trainer's pod is good for."""
DEFAULT_TERMINATION_LOG = "/dev/termination-log"

# Layout of a checkpoint directory.
FENCE_FILE = "FENCE"
MANIFEST_FILE = "MANIFEST.json"
WEIGHTS_FILE = "WEIGHTS.json"
"""The manifest of a checkpoint of which only the weights are left."""
COMPLETE_FILE = "COMPLETE.json"
END_FILE = "END.json"
"""The end of the newest attempt that could write it; its successor reports it."""
MIRROR_FILE = "MIRROR"
"""The lineage of the bucket that the checkpoints are mirrored to, or come from."""
STEP_PREFIX = "step-"
WEIGHTS_PREFIX = "weights-"
SAVING_PREFIX = ".saving-"
CLAIM_PREFIX = ".claim-"
"""Of a file that is there for a moment: rank 0 writes it, and all ranks look for it."""
SESSIONS_FOLDER = "sessions"
"""Folders of trainings that the script has given names, each as a checkpoint directory."""
CACHE_FOLDER = ".cache"
"""Compiler caches of the attempts, for the next one: never verified, mirrored or retained."""
CHECKPOINT_FILES = (
    "*.tmp",
    ".probe-*",
    f"{CLAIM_PREFIX}*",
    ".hangs",
    CACHE_FOLDER,
    "cache",
    "results.json",
    SESSIONS_FOLDER,
    ".swept-*",
    ".restoring-*",
    f"{SAVING_PREFIX}*",
    f"{WEIGHTS_PREFIX}[0-9]*",
    f"{STEP_PREFIX}[0-9]*",
    MIRROR_FILE,
    END_FILE,
    COMPLETE_FILE,
    FENCE_FILE,
)
"""All that Piton writes into a checkpoint directory, as patterns of names. What no pattern matches is the user's."""

MAX_RUN_NAME = 46
"""`-<attempt>` (up to 5 digits) and `-worker-<nnn>` must still fit into the 63 characters of a DNS label."""


def attempt_name(run: str, attempt: int) -> str:
    """The name of an attempt's PyTorchJob and of its AppDef, e.g. `ragcun-3`."""
    return f"{run}-{attempt}"


def step_folder(step: int) -> str:
    """The folder of a committed checkpoint, e.g. `step-000001200`."""
    return f"{STEP_PREFIX}{step:09d}"


def parse_step_folder(name: str) -> int | None:
    """The step in a checkpoint folder's name, or None when it is not one."""
    return _number_after(STEP_PREFIX, name)


def weights_folder(step: int) -> str:
    """The folder of a checkpoint of which only the weights are left: nothing resumes from it."""
    return f"{WEIGHTS_PREFIX}{step:09d}"


def parse_weights_folder(name: str) -> int | None:
    """The step in such a folder's name, or None when it is not one."""
    return _number_after(WEIGHTS_PREFIX, name)


def _number_after(prefix: str, name: str) -> int | None:
    digits = name.removeprefix(prefix)
    return int(digits) if name.startswith(prefix) and digits.isascii() and digits.isdigit() else None
