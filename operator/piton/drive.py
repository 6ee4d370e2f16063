"""One pass over one object: observe, decide, apply, write the status, announce. The same for every world."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from piton.api.conditions import settled
from piton.api.status import RunStatus, Verdict
from piton.api.status_base import Conditioned
from piton.core.decide import decide, refused
from piton.core.effects import AddFinalizer, AnyDecision, Decision, Effect
from piton.observed import Observed
from piton.ports import Announcer, AnyWorld, Clock, Refused, RefusedEffect, World
from piton.timing import Timing


class HasStatus(Protocol):
    """The fields that every observation has."""

    @property
    def status(self) -> Conditioned:
        """The status as it was last written."""


ObservedT = TypeVar("ObservedT", bound=HasStatus)
EffectT = TypeVar("EffectT")
StatusT = TypeVar("StatusT", bound=Conditioned)


def is_binding(observed: Observed, decision: Decision) -> bool:
    """True if the decision cannot be taken back: it creates or deletes something, or an attempt or the run ends by it.

    Any other status is only written over the version that was observed, and the next pass corrects it.
    """
    acts = any(not isinstance(effect, AddFinalizer) for effect in decision.effects)
    return acts or _ends(decision.status) != _ends(observed.status)


def _ends(status: RunStatus) -> tuple[bool, list[tuple[int, Verdict | None, bool]]]:
    """The end of the run and of each attempt, as far as it has come: the first sign, the verdict."""
    signs = [(attempt.number, attempt.verdict, attempt.failing_time is not None) for attempt in status.attempts]
    return settled(status), [sign for sign in signs if sign[1] or sign[2]]


async def reconcile(world: World, clock: Clock, announcer: Announcer, timing: Timing | None = None) -> Decision | None:
    """Do what this moment asks for a run; see `run_pass`."""

    def decided(observed: Observed) -> Decision:
        return decide(observed, now=clock.now(), timing=timing)

    def turned_down(observed: Observed, decision: Decision, refusals: Sequence[RefusedEffect[Effect]]) -> Decision:
        return refused(observed, refusals[0].why, status=decision.status_if_refused, now=clock.now(), timing=timing)

    return await run_pass(world, announcer, decided, turned_down, is_binding)


async def run_pass(
    world: AnyWorld[ObservedT, EffectT, StatusT],
    announcer: Announcer,
    decided: Callable[[ObservedT], AnyDecision[EffectT, StatusT]],
    turned_down: Callable[
        [ObservedT, AnyDecision[EffectT, StatusT], Sequence[RefusedEffect[EffectT]]], AnyDecision[EffectT, StatusT]
    ],
    is_binding: Callable[[ObservedT, AnyDecision[EffectT, StatusT]], bool],
) -> AnyDecision[EffectT, StatusT] | None:
    """Do what this moment asks for. Returns the decision, or None when the object does not exist.

    A crash anywhere in here is harmless: effects are idempotent, the status is written once and last, and what follows
    from it happens in the next pass. A decision that cannot be taken back is made again on live reads first, and only
    that second one counts: see docs/decisions/0058. Announcements may be lost in a crash, never told too early; those
    of a decision that changes nothing were told before.

    Raises:
        Conflict: somebody wrote in between; call again at once.
        Unavailable: the world did not answer; call again later.
    """
    observed = await world.observe()
    if observed is None:
        return None
    decision = decided(observed)
    if world.is_cached and is_binding(observed, decision):
        observed = await world.observe(live=True)
        if observed is None:
            return None
        decision = decided(observed)
    refusals: list[RefusedEffect[EffectT]] = []
    for effect in decision.effects:
        try:
            await world.apply(effect)
        except Refused as refusal:
            refusals.append(RefusedEffect(effect=effect, why=str(refusal)))
            if not decision.are_independent:
                break
    if refusals:
        decision = turned_down(observed, decision, refusals)
    is_news = decision.status != observed.status
    if is_news:
        await world.write_status(decision.status)
    for announcement in decision.announcements if is_news or decision.effects else ():
        await announcer.announce(announcement)
    return decision
