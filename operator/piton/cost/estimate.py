"""Estimates of a run's time, money and disk. Each figure shows its arithmetic, so that it can be checked.

What nobody knows is said to be unknown, with what would tell: no speed and no price is made up here.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from piton.api.spec import Spec
from piton.contract.duration import format_duration, parse_duration
from piton.contract.quantity import format_bytes, parse_quantity
from piton.cost.budget import share_of
from piton.rendering.instance_types import gpus_of

_HOUR = 3600.0
_IN_FLIGHT = 1
"""A checkpoint is written before an older one goes."""
_WEIGHT_BYTES = 4
_COARSE = 100
"""From so many seconds on, whole ones will do."""


class Size(Protocol):
    """The size of a model, as its recipe computes it."""

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""

    @property
    def checkpoint_bytes(self) -> int:
        """Of one whole checkpoint."""

    @property
    def note(self) -> str:
        """The assumptions."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line: a number if it is known, how it comes about, and what is wrong with it."""

    text: str
    value: float | None = None
    """Seconds, dollars or bytes."""
    is_bound: bool = False
    """It is at most so much."""
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """Measurements of a rehearsal; None: not measured."""

    step_seconds: float | None
    steps: int | None
    """Of the whole run."""
    evaluation_seconds: float | None = None
    evaluation_every: float | None = None
    """Steps between two evaluations."""
    stall_seconds: float | None = None
    """Of the training, for a save."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of a node."""

    usd_per_hour: Fraction
    source: str
    """The source of the price."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimates for a run."""

    time: Figure
    cost: Figure
    disk: Figure

    def to_wire(self) -> dict[str, Any]:
        """As plain values."""
        return {
            name: {"text": figure.text, "value": figure.value, "isBound": figure.is_bound, "warning": figure.warning}
            for name, figure in (("time", self.time), ("cost", self.cost), ("disk", self.disk))
        }


def estimate(spec: Spec, *, length: str | None, size: Size | None, price: Price | None) -> Estimate:
    """Estimate a run without any measurement. `length` is the recipe's own length of it: `60 epochs`."""
    time = time_of(spec, length)
    return Estimate(time=time, cost=cost_of(spec, time, price), disk=disk_of(spec, size))


def price_of(spec: Spec, given: str | None) -> Price | None:
    """Return the price that the user gives: on the command line, or in the spec as the highest price."""
    if given is not None:
        return Price(usd_per_hour=Fraction(given), source="--price-per-hour")
    highest = spec.capacity.max_price_per_hour
    return None if highest is None else Price(usd_per_hour=Fraction(highest), source="capacity.maxPricePerHour")


def time_of(spec: Spec, length: str | None) -> Figure:
    """From the limits: what a step takes is known only where one was taken."""
    limits = spec.limits
    deadline = parse_duration(limits.deadline) if limits.deadline else None
    if limits.training_time:
        seconds = parse_duration(limits.training_time)
        text = (
            f"{limits.training_time} of training (limits.trainingTime), besides starts, saves and waiting for machines"
        )
        return Figure(text=text, value=seconds, warning=too_late(spec, seconds))
    unknown = f"unknown: {length or 'your own program ends by itself'}, and piton preflight measures what a step takes"
    if deadline is None:
        return Figure(text=f"{unknown}; nothing ends the run early: limits.deadline would")
    return Figure(
        text=f"{unknown}; at most {format_duration(deadline)} (limits.deadline)", value=deadline, is_bound=True
    )


def measured_time(spec: Spec, measured: MeasuredSpeed) -> Figure:
    """From what steps, evaluations and saves took in a rehearsal."""
    step, limits = measured.step_seconds, spec.limits
    if step is None:
        return Figure(text="unknown: no step was timed; a recipe does it by itself")
    if limits.training_time:
        seconds = parse_duration(limits.training_time)
        text = f"{limits.training_time} (limits.trainingTime), some {seconds / step:,.0f} steps of {_short(step)}"
        return Figure(text=text, value=seconds, warning=too_late(spec, seconds))
    if measured.steps is None:
        return Figure(text=f"unknown: a step takes {_short(step)}, and nobody says how many there are")
    total = measured.steps * step
    parts = [f"{measured.steps:,} steps x {_short(step)}"]
    for count, each, what in (
        (_evaluations(measured), measured.evaluation_seconds, "evaluations"),
        (_saves(spec, measured.steps, total), measured.stall_seconds, "saves"),
    ):
        if count and each is not None:
            total += count * each
            parts.append(f"{count:,} {what} x {_short(each)}")
    text = f"{' + '.join(parts)} = {format_duration(total)}"
    return Figure(text=text, value=total, warning=too_late(spec, total))


