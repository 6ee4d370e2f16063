"""What the user of a run may ask for, and what another version of the operator may write."""

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piton.api.conditions import ACCEPTED, STATUS_UNREADABLE
from piton.api.spec import EvaluateStage, Stage
from piton.api.status import RunStatus, StageStatus
from piton.api.status_base import Phase
from support.worlds.one_run import OneRun, with_budget

ENDS = (Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED)
RIDDLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "phase": lambda status: status | {"phase": "Migrating"},
    "attempt": lambda status: status | {"attempt": "three"},
    "attempts": lambda status: status | {"attempts": {"newest": 3}},
    "state": lambda status: status | {"attempts": _newest(status, state="Frozen")},
    "verdict": lambda status: status | {"attempts": _newest(status, verdict="Moved")},
    "stage": lambda status: status | {"stages": [*status["stages"], StageStatus(name=Stage("Quantize")).to_wire()]},
    "condition": lambda status: status | {"conditions": [*status["conditions"], {"type": "Healthy"}]},
}
"""What another version may do to a status that this one then does not understand."""
TYPOS: tuple[Mapping[str, Any], ...] = (
    {"x": 1},
    {"suspend": "yes"},
    {"limits": {"deadline": "soon"}},
    {"limits": {"budget": {"usd": "much"}}},
    {"limits": {"budget": {"onExceeded": "Explode"}}},
    {"limits": "none"},
    {"workers": {"nodes": 0}},
)
"""What may be wrong with a spec."""


def _newest(status: dict[str, Any], **fields: str) -> list[dict[str, Any]]:
    return [*status["attempts"][:-1], status["attempts"][-1] | fields]


class UserRules(OneRun):
    """The run is suspended, edited, misspelt, deleted, and met by another version."""

    @precondition(lambda self: self.understood is None and self.world.status.attempt and not self.world.deleting)
    @rule(how=st.sampled_from(sorted(RIDDLES)), seconds=st.integers(0, 20))
    def another_version_writes_what_is_not_understood(self, how: str, seconds: int) -> None:
        self.understood = self.world.status
        written = RIDDLES[how](self.world.status.to_wire())
        self.world.status = RunStatus.read(written)
        self.world.version += 1
        assert self.world.status.unreadable
        for _ in range(seconds):
            before = self._touched()
            self._pass()
            if not self.old_news:  # nobody knows then what the status says now
                assert self._touched() == before
            self._tick()
        kept = self.world.status.to_wire()
        assert {**kept, "conditions": 0} == {**written, "conditions": 0}
        others = [condition for condition in written["conditions"] if condition["type"] != STATUS_UNREADABLE]
        assert all(condition in kept["conditions"] for condition in others)

    @precondition(lambda self: self.understood is not None)
    @rule()
    def its_status_is_understood_again(self) -> None:
        assert self.understood is not None
        told = [c for c in self.world.status.conditions if c.type == STATUS_UNREADABLE]
        others = tuple(c for c in self.understood.conditions if c.type != STATUS_UNREADABLE)
        self.world.status = self.understood.model_copy(update={"conditions": (*others, *told)})
        self.world.version += 1
        self.understood = None

    @rule()
    def suspend_or_resume(self) -> None:
        self._edit(self.world.spec.model_copy(update={"suspend": not self.world.spec.suspend}))

    @precondition(lambda self: self.understood is None)
    @rule()
    def suspend_for_a_while(self) -> None:
        """Nothing is paid for while a run is suspended, and nothing is started."""
        spec = self.world.spec
        if "suspend" in self.world.typo or self.world.spec_in_effect() is None:
            return
        self._edit(spec.model_copy(update={"suspend": True}))
        for _ in range(15):
            self._pass()
            self.world.tick()
        assert not self.world.billed()
        assert not self.world.exists or self.world.deleting or self.world.status.phase in ENDS
        self._edit(spec.model_copy(update={"suspend": False}))

    @precondition(lambda self: self.world.spec.limits.budget is not None)
    @rule(usd=st.sampled_from(["10", "20", "40", "60"]))
    def change_the_budget(self, usd: str) -> None:
        self._edit(with_budget(self.world.spec, usd))
        self.looks_over_budget = self.seconds_over_budget = 0

    @rule(what=st.sampled_from(TYPOS))
    def misspell_or_mend(self, what: Mapping[str, Any]) -> None:
        self.world.typo = {} if self.world.typo else what
        self._edit(self.world.spec)

    @precondition(lambda self: self.understood is None)
    @rule()
    def each_edit_is_answered(self) -> None:
        """Also of a run that has ended, in the time of a few good looks."""
        for _ in range(3):
            self._pass()
            self.world.tick()
        status = self.world.status
        if self.world.deleting or not status.conditions:
            return
        assert status.observed_generation == self.world.generation
        assert status.is_true(ACCEPTED) is not bool(self.world.typo)

    @rule()
    def want_an_evaluation_or_not(self) -> None:
        stages = self.world.spec.stages
        evaluate = None if stages.evaluate else EvaluateStage()
        self._edit(self.world.spec.model_copy(update={"stages": stages.model_copy(update={"evaluate": evaluate})}))

    @precondition(lambda self: self.deletion and self.world.created)
    @rule()
    def delete(self) -> None:
        self.world.deleting = True
        self.world.version += 1
        self.world._forget()
