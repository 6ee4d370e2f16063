"""Rules on a sweep, and on each run that it gives. A problem of one variant names it.

Those on the sweep come first: what they say would be repeated for each run. `CEL` holds what a good API server knows.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from piton.contract import duration, names
from piton.core import parse, rules
from piton.core.model import Spec
from piton.sweep.expand import PlannedRun, expand, size
from piton.sweep.model import RUNS_MAX, SweepSpec

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PROBLEMS_MAX = 30
"""More than anybody reads, and than a condition should hold."""


def check(sweep: str, spec: SweepSpec) -> tuple[tuple[PlannedRun, ...], list[str]]:
    """The sweep's runs, and every sentence that there is to say about it and them."""
    problems = [sentence for rule in RULES for sentence in rule(spec)]
    if problems:
        return (), problems
    plan = expand(sweep, spec)
    problems = [*_names(sweep, plan), *_baseline(spec, plan), *_own_program(spec, plan)]
    if not problems:
        found, problems = _specs(spec, plan)
        problems = problems or [*_one_objective(found), *_priced(spec, found)]
    return plan, problems[:_PROBLEMS_MAX]


def not_too_many(spec: SweepSpec) -> Iterator[str]:
    """The status remembers every run."""
    if size(spec) > RUNS_MAX:
        yield (
            f"spec: variants, matrix, folds and seeds make {size(spec)} runs, and a sweep has at most {RUNS_MAX}; "
            "make several sweeps"
        )


def twice(spec: SweepSpec) -> Iterator[str]:
    """A name is one variant's, and a seed one run's."""
    for name in _repeated([variant.name for variant in spec.variants]):
        yield f"spec.variants: the name {name} is given twice; choose another for one of them"
    for seed in _repeated(spec.seeds):
        yield f"spec.seeds: {seed} is given twice; remove one"


def good_paths(spec: SweepSpec) -> Iterator[str]:
    """A path leads into a run's spec."""
    for path in spec.matrix:
        if not _PATH.fullmatch(path):
            yield f"spec.matrix: {path!r} is no path in a run's spec; write one such as trainer.config.learningRate"


def removable(spec: SweepSpec) -> Iterator[str]:
    """A path that is to go leads to something; and nothing goes by null, which `kubectl apply` never sends."""
    for variant in spec.variants:
        for path in variant.remove:
            if not _leads_somewhere(path.split("."), spec.template.spec):
                yield f"variant {variant.name}: remove: the template's spec has no {path}; is it misspelt?"
        for path in _nulls(variant.patch):
            yield (
                f"variant {variant.name}: spec.{path} is null, which kubectl apply leaves out; "
                f"write remove: [{path}] beside the patch"
            )


def good_limits(spec: SweepSpec) -> Iterator[str]:
    """A deadline, or a budget, of nothing is a mistake."""
    deadline = spec.limits.deadline
    if deadline is not None and duration.parse_duration(deadline) <= 0:
        yield f"spec.limits.deadline: {deadline!r} is no time at all; write a duration such as 24h"
    budget = spec.limits.budget
    if budget is not None:
        yield from rules.positive(budget)


RULES: tuple[Callable[[SweepSpec], Iterator[str]], ...] = (not_too_many, twice, good_paths, removable, good_limits)


