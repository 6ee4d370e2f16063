"""Rules on a spec that need more than one field, or more than a schema can express.

Each is a small function that yields messages; `RULES` lists them in the order of display. Next to each is its CEL
equivalent with the same text (`cel.py`), so that an API server refuses at once whatever it can check itself. The Python
rules run in any case: errors that only the operator can detect are reported with `Accepted=False`.
"""

import re
from collections.abc import Iterator

from piton.api.cel import SpecRule, by_path, cel, not_in_cel
from piton.api.spec import EvaluateStage, Spec
from piton.api.stages import side_stages
from piton.api.validation_amounts import AMOUNTS, bounded_durations, good_timeouts
from piton.api.validation_checkpoint import CHECKPOINT
from piton.api.validation_env import ENVIRONMENT
from piton.api.validation_pods import PODS
from piton.api.validation_pods import YOUNGER as YOUNGER_OF_PODS
from piton.api.validation_sizes import good_size
from piton.contract import names

RUN_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
LOSS = "loss"
"""Metric name of the loss of one batch, as every training script reports it."""
UNTYPED = "checkpoint.every is a mapping or the word auto, which a structural schema cannot say"

# --- the name ---------------------------------------------------------------------------------------------------------

LONG_NAME = (
    "metadata.name: '{name}' is too long, since its pods add up to 17 characters to it; "
    f"write at most {names.MAX_RUN_NAME}"
)
NO_LABEL = "metadata.name: '{name}' is no DNS label; write lower-case letters, digits and dashes, a letter first"
_SHORT = f"size(self.metadata.name) <= {names.MAX_RUN_NAME}"
_LABEL = f"self.metadata.name.matches('{RUN_NAME.pattern}')"


@cel("", _SHORT, LONG_NAME, name="self.metadata.name", on_creation=True)
@cel("", f"!({_SHORT}) || {_LABEL}", NO_LABEL, name="self.metadata.name", on_creation=True)
def good_name(name: str) -> Iterator[str]:
    """Check that the run's name fits into the names of its pods."""
    if len(name) > names.MAX_RUN_NAME:
        yield LONG_NAME.format(name=name)
    elif not RUN_NAME.fullmatch(name):
        yield NO_LABEL.format(name=name)


def check_name(name: str) -> list[str]:
    """Return all messages of the rules on this name of a run."""
    return list(good_name(name))


def check(spec: Spec, *, has_begun: bool = False, is_older: bool = False) -> list[str]:
    """Return all messages of the rules on this spec.

    Args:
        spec: the spec.
        has_begun: the run has had an attempt; it is not asked for what cannot be mended any more.
        is_older: it had one before these rules were there; it is not asked for what worked then.
    """
    asked = (r for r in RULES if not (has_begun and (r.on_creation or (is_older and r in YOUNGER))))
    return [sentence for rule in asked for sentence in rule.check(spec)]


# --- program and volume -----------------------------------------------------------------------------------------------

ONE_PROGRAM = "spec.trainer: exactly one of recipe and command is needed, {found} given; name a recipe such as charlm"
NO_CONFIG = "spec.trainer.config: only a recipe has a config; pass your program its settings in spec.trainer.command"
_COMMAND = "size(self.?command.orValue([])) > 0"


@cel(
    "spec.trainer",
    f"has(self.recipe) != ({_COMMAND})",
    ONE_PROGRAM,
    found="(has(self.recipe) ? 'both are' : 'neither is')",
)
@cel("spec.trainer", f"!({_COMMAND}) || !has(self.config) || size(dyn(self.config)) == 0", NO_CONFIG)
def one_program(spec: Spec) -> Iterator[str]:
    """Check that exactly one of recipe and command is given, and a config only with a recipe."""
    trainer = spec.trainer
    if bool(trainer.recipe) == bool(trainer.command):
        yield ONE_PROGRAM.format(found="both are" if trainer.recipe else "neither is")
    if trainer.config and trainer.command:
        yield NO_CONFIG


ZONES_FOR_PREPARE = (
    "spec.workers.zones: missing; the pod of stages.prepare makes the volume in the zone of its CPU node, and machines "
    "in another zone cannot use it; write the zones that have those of the training, such as [us-east-1a], or "
    "checkpoint.volume.accessModes: [ReadWriteMany]"
)


@cel(
    "spec",
    "!has(self.stages) || !has(self.stages.prepare) || !has(self.checkpoint.volume.size)"
    " || (has(self.checkpoint.volume.accessModes) && 'ReadWriteMany' in self.checkpoint.volume.accessModes)"
    " || (self.?workers.?gpusPerNode.orValue(8) == 0 && size(self.?workers.?instanceTypes.orValue([])) == 0)"
    " || size(self.?workers.?zones.orValue([])) > 0",
    ZONES_FOR_PREPARE,
    on_creation=True,
)
def zones_for_prepare(spec: Spec) -> Iterator[str]:
    """Check that zones are given if the pod of Prepare creates a volume of one zone.

    The volume is created in the zone of its first pod, which may be any zone that the workers may be in.
    """
    volume, workers = spec.checkpoint.volume, spec.workers
    picky = workers.gpus_per_node or workers.instance_types
    if not (spec.stages.prepare and volume.size and picky) or workers.zones:
        return
    if "ReadWriteMany" not in volume.access_modes:
        yield ZONES_FOR_PREPARE


