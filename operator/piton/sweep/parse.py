"""From a manifest to a sweep and its runs; every problem becomes one sentence, as it does for a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from piton.api.accepted import accepted_before
from piton.api.one_form import in_one_form
from piton.api.parse import SpecError, manifest_of, meta_of, model_of
from piton.api.spec import Meta, Spec
from piton.contract import names
from piton.sweep import rules
from piton.sweep.expand import PlannedRun, digest, expand
from piton.sweep.model import SweepSpec
from piton.sweep.status import SweepStatus


@dataclass(frozen=True, kw_only=True)
class ParsedSweep:
    """A manifest in typed pieces."""

    meta: Meta
    spec: SweepSpec | None
    """The spec in effect: the user's, or the one that was accepted last while the user's is refused. None: neither."""
    plan: tuple[PlannedRun, ...]
    """The runs of that spec; none without one."""
    problems: tuple[str, ...]
    """Messages on why the user's is refused."""
    status: SweepStatus
    meanwhile: str = ""
    """The parts of a spec that is refused that act all the same, and those that do not yet."""


def parse(manifest: Mapping[str, Any]) -> ParsedSweep:
    """Parse an object of the API server's."""
    meta, status = meta_of(manifest["metadata"]), SweepStatus.read(manifest.get("status") or {})
    written, accepted = manifest.get("spec"), status.accepted.spec if status.accepted else None
    spec, problems = model_of(SweepSpec, written, "describe the template and its variants")
    plan: tuple[PlannedRun, ...] = ()
    meanwhile = ""
    if spec is not None:
        plan, problems = rules.check(meta.name, spec)
    has_begun = status.plan != "" or status.unreadable is not None
    is_older = has_begun and bool(problems) and (accepted is None or not _is_good(meta.name, accepted))
    if spec is not None and is_older:
        plan, problems = rules.check(meta.name, spec, is_older=True)
    if spec is not None and not problems and not is_as_begun(meta.name, spec, status):
        problems = [rules.CHANGED]
    if problems:
        spec, plan, meanwhile = (
            _accepted_before(meta.name, accepted, written, is_older=is_older) if accepted else (None, (), "")
        )
    return ParsedSweep(meta=meta, spec=spec, plan=plan, problems=tuple(problems), status=status, meanwhile=meanwhile)


def is_as_begun(name: str, spec: SweepSpec, status: SweepStatus) -> bool:
    """True if the spec describes the runs that the sweep has begun with, or if it has not begun.

    Values are compared, not texts: neither a default that is written out nor 1024Mi in place of 1Gi is another run.
    """
    if status.plan in ("", digest(spec)):
        return True
    accepted, _ = model_of(SweepSpec, status.accepted.spec, "") if status.accepted else (None, [])
    return (
        accepted is not None
        and (spec.baseline, spec.metrics) == (accepted.baseline, accepted.metrics)
        and _values(name, spec) == _values(name, accepted)
    )


def _values(name: str, spec: SweepSpec) -> list[object]:
    """Return the runs of a sweep for a comparison. A spec that cannot be parsed is as it is written."""
    found: list[object] = []
    for run in expand(name, spec):
        parsed, _ = model_of(Spec, run.spec, "")
        value = run.spec if parsed is None else in_one_form(parsed)
        found.append((run.name, run.fold, run.seed, run.labels, run.annotations, value))
    return found


def _is_good(name: str, accepted: Mapping[str, Any]) -> bool:
    """True if a new sweep may have the spec."""
    spec, _ = model_of(SweepSpec, accepted, "")
    return spec is not None and not rules.check(name, spec)[1]


def _accepted_before(
    name: str, accepted: Mapping[str, Any], written: object, *, is_older: bool
) -> tuple[SweepSpec | None, tuple[PlannedRun, ...], str]:
    """Return the spec that was accepted last and its runs, with what acts at once of what is written, and its name."""
    spec, _ = model_of(SweepSpec, accepted, "")
    plan, problems = rules.check(name, spec, is_older=is_older) if spec else ((), [])
    if spec is None or problems:
        return None, (), ""

    def accept(document: Mapping[str, Any]) -> SweepSpec | None:
        found, _ = model_of(SweepSpec, document, "")
        return None if found is None or rules.check_limits(found, plan, is_older=is_older) else found

    found, meanwhile = accepted_before(accepted, written, accept)
    return found, plan, meanwhile


def parse_file(document: object, *, now: datetime) -> ParsedSweep:
    """Parse a user's manifest.

    Raises:
        SpecError: it is not a TrainingSweep, or one that cannot be accepted.
    """
    parsed = parse(manifest_of(document, names.SWEEP_KIND, now=now))
    if parsed.problems:
        raise SpecError(parsed.problems)
    return parsed
