"""One run in a fake world, and what all the rules of its adversary need."""

from collections.abc import Coroutine, Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from piton.api.conditions import POD_STUCK, STATUS_UNREADABLE, WAITING
from piton.api.spec import Budget, Spec
from piton.api.status import RunStatus
from piton.cost import spending
from piton.drive import reconcile
from piton.failures import Failures
from piton.observed import ReservationSeen
from piton.ports import PortError
from piton.timing import Timing
from support.builders import NOW, a_spec
from support.fake_denials import STATUSES
from support.fake_world import GRACE_SECONDS, PRICE, Crash, FakeWorld

Result = TypeVar("Result")
TIMING = Timing(
    backoff_seconds=2,
    backoff_seconds_max=8,
    evidence_seconds=3,
    start_seconds=5,
    refused_image_seconds=3,
    stalled_attempts=4,
    stop_seconds=GRACE_SECONDS + 2,
    worth_seconds=4,
    stuck_seconds=4,
    kept_records=4,
)
PASSES_TO_CONVERGE = 300
PASSES_TO_STOP = 6
"""Good looks after which nothing may run on that is not on its way out."""
LOOKS_SECONDS = 10
"""An operator that has not looked for longer is away."""
IDLE_SECONDS = 135
"""For so long a machine may be paid for, for nothing and without a word: two minutes, and some looks."""
ENOUGH = "100000"


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """What it returns. A fake world never waits, and an event loop for each pass takes as long as the pass."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise AssertionError("it waits for something")


class OneRun(RuleBasedStateMachine):
    """One run, and the operator that looks at it."""

    @initialize(
        failures=st.integers(1, 4),
        old_news=st.booleans(),
        deletion=st.booleans(),
        stages=st.sampled_from([{}, {"prepare": {}}, {"prepare": {}, "evaluate": {}}]),
        budget=st.sampled_from([None, ("15", "Pause"), ("25", "Pause"), ("15", "Stop")]),
        queue=st.booleans(),
        stalled=st.sampled_from(["24h", "20s"]),
        lives=st.sampled_from([None, "30s"]),
        mesh=st.booleans(),
        reads_volume=st.booleans(),
        restores=st.booleans(),
        stuck=st.sampled_from(["Report", "ForceDelete"]),
        shared=st.booleans(),
    )
    def begin(
        self,
        failures: int,
        old_news: bool,
        deletion: bool,
        stages: dict[str, Any],
        budget: str | None,
        queue: bool,
        stalled: str,
        lives: str | None,
        mesh: bool,
        reads_volume: bool,
        restores: bool,
        stuck: str,
        shared: bool,
    ) -> None:
        """Some worlds are free of stale observations, of deletion, of lost statuses: these hide other faults."""
        self.old_news, self.deletion, self.restores = old_news, deletion, restores
        self.stages = stages
        limits: dict[str, Any] = {"failures": failures, "stalled": stalled, "startTimeout": "10s", "stuckPods": stuck}
        if budget is not None:
            limits["budget"] = dict(zip(("usd", "onExceeded"), budget, strict=True))
        self.world = FakeWorld(
            spec=a_spec(
                limits=limits,
                stages=stages,
                capacity={"maxPricePerHour": f"{PRICE}"},
                **({} if lives is None else {"ttlAfterFinished": lives}),
            ),
            reservation=ReservationSeen() if queue else None,
            has_mesh=mesh,
            reads_volume=reads_volume,
            is_volume_shared=shared,
        )
        self.idle_seconds: dict[int, int] = {}
        self.unheard: dict[int, datetime] = {}
        self.looked_at = NOW
        self.spent, self.slowest = Fraction(0), 0
        self.looks_over_budget = self.seconds_over_budget = 0
        self.highest = 0
        self.succeeded = False
        self.crashes = 0
        self.machines_lost = self.cordons = 0
        self.jobs_lost = self.statuses_lost = 0
        self.devices_lost = self.half_gangs = 0
        self.failure_limit = failures
        self.edits = {self.world.generation: self.world.spec}
        self.understood: RunStatus | None = None
        self.failures = Failures(self.world)

    def _pass(self) -> None:
        stale = self.world.stale or self.world.lag
        try:
            at_once(reconcile(self.world, self.world, self.world, TIMING, self.failures))
            self.looks_over_budget += self._over_budget() and not stale
            self.looked_at = self.looked_at if stale else self.world.time
        except PortError:
            pass
        except Crash:
            self.failures = Failures(self.world)  # another operator
            self.world.listen_anew()
        finally:
            self.world.calls_until_crash, self.world.stale, self.world.lag = None, 0, 0

    def _tick(self) -> None:
        self.world.tick()
        over = self._over_budget() and self.looks_over_budget >= PASSES_TO_STOP
        is_denied = bool({STATUSES, "delete jobs"} & self.world.denials.answers.keys())
        over = over and bool(self.world.heard()) and not is_denied
        self.seconds_over_budget = self.seconds_over_budget + 1 if over else 0
        idle = () if self._is_explained() else self.world.idle()
        self.idle_seconds = {each.owner: self.idle_seconds.get(each.owner, 0) + 1 for each in idle}
        assert all(seconds <= IDLE_SECONDS for seconds in self.idle_seconds.values()), "paid for without a word"

    def _is_explained(self) -> bool:
        """Whether people are told why nothing happens, or nobody could tell them."""
        told = any(map(self.world.status.is_true, (WAITING, POD_STUCK, STATUS_UNREADABLE)))
        is_away = (self.world.time - self.looked_at).total_seconds() > LOOKS_SECONDS
        return told or is_away or STATUSES in self.world.denials.answers

    def _over_budget(self) -> bool:
        """Whether what runs should be on its way out; a change of the budget begins the count anew."""
        status = self.world.status
        budget = self._budget() if self.understood is None else None
        reserve = spending.per_hour(status) * Fraction(TIMING.stop_seconds) / spending.HOUR
        over = budget is not None and spending.spent(status, self.world.now()) + reserve >= Fraction(budget.usd)
        if not over:
            self.looks_over_budget = 0
        return over

    def _budget(self) -> Budget | None:
        """The one in effect, by what was written and what was accepted of it. None: there is none, or nobody knows."""
        world = self.world
        if world.typo and world.status.accepted is None:
            return None
        limits = world.typo.get("limits", {})
        is_good = isinstance(limits, Mapping) and "usd" not in limits.get("budget", {})
        accepted = world.status.accepted
        return (world.spec if is_good or accepted is None else self.edits[accepted.generation]).limits.budget

    def _goes_on(self, seconds: int) -> None:
        """Seen by the operator, and by Kueue, every second."""
        for _ in range(seconds):
            self._pass()
            self.world.admit()
            self._tick()

    def _undisturbed(self) -> bool:
        """Whether nobody but the machine has ended the attempt."""
        number = self.world.status.attempt
        return not self.world.deleting and number in self.world.job_exists and self.world.store.complete is None

    def _touched(self) -> tuple[object, ...]:
        """What an operator could have created, deleted, told or judged."""
        world = self.world
        jobs = [(t.number, t.deleting, t.shown) for t in world.jobs.values()]
        return jobs, set(world.job_exists), list(world.created), world.held, world.volume, world.reservation

    def _wrong_starts(self) -> int:
        """Attempts that the user may have kept from starting: what had run before can start."""
        unproven = ("no command", "wrong name", "unknown")
        return sum(how in unproven and not is_proven for how, is_proven in self.world.failed_starts)

    def _edit(self, spec: Spec) -> None:
        self.world.spec = spec
        self.world.generation += 1
        if not self.world.typo:
            self.edits[self.world.generation] = spec
        self.world.version += 1


def with_budget(spec: Spec, usd: str) -> Spec:
    assert spec.limits.budget is not None
    return _with_limits(spec, budget=spec.limits.budget.model_copy(update={"usd": usd}))


def with_enough(spec: Spec) -> Spec:
    """Money and time to come to the end."""
    spec = spec if spec.limits.budget is None else with_budget(spec, ENOUGH)
    return _with_limits(spec, stalled="24h")


def _with_limits(spec: Spec, **limits: object) -> Spec:
    return spec.model_copy(update={"limits": spec.limits.model_copy(update=limits)})
