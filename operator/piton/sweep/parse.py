"""From a manifest to a sweep and its runs; every problem becomes one sentence, as it does for a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from piton.api.parse import SpecError, manifest_of, meta_of, model_of
from piton.api.spec import Meta
from piton.contract import names
from piton.sweep import rules
from piton.sweep.expand import PlannedRun
from piton.sweep.model import SweepSpec
from piton.sweep.status import SweepStatus


@dataclass(frozen=True, kw_only=True)
class ParsedSweep:
    """A manifest in typed pieces. `spec` is None, and the plan empty, when there are problems."""

    meta: Meta
    spec: SweepSpec | None
    plan: tuple[PlannedRun, ...]
    problems: tuple[str, ...]
    status: SweepStatus


def parse(manifest: Mapping[str, Any]) -> ParsedSweep:
    """Parse an object of the API server's."""
    meta = meta_of(manifest["metadata"])
    spec, problems = model_of(SweepSpec, manifest.get("spec"), "describe the template and its variants")
    plan: tuple[PlannedRun, ...] = ()
    if spec is not None:
        plan, problems = rules.check(meta.name, spec)
    return ParsedSweep(
        meta=meta,
        spec=None if problems else spec,
        plan=() if problems else plan,
        problems=tuple(problems),
        status=SweepStatus.read(manifest.get("status") or {}),
    )


def parse_file(document: object, *, now: datetime) -> ParsedSweep:
    """Parse a user's manifest.

    Raises:
        SpecError: it is not a TrainingSweep, or one that cannot be accepted.
    """
    parsed = parse(manifest_of(document, names.SWEEP_KIND, now=now))
    if parsed.problems:
        raise SpecError(parsed.problems)
    return parsed
