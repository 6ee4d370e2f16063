"""Schedule of periodic saves: at configured steps or minutes, or as often as pays. Pure; the time is an argument.

A save costs training time. An interruption costs the progress since the last save. With a save every T seconds, saves
take cost / T of the time, and interruptions take T / (2 * between). The sum is minimal at

    T = sqrt(2 * cost * between)        Young, CACM 17 (1974) 530; Daly, Future Gener. Comput. Syst. 22 (2006) 303

`cost` is measured over the newest saves: the time for which training stood still, plus the time by which steps slowed
down while the save was written. `between` is the mean time between two interruptions. It is unknown, so it is estimated
from a prior expectation and from the history of the run; docs/decisions/0012 gives the reasons.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, Self

from piton.contract.assignment import SavePolicy

FIRST_SECONDS = 60.0
"""Interval until the first save has been measured. It is short, to get a measurement early."""
SHORTEST_SECONDS = 20.0
"""Lower limit: shorter intervals gain little, and each save loads the volume and the mirror."""
LONGEST_SECONDS = 1800.0
"""Upper limit: it bounds the cost of one interruption, however long there has been none."""
EXPECTED_SECONDS = 3600.0
"""Prior expectation of `between`: spot machines are interrupted about once an hour."""
EXPECTED_WEIGHT = 1.0
"""Weight of the prior expectation, as a number of observed interruptions."""
HALF_LIFE_SECONDS = 6 * 3600.0
"""Half-life of an observation: a quiet night says little about a busy morning."""
_SAVES, _LAPS = 5, 32
"""Number of newest values that a median is taken of."""


@dataclass(frozen=True, kw_only=True)
class IntervalEvidence:
    """Measurements of a run. They are saved in each checkpoint, so that no attempt has to repeat them."""

    interruptions: float = 0.0
    """Attempts that have ended, for any reason; older ones count less."""
    exposed_seconds: float = 0.0
    """Time in which attempts could have ended; older time counts less."""
    cost_seconds: float | None = None
    """Training time that one save costs."""
    durable_seconds: float | None = None
    """Time from the start of a save until it is durable."""

    @property
    def between_seconds(self) -> float:
        """Mean time between two interruptions: the inverse of the mean of the estimated rate."""
        seconds = EXPECTED_WEIGHT * EXPECTED_SECONDS + self.exposed_seconds
        return seconds / (EXPECTED_WEIGHT + self.interruptions)

    def after(self, seconds: float) -> Self:
        """Return the evidence after this many more seconds without an interruption."""
        halvings = max(0.0, seconds) / HALF_LIFE_SECONDS
        left = 0.5**halvings
        # 1 - left, which would have few significant digits for a step of a few milliseconds
        gained = HALF_LIFE_SECONDS / math.log(2) * -math.expm1(-halvings * math.log(2))
        return replace(
            self, interruptions=self.interruptions * left, exposed_seconds=self.exposed_seconds * left + gained
        )

    def interrupted(self, times: int) -> Self:
        """Return the evidence after this many more interruptions."""
        return replace(self, interruptions=self.interruptions + max(0, times))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Parse the evidence in a checkpoint; fields that this version does not know are ignored."""
        return cls(**{f.name: document[f.name] for f in fields(cls) if f.name in document})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An interval and the values that it was computed from."""

    seconds: float
    cost_seconds: float | None
    """None if no save has been measured yet."""
    durable_seconds: float | None
    between_seconds: float


def choose(evidence: IntervalEvidence) -> Choice:
    """Return the optimal interval after Young and Daly, but at least as long as a save takes to become durable."""
    cost, durable, between = evidence.cost_seconds, evidence.durable_seconds, evidence.between_seconds
    if cost is None:
        seconds = FIRST_SECONDS
    else:
        seconds = min(math.sqrt(2 * cost * between), LONGEST_SECONDS)
        seconds = max(seconds, SHORTEST_SECONDS, durable or 0.0)
    return Choice(seconds=seconds, cost_seconds=cost, durable_seconds=durable, between_seconds=between)


@dataclass(frozen=True, kw_only=True)
class _Flight:
    """A save in flight."""

    step: int
    began: float
    ended: float
    """Time at which training continued."""
    waited: bool
    """True if it had to wait for another save, so its own cost is unknown."""


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A measured save."""

    cost_seconds: float
    durable_seconds: float


