"""Reports that do not arrive, for a while or for long: a NetworkPolicy, a certificate.

The world knows that nobody hears. The operator tells it within a minute, and takes nothing away for it.
"""

from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piton.api.conditions import REPORTING
from piton.api.status_base import ConditionStatus
from piton.core.report_conditions import REPORTS_WITHIN_SECONDS
from support.fake_trainer import Trainer
from support.fake_world import GRACE_SECONDS, SAVE_EVERY, STEPS_PER_SECOND
from support.worlds.cluster_rules import ClusterTrouble
from support.worlds.one_run import ENOUGH, with_budget

_BEGINS_WITHIN_SECONDS = 20
"""In most worlds an attempt trains by then, whatever was before."""
_SAVES_SECONDS = SAVE_EVERY // STEPS_PER_SECOND + 1
_LOOKS_SECONDS = 2.0
"""For so long a look of each second may be off."""


class BlockedReports(ClusterTrouble):
    """Nothing is heard of a trainer, while it trains on."""

    @rule()
    def reports_are_blocked_or_arrive(self) -> None:
        """Nothing is heard of the attempts that follow."""
        self.world.are_reports_blocked = not self.world.are_reports_blocked

    @precondition(lambda self: self.understood is None)
    @rule(
        heard=st.none() | st.integers(0, 6),
        seconds=st.integers(70, 150),
        watched=st.integers(0, 150) | st.just(150),
        pays=st.booleans(),
        then=st.sampled_from(["nothing", "reports arrive", "the machine goes", "a deletion"]),
    )
    def nobody_hears_of_a_training_for_long(
        self, heard: int | None, seconds: int, watched: int, pays: bool, then: str
    ) -> None:
        """It was heard for so long before, or never. Each of its steps takes long, or it would be over too soon."""
        if pays and self.world.spec.limits.budget is not None:
            self._raise_the_budget()
        before = self.world.are_reports_blocked
        self.world.are_reports_blocked = before or heard is None
        for _ in range(_BEGINS_WITHIN_SECONDS):
            if self._trains_undisturbed() is not None:
                break
            self._goes_on(1)
        self.world.are_reports_blocked = before
        self._goes_on(_SAVES_SECONDS if heard is None else heard)
        trainer = self._trains_undisturbed()
        if trainer is None:
            return
        trainer.cannot_report = True
        trainer.busy_until = self.world.time + timedelta(seconds=seconds)
        attempts = len(self.world.created)
        self._goes_on(min(watched, seconds))
        if self._trains_undisturbed() is trainer:
            assert len(self.world.created) == attempts, "a silence alone starts nothing"
            self._silence_is_over(trainer, then)

    def _raise_the_budget(self) -> None:
        """Pay for a training of any length. Who reports is told so in the answer; who cannot stops as it was told."""
        if any(trainer.cannot_report for trainer in self.world.billed()):
            return
        self._edit(with_budget(self.world.spec, ENOUGH))
        for trainer in self.world.billed():
            trainer.stops_at = None

    def _silence_is_over(self, trainer: Trainer, how: str) -> None:
        if how == "reports arrive":
            trainer.cannot_report = self.world.are_reports_blocked = False
            self._goes_on(2)
            assert self._trains_undisturbed() is not trainer or not self._is_told_silent()
        elif how != "nothing":
            self.machines_lost += 1
            self.world.kill_node(trainer)  # and its last words with it
            if how == "a deletion" and self.deletion:
                self.delete()
                self._goes_on(GRACE_SECONDS)

    def _pass(self) -> None:
        """See that what nobody hears is told: by when the operator knows it, if it looks, each time anew."""
        super()._pass()
        trainer = self._trains_undisturbed()
        is_new = self.looked_at == self.world.time and not self.failures and not self.world.denials.answers
        if trainer is None or not is_new:
            return
        since = self._unheard_since(trainer)
        if since is None:
            return
        until = since + timedelta(seconds=REPORTS_WITHIN_SECONDS + self.slowest + _LOOKS_SECONDS)
        assert self.world.time < until or self._is_told_silent(), "nobody hears of it, and nobody is told"

    def _unheard_since(self, trainer: Trainer) -> datetime | None:
        """Return since when it is seen to train unheard, in looks that were new; it may have begun after the look."""
        since = self.world.unheard_since(trainer)
        if since is None:
            self.unheard.pop(trainer.owner, None)
            return None
        if trainer.owner not in self.unheard and since == self.world.time:
            return None
        return max(since, self.unheard.setdefault(trainer.owner, self.world.time))

    def _is_told_silent(self) -> bool:
        told = self.world.status.condition(REPORTING)
        return told is not None and told.status is ConditionStatus.FALSE
