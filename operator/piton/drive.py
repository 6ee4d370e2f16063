"""One pass over one run: observe, decide, apply, write the status, announce. The same for every world."""

from piton.core.backoff import Pace
from piton.core.decide import decide, refused
from piton.core.effects import Decision
from piton.ports import Announcer, Clock, Refused, World


async def reconcile(world: World, clock: Clock, announcer: Announcer, pace: Pace | None = None) -> Decision | None:
    """Do what this moment asks for. Returns the decision, or None when the run does not exist.

    A crash anywhere in here is harmless: effects are idempotent, the status is written once and last, and what follows
    from it happens in the next pass. Announcements may be lost in a crash, never told too early.

    Raises:
        Conflict: somebody wrote in between; call again at once.
        Unavailable: the world did not answer; call again later.
    """
    observed = await world.observe()
    if observed is None:
        return None
    decision = decide(observed, now=clock.now(), pace=pace)
    try:
        for effect in decision.effects:
            await world.apply(effect)
    except Refused as refusal:
        decision = refused(observed, str(refusal), now=clock.now(), pace=pace)
    if decision.status != observed.status:
        await world.write_status(decision.status)
        for announcement in decision.announcements:
            await announcer.announce(announcement)
    return decision
