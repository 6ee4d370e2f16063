"""Rules on a sweep, and on each run that it gives. A problem of one variant names it.

Those on the sweep come first: what they say would be repeated for each run. The API server knows those of them that
have a twin in CEL. It leaves to Piton what depends on the matrix or on a patch, whose values can be anything, and with
it all rules on the runs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from piton.api import parse, validation, validation_names
from piton.api.cel import Cel, SpecRule, by_path, cel, not_in_cel
from piton.api.spec import Spec
from piton.api.validation_amounts import (
    ANY_DIGIT,
    DEADLINE,
    DURATIONS,
    NO_MONEY,
    NO_PRICE,
    WITHIN_YEARS,
    positive,
)
from piton.contract import duration, names
from piton.sweep.expand import FIXED_FIELDS, PlannedRun, expand, merge, nested, size
from piton.sweep.model import RUNS_MAX, SweepSpec

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def check(sweep: str, spec: SweepSpec, *, is_older: bool = False) -> tuple[tuple[PlannedRun, ...], list[str]]:
    """The sweep's runs, and every sentence that there is to say about it and them.

    Args:
        sweep: its name.
        spec: its spec.
        is_older: it has begun before some rules were there; neither it nor its runs are asked for what worked then.
    """
    rules = [rule for rule in RULES if not (is_older and rule in YOUNGER)]
    problems = [*good_name(sweep), *(sentence for rule in rules for sentence in rule(spec))]
    if problems:
        return (), problems
    plan = expand(sweep, spec)
    if is_older:
        plan = tuple(map(_excused, plan))
    problems = [*_names(plan), *_baseline(spec, plan), *_own_program(spec, plan)]
    if not problems:
        found, problems = _specs(spec, plan, is_older=is_older)
        problems = problems or [*_one_objective(found), *_priced(spec, plan)]
    return plan, problems


def check_limits(spec: SweepSpec, plan: Sequence[PlannedRun], *, is_older: bool) -> list[str]:
    """Return all messages of the rules on the limits of a sweep whose runs are known to be good."""
    bounds = [] if is_older else bounded_deadline(spec)
    return [*good_limits(spec), *bounds, *_priced(spec, plan)]


def _excused(run: PlannedRun) -> PlannedRun:
    """Return the run as it can be made and trained, though younger rules would refuse it.

    The API server refuses durations above ten years, and they count as ten years. A timeout of zero, which it refuses,
    becomes `instead_of_zero`.
    """
    spec = run.spec
    for field in DURATIONS:
        keys = field.path.split(".")
        found: object = spec
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, str) and _is_too_long(found):
            spec = merge(spec, nested(keys, duration.LONGEST))
        elif isinstance(found, str) and field.instead_of_zero and _is_zero(found):
            spec = merge(spec, nested(keys, field.instead_of_zero))
    annotations = {**run.annotations, names.ANNOTATION_OLDER_RULES: "true"}
    return replace(run, spec=spec, annotations=annotations)


def _is_zero(text: str) -> bool:
    return re.fullmatch(duration.PATTERN, text) is not None and not duration.parse_duration(text)


def _is_too_long(text: str) -> bool:
    return re.fullmatch(duration.PATTERN, text) is not None and re.fullmatch(duration.WITHIN_YEARS, text) is None


_NAME_MAX = names.MAX_RUN_NAME - 2
LONG_NAME = f"metadata.name: '{{name}}' is too long, since the names of its runs are longer; write at most {_NAME_MAX}"
_SHORT = f"size(self.metadata.name) <= {_NAME_MAX}"
_LABEL = f"self.metadata.name.matches('{validation.RUN_NAME.pattern}')"


@cel("", _SHORT, LONG_NAME, name="self.metadata.name", on_creation=True)
@cel("", f"!({_SHORT}) || {_LABEL}", validation.NO_LABEL, name="self.metadata.name", on_creation=True)
@not_in_cel("how long the names of the runs are depends on the matrix")
def good_name(name: str) -> Iterator[str]:
    """The sweep's name has to fit into the names of its runs."""
    if len(name) > _NAME_MAX:
        yield LONG_NAME.format(name=name)
    elif not validation.RUN_NAME.fullmatch(name):
        yield validation.NO_LABEL.format(name=name)


