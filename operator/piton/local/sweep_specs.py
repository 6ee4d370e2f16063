"""Specs of the runs of a sweep: what this machine and the recipes object to, before anything of it starts."""

from fractions import Fraction

from piton.api import parse
from piton.api.spec import Spec
from piton.contract import InputError
from piton.local import preflight
from piton.sweep.expand import PlannedRun
from piton.sweep.model import SweepSpec
from piton.sweep.parse import ParsedSweep


def recipe_problems(sweep: ParsedSweep) -> list[str]:
    """Return the recipes' objections to the variants' configs and data."""
    return [
        f"variant {variant}: {problem}"
        for variant, first in first_runs(sweep).items()
        for problem in preflight.recipe_problems(spec_of(first))
    ]


def first_runs(sweep: ParsedSweep) -> dict[str, PlannedRun]:
    """Return the first run of each variant: folds and seeds do not change the results of the checks."""
    first: dict[str, PlannedRun] = {}
    for planned in sweep.plan:
        first.setdefault(planned.variant, planned)
    return first


def spec_of(run: PlannedRun) -> Spec:
    """Return the run's spec as its model; the sweep's rules have validated it before."""
    spec, problems = parse.model_of(Spec, run.spec, "describe a run")
    assert spec is not None, problems
    return spec


def check(variant: str, spec: Spec, price: Fraction | None) -> None:
    """Check that this machine can run the variant.

    Raises:
        ValueError: it cannot; the first problem, as a sentence.
    """
    try:
        preflight.check(spec)
        preflight.check_price(spec, price)
    except ValueError as error:
        raise InputError(f"variant {variant}: {error}") from error


def gpus_wanted(sweep: ParsedSweep) -> int:
    """Return the GPUs of the run that wants most."""
    return max(preflight.gpus_wanted(spec_of(run)) for run in sweep.plan)


def fitting(sweep: ParsedSweep, gpus: int) -> SweepSpec:
    """Return the spec with no more runs at once than there are runs, and GPUs for."""
    spec, wanted = sweep.spec, gpus_wanted(sweep)
    assert spec is not None
    room = gpus // wanted if wanted else spec.parallelism
    at_once = max(1, min(spec.parallelism, room, len(sweep.plan)))
    return spec.model_copy(update={"parallelism": at_once})
