"""Typed models of a TrainingRun's spec, which the user writes; the status is in `status.py`.

These models are the source of the CRD: field names, docs, defaults and limits all come from here. They are parsed once,
on input (`parse.py`), and never changed afterwards. Rules on more than one field are in `validation.py`.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from piton.api.checkpoint_spec import Every, Keep, Mirror
from piton.api.fields import Dollars, Duration, LabelValue, Model, Name, Quantity, Text, Word
from piton.api.pod_template import PodTemplate, Resources, Toleration
from piton.contract.open_enum import OpenEnum


class KeyRef(Model):
    """One key of a Secret or ConfigMap in the run's namespace."""

    name: Name = Field(description="Name of the Secret or ConfigMap.")
    key: Text = Field(description="Key inside it.")


class EnvSource(Model):
    """Source of an environment variable's value: exactly one of the two."""

    secret_key_ref: KeyRef | None = Field(default=None, description="A key of a Secret.")
    config_map_key_ref: KeyRef | None = Field(default=None, description="A key of a ConfigMap.")


class EnvVar(Model):
    """An environment variable of the trainer's container."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] = Field(
        description="Name of the variable. PITON_*, PET_*, KUBEFLOW_TRAINER_* and the rendezvous variables are Piton's."
    )
    value: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        default=None, description="Its value. Secrets belong into valueFrom."
    )
    value_from: EnvSource | None = Field(default=None, description="Where its value comes from, instead of value.")


class Trainer(Model):
    """Program that trains: a shipped recipe with its typed config, or the user's own command."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="Container image of the trainer. A local run uses this machine's Python instead."
    )
    recipe: Name | None = Field(default=None, description="A recipe that the image ships, e.g. charlm.")
    config: Mapping[str, Any] = Field(
        default_factory=dict, description="The recipe's settings; checked by the recipe itself before it trains."
    )
    command: Annotated[tuple[Word, ...], Field(max_length=256)] = Field(
        default=(), description="Your own program, instead of a recipe; run once per node, unchanged."
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=128)] = Field(
        default=(), description="Environment variables; secrets by reference only."
    )


class Workers(Model):
    """Number and kind of the machines on which the run trains."""

    nodes: int = Field(default=1, ge=1, le=512, description="Machines, one pod each.")
    min_nodes: int | None = Field(
        default=None, ge=1, description="Reserved for runs that go on with fewer nodes; refused by this version."
    )
    gpus_per_node: int = Field(
        default=8, ge=0, le=64, description="GPUs, and processes, per machine. 0 trains on the CPU with one process."
    )
    instance_types: Annotated[tuple[LabelValue, ...], Field(max_length=32)] = Field(
        default=(), description="Instance types that will do; none means any."
    )
    zones: Annotated[tuple[LabelValue, ...], Field(max_length=16)] = Field(
        default=(), description="Availability zones that will do; none means any."
    )
    template: PodTemplate = Field(default_factory=PodTemplate, description="An allow-list of pod fields.")


class Tier(StrEnum):
    """Purchase option of the capacity."""

    SPOT = "Spot"
    ON_DEMAND = "OnDemand"


class Capacity(Model):
    """Purchase of the machines, and what they may cost."""

    tiers: Annotated[tuple[Tier, ...], Field(max_length=2)] = Field(
        default=(), description="How nodes are bought: [Spot] or [OnDemand]; none takes whatever nodes there are."
    )
    patience: Duration | None = Field(default=None, description="Reserved for several tiers; refused by this version.")
    max_price_per_hour: Dollars | None = Field(
        default=None,
        description="Highest price of a node, in dollars per hour. A node that is known to cost more is left; one of"
        " which nobody knows the price counts with this one.",
    )


