"""Rules on a spec that need more than one field, or more than a schema can say.

Each is a small function that yields sentences; `RULES` lists them in the order in which people should hear them. The
CRD carries the CEL twin of those in `CEL`, so that a good API server refuses early; these speak in any case.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from piton.contract import duration, names
from piton.core.affinity import HOSTNAME
from piton.core.model import DNS_LABEL, Budget, EvaluateStage, SideStage, Spec, Stage, Toleration

Rule = Callable[[Spec], Iterator[str]]

RESERVED_ENV = re.compile(
    r"^(PITON_|PET_|KUBEFLOW_TRAINER_|TORCHELASTIC_)|^(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)
DISRUPTED = "karpenter.sh/disrupted"
"""The taint of a machine that Karpenter takes away."""
LOSS = "loss"
"""By its name the loss of one batch, as every training script reports it."""
NO_PRICE = (
    "spec.capacity.maxPricePerHour: missing; limits.budget counts with it where nobody knows what a node costs; "
    'write the most that you pay for a node per hour, such as "12.50"'
)
SECRET_ENV = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY(_ID)?)$", re.IGNORECASE)


def check_name(name: str) -> list[str]:
    """The run's name has to fit into the names of its pods."""
    if len(name) > names.MAX_RUN_NAME:
        size = f"{name!r} has {len(name)} characters, and its pods add up to 17 to it"
        return [f"metadata.name: {size}; write at most {names.MAX_RUN_NAME}"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return [f"metadata.name: {name!r} is no DNS label; write lower-case letters, digits and dashes, a letter first"]
    return []


def check(spec: Spec) -> list[str]:
    """Every sentence that the rules have to say about this spec."""
    return [sentence for rule in RULES for sentence in rule(spec)]


def one_program(spec: Spec) -> Iterator[str]:
    """A recipe or a command, not both and not neither."""
    trainer = spec.trainer
    if bool(trainer.recipe) == bool(trainer.command):
        found = "both are" if trainer.recipe else "neither is"
        yield f"spec.trainer: exactly one of recipe and command is needed, {found} given; name a recipe such as charlm"
    if trainer.config and trainer.command:
        yield "spec.trainer.config: only a recipe has a config; pass your program its settings in spec.trainer.command"


def one_volume(spec: Spec) -> Iterator[str]:
    """A claim that exists, or the size of a new one."""
    volume = spec.checkpoint.volume
    if bool(volume.claim_name) == bool(volume.size):
        yield "spec.checkpoint.volume: exactly one of claimName and size is needed; write size: 100Gi for a new claim"
    elif volume.claim_name and (volume.storage_class_name or volume.access_modes):
        yield "spec.checkpoint.volume: storageClassName and accessModes are for a new claim; remove them or claimName"


def shared_volume(spec: Spec) -> Iterator[str]:
    """Several nodes can share only a volume that several nodes can mount."""
    volume = spec.checkpoint.volume
    if spec.workers.nodes > 1 and volume.size and "ReadWriteMany" not in volume.access_modes:
        yield (
            f"spec.checkpoint.volume.accessModes: {list(volume.access_modes)} cannot serve {spec.workers.nodes} nodes; "
            "write [ReadWriteMany] and a storage class that offers it, such as EFS or FSx for Lustre"
        )


def an_interval(spec: Spec) -> Iterator[str]:
    """An interval needs a number."""
    every = spec.checkpoint.every
    if every != "auto" and every.minutes is None and every.steps is None:
        yield "spec.checkpoint.every: neither minutes nor steps is given; write {minutes: 15}, or auto"


def a_steady_judge(spec: Spec) -> Iterator[str]:
    """The loss of a batch is judged at each save; patience with it needs saves that somebody can count."""
    objective = spec.objective
    if spec.checkpoint.every == "auto" and objective and objective.metric == LOSS and objective.patience:
        yield (
            f"spec.objective.patience: {LOSS} is judged whenever a save is due, and checkpoint.every: auto changes how "
            "often that is; write checkpoint.every: {steps: 500}, or name a metric of an evaluation, such as val_loss"
        )


def good_env(spec: Spec) -> Iterator[str]:
    """Secrets by reference; Piton's own variables left alone; no variable twice."""
    seen: set[str] = set()
    for index, variable in enumerate(spec.trainer.env):
        path = f"spec.trainer.env[{index}]"
        if variable.name in seen:
            yield f"{path}.name: {variable.name!r} is given twice; remove one"
        seen.add(variable.name)
        if RESERVED_ENV.search(variable.name):
            yield f"{path}.name: {variable.name!r} is set by Piton; choose another name"
        if (variable.value is None) == (variable.value_from is None):
            yield f"{path}: exactly one of value and valueFrom is needed for {variable.name}"
        if variable.value and SECRET_ENV.search(variable.name):
            yield (
                f"{path}.value: {variable.name} looks like a secret; put it into a Secret and write "
                "valueFrom: {secretKeyRef: {name: …, key: …}}"
            )
        source = variable.value_from
        if source and bool(source.secret_key_ref) == bool(source.config_map_key_ref):
            yield f"{path}.valueFrom: exactly one of secretKeyRef and configMapKeyRef is needed for {variable.name}"


def good_durations(spec: Spec) -> Iterator[str]:
    """A duration of nothing is a mistake."""
    for path, text, fix in (
        ("limits.deadline", spec.limits.deadline, "24h"),
        ("limits.trainingTime", spec.limits.training_time, "24h"),
        ("checkpoint.patience", spec.checkpoint.patience, "1h"),
        *((f"{path}.deadline", own.deadline, "6h") for path, own in _side_stages(spec)),
    ):
        if text is not None and duration.parse_duration(text) <= 0:
            yield f"spec.{path}: {text!r} is no time at all; write a duration such as {fix}"


def positive_budget(spec: Spec) -> Iterator[str]:
    """A budget of nothing trains nothing."""
    if spec.limits.budget:
        yield from positive(spec.limits.budget)


def positive(budget: Budget) -> Iterator[str]:
    """The same, of any budget."""
    if float(budget.usd) <= 0:
        yield f'spec.limits.budget.usd: {budget.usd!r} buys nothing; write a positive amount of dollars, such as "250"'


def a_price(spec: Spec) -> Iterator[str]:
    """A budget counts with prices; of a node whose price nobody knows it is the highest."""
    price = spec.capacity.max_price_per_hour
    if price is not None and float(price) <= 0:
        yield f'spec.capacity.maxPricePerHour: {price!r} gets no node; write what you pay for one, such as "12.50"'
    if spec.limits.budget and price is None:
        yield NO_PRICE


def gpus_by_piton(spec: Spec) -> Iterator[str]:
    """GPUs have one field; before the training there are none."""
    asked = [("workers.template.resources", spec.workers.template.resources, "set by spec.workers.gpusPerNode")]
    for path, own in _side_stages(spec):
        why = "set by spec.stages.evaluate.gpus" if isinstance(own, EvaluateStage) else "not for this stage"
        asked.append((f"{path}.resources", own.resources, why))
    for path, resources, why in asked:
        for part, wanted in (("requests", resources.requests), ("limits", resources.limits)):
            if "nvidia.com/gpu" in wanted:
                yield f"spec.{path}.{part}: nvidia.com/gpu is {why}; remove it"


def root_or_not(spec: Spec) -> Iterator[str]:
    """User 0 is root."""
    said = spec.workers.template.security_context
    if said.run_as_non_root and said.run_as_user == 0:
        yield (
            "spec.workers.template.securityContext: runAsUser 0 is root, and runAsNonRoot forbids root; "
            "remove one of them"
        )


def stage_programs(spec: Spec) -> Iterator[str]:
    """A stage runs the user's command, or what a recipe has for it."""
    for path, own in _side_stages(spec):
        recipe = own.recipe if isinstance(own, EvaluateStage) else None
        if not own.command and not (recipe or spec.trainer.recipe):
            yield f"spec.{path}.command: missing; only a recipe has a program for this stage"
        if own.command and recipe:
            yield f"spec.{path}: at most one of recipe and command is needed, both are given; remove one"
        if isinstance(own, EvaluateStage) and own.config and not (recipe or spec.trainer.recipe):
            yield f"spec.{path}.config: only a recipe has a config; pass your program its settings in the command"


def _side_stages(spec: Spec) -> list[tuple[str, SideStage]]:
    """The stages beside the training that are wanted, each with its path."""
    found = ((f"stages.{stage.lower()}", spec.stages.of(stage)) for stage in Stage)
    return [(path, own) for path, own in found if own is not None]


def good_labels(spec: Spec) -> Iterator[str]:
    """Zones are label values."""
    for index, zone in enumerate(spec.workers.zones):
        if not re.fullmatch(DNS_LABEL, zone):
            yield f"spec.workers.zones[{index}]: {zone!r} is no zone; write one such as us-east-1a"


def not_yet(spec: Spec) -> Iterator[str]:
    """What this version does not do is refused: a limit that is silently ignored costs money."""
    capacity = spec.capacity
    fields = {
        "workers.minNodes": spec.workers.min_nodes is not None,
        "capacity.tiers": len(capacity.tiers) > 1,
        "capacity.patience": capacity.patience is not None,
    }
    instead = {
        "capacity.tiers": "name one tier",
    }
    for path, used in fields.items():
        if used:
            fix = instead.get(path, "remove it")
            yield f"spec.{path}: this version of Piton does not act on it yet; {fix}"


def warnings(spec: Spec) -> list[str]:
    """What is allowed, and does not do everywhere what people expect: said, and nothing is refused for it."""
    return [sentence for rule in WARNINGS for sentence in rule(spec)]


def no_drain(spec: Spec) -> Iterator[str]:
    """Karpenter takes pods that tolerate its own taint for parts of the node, and never drains them."""
    for path, tolerations in _tolerations(spec):
        for index, toleration in enumerate(tolerations):
            if _tolerates_disrupted(toleration):
                yield (
                    f"spec.{path}[{index}]: also tolerates Karpenter's taint {DISRUPTED}:NoSchedule, so its pods are "
                    "never drained and may start on a machine that is about to go; name the taints that you mean"
                )


def no_single_node(spec: Spec) -> Iterator[str]:
    """Legal, and right where nodes are not made on demand; so it is not refused."""
    for path, selector in _node_selectors(spec):
        if HOSTNAME in selector:
            yield (
                f"spec.{path}: Karpenter launches no node for a pod that selects {HOSTNAME}; select an instance type, "
                "a zone or a label of your own, unless this node is always there"
            )


def _tolerates_disrupted(toleration: Toleration) -> bool:
    """As the scheduler matches the taint `karpenter.sh/disrupted:NoSchedule`, which has no value."""
    if toleration.effect not in (None, "NoSchedule"):
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    return toleration.key == DISRUPTED and (toleration.operator == "Exists" or not toleration.value)


def _tolerations(spec: Spec) -> list[tuple[str, tuple[Toleration, ...]]]:
    sides = [(f"{path}.tolerations", own.tolerations) for path, own in _side_stages(spec)]
    return [("workers.template.tolerations", spec.workers.template.tolerations), *sides]


def _node_selectors(spec: Spec) -> list[tuple[str, Mapping[str, str]]]:
    sides = [(f"{path}.nodeSelector", own.node_selector) for path, own in _side_stages(spec)]
    return [("workers.template.nodeSelector", spec.workers.template.node_selector), *sides]


WARNINGS: tuple[Rule, ...] = (no_drain, no_single_node)

RULES: tuple[Rule, ...] = (
    one_program,
    one_volume,
    shared_volume,
    an_interval,
    a_steady_judge,
    good_env,
    good_durations,
    positive_budget,
    a_price,
    gpus_by_piton,
    root_or_not,
    stage_programs,
    good_labels,
    not_yet,
)

CEL: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (
            f"size(self.metadata.name) <= {names.MAX_RUN_NAME}",
            f"metadata.name: at most {names.MAX_RUN_NAME} characters, so that the names of the pods fit",
        ),
    ),
    "spec.trainer": (
        (
            "(has(self.recipe) && size(self.recipe) > 0) != (has(self.command) && size(self.command) > 0)",
            "exactly one of recipe and command is needed",
        ),
    ),
    "spec.checkpoint.volume": (
        ("has(self.claimName) != has(self.size)", "exactly one of claimName and size is needed"),
    ),
    "spec": (
        (
            (
                "!has(self.workers) || !has(self.workers.nodes) || self.workers.nodes <= 1"
                " || !has(self.checkpoint.volume.size) || (has(self.checkpoint.volume.accessModes)"
                " && 'ReadWriteMany' in self.checkpoint.volume.accessModes)"
            ),
            "several nodes need accessModes: [ReadWriteMany]",
        ),
        (
            (
                "!has(self.limits) || !has(self.limits.budget)"
                " || (has(self.capacity) && has(self.capacity.maxPricePerHour))"
            ),
            "limits.budget needs capacity.maxPricePerHour",
        ),
    ),
}
"""Path of a schema -> (CEL rule, message); `self` is the value at that path."""
