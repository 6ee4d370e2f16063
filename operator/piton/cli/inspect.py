"""`piton validate` and `piton plan`: what is wrong with a run, and what it would do. Neither starts anything."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import yaml

from piton.api import spec_warnings, validation
from piton.api.parse import Parsed, SpecError, model_of
from piton.api.spec import Budget, Meta, Spec, Stage
from piton.api.stages import wanted
from piton.api.status import RunStatus
from piton.cli import files
from piton.clock import SystemClock
from piton.contract import names
from piton.contract.duration import parse_duration
from piton.core.decide import decide
from piton.core.effects import AddFinalizer, Decision, Effect, StartAttempt
from piton.cost.estimate import Estimate, estimate, price_of
from piton.local import recipe, sweep_specs
from piton.local.preflight import recipe_problems
from piton.observed import Observed, VolumeSeen
from piton.rendering.appdef import appdef, as_text, interval
from piton.rendering.pytorchjob import in_pod, pytorchjob
from piton.rendering.volume_claim import volume_claim
from piton.sweep.expand import PlannedRun, limited
from piton.sweep.parse import ParsedSweep

_PASSES_MAX = 20
"""More passes than any start takes."""


def validate(file: Path) -> int:
    """Print ok, or every problem on a line of its own. A warning is no problem."""
    try:
        parsed = files.read_any(file)
    except SpecError as error:
        return _print_problems(error.problems)
    assert parsed.spec is not None
    is_sweep = isinstance(parsed, ParsedSweep)
    problems = sweep_specs.recipe_problems(parsed) if isinstance(parsed, ParsedSweep) else recipe_problems(parsed.spec)
    if problems:
        return _print_problems(problems)
    for warning in _warnings(parsed):
        click.echo(f"piton: warning: {warning}", err=True)
    kind = names.SWEEP_KIND if is_sweep else names.KIND
    click.echo(f"{file}: ok, {parsed.meta.name} is a {kind} that can work")
    return 0


def _warnings(parsed: Parsed | ParsedSweep) -> tuple[str, ...]:
    """Return the warnings: allowed, but perhaps not as expected; of a sweep, each sentence once for all of its runs."""
    specs = (
        [model_of(Spec, run.spec, "")[0] for run in parsed.plan] if isinstance(parsed, ParsedSweep) else [parsed.spec]
    )
    return tuple(dict.fromkeys(sentence for spec in specs if spec for sentence in spec_warnings.warnings(spec)))


def _print_problems(problems: tuple[str, ...] | list[str]) -> int:
    for problem in problems:
        click.echo(f"piton: {problem}", err=True)
    return 2


def plan(file: Path, *, price: str | None, as_json: bool) -> int:
    """Print what would run, and what it would take; also of a run that only a later version can run."""
    parsed, refused = _read_ahead(file)
    if isinstance(parsed, ParsedSweep):
        return _plan_sweep(parsed, price=price, as_json=as_json)
    assert parsed.asked is not None
    found = _plan(parsed.meta, parsed.asked)
    found |= {"estimate": _estimate(parsed.asked, price).to_wire(), "refused": list(refused)}
    code = _print_problems(refused) if refused else 0
    if as_json:
        click.echo(json.dumps(found))
        return code
    _print(parsed.meta, found)
    return code


def _read_ahead(file: Path) -> tuple[Parsed | ParsedSweep, tuple[str, ...]]:
    """The run or the sweep, and what this version does not do of the run yet.

    Raises:
        ValueError: something else is wrong with it.
    """
    try:
        return files.read_any(file), ()
    except SpecError as error:
        parsed = error.parsed
        if parsed is None or parsed.asked is None or not set(error.problems) <= set(validation.not_yet(parsed.asked)):
            raise
        return parsed, error.problems


def _estimate(spec: Spec, price: str | None) -> Estimate:
    settings = recipe.settings(spec)
    return estimate(
        spec,
        length=None if settings is None else recipe.length(settings),
        size=None if settings is None or spec.trainer.recipe is None else recipe.size(spec.trainer.recipe, settings),
        price=price_of(spec, price),
    )


def _print(meta: Meta, found: dict[str, Any]) -> None:
    click.echo(f"What {meta.name} takes:")
    _print_figures(found["estimate"])
    click.echo(f"\nWhat Piton decides for {meta.name}, pass by pass:")
    for decision in found["decisions"]:
        click.echo(f"  {decision['rule']}: {decision['message']}")
        for effect in decision["effects"]:
            click.echo(f"    -> {_effect_text(effect)}")
    click.echo(f"It saves {found['saves']}; besides that each new best, what a stop would lose, and the end.")
    for title, kind in (("AppDef", "appDef"), ("PyTorchJob", "pyTorchJob"), ("PersistentVolumeClaim", "volumeClaim")):
        if found[kind]:
            click.echo(f"\n# {title}\n---\n{_yaml(found[kind])}")
    for stage, job in found["stages"].items():
        click.echo(f"\n# PyTorchJob of the stage {stage}\n---\n{_yaml(job)}")


def _print_figures(figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        click.echo(f"  {name}  {figure['text']}")
        if figure["warning"]:
            click.echo(f"        ! {figure['warning']}")


def _plan_sweep(sweep: ParsedSweep, *, price: str | None, as_json: bool) -> int:
    """The runs, in the order in which they begin; each can be written out and planned by itself."""
    assert sweep.spec is not None
    figures = {
        name: _estimate(sweep_specs.spec_of(_with_deadline(sweep, run)), price).to_wire()
        for name, run in sweep_specs.first_runs(sweep).items()
    }
    if as_json:
        found = [
            {"name": r.name, "variant": r.variant, "fold": r.fold, "seed": r.seed, "spec": r.spec} for r in sweep.plan
        ]
        told = {"name": sweep.meta.name, "parallelism": sweep.spec.parallelism, "runs": found, "estimates": figures}
        click.echo(json.dumps(told))
        return 0
    click.echo(
        f"{sweep.meta.name} makes {len(sweep.plan)} runs, at most {sweep.spec.parallelism} at once, in this order:"
    )
    for run in sweep.plan:
        click.echo(f"  {run.name}")
    _print_all(Counter(run.variant for run in sweep.plan), figures, sweep.spec.limits.budget)
    return 0


def _with_deadline(sweep: ParsedSweep, run: PlannedRun) -> PlannedRun:
    """The run as it is created with the sweep: with the sweep's deadline, where its own is not earlier."""
    assert sweep.spec is not None
    deadline, created = sweep.spec.limits.deadline, sweep.meta.created
    until = None if deadline is None else created + timedelta(seconds=parse_duration(deadline))
    return replace(run, spec=limited(run, until, created))


