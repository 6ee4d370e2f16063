"""From a run to one TorchX AppDef per attempt: the one description of what runs.

The local world passes it to TorchX's scheduler; `pytorchjob.py` makes the cluster's objects from it. TorchX is imported
when the first AppDef is made: the modules that decide import this one, and start without TorchX.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from piton.api.checkpoint_spec import Every, Mirror
from piton.api.spec import Meta, ObjectiveSpec, Spec, Stage
from piton.api.stages import staged
from piton.contract import names
from piton.contract.assignment import Assignment, Encryption, MirrorPolicy, Objective, SavePolicy
from piton.contract.duration import format_duration, parse_duration
from piton.contract.termination import StopAfter
from piton.rendering.instance_types import node_resources
from piton.timing import GRACE_SECONDS

if TYPE_CHECKING:
    from torchx import specs

ROLE = "trainer"
MODULES = {
    Stage.PREPARE: "piton_trainer.prepare",
    Stage.TRAIN: "piton_trainer",
    Stage.EVALUATE: "piton_trainer.evaluate",
}
"""The module of a recipe for each stage."""
_START_TIMEOUTS = 4
"""So many times limits.startTimeout Piton may wait for a gang: until all have a machine, then once, and twice that for
pulls."""
_AFTER_START_TIMEOUT_SECONDS = 600
"""A node that gave up by itself would end with an error, and say nothing of the one that it waited for."""
ELASTIC_SHUTDOWN_SECONDS = GRACE_SECONDS - 10
"""torchrun has to be done before the kubelet is."""


@dataclass(frozen=True, kw_only=True)
class TrainerPlace:
    """The differences between the places where a trainer may run."""

    python: str = "python"
    torchrun: tuple[str, ...] = ("torchrun",)
    checkpoint_dir: str
    config_file: str = f"{names.CONFIG_MOUNT}/{names.CONFIG_FILE}"
    termination_log: str = names.DEFAULT_TERMINATION_LOG
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportEndpoint:
    """The address for the reports of trainers on a cluster, by the operator's settings."""

    url: str
    """Base URL, without a slash at the end."""
    ca_pem: str
    """The certificate of the authority that vouches for it."""

    def run_url(self, meta: Meta) -> str:
        """Return the URL for the reports of that run."""
        return f"{self.url}/namespaces/{meta.namespace}/{names.PLURAL}/{meta.name}/status"


def assignment(spec: Spec) -> Assignment:
    """Return the assignment of the trainers; the same in every place."""
    every = spec.checkpoint.every if isinstance(spec.checkpoint.every, Every) else Every()
    return Assignment(
        recipe=spec.trainer.recipe,
        config=spec.trainer.config,
        save=SavePolicy(
            auto=spec.checkpoint.every == "auto",
            every_seconds=None if every.minutes is None else every.minutes * 60.0,
            every_steps=every.steps,
            keep_last=spec.checkpoint.keep.last,
            keep_best=spec.checkpoint.keep.best,
            keep_weights_only=spec.checkpoint.keep.weights_only,
            patience_seconds=parse_duration(spec.checkpoint.patience),
        ),
        objective=_objective(spec.objective),
        mirror=_mirror(spec.checkpoint.mirror),
        training_seconds=parse_duration(spec.limits.training_time) if spec.limits.training_time else None,
    )


def interval(spec: Spec) -> str:
    """Describe the save interval, for users."""
    save = assignment(spec).save
    if save.auto:
        return "as often as pays, by what saves cost and how often training is interrupted (auto)"
    minutes = None if save.every_seconds is None else f"every {format_duration(save.every_seconds)}"
    steps = None if save.every_steps is None else f"every {save.every_steps} steps"
    return " and ".join(part for part in (minutes, steps) if part)


def _mirror(mirror: Mirror | None) -> MirrorPolicy | None:
    if mirror is None:
        return None
    asked = mirror.encryption
    encryption = None if asked is None else Encryption(type=asked.type.value, key_id=asked.key_id)
    return MirrorPolicy(uri=mirror.uri, megabytes_per_second=mirror.max_megabytes_per_second, encryption=encryption)


def _objective(spec: ObjectiveSpec | None) -> Objective | None:
    if spec is None:
        return None
    return Objective(metric=spec.metric, goal=spec.goal, target=spec.target, patience=spec.patience)


def processes_per_node(spec: Spec) -> int:
    """One process per GPU, or one for the CPU."""
    return max(1, spec.workers.gpus_per_node)


