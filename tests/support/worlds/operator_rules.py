"""What may become of the operator itself, and what the API server answers it."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piton.api.spec import Stage
from support.worlds.one_run import OneRun


class OperatorTrouble(OneRun):
    """The operator looks, late or at old news; it dies, and is refused."""

    @rule(times=st.integers(1, 6))
    def look(self, times: int) -> None:
        for _ in range(times):
            self._pass()

    @rule(calls=st.integers(1, 3), after=st.booleans())
    def look_and_die(self, calls: int, after: bool) -> None:
        self.world.calls_until_crash, self.world.crash_after_the_call = calls, after
        self._pass()

    @precondition(lambda self: self.old_news)
    @rule(ago=st.integers(1, 6))
    def look_at_old_news(self, ago: int) -> None:
        self.world.stale = ago
        self._pass()

    @precondition(lambda self: self.old_news)
    @rule(ago=st.integers(1, 6), times=st.integers(1, 4))
    def look_through_a_cache_that_is_behind(self, ago: int, times: int) -> None:
        for _ in range(times):
            self.world.lag = ago
            self._pass()

    @rule(seconds=st.integers(1, 5), times=st.integers(1, 3))
    def look_through_a_slow_server(self, seconds: int, times: int) -> None:
        """What was read is old when it is acted on."""
        self.world.seconds_per_call = seconds
        for _ in range(times):
            self._pass()
        self.world.seconds_per_call = 0

    @rule(times=st.integers(1, 6))
    def the_server_is_busy(self, times: int) -> None:
        before = self._touched()
        self.world.is_busy = True
        for _ in range(times):
            self._pass()
        self.world.is_busy = False
        assert self._touched() == before

    @rule(seconds=st.integers(20, 60))
    def operator_is_away(self, seconds: int) -> None:
        """A trainer keeps the budget by itself."""
        for _ in range(seconds):
            self._tick()
        for trainer in self.world.billed():
            begun = trainer.stage is Stage.TRAIN and trainer.start is None and trainer.done_at is None
            assert not begun or trainer.stops_at is None or self.world.time <= trainer.stops_at

    @rule(effects=st.integers(1, 4), times=st.integers(1, 3))
    def an_effect_is_refused(self, effects: int, times: int) -> None:
        """Nothing is taken away on the strength of what was not done. The next pass tries it again."""
        self.world.denials.effects_until_refusal = effects
        for _ in range(times):
            self._pass()
        self.world.denials.effects_until_refusal = None
