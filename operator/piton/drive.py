"""One pass over one object: observe, decide, apply, write the status, announce. The same for every world."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from piton.api.status_base import Conditioned
from piton.core.decide import decide, refused
from piton.core.effects import AnyDecision, Decision
from piton.observed import Observed
from piton.ports import Announcer, AnyWorld, Clock, Refused, World
from piton.timing import Timing


class HasStatus(Protocol):
    """The fields that every observation has."""

    @property
    def status(self) -> Conditioned:
        """The status as it was last written."""


ObservedT = TypeVar("ObservedT", bound=HasStatus)
EffectT = TypeVar("EffectT")
StatusT = TypeVar("StatusT", bound=Conditioned)


async def reconcile(world: World, clock: Clock, announcer: Announcer, timing: Timing | None = None) -> Decision | None:
    """Do what this moment asks for a run; see `run_pass`."""

    def decided(observed: Observed) -> Decision:
        return decide(observed, now=clock.now(), timing=timing)

    def turned_down(observed: Observed, why: str) -> Decision:
        return refused(observed, why, now=clock.now(), timing=timing)

    return await run_pass(world, announcer, decided, turned_down)


async def run_pass(
    world: AnyWorld[ObservedT, EffectT, StatusT],
    announcer: Announcer,
    decided: Callable[[ObservedT], AnyDecision[EffectT, StatusT]],
    turned_down: Callable[[ObservedT, str], AnyDecision[EffectT, StatusT]],
) -> AnyDecision[EffectT, StatusT] | None:
    """Do what this moment asks for. Returns the decision, or None when the object does not exist.

    A crash anywhere in here is harmless: effects are idempotent, the status is written once and last, and what follows
    from it happens in the next pass. Announcements may be lost in a crash, never told too early.

    Raises:
        Conflict: somebody wrote in between; call again at once.
        Unavailable: the world did not answer; call again later.
    """
    observed = await world.observe()
    if observed is None:
        return None
    decision = decided(observed)
    try:
        for effect in decision.effects:
            await world.apply(effect)
    except Refused as refusal:
        decision = turned_down(observed, str(refusal))
    if decision.status != observed.status:
        await world.write_status(decision.status)
        for announcement in decision.announcements:
            await announcer.announce(announcement)
    return decision
