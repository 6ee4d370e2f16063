"""Phases from the start of a trainer's process to the end of its first step.

Rank 0 measures it, and sends it along with its reports as ordinary metrics: `start_<phase>_seconds`.
"""

from collections.abc import Mapping

LAUNCHER = "launcher"
"""torchrun, until it has started the process; only where it does."""
IMPORTS = "imports"
"""Python, its modules, and whatever a script does before its session."""
PROCESS_GROUP = "process_group"
CLAIM = "claim"
"""The fence, and the helpers that the session starts."""
MIRROR = "mirror"
"""Fetching from the bucket what the volume lacks; only where there is a mirror."""
CHECKPOINT = "checkpoint"
"""Reading, verifying and loading; or seeing that there is nothing to load."""
MODEL = "model"
"""Building the objects, before and after they are restored; the data as well."""
FIRST_STEP = "first_step"
"""Its batch, its computation, and its compilation if the model is compiled."""
PHASES = (LAUNCHER, IMPORTS, PROCESS_GROUP, CLAIM, MODEL, MIRROR, CHECKPOINT, FIRST_STEP)

_PREFIX, _SUFFIX = "start_", "_seconds"


def to_metrics(phases: Mapping[str, float]) -> dict[str, float]:
    """The metrics that say it."""
    return {f"{_PREFIX}{phase}{_SUFFIX}": round(seconds, 3) for phase, seconds in phases.items()}


def from_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The phases among some metrics."""
    return {phase: metrics[name] for phase in PHASES if (name := f"{_PREFIX}{phase}{_SUFFIX}") in metrics}


def is_start_metric(name: str) -> bool:
    """True if a metric is one of these."""
    return name.startswith(_PREFIX) and name.removeprefix(_PREFIX).removesuffix(_SUFFIX) in PHASES


def sentence(phases: Mapping[str, float]) -> str:
    """For people: `6.1 s: imports 2.9, checkpoint 0.8, model 0.4, first step 2.0`. What took no time is left out."""
    parts = [f"{phase.replace('_', ' ')} {phases[phase]:.1f}" for phase in PHASES if phases.get(phase, 0.0) >= _SHOWN]
    return f"{sum(phases.values()):.1f} s: {', '.join(parts)}"


_SHOWN = 0.05
