"""The narrow interfaces between the core and a world that it drives. `drive.reconcile` calls them, nobody else does.

PortError
├── Conflict     somebody wrote in between; look again at once
├── Unavailable  the world did not answer; try again later. What fails so for two minutes counts as refused (drive.py)
└── Refused      the world said no for a reason of its own (quota, policy, rights); people must hear it
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from piton.api.status import RunStatus
from piton.api.status_base import Conditioned
from piton.core.effects import Announcement, Effect
from piton.observed import Observed

ObservedT_co = TypeVar("ObservedT_co", covariant=True)
EffectT_contra = TypeVar("EffectT_contra", contravariant=True)
EffectT = TypeVar("EffectT")
StatusT_contra = TypeVar("StatusT_contra", bound=Conditioned, contravariant=True)


class PortError(Exception):
    """Base of what an adapter may raise; anything else is a bug."""


class Conflict(PortError):  # noqa: N818 - a situation, not an error
    """The run has changed since it was observed; the pass is void and the next one begins at once."""


class Unavailable(PortError):  # noqa: N818 - a situation, not an error
    """The world did not answer, or asked for patience. Nothing is known about whether the effect took place."""


class Refused(PortError):  # noqa: N818 - a situation, not an error
    """The world refused an effect. The text is a sentence for people."""


@dataclass(frozen=True, kw_only=True)
class RefusedEffect(Generic[EffectT]):
    """An effect that the world has refused, or has not carried out for another reason."""

    effect: EffectT
    why: str
    """The world's words; empty for an effect that was not tried, after others were not carried out."""
    is_final: bool = True
    """True if people have to hear of it: a refusal, or a failure that has lasted. A moment's failure is tried again."""
    is_known: bool = False
    """True if an earlier pass was refused the same, in words that differ by their numbers at most."""


class Clock(Protocol):
    """The time. Virtual in tests and in the simulator."""

    def now(self) -> datetime:
        """The present, in UTC."""


class AnyWorld(Protocol[ObservedT_co, EffectT_contra, StatusT_contra]):
    """One object in its world: what is there, and how to change it."""

    @property
    def is_cached(self) -> bool:
        """True if the last observation may be a while old, so that nothing may be created or deleted because of it."""

    async def observe(self, *, live: bool = False) -> ObservedT_co | None:
        """Gather everything about it, or, live, all that is true now. None when it does not exist any more.

        Raises:
            Unavailable: nothing may be decided on half of the facts.
        """

    async def apply(self, effect: EffectT_contra) -> None:
        """Carry out one effect. Idempotent: what is already so is success. Raises Conflict, Unavailable, Refused."""

    async def write_status(self, status: StatusT_contra) -> None:
        """Replace its status, if it is still as it was last observed. Raises Conflict, Unavailable."""


class World(AnyWorld[Observed, Effect, RunStatus], Protocol):
    """The world of one run."""


class Announcer(Protocol):
    """Tells people. Called after the status that makes it true was written; must not raise."""

    async def announce(self, announcement: Announcement) -> None:
        """Tell one thing, once."""
