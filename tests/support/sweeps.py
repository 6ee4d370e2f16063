"""Short ways to say what matters of a sweep in a test; everything else is a good default."""

from datetime import datetime, timedelta
from typing import Any

from piton.api.spec import Meta
from piton.api.status import Lost, MetricValue, Result, RunStatus
from piton.api.status_base import Phase
from piton.contract.duration import parse_duration
from piton.sweep.decide import decide
from piton.sweep.expand import PlannedRun
from piton.sweep.observed import RunSeen, SweepDecision, SweepObserved
from piton.sweep.parse import ParsedSweep, parse
from piton.sweep.status import Row, SweepStatus
from support.builders import NOW, a_status

VARIANTS = ("baseline", "isotropy", "frozen")


def a_sweep(name: str = "ragcun", *, template: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A TrainingSweep as the API server gives it; `template` replaces parts of the runs' spec."""
    run = {
        "trainer": {"image": "trainer:1", "recipe": "charlm", "config": {"depth": 4, "data": {"text": "a"}}},
        "checkpoint": {"volume": {"size": "1Gi"}},
        "objective": {"metric": "ndcg", "goal": "Maximize"},
        **(template or {}),
    }
    spec = {"variants": [{"name": variant} for variant in VARIANTS], **spec}
    return {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingSweep",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": "uid-of-the-sweep",
            "generation": 1,
            "creationTimestamp": NOW.isoformat(),
        },
        "spec": {"template": {"spec": run}, **spec},
    }


def parsed(name: str = "ragcun", **parts: Any) -> ParsedSweep:
    found = parse(a_sweep(name, **parts))
    assert not found.problems, found.problems
    return found


def planned(name: str = "ragcun", **parts: Any) -> tuple[PlannedRun, ...]:
    return parsed(name, **parts).plan


def a_row(variant: str, value: float | None = None, phase: Phase = Phase.SUCCEEDED, **fields: Any) -> Row:
    suffix = "".join(f"-{letter}{fields[key]}" for key, letter in (("fold", "f"), ("seed", "s")) if key in fields)
    metrics = () if value is None else (MetricValue(name="ndcg", value=f"{value:.6g}"),)
    return Row(name=f"ragcun-{variant}{suffix}", variant=variant, phase=phase, **{"metrics": metrics, **fields})


def a_run_status(phase: Phase, best: float | None = None, **fields: Any) -> RunStatus:
    result = Result(best_metric=f"{best:.6g}") if best is not None else None
    return a_status(phase=phase, result=result, **fields)


def a_run_seen(name: str, phase: Phase = Phase.TRAINING, best: float | None = None, **fields: Any) -> RunSeen:
    status = a_run_status(phase, best, lost=Lost(steps=fields.pop("lost", 0)), preemptions=fields.pop("preemptions", 0))
    return RunSeen(name=name, status=status, **{"created": NOW, "suspend": phase is Phase.SUSPENDED, **fields})


def observed_of(sweep: ParsedSweep, *runs: RunSeen, status: SweepStatus | None = None, **meta: Any) -> SweepObserved:
    return SweepObserved(
        meta=Meta(**{**sweep.meta.model_dump(), **meta}),
        spec=sweep.spec,
        plan=sweep.plan,
        problems=sweep.problems,
        status=status or sweep.status,
        runs=runs,
    )


def begun(sweep: ParsedSweep) -> SweepStatus:
    """The status once what the sweep begins with is written down."""
    return decide(observed_of(sweep), now=NOW).status


def edited(status: SweepStatus, **parts: Any) -> ParsedSweep:
    """The sweep as it is edited after it has begun, with the status that it has by then."""
    return parse({**a_sweep(**parts), "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)})


def decided(
    sweep: ParsedSweep, *runs: RunSeen, status: SweepStatus | None = None, now: datetime = NOW
) -> SweepDecision:
    """What is decided about a sweep that has begun."""
    return decide(observed_of(sweep, *runs, status=status or begun(sweep)), now=now)


def ends_at(deadline: str, created: datetime = NOW) -> datetime:
    return created + timedelta(seconds=parse_duration(deadline))
