"""Requests that the API server denies whenever they come, for long, and serves again one day.

What needs them is held, what does not goes on; after two minutes people are told, and not before, unless it is a
refusal: see docs/decisions/0071.
"""

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piton.api.conditions import ACCEPTED, settled
from piton.api.spec import Stage
from piton.api.status_base import ConditionStatus, Phase
from support.fake_denials import ANSWERS, FORBIDDEN, REQUESTS, STATUSES, sentence
from support.worlds.cluster_rules import ClusterTrouble

LONG = 250
"""Seconds: two minutes until it is told, and the longest wait between two tries."""
_NOT_YET_TOLD, _TOLD = 100, timedelta(seconds=125)
_TRIED_WITHIN = timedelta(seconds=65)
_MEANWHILE, _ANSWERED = 15, 75
"""Seconds at which something happens, and by which it is answered if it is a change of the spec."""
_NEED_NOTHING_TO_END = frozenset(REQUESTS) - {"create jobs", "create workloads", STATUSES}
"""Requests without which an attempt that trains can end well, and its run with it."""


class LastingDenials(ClusterTrouble):
    """A request is never served, for long."""

    _answers: frozenset[str] = frozenset()
    """The answers of one trouble. That statuses cannot be written is told once, with the words of the first answer."""

    @precondition(lambda self: self.understood is None)
    @rule(
        request=st.sampled_from(sorted(REQUESTS)),
        answer=st.sampled_from(sorted(ANSWERS)),
        seconds=st.sampled_from([5, 40, LONG]),
        jobs=st.sampled_from([0, 0, 0, 4]),
        meanwhile=st.sampled_from(["nothing", "an edit", "a typo", "suspend", "a machine goes", "a deletion"]),
    )
    def a_request_is_never_served(self, request: str, answer: str, seconds: int, jobs: int, meanwhile: str) -> None:
        for _ in range(jobs):  # of attempts that have ended, more than stay
            self.machine_goes("kill_node")
            self._goes_on(9)
        trainer = self._trains_undisturbed() if self._needs_nothing(request) else None
        has_failed_before = bool(self.failures)
        is_told = has_failed_before and request == STATUSES  # no status was written since: it is the same trouble
        heard = 0 if is_told else len(self.world.announced)
        self._answers = (self._answers if is_told else frozenset()) | {answer}
        was_still = self._is_still()
        self.world.denials.answers[request] = answer
        for second in range(seconds):
            if second == _MEANWHILE:
                self._happens(meanwhile)
            if second < _MEANWHILE + 5 or second % 5 == 0:
                self._pass()
                self.world.admit()
                self._check_what_is_shown(request, answer)
            if second == _NOT_YET_TOLD and answer != FORBIDDEN and not has_failed_before:
                assert not self._says(request, answer, heard)
            if second >= _ANSWERED and request != STATUSES:
                self._check_answered()
            self._tick()
            was_still = was_still and self._is_still()  # it may have run, and be suspended or over again
        self._pass()
        self._check_told(request, answer, heard, was_still=was_still and self._is_still())
        if trainer is not None and seconds == LONG and meanwhile in ("nothing", "an edit", "a machine goes"):
            assert not self.world.exists or settled(self.world.status), (self.world.status.phase, trainer)
        del self.world.denials.answers[request]
        self.world.denials.tries.clear()

    def _happens(self, what: str) -> None:
        if what == "an edit":
            self._edit(self.world.spec)
        elif what == "a typo":
            self.misspell_or_mend({"x": 1})
        elif what == "suspend":
            self.suspend_or_resume()
        elif what == "a machine goes":
            self.machine_goes("kill_node")
        elif what == "a deletion" and self.deletion and self.world.created:
            self.delete()

    def _needs_nothing(self, request: str) -> bool:
        """Whether the run comes to its end without it, if it has the time."""
        world = self.world
        if world.spec.limits.budget or (world.has_mesh and request in ("delete jobs", "delete pods")):
            return False
        waits_again = world.reservation is not None and self.stages and "workloads" in request
        return request in _NEED_NOTHING_TO_END and not waits_again

    def _is_still(self) -> bool:
        """Whether nothing of the run changes by itself."""
        return self.world.exists and (settled(self.world.status) or self.world.status.phase is Phase.SUSPENDED)

    def _says(self, request: str, answer: str, heard: int | None = None) -> bool:
        """Whether a condition says what was answered, or an Event since so many."""
        words = sentence(request, answer)
        news = [] if heard is None else self.world.announced[heard:]
        true = [each for each in self.world.status.conditions if each.status is ConditionStatus.TRUE]
        return any(words in message for message in [*(each.message for each in news), *(each.message for each in true)])

    def _check_told(self, request: str, answer: str, heard: int, *, was_still: bool) -> None:
        if not self.world.exists:
            return
        for tries in self.world.denials.tries.values():
            is_wanted = tries.last == self.world.denials.passed_at
            if tries.is_aside:
                is_wanted = was_still and self.world.time - tries.last < _TRIED_WITHIN
            if is_wanted and (answer == FORBIDDEN or tries.last - tries.first >= _TOLD):
                events = heard if request == STATUSES else None
                assert any(self._says(request, each, events) for each in self._answers), self.world.denials.tries

    def _check_what_is_shown(self, request: str, answer: str) -> None:
        """A refusal is told at once, and how far the training is goes on to be shown, and paid for by the books."""
        world, trainer, record = self.world, self.world.running(), self.world.status.current
        if answer != FORBIDDEN or request == STATUSES or trainer is None or trainer.begun_at is None or world.deleting:
            return
        if trainer.stage is not Stage.TRAIN or trainer.number != max(world.jobs) or self._others(trainer):
            return
        if world.time - trainer.begun_at < timedelta(seconds=10):
            return
        assert record is not None
        assert record.number == trainer.number
        assert record.billed_from is not None
        if not trainer.cannot_report and trainer.checkpoint_step is not None:
            assert world.status.checkpoint is not None
            assert world.status.checkpoint.step >= trainer.checkpoint_step

    def _check_answered(self) -> None:
        status = self.world.status
        if self.world.deleting or not self.world.exists or not status.conditions:
            return
        assert status.observed_generation == self.world.generation
        assert status.is_true(ACCEPTED) is not bool(self.world.typo)