def _evaluations(measured: MeasuredSpeed) -> int:
    every = measured.evaluation_every
    return 0 if measured.steps is None or not every else int(-(-measured.steps // every))


def _saves(spec: Spec, steps: int, seconds: float) -> int:
    """By the interval. None are counted where they are made as often as pays."""
    every = spec.checkpoint.every
    if every == "auto":
        return 0
    by_steps = steps // every.steps if every.steps else 0
    by_time = int(seconds / (60 * every.minutes)) if every.minutes else 0
    return max(by_steps, by_time)


def _short(seconds: float) -> str:
    """With three digits where a whole second is too coarse."""
    return f"{seconds:.3g} s" if seconds < _COARSE else format_duration(seconds)


def too_late(spec: Spec, seconds: float) -> str | None:
    """Return the sentence for a run that takes longer than its limits allow."""
    deadline = spec.limits.deadline
    if deadline is None or seconds <= parse_duration(deadline):
        return None
    return f"limits.deadline ends it after {deadline}, and it needs {format_duration(seconds)}"


def cost_of(spec: Spec, time: Figure, price: Price | None) -> Figure:
    """Nodes x price x hours."""
    if price is None:
        return Figure(text="unknown: what a node costs per hour is said by --price-per-hour USD")
    rate = spec.workers.nodes * share_of(spec) * price.usd_per_hour
    per_hour = f"{_nodes(spec)} x ${float(price.usd_per_hour):,.2f}/h ({price.source})"
    budget = spec.limits.budget
    if time.value is None:
        limit = "" if budget is None else f"; limits.budget is ${budget.usd}"
        return Figure(text=f"unknown: {per_hour} = ${float(rate):,.2f} for each hour{limit}")
    hours = time.value / _HOUR
    dollars = float(rate) * hours
    at_most = "at most " if time.is_bound or price.source.startswith("capacity") else ""
    text = f"{at_most}{per_hour} x {hours:.4g} h = ${dollars:,.2f}"
    too_much = budget is not None and dollars > float(budget.usd)
    warning = f"limits.budget is ${budget.usd}" if budget and too_much else None
    return Figure(text=text, value=round(dollars, 2), is_bound=bool(at_most), warning=warning)


def _nodes(spec: Spec) -> str:
    nodes, share = spec.workers.nodes, share_of(spec)
    kind = f" {spec.workers.instance_types[0]}" if spec.workers.instance_types else ""
    whole = f"{nodes}{kind or (' node' if nodes == 1 else ' nodes')}"
    if share == 1:
        return whole
    return f"{whole} x {spec.workers.gpus_per_node}/{gpus_of(spec)} of its GPUs"


def disk_of(spec: Spec, size: Size | None) -> Figure:
    """Checkpoints that are kept, and the one that is being written."""
    if size is None:
        return Figure(text=f"unknown: {_kept(spec)}, of a size that piton preflight measures, on {_room(spec)}")
    keep, own = spec.checkpoint.keep, size.checkpoint_bytes
    whole = keep.last + _best(spec) + _IN_FLIGHT
    total = whole * own
    text = f"{_kept(spec)} x {format_bytes(own)}"
    if keep.weights_only:
        weights = weight_bytes(spec, size)
        total += keep.weights_only * weights
        text += f" + {keep.weights_only} of weights x {format_bytes(weights)}"
    note = f", {size.note}" if size.note else ""
    text += f" = {format_bytes(total)}, on {_room(spec)}; {size.parameters:,} parameters{note}"
    return Figure(text=text, value=total, warning=too_large(spec, total))


def measured_disk(spec: Spec, checkpoint_bytes: float) -> Figure:
    """The same, from a checkpoint that was saved. What thin ones take is not known from it."""
    total = (spec.checkpoint.keep.last + _best(spec) + _IN_FLIGHT) * checkpoint_bytes
    text = f"{_kept(spec)} x {format_bytes(checkpoint_bytes)} = {format_bytes(total)}"
    if spec.checkpoint.keep.weights_only:
        text += f", and {spec.checkpoint.keep.weights_only} of weights alone"
    return Figure(text=f"{text}, on {_room(spec)}", value=total, warning=too_large(spec, total))


def _room(spec: Spec) -> str:
    volume = spec.checkpoint.volume
    return f"volume {volume.size}" if volume.size else f"the claim {volume.claim_name}, whose size the cluster knows"


def too_large(spec: Spec, total: float) -> str | None:
    """Return the sentence for checkpoints that do not fit onto the volume."""
    volume = spec.checkpoint.volume.size
    if volume is None or total <= parse_quantity(volume):
        return None
    needed = -(-total // 2**30)
    return f"the volume holds {format_bytes(float(parse_quantity(volume)))}: write size: {needed:.0f}Gi, or keep fewer"


def weight_bytes(spec: Spec, size: Size) -> int:
    """Of the weights, and of their average where one is kept, which is what a thin checkpoint has."""
    return _WEIGHT_BYTES * size.parameters * (1 if spec.trainer.config.get("ema") is None else 2)


def _best(spec: Spec) -> int:
    return spec.checkpoint.keep.best if spec.objective else 0


def _kept(spec: Spec) -> str:
    best = f" + {_best(spec)} best" if _best(spec) else ""
    return f"({spec.checkpoint.keep.last} last{best} + {_IN_FLIGHT} in flight) checkpoints"