def _at_least_one(field: str) -> str:
    """In CEL, how many items a list has, and 1 where it has none."""
    return f"(size(self.?{field}.orValue([])) > 0 ? size(self.{field}) : 1)"


TOO_MANY = (
    f"spec: variants, matrix, folds and seeds make more than the {RUNS_MAX} runs that a sweep may have; "
    "make several sweeps"
)


@cel(
    "spec",
    f"{_at_least_one('variants')} * self.?folds.orValue(1) * {_at_least_one('seeds')} <= {RUNS_MAX}",
    TOO_MANY,
)
@not_in_cel("it multiplies by the matrix, whose values can be anything")
def not_too_many(spec: SweepSpec) -> Iterator[str]:
    """The status remembers every run."""
    if size(spec) > RUNS_MAX:
        yield TOO_MANY


@not_in_cel("the list is a map by name, and the API server itself refuses a name that is there twice")
def no_variant_twice(spec: SweepSpec) -> Iterator[str]:
    """A name is one variant's."""
    for name in _repeated([variant.name for variant in spec.variants]):
        yield f"spec.variants: the name {name} is given twice; choose another for one of them"


@not_in_cel("the list is a set, and the API server itself refuses a seed that is there twice")
def no_seed_twice(spec: SweepSpec) -> Iterator[str]:
    """A seed is one run's."""
    for seed in _repeated(spec.seeds):
        yield f"spec.seeds: {seed} is given twice; remove one"


@not_in_cel("its values can be anything")
def good_paths(spec: SweepSpec) -> Iterator[str]:
    """A path leads into a run's spec."""
    for path in spec.matrix:
        if not _PATH.fullmatch(path):
            yield f"spec.matrix: {path!r} is no path in a run's spec; write one such as trainer.config.learningRate"


@not_in_cel("a patch can be anything")
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


@cel("spec.limits.deadline", ANY_DIGIT, DEADLINE.zero, found="self")
@cel("spec.limits.budget.usd", ANY_DIGIT, NO_MONEY, usd="self")
def good_limits(spec: SweepSpec) -> Iterator[str]:
    """Check that neither the sweep's deadline nor its budget is nothing."""
    deadline = spec.limits.deadline
    if deadline is not None and duration.parse_duration(deadline) <= 0:
        yield DEADLINE.zero.format(found=deadline)
    budget = spec.limits.budget
    if budget is not None:
        yield from positive(budget)


@cel("spec.limits.deadline", WITHIN_YEARS, DEADLINE.too_long, found="self")
def bounded_deadline(spec: SweepSpec) -> Iterator[str]:
    """Check that the sweep's deadline is not longer than ten years."""
    deadline = spec.limits.deadline
    if deadline is not None and _is_too_long(deadline):
        yield DEADLINE.too_long.format(found=deadline)


@not_in_cel("maps of labels have no bound")
def good_metadata(spec: SweepSpec) -> Iterator[str]:
    """Check that each run may have its labels and annotations."""
    given = spec.template.metadata
    yield from validation_names.check_labels("spec.template.metadata.labels", given.labels)
    yield from validation_names.check_annotations("spec.template.metadata.annotations", given.annotations)


RULES: tuple[SpecRule[SweepSpec], ...] = (
    not_too_many,
    no_variant_twice,
    no_seed_twice,
    good_paths,
    removable,
    good_limits,
    bounded_deadline,
    good_metadata,
)
YOUNGER = (bounded_deadline, good_metadata)
"""Rules that are younger than some sweeps, which run with what they refuse."""

FIXED = f"{', '.join(FIXED_FIELDS[:-1])} and {FIXED_FIELDS[-1]}"
"""Fields that may not be changed, in words; see `expand.digest`."""
CHANGED = f"spec: {FIXED} cannot be changed once the sweep has begun; put them back, or make a new sweep"
_COMPARABLE = ("folds", "seeds", "baseline", "metrics", "placement")
"""Fields that CEL can compare. The others have parts of any type; only the digest in the status shows their changes."""
_BEGUN = "has(oldSelf.status) && has(oldSelf.status.plan)"