class Reclaim(StrEnum):
    """Treatment of a claim that Piton has created, when its run is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Volume(Model):
    """Volume of the checkpoints: an existing claim, or one that Piton creates."""

    claim_name: Name | None = Field(
        default=None, description="An existing PersistentVolumeClaim; never deleted by Piton."
    )
    size: Quantity | None = Field(default=None, description="Size of a new claim, e.g. 500Gi.")
    storage_class_name: Name | None = Field(default=None, description="Storage class of a new claim.")
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"], ...], Field(max_length=3)
    ] = Field(default=(), description="Access modes of a new claim. Several nodes need ReadWriteMany.")
    reclaim: Reclaim = Field(
        default=Reclaim.RETAIN,
        description="What becomes of a new claim when the run is deleted. Retain keeps it if it may hold work; "
        "Delete deletes it with the run, checkpoints and all.",
    )


class Checkpoint(Model):
    """Storage, interval and retention of checkpoints."""

    volume: Volume = Field(description="Where checkpoints live.")
    every: Every | Literal["auto"] = Field(
        default="auto",
        description=(
            "Save interval: {minutes: 15}, {steps: 500}, both, or auto: as often as pays, by what a save costs and how"
            " often training is interrupted, from 20 seconds to 30 minutes. The end, a new best and what a stop would"
            " lose are saved in any case."
        ),
    )
    keep: Keep = Field(default_factory=Keep, description="Which checkpoints are kept.")
    patience: Duration = Field(
        default="1h", description="How long training goes on while nothing can be saved; then the attempt ends."
    )
    mirror: Mirror | None = Field(default=None, description="A second copy in an object store.")


class ObjectiveSpec(Model):
    """Metric that measures the quality of the model, and when training ends by it."""

    metric: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./@-]+$", max_length=64)] = Field(
        description="Name of a reported metric, e.g. val_loss."
    )
    goal: Literal["Minimize", "Maximize"] = Field(default="Minimize", description="Which direction is better.")
    target: float | None = Field(default=None, description="Training ends once the metric is at least this good.")
    patience: int | None = Field(
        default=None, ge=1, description="Training ends after this many evaluations in a row without improvement."
    )


class Budget(Model):
    """Amount of money that the run may spend."""

    usd: Dollars = Field(description='Dollars, as a string: "250". Needs capacity.maxPricePerHour.')
    warn_at: int = Field(default=80, ge=1, le=100, description="Warn at this percentage.")
    on_exceeded: Literal["Pause", "Stop"] = Field(
        default="Pause", description="Both save first. Pause goes on when the budget is raised, Stop ends it as failed."
    )


class StuckPods(StrEnum):
    """Treatment of a pod that its node does not end."""

    REPORT = "Report"
    FORCE_DELETE = "ForceDelete"


class Limits(Model):
    """Limits at which the run ends, whatever it has reached."""

    budget: Budget | None = Field(default=None, description="Money.")
    deadline: Duration | None = Field(default=None, description="Time from creation, through all attempts, e.g. 24h.")
    training_time: Duration | None = Field(default=None, description="Time to spend training, e.g. 31h.")
    failures: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Failures of the user's code without a newer durable step between them that end the run.",
    )
    total_failures: int | None = Field(
        default=None,
        ge=1,
        le=10000,
        description="Failures of the user's code in the whole life of the run that end it, whatever it has saved.",
    )
    start_timeout: Duration = Field(
        default="30m",
        description="Time from when all replicas of an attempt have a machine, or from the first that runs while "
        "others have none, until all have run; then it is stopped, and tried again with twice the time. Pulls of "
        "images do not count, up to twice this time.",
    )
    hang_timeout: Duration | Literal["auto", "off"] = Field(
        default="auto",
        description="Time without a step after which the trainers are ended, with their stacks, and the run goes on "
        "from its checkpoint; auto is ten times the median step, and at least 5m; off watches nothing.",
    )
    stalled: Duration = Field(
        default="24h",
        description="Time under the condition Stalled, without a newer durable step, after which the run holds.",
    )
    stuck_pods: StuckPods = Field(
        default=StuckPods.REPORT,
        description="What becomes of a pod that its node, which answers, has not ended 2 minutes after its grace "
        "period: Report sets the condition PodStuck; ForceDelete also deletes the pod without its kubelet, if the "
        "claim is ReadWriteMany and the node takes no new pods.",
    )


class Stage(OpenEnum):
    """Stages of a run, in order. Only training is always present."""

    PREPARE = "Prepare"
    TRAIN = "Train"
    EVALUATE = "Evaluate"


class SideStage(Model):
    """Stage before or after training: one pod with the run's image, volume and environment."""

    command: Annotated[tuple[Word, ...], Field(max_length=256)] = Field(
        default=(), description="The program to run. None runs what the recipe has for this stage."
    )
    resources: Resources = Field(default_factory=Resources, description="What it needs.")
    node_selector: Mapping[str, str] = Field(default_factory=dict, description="Labels that its node must have.")
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = Field(
        default=(), description="Its pod's tolerations; those of the workers are for their nodes."
    )
    failures: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Failures of its program in a row that end the run; none is limits.failures.",
    )
    deadline: Duration | None = Field(
        default=None, description="Time from its first attempt, through all of its attempts, e.g. 6h."
    )