@not_in_cel(UNTYPED)
def an_interval(spec: Spec) -> Iterator[str]:
    """Check that an interval has a number."""
    every = spec.checkpoint.every
    if every != "auto" and every.minutes is None and every.steps is None:
        yield "spec.checkpoint.every: neither minutes nor steps is given; write {minutes: 15}, or auto"


@not_in_cel(UNTYPED)
def no_null_interval(spec: Spec) -> Iterator[str]:
    """Check that no number of an interval is null: elsewhere an API server drops a null, and there it keeps it."""
    every = spec.checkpoint.every
    if every == "auto":
        return
    for name, number in (("minutes", 15), ("steps", 500)):
        if name in every.model_fields_set and getattr(every, name) is None:
            yield f"spec.checkpoint.every.{name}: null is no number; remove it, or write {name}: {number}"


@not_in_cel(UNTYPED)
def a_steady_judge(spec: Spec) -> Iterator[str]:
    """Check that patience with the loss of a batch has a fixed save interval: it is judged at each save."""
    objective = spec.objective
    if spec.checkpoint.every == "auto" and objective and objective.metric == LOSS and objective.patience:
        yield (
            f"spec.objective.patience: {LOSS} is judged whenever a save is due, and checkpoint.every: auto changes how "
            "often that is; write checkpoint.every: {steps: 500}, or name a metric of an evaluation, such as val_loss"
        )


# --- stages -----------------------------------------------------------------------------------------------------------

NO_PROGRAM = "spec.stages.{stage}.command: missing; only a recipe has a program for this stage"
TWO_PROGRAMS = "spec.stages.evaluate: at most one of recipe and command is needed, both are given; remove one"
NO_STAGE_CONFIG = (
    "spec.stages.evaluate.config: only a recipe has a config; pass your program its settings in the command"
)
_EVALUATE_BY_RECIPE = "has(self.stages.evaluate.recipe) || has(self.trainer.recipe)"


@cel(
    "spec",
    "!has(self.stages) || !has(self.stages.prepare) || has(self.trainer.recipe)"
    " || size(self.stages.prepare.?command.orValue([])) > 0",
    NO_PROGRAM.format(stage="prepare"),
)
@cel(
    "spec",
    f"!has(self.stages) || !has(self.stages.evaluate) || {_EVALUATE_BY_RECIPE}"
    " || size(self.stages.evaluate.?command.orValue([])) > 0",
    NO_PROGRAM.format(stage="evaluate"),
)
@cel("spec.stages.evaluate", f"!has(self.recipe) || !({_COMMAND})", TWO_PROGRAMS)
@cel(
    "spec",
    f"!has(self.stages) || !has(self.stages.evaluate) || {_EVALUATE_BY_RECIPE}"
    " || !has(self.stages.evaluate.config) || size(dyn(self.stages.evaluate.config)) == 0",
    NO_STAGE_CONFIG,
)
def stage_programs(spec: Spec) -> Iterator[str]:
    """Check that a stage has one program: the user's command, or that of a recipe."""
    for stage, own in side_stages(spec):
        recipe = own.recipe if isinstance(own, EvaluateStage) else None
        if not own.command and not (recipe or spec.trainer.recipe):
            yield NO_PROGRAM.format(stage=stage.lower())
        if own.command and recipe:
            yield TWO_PROGRAMS
        if isinstance(own, EvaluateStage) and own.config and not (recipe or spec.trainer.recipe):
            yield NO_STAGE_CONFIG


NOT_YET = "spec.{path}: this version of Piton does not act on it yet; {fix}"
MIN_NODES = NOT_YET.format(path="workers.minNodes", fix="remove it")
TIERS = NOT_YET.format(path="capacity.tiers", fix="name one tier")
TIER_PATIENCE = NOT_YET.format(path="capacity.patience", fix="remove it")


@cel("spec.workers", "!has(self.minNodes)", MIN_NODES)
@cel("spec.capacity.tiers", "size(self) <= 1", TIERS)
@cel("spec.capacity", "!has(self.patience)", TIER_PATIENCE)
def not_yet(spec: Spec) -> Iterator[str]:
    """Refuse settings that this version ignores: a limit that is silently ignored costs money."""
    capacity = spec.capacity
    if spec.workers.min_nodes is not None:
        yield MIN_NODES
    if len(capacity.tiers) > 1:
        yield TIERS
    if capacity.patience is not None:
        yield TIER_PATIENCE


RULES: tuple[SpecRule[Spec], ...] = (
    one_program,
    *CHECKPOINT,
    zones_for_prepare,
    an_interval,
    no_null_interval,
    a_steady_judge,
    *ENVIRONMENT,
    *AMOUNTS,
    *PODS,
    stage_programs,
    not_yet,
    good_size,
)
YOUNGER = (good_timeouts, bounded_durations, no_null_interval, *YOUNGER_OF_PODS, good_size)
"""Rules that are younger than some runs, which train with what they refuse."""

CEL = by_path((good_name, *RULES))