class Interval:
    """Schedules the next periodic save, and measures the completed ones."""

    def __init__(self, policy: SavePolicy) -> None:
        self.choice: Choice | None = None
        """None if the policy specifies steps or minutes."""
        self._policy = policy
        self._evidence = IntervalEvidence()
        self._began = self._last_save = 0.0
        self._flight: _Flight | None = None
        self._first: _Sample | None = None
        self._samples: deque[_Sample] = deque(maxlen=_SAVES)
        self._quiet: deque[float] = deque(maxlen=_LAPS)
        self._busy: list[float] = []

    def begin(self, evidence: IntervalEvidence, *, now: float) -> None:
        """Start the clock: the steps of this attempt begin now."""
        self._evidence, self._began, self._last_save = evidence, now, now
        cost, durable = evidence.cost_seconds, evidence.durable_seconds
        if cost is not None and durable is not None:
            self._samples.append(_Sample(cost_seconds=cost, durable_seconds=durable))
        self._choose(now)

    def is_due(self, step: int, *, now: float) -> bool:
        """Return True if a periodic save is due after this step."""
        every_steps = self._policy.every_steps
        seconds = self._policy.every_seconds if self.choice is None else self.choice.seconds
        by_steps = every_steps is not None and step % every_steps == 0
        return by_steps or (seconds is not None and now - self._last_save >= seconds)

    def stepped(self, seconds: float) -> None:
        """Record the duration of a step."""
        if self._flight is None:
            self._quiet.append(seconds)
        elif len(self._busy) < _LAPS:
            self._busy.append(seconds)

    def saved(self, step: int, *, began: float, ended: float, waited: bool) -> None:
        """Record the time for which training stood still for a save; `waited`: it first waited for another save."""
        self._last_save = ended
        self._flight = _Flight(step=step, began=began, ended=ended, waited=waited)
        self._busy.clear()

    def durable(self, step: int, *, now: float) -> None:
        """Record that a save has become durable."""
        flight = self._flight
        if flight is None or flight.step != step:
            return
        self._flight = None
        if flight.waited:
            return
        sample = _Sample(
            cost_seconds=flight.ended - flight.began + self._slowdown(now - flight.ended),
            durable_seconds=now - flight.began,
        )
        # The first save of a process warms up memory and files. It is used only until there is another sample.
        if self._first is None:
            self._first = sample
        else:
            self._samples.append(sample)
        self._choose(now)

    def evidence(self, *, now: float) -> IntervalEvidence:
        """Return the current evidence, for the next attempt."""
        known = self._samples or ([] if self._first is None else [self._first])
        return replace(
            self._evidence.after(now - self._began),
            cost_seconds=median(sample.cost_seconds for sample in known) if known else None,
            durable_seconds=median(sample.durable_seconds for sample in known) if known else None,
        )

    def _slowdown(self, written_seconds: float) -> float:
        """Return the time by which steps slowed down: the first, which may overlap with the copy, and later ones."""
        if not self._quiet or not self._busy:
            return 0.0
        usual, first, rest = median(self._quiet), self._busy[0], self._busy[1:]
        slowed = 1 - usual / max(median(rest), usual) if rest and usual > 0 else 0.0
        return max(0.0, first - usual) + max(0.0, written_seconds - first) * slowed

    def _choose(self, now: float) -> None:
        if self._policy.auto:
            self.choice = choose(self.evidence(now=now))