def _same(field: str) -> str:
    """In CEL, that it has not changed. An empty list is as good as none."""
    now, then = f"self.spec.{field}", f"oldSelf.spec.{field}"
    empty = f"(size(self.spec.?{field}.orValue([])) == 0 && size(oldSelf.spec.?{field}.orValue([])) == 0)"
    same = f"(has({now}) ? has({then}) && {now} == {then} : !has({then}))"
    return f"({same} || {empty})" if field in ("seeds", "metrics") else same


UNCHANGED = Cel(
    path="",
    expression=f"!({_BEGUN}) || (" + " && ".join(_same(field) for field in _COMPARABLE) + ")",
    message=CHANGED,
)

CEL = by_path((good_name, *RULES), UNCHANGED)


def _names(plan: Sequence[PlannedRun]) -> Iterator[str]:
    """The names of the runs have to fit into those of their pods, and to be different."""
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


def _specs(spec: SweepSpec, plan: Sequence[PlannedRun], *, is_older: bool) -> tuple[dict[str, Spec], list[str]]:
    """Each run's spec as its model, and what the rules of a run say of them: of the template once, else by variant."""
    common = frozenset(_problems(spec.template.spec, is_older=is_older)[1])
    found: dict[str, Spec] = {}
    sentences: dict[str, None] = {}
    for run in plan:
        parsed, problems = _problems(run.spec, is_older=is_older)
        if parsed is not None:
            found[run.variant] = parsed
        for problem in problems:
            sentences[f"spec.template.{problem}" if problem in common else f"variant {run.variant}: {problem}"] = None
    return found, list(sentences)


def _problems(spec: Mapping[str, object], *, is_older: bool) -> tuple[Spec | None, list[str]]:
    parsed, problems = parse.model_of(Spec, spec, "describe a run")
    if parsed is None:
        return None, problems
    problems = validation.check(parsed, has_begun=is_older, is_older=is_older)
    if parsed.suspend:
        problems.append("spec.suspend: runs of a sweep hold when spec.suspend of the sweep says so; remove it")
    if parsed.ttl_after_finished:
        problems.append("spec.ttlAfterFinished: a sweep would start a run anew that is deleted; remove it")
    return parsed, problems


def _own_program(spec: SweepSpec, plan: Sequence[PlannedRun]) -> Iterator[str]:
    """Refuse folds and seeds with an own program before a rule of a run reports a config that the user did not set."""
    trainers = (run.spec.get("trainer") for run in plan)
    own = any(isinstance(trainer, Mapping) and trainer.get("command") for trainer in trainers)
    for field, used in (("folds", spec.folds is not None), ("seeds", bool(spec.seeds))):
        if own and used:
            yield f"spec.{field}: a program of your own has no config to set; write a variant with its command for each"


def _one_objective(runs: Mapping[str, Spec]) -> Iterator[str]:
    """Refuse variants that are judged by different measures: they cannot be compared."""
    judged = {(run.objective.metric, run.objective.goal) if run.objective else None for run in runs.values()}
    if len(judged) > 1:
        yield "spec.variants: the runs have different objectives; give all of them one metric and goal"


def _priced(spec: SweepSpec, plan: Sequence[PlannedRun]) -> Iterator[str]:
    """Require maxPricePerHour if there is a budget: it is the price of nodes with an unknown price."""
    if spec.limits.budget and any((run.spec.get("capacity") or {}).get("maxPricePerHour") is None for run in plan):
        yield f"spec.template.{NO_PRICE}"


def _leads_somewhere(keys: Sequence[str], document: object) -> bool:
    for key in keys:
        if not isinstance(document, Mapping) or key not in document:
            return False
        document = document[key]
    return True


def _nulls(patch: Mapping[str, object]) -> Iterator[str]:
    """Yield the paths of the patch that have no value."""
    for key, value in patch.items():
        if value is None:
            yield key
        elif isinstance(value, Mapping):
            yield from (f"{key}.{path}" for path in _nulls(value))


def _repeated(values: Sequence[str | int]) -> list[str | int]:
    return [value for value, times in Counter(values).items() if times > 1]