def _names(sweep: str, plan: Sequence[PlannedRun]) -> Iterator[str]:
    """The names of the runs have to fit into those of their pods, and to be different."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", sweep):
        yield (f"metadata.name: {sweep!r} is no DNS label; write lower-case letters, digits and dashes, a letter first")
    longest = max(plan, key=lambda run: len(run.name))
    if len(longest.name) > names.MAX_RUN_NAME:
        yield (
            f"metadata.name: the run {longest.name!r} would have {len(longest.name)} characters, and its pods add up "
            f"to 17 to it; shorten the names of the sweep and of {longest.variant} to {names.MAX_RUN_NAME} together"
        )
    for name in _repeated([run.name for run in plan]):
        yield f"spec: two runs would be called {name}; give the variants other names, and the matrix different values"


def _baseline(spec: SweepSpec, plan: Sequence[PlannedRun]) -> Iterator[str]:
    variants = list(dict.fromkeys(run.variant for run in plan))
    if spec.baseline is not None and spec.baseline not in variants:
        known = ", ".join(variants[:8])
        yield f"spec.baseline: there is no variant {spec.baseline}; known here: {known}"


def _specs(spec: SweepSpec, plan: Sequence[PlannedRun]) -> tuple[dict[str, Spec], list[str]]:
    """Each run's spec as its model, and what the rules of a run say of them: of the template once, else by variant."""
    common = frozenset(_problems(spec.template.spec)[1])
    found: dict[str, Spec] = {}
    sentences: dict[str, None] = {}
    for run in plan:
        parsed, problems = _problems(run.spec)
        if parsed is not None:
            found[run.variant] = parsed
        for problem in problems:
            sentences[f"spec.template.{problem}" if problem in common else f"variant {run.variant}: {problem}"] = None
    return found, list(sentences)


def _problems(spec: Mapping[str, object]) -> tuple[Spec | None, list[str]]:
    parsed, problems = parse.model_of(Spec, spec, "describe a run")
    if parsed is None:
        return None, problems
    problems = rules.check(parsed)
    if parsed.suspend:
        problems.append("spec.suspend: runs of a sweep hold when spec.suspend of the sweep says so; remove it")
    return parsed, problems


def _own_program(spec: SweepSpec, plan: Sequence[PlannedRun]) -> Iterator[str]:
    """Before the rules of a run complain of a config that the user has not written."""
    trainers = (run.spec.get("trainer") for run in plan)
    own = any(isinstance(trainer, Mapping) and trainer.get("command") for trainer in trainers)
    for field, used in (("folds", spec.folds is not None), ("seeds", bool(spec.seeds))):
        if own and used:
            yield f"spec.{field}: a program of your own has no config to set; write a variant with its command for each"


def _one_objective(runs: Mapping[str, Spec]) -> Iterator[str]:
    """What is judged by different measures cannot be compared."""
    judged = {(run.objective.metric, run.objective.goal) if run.objective else None for run in runs.values()}
    if len(judged) > 1:
        yield "spec.variants: the runs have different objectives; give all of them one metric and goal"


def _priced(spec: SweepSpec, runs: Mapping[str, Spec]) -> Iterator[str]:
    """A budget counts with prices; of a node whose price nobody knows it is the highest."""
    if spec.limits.budget and any(run.capacity.max_price_per_hour is None for run in runs.values()):
        yield f"spec.template.{rules.NO_PRICE}"


def _leads_somewhere(keys: Sequence[str], document: object) -> bool:
    for key in keys:
        if not isinstance(document, Mapping) or key not in document:
            return False
        document = document[key]
    return True


def _nulls(patch: Mapping[str, object]) -> Iterator[str]:
    """Paths of the patch that have no value."""
    for key, value in patch.items():
        if value is None:
            yield key
        elif isinstance(value, Mapping):
            yield from (f"{key}.{path}" for path in _nulls(value))


def _repeated(values: Sequence[str | int]) -> list[str | int]:
    return [value for value, times in Counter(values).items() if times > 1]


def _same(field: str) -> tuple[str, str]:
    """A field that was absent stays so, and one that was there keeps its value."""
    rule = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    return rule, f"{field} cannot be changed once the sweep exists; make a new one"


CEL: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (
            f"size(self.metadata.name) <= {names.MAX_RUN_NAME - 2}",
            f"metadata.name: at most {names.MAX_RUN_NAME - 2} characters, so that the names of the runs fit",
        ),
    ),
    "spec": (_same("folds"), _same("baseline"), _same("placement")),
}
"""Path of a schema -> (CEL rule, message). What the template, the variants and the matrix were is kept as a digest in
the status: a comparison of open-ended values would be too dear for an API server, which then refuses the whole CRD."""
