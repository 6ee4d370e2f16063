"""From a sweep to its runs: variants, times the matrix, times folds and seeds.

    template.spec  <-  variant.remove, .patch  <-  one value per path of the matrix  <-  fold, seed  <-  placement

Each step is merged in as RFC 7386 says: mappings key by key, lists as a whole, null removes. The order of the runs is
that in which they begin: fold 0 of every variant first, so that variants can be compared long before the end.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any

from piton.api.spec import ObjectiveSpec
from piton.contract import names
from piton.contract.duration import parse_duration
from piton.sweep.model import SweepSpec, Variant

Document = dict[str, Any]
Point = tuple[tuple[str, Any], ...]
"""A value for each path of the matrix."""

_TEMPLATE = "template"
"""Name of the only variant, if the sweep has no variants."""
_DIGEST_CHARACTERS = 6
FIXED_FIELDS = ("template", "variants", "matrix", "folds", "seeds", "baseline", "metrics", "placement")
"""Fields that may not change once runs exist: they would no longer be comparable."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of the sweep's plan."""

    name: str
    variant: str
    fold: int | None = None
    seed: int | None = None
    spec: Document
    """A TrainingRun's spec, unchecked, without the deadline that the sweep gives it."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def objective(self) -> ObjectiveSpec | None:
        """Objective of the run, if it has one."""
        found = self.spec.get("objective")
        return ObjectiveSpec.model_validate(found) if found else None

    def short_name(self, sweep: str) -> str:
        """Return its name within the sweep."""
        return self.name.removeprefix(f"{sweep}-")


def expand(sweep: str, spec: SweepSpec) -> tuple[PlannedRun, ...]:
    """Return all runs of the sweep, in start order, without checks."""
    variants = list(_variants(sweep, spec))
    return tuple(
        _run(sweep, spec, name, patches, fold, seed)
        for fold, seed in itertools.product(_folds(spec), spec.seeds or (None,))
        for name, patches in variants
    )


def size(spec: SweepSpec) -> int:
    """Return the number of runs; cheap for any spec."""
    points = 1
    for values in spec.matrix.values():
        points *= len(values)
    return max(1, len(spec.variants)) * points * (spec.folds or 1) * max(1, len(spec.seeds))


def limited(run: PlannedRun, until: datetime | None, created: datetime) -> Document:
    """Return the run's spec with the rest of the sweep's time as its deadline, unless its own is earlier."""
    seconds = seconds_for(run, until, created)
    return run.spec if seconds is None else merge(run.spec, {"limits": {"deadline": as_duration(seconds)}})


def seconds_for(run: PlannedRun, until: datetime | None, created: datetime) -> float | None:
    """Return the seconds that a run created at that time may take."""
    limits = run.spec.get("limits") or {}
    own = [parse_duration(limits["deadline"])] if limits.get("deadline") else []
    left = [] if until is None else [max(1.0, (until - created).total_seconds())]
    return min([*own, *left], default=None)


def as_duration(seconds: float) -> str:
    """Return whole seconds in the form of a spec's duration."""
    return f"{max(1, int(seconds))}s"


def digest(spec: SweepSpec) -> str:
    """Return the digest of the fixed fields, without defaults, so that a version with more fields finds the same."""
    fixed = spec.model_dump(mode="json", by_alias=True, include=set(FIXED_FIELDS), exclude_defaults=True)
    return hashlib.sha256(_canonical(fixed).encode()).hexdigest()[:16]


def merge(old: Any, patch: Any) -> Any:
    """A JSON merge patch, RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _run(
    sweep: str, spec: SweepSpec, variant: str, patches: tuple[Document, ...], fold: int | None, seed: int | None
) -> PlannedRun:
    suffix = ("" if fold is None else f"-f{fold}") + ("" if seed is None else f"-s{seed}")
    return PlannedRun(
        name=f"{sweep}-{variant}{suffix}",
        variant=variant,
        fold=fold,
        seed=seed,
        spec=reduce(merge, (*patches, _share(sweep, spec, fold, seed)), dict(spec.template.spec)),
        labels={**spec.template.metadata.labels, names.LABEL_SWEEP: sweep, names.LABEL_VARIANT: variant},
        annotations=spec.template.metadata.annotations,
    )


def _share(sweep: str, spec: SweepSpec, fold: int | None, seed: int | None) -> Document:
    """Return the fields of a run that follow from its place in the sweep."""
    config: Document = {} if fold is None else {"folds": spec.folds, "fold": fold}
    config |= {} if seed is None else {"seed": seed}
    share: Document = {"trainer": {"config": config}} if config else {}
    if spec.placement:
        placement = {"group": sweep, "policy": spec.placement.value}
        share["workers"] = {"template": {"placement": placement}}
    return share


def _folds(spec: SweepSpec) -> tuple[int | None, ...]:
    return (None,) if spec.folds is None else tuple(range(spec.folds))


def _variants(sweep: str, spec: SweepSpec) -> Iterator[tuple[str, tuple[Document, ...]]]:
    """Name and patches of every variant with every point of the matrix."""
    points = list(_points(spec))
    suffix = max((len(f"-f{fold}") for fold in _folds(spec) if fold is not None), default=0)
    suffix += max((len(f"-s{seed}") for seed in spec.seeds), default=0)
    room = names.MAX_RUN_NAME - len(sweep) - 1 - suffix
    for name, patches in [(variant.name, _patches(variant)) for variant in spec.variants] or [("", ())]:
        labels = _labels(points, room - (len(name) + 1 if name else 0))
        for label, point in zip(labels, points, strict=True):
            changes = tuple(nested(path.split("."), value) for path, value in point)
            yield "-".join(part for part in (name, label) if part) or _TEMPLATE, (*patches, *changes)


def _patches(variant: Variant) -> tuple[Document, ...]:
    return (*(nested(path.split("."), None) for path in variant.remove), dict(variant.patch))


def _points(spec: SweepSpec) -> Iterator[Point]:
    """Each combination of the matrix. Paths are sorted: an API server keeps no order of keys."""
    paths = sorted(spec.matrix)
    for values in itertools.product(*(spec.matrix[path] for path in paths)):
        yield tuple(zip(paths, values, strict=True))


def nested(keys: Sequence[str], value: Any) -> Document:
    """Return a document with nothing but the value at that path."""
    return {keys[0]: nested(keys[1:], value) if len(keys) > 1 else value}


def _labels(points: Sequence[Point], room: int) -> list[str]:
    """A short name for each point: `learningrate-0-001`; a digest where that is too long, or not the only one."""
    plain = ["-".join(_slug(f"{path.rpartition('.')[2]} {_word(value)}") for path, value in point) for point in points]
    often = Counter(plain)
    return [
        label if not point or (len(label) <= room and often[label] == 1) else _shortened(label, point, room)
        for label, point in zip(plain, points, strict=True)
    ]


def _shortened(label: str, point: Point, room: int) -> str:
    mark = hashlib.sha256(_canonical(point).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    kept = label[: max(0, room - len(mark) - 1)].strip("-")
    return f"{kept}-{mark}" if kept else mark


def _word(value: Any) -> str:
    return value if isinstance(value, str) else _canonical(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
