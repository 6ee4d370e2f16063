"""When a save is due: at the steps or minutes that somebody chose, or as often as pays. Pure; the time is an argument.

A save costs training a moment, an interruption costs it what was not saved yet. Who saves every T seconds gives away
cost / T of the time for the one and T / (2 * between) for the other, and the sum is least at

    T = sqrt(2 * cost * between)        Young, CACM 17 (1974) 530; Daly, Future Gener. Comput. Syst. 22 (2006) 303

`cost` is what the newest saves have cost: the time for which training stood still, and the time that steps took longer
while the save was written. `between` is the mean time between two interruptions. Nobody knows it, so it is estimated,
from what one expects beforehand and from what the run has seen; docs/decisions/0012 says why like this.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, Self

from piton.contract.assignment import SavePolicy

FIRST_SECONDS = 60.0
"""Until a save has been measured there is nothing to reckon with; this gets one measured."""
SHORTEST_SECONDS = 20.0
"""Below it there is little to gain, and each save loads the volume and the mirror."""
LONGEST_SECONDS = 1800.0
"""What one interruption can cost stays bounded, however long there has been none."""
EXPECTED_SECONDS = 3600.0
"""What `between` is taken for before anything is seen: spot machines go about once an hour."""
EXPECTED_WEIGHT = 1.0
"""How many interruptions that were seen the expectation is worth."""
HALF_LIFE_SECONDS = 6 * 3600.0
"""What was seen so long ago counts half: a quiet night says little about a busy morning."""
_SAVES, _LAPS = 5, 32
"""How many of them a median is taken of."""


@dataclass(frozen=True, kw_only=True)
class IntervalEvidence:
    """What a run has seen. It goes into each checkpoint, so that no attempt has to learn it again."""

    interruptions: float = 0.0
    """Attempts that have ended, whatever ended them; the older ones count less."""
    exposed_seconds: float = 0.0
    """Time in which they could have ended; likewise."""
    cost_seconds: float | None = None
    """What a save costs training."""
    durable_seconds: float | None = None
    """From the beginning of a save to the moment at which it counts."""

    @property
    def between_seconds(self) -> float:
        """Mean time between two interruptions: one over the mean of what their rate is believed to be."""
        seconds = EXPECTED_WEIGHT * EXPECTED_SECONDS + self.exposed_seconds
        return seconds / (EXPECTED_WEIGHT + self.interruptions)

    def after(self, seconds: float) -> Self:
        """The same after so much time without an interruption."""
        halvings = max(0.0, seconds) / HALF_LIFE_SECONDS
        left = 0.5**halvings
        # 1 - left, which for a step's few milliseconds would have few digits
        gained = HALF_LIFE_SECONDS / math.log(2) * -math.expm1(-halvings * math.log(2))
        return replace(
            self, interruptions=self.interruptions * left, exposed_seconds=self.exposed_seconds * left + gained
        )

    def interrupted(self, times: int) -> Self:
        """The same after so many interruptions."""
        return replace(self, interruptions=self.interruptions + max(0, times))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Parse a checkpoint's; a field that this version does not know is left out."""
        return cls(**{f.name: document[f.name] for f in fields(cls) if f.name in document})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An interval, and what it was chosen from."""

    seconds: float
    cost_seconds: float | None
    """None: no save has been measured yet."""
    durable_seconds: float | None
    between_seconds: float


def choose(evidence: IntervalEvidence) -> Choice:
    """The interval that pays: after Young and Daly, and never so short that saves could not keep up."""
    cost, durable, between = evidence.cost_seconds, evidence.durable_seconds, evidence.between_seconds
    if cost is None:
        seconds = FIRST_SECONDS
    else:
        seconds = min(math.sqrt(2 * cost * between), LONGEST_SECONDS)
        seconds = max(seconds, SHORTEST_SECONDS, durable or 0.0)
    return Choice(seconds=seconds, cost_seconds=cost, durable_seconds=durable, between_seconds=between)


@dataclass(frozen=True, kw_only=True)
class _Flight:
    """A save on its way."""

    step: int
    began: float
    ended: float
    """When training went on."""
    waited: bool
    """It had to wait for another one, so it says nothing of its own cost."""


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A save that was measured."""

    cost_seconds: float
    durable_seconds: float


class Interval:
    """Says when the next periodic save is due, and measures the ones that are made."""

    def __init__(self, policy: SavePolicy) -> None:
        self.choice: Choice | None = None
        """None where the orders name steps or minutes."""
        self._policy = policy
        self._evidence = IntervalEvidence()
        self._began = self._last_save = 0.0
        self._flight: _Flight | None = None
        self._first: _Sample | None = None
        self._samples: deque[_Sample] = deque(maxlen=_SAVES)
        self._quiet: deque[float] = deque(maxlen=_LAPS)
        self._busy: list[float] = []

    def begin(self, evidence: IntervalEvidence, *, now: float) -> None:
        """The steps of this attempt begin."""
        self._evidence, self._began, self._last_save = evidence, now, now
        cost, durable = evidence.cost_seconds, evidence.durable_seconds
        if cost is not None and durable is not None:
            self._samples.append(_Sample(cost_seconds=cost, durable_seconds=durable))
        self._choose(now)

    def is_due(self, step: int, *, now: float) -> bool:
        """Whether a periodic save is due after this step."""
        every_steps = self._policy.every_steps
        seconds = self._policy.every_seconds if self.choice is None else self.choice.seconds
        by_steps = every_steps is not None and step % every_steps == 0
        return by_steps or (seconds is not None and now - self._last_save >= seconds)

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        if self._flight is None:
            self._quiet.append(seconds)
        elif len(self._busy) < _LAPS:
            self._busy.append(seconds)

    def saved(self, step: int, *, began: float, ended: float, waited: bool) -> None:
        """Training stood still for a save; `waited`: first for another one."""
        self._last_save = ended
        self._flight = _Flight(step=step, began=began, ended=ended, waited=waited)
        self._busy.clear()

    def durable(self, step: int, *, now: float) -> None:
        """A save counts from now on."""
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
        # A process's first save warms memory and files up. It counts as long as there is no better one.
        if self._first is None:
            self._first = sample
        else:
            self._samples.append(sample)
        self._choose(now)

    def evidence(self, *, now: float) -> IntervalEvidence:
        """What is known by now, for the next attempt."""
        known = self._samples or ([] if self._first is None else [self._first])
        return replace(
            self._evidence.after(now - self._began),
            cost_seconds=median(sample.cost_seconds for sample in known) if known else None,
            durable_seconds=median(sample.durable_seconds for sample in known) if known else None,
        )

    def _slowdown(self, written_seconds: float) -> float:
        """Time that steps took longer: the first one, beside which tensors may be copied, and those after it."""
        if not self._quiet or not self._busy:
            return 0.0
        usual, first, rest = median(self._quiet), self._busy[0], self._busy[1:]
        slowed = 1 - usual / max(median(rest), usual) if rest and usual > 0 else 0.0
        return max(0.0, first - usual) + max(0.0, written_seconds - first) * slowed

    def _choose(self, now: float) -> None:
        if self._policy.auto:
            self.choice = choose(self.evidence(now=now))