def _print_all(runs: Counter[str], figures: dict[str, Any], budget: Budget | None) -> None:
    """Print the estimate of each variant, and of all of them together."""
    for name, found in figures.items():
        each = f"each of the {runs[name]} runs of {name}" if runs[name] > 1 else name
        click.echo(f"\nWhat {each} takes:")
        _print_figures(found)
    costs = {name: found["cost"]["value"] for name, found in figures.items()}
    if None not in costs.values():
        bound = "at most " if any(found["cost"]["isBound"] for found in figures.values()) else ""
        together = sum(runs[name] * cost for name, cost in costs.items())
        click.echo(f"\nAll {runs.total()} runs together cost {bound}${together:,.2f}.")
        if budget is not None and together > float(budget.usd):
            click.echo(f"        ! limits.budget is ${budget.usd}")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - people read this, and kubectl users write it out
        return True


def _yaml(value: dict[str, Any]) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=110).rstrip()


def _plan(meta: Meta, spec: Spec) -> dict[str, Any]:
    meta = meta.model_copy(update={"uid": meta.uid or "given-by-the-cluster"})
    numbers = {stage: number for number, stage in enumerate(wanted(spec.stages), start=1)}
    attempt = numbers.pop(Stage.TRAIN)
    return {
        "name": meta.name,
        "decisions": [_decision(decision) for decision in _decisions(meta, spec)],
        "saves": interval(spec),
        "appDef": as_text(appdef(meta, spec, attempt, in_pod(meta, gpus=spec.workers.gpus_per_node))),
        "pyTorchJob": pytorchjob(meta, spec, attempt),
        "stages": {stage.value: pytorchjob(meta, spec, number, stage=stage) for stage, number in numbers.items()},
        "volumeClaim": volume_claim(meta, spec) if spec.checkpoint.volume.size else None,
    }


def _decisions(meta: Meta, spec: Spec) -> Iterator[Decision]:
    """The passes over a run that is new, as if each effect succeeded, up to its first job or its rest."""
    now, status = SystemClock().now(), RunStatus()
    volume = VolumeSeen(exists=spec.checkpoint.volume.claim_name is not None)
    for _ in range(_PASSES_MAX):
        decision = decide(Observed(meta=meta, spec=spec, status=status, volume=volume), now=now)
        yield decision
        kinds = {type(effect) for effect in decision.effects}
        if StartAttempt in kinds or (not kinds and decision.status == status):
            return
        meta = meta.model_copy(update={"held": meta.held or AddFinalizer in kinds})
        status = decision.status


def _decision(decision: Decision) -> dict[str, Any]:
    accepted = decision.status.condition("Training")
    return {
        "rule": decision.rule,
        "phase": decision.status.phase.value,
        "message": accepted.message if accepted else "the run is taken into care",
        "effects": [_effect(effect) for effect in decision.effects],
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {"effect": type(effect).__name__, **asdict(effect)}


def _effect_text(effect: dict[str, Any]) -> str:
    told = {k: value for k, value in effect.items() if k not in ("effect", "reason")}
    details = {k: value for k, value in told.items() if value is not None and value is not False and value != ()}
    shown = "".join(f" {key} {value}" for key, value in details.items())
    return f"{effect['effect']}{shown} (reason: {effect['reason']})"