class PrepareStage(SideStage):
    """Stage on a cheap CPU node, with the same volume, before a GPU is requested."""


class EvaluateStage(SideStage):
    """Stage after training, for the best checkpoint."""

    gpus: int = Field(
        default=0, ge=0, le=64, description="GPUs, and processes, on a node like the workers'. 0 is any CPU node."
    )
    recipe: Name | None = Field(default=None, description="A recipe's evaluation; none is the trainer's recipe.")
    config: Mapping[str, Any] = Field(
        default_factory=dict, description="Settings of the recipe that are others than in the training."
    )


class Stages(Model):
    """Optional stages before and after training."""

    prepare: PrepareStage | None = Field(default=None, description="Before any GPU is asked for.")
    evaluate: EvaluateStage | None = Field(default=None, description="On the best checkpoint.")

    def of(self, stage: Stage) -> SideStage | None:
        """Return the settings of a stage; None if it is not requested, and for training."""
        return {Stage.PREPARE: self.prepare, Stage.EVALUATE: self.evaluate}.get(stage)


class Spec(Model):
    """Specification of a run, which the user writes."""

    suspend: bool = Field(default=False, description="Save, stop and hold; false goes on from there.")
    ttl_after_finished: Duration | None = Field(
        default=None,
        description="Time after the run has succeeded or failed at which it is deleted, with its jobs, pods and logs, "
        "e.g. 7d; checkpoint.volume.reclaim says what becomes of its checkpoints. None keeps it.",
    )
    trainer: Trainer = Field(description="What trains.")
    workers: Workers = Field(default_factory=Workers, description="On how many machines of which kind.")
    capacity: Capacity = Field(default_factory=Capacity, description="How the machines are bought.")
    checkpoint: Checkpoint = Field(description="How progress is kept.")
    objective: ObjectiveSpec | None = Field(default=None, description="The metric that says how good the model is.")
    limits: Limits = Field(default_factory=Limits, description="Where the run ends, whatever it has reached.")
    stages: Stages = Field(default_factory=Stages, description="What happens before and after training.")


class Meta(Model):
    """Part of an object's metadata that Piton uses."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    created: datetime
    deleting: bool = False
    held: bool = False
    """True if our finalizer is on it."""
    queue: str = ""
    """Kueue LocalQueue in which it waits, by its label; empty if it does not wait for quota."""
    priority_class: str = ""
    """WorkloadPriorityClass in the queue, by its label."""
    allows_fresh_start: bool = False
    """True if its annotation lets it start from step 0 where its checkpoints are lost."""
    save: str = ""
    """Value of the annotation piton.dev/save: the trainer saves once for each text."""
    retry: str = ""
    """Value of the annotation piton.dev/retry, with which the user requests a retry; empty if there is none."""