def appdef(
    meta: Meta,
    spec: Spec,
    attempt: int,
    place: TrainerPlace,
    *,
    stage: Stage = Stage.TRAIN,
    checkpoint_step: int | None = None,
    go_on_after: int | None = None,
    blocking_saves: bool = False,
    stop_after: StopAfter | None = None,
) -> "specs.AppDef":
    """Return the AppDef of one attempt: a role with one replica per node.

    `checkpoint_step` is the step of the checkpoint that the attempt needs.
    """
    from torchx import specs

    spec = staged(spec, stage)
    entrypoint, *args = _command(spec, place, stage)
    env = _env(meta, spec, attempt, place)
    if checkpoint_step is not None and stage is Stage.TRAIN:
        env[names.ENV_DURABLE_STEP] = str(checkpoint_step)
    elif checkpoint_step is not None:
        env[names.ENV_CHECKPOINT] = f"{place.checkpoint_dir}/{names.step_folder(checkpoint_step)}"
    if go_on_after is not None:
        env[names.ENV_GO_ON_AFTER] = str(go_on_after)
    if blocking_saves:
        env[names.ENV_SAVES] = names.SAVES_BLOCKING
    if stop_after is not None:
        env |= {names.ENV_STOP_AFTER: f"{stop_after.seconds:.0f}", names.ENV_STOP_LIMIT: stop_after.limit.value}
    role = specs.Role(
        name=ROLE,
        image=spec.trainer.image,
        entrypoint=entrypoint,
        args=args,
        env=env,
        num_replicas=spec.workers.nodes,
        resource=node_resources(spec),
    )
    labels = {names.LABEL_RUN: meta.name, names.LABEL_ATTEMPT: str(attempt)}
    return specs.AppDef(
        name=names.attempt_name(meta.name, attempt),
        roles=[role],
        metadata=labels if stage is Stage.TRAIN else {**labels, names.LABEL_STAGE: stage.value},
    )


def _command(spec: Spec, place: TrainerPlace, stage: Stage) -> list[str]:
    """The user's command as it is; a recipe through torchrun only where a node has several processes.

    torchrun turns every end into exit code 1, so a single process does without it. It finds its arguments in the PET_*
    variables that the PyTorchJob controller (or the local world) sets.
    """
    if spec.trainer.command:
        return list(spec.trainer.command)
    if processes_per_node(spec) > 1:
        return [*place.torchrun, "-m", MODULES[stage]]
    return [place.python, "-m", MODULES[stage]]


def _env(meta: Meta, spec: Spec, attempt: int, place: TrainerPlace) -> dict[str, str]:
    env = {variable.name: variable.value for variable in spec.trainer.env if variable.value is not None}
    env |= {
        names.ENV_RUN: meta.name,
        **({names.ENV_RUN_UID: meta.uid} if meta.uid else {}),
        names.ENV_NAMESPACE: meta.namespace,
        names.ENV_ATTEMPT: str(attempt),
        names.ENV_CHECKPOINT_DIR: place.checkpoint_dir,
        names.ENV_CONFIG: place.config_file,
        names.ENV_TERMINATION_LOG: place.termination_log,
        names.ENV_ELASTIC_SHUTDOWN_TIMEOUT: str(ELASTIC_SHUTDOWN_SECONDS),
        **compile_caches(spec, place.checkpoint_dir),
    }
    if spec.workers.nodes > 1:
        env |= _patience_with_peers(spec)
    env |= _hang_timeout(spec)
    if meta.allows_fresh_start:
        env[names.ENV_ALLOW_FRESH_START] = "true"
    return env | dict(place.env)


def _hang_timeout(spec: Spec) -> dict[str, str]:
    """Return the time-out of the trainer's watchdog. The user's value has priority.

    A run from before zero was refused may have zero. No trainer takes that, so it watches nothing.
    """
    if any(variable.name == names.ENV_HANG_TIMEOUT for variable in spec.trainer.env):
        return {}
    given = spec.limits.hang_timeout
    if given in (names.HANGS_AUTO, names.HANGS_OFF):
        return {names.ENV_HANG_TIMEOUT: given}
    seconds = parse_duration(given)
    return {names.ENV_HANG_TIMEOUT: f"{seconds:g}" if seconds else names.HANGS_OFF}


def _patience_with_peers(spec: Spec) -> dict[str, str]:
    """Variables that let a node wait for the others for longer than Piton does. The user's word wins."""
    chosen = {variable.name for variable in spec.trainer.env}
    seconds = _START_TIMEOUTS * int(parse_duration(spec.limits.start_timeout)) + _AFTER_START_TIMEOUT_SECONDS
    timeouts = {names.ENV_JOIN_SECONDS: str(seconds), names.ENV_RENDEZVOUS: f"timeout={seconds}"}
    return {name: value for name, value in timeouts.items() if name not in chosen}


def compile_caches(spec: Spec, checkpoint_dir: str) -> dict[str, str]:
    """Variables that keep on the volume what an attempt has compiled, for the next one. The user's word wins."""
    chosen = {variable.name for variable in spec.trainer.env}
    folders = {names.ENV_INDUCTOR_CACHE: "inductor", names.ENV_TRITON_CACHE: "triton"}
    return {
        name: f"{checkpoint_dir}/{names.CACHE_FOLDER}/{folder}"
        for name, folder in folders.items()
        if name not in chosen
    }


def as_text(app: "specs.AppDef") -> dict[str, Any]:
    """The AppDef as plain values, for people."""
    role = app.roles[0]
    return {
        "name": app.name,
        "role": role.name,
        "replicas": role.num_replicas,
        "command": [role.entrypoint, *role.args],
        "env": dict(sorted(role.env.items())),
        "resource": json.loads(json.dumps(vars(role.resource), default=str)),
    }
