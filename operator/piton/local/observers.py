"""Observers of a local run: a terminal, a log, nobody. What they show is a courtesy, and no training depends on it."""

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from piton.api.status import RunStatus
from piton.contract.progress import Progress
from piton.core.effects import Announcement
from piton.ports import Announcer


@dataclass(frozen=True, kw_only=True)
class View:
    """View of a moment, to be shown."""

    name: str
    status: RunStatus
    progress: Progress | None
    objective: str | None
    now: datetime


class RunObserver(Announcer, Protocol):
    """Observer of a run. Neither method may raise."""

    def show(self, view: View) -> None:
        """Take the newest view; called 20 times a second."""


class SweepObserver(Announcer, Protocol):
    """Observer of a sweep."""

    def of(self, name: str) -> RunObserver:
        """Return the observer of that run of the sweep."""


class CourteousAnnouncer:
    """Forwards to an announcer, and loses what it cannot tell: a terminal ends no training."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer

    async def announce(self, announcement: Announcement) -> None:
        """Forward the announcement."""
        with contextlib.suppress(Exception):
            await self._announcer.announce(announcement)


class Courteous(CourteousAnnouncer):
    """The same for the observer of a run."""

    def __init__(self, observer: RunObserver) -> None:
        super().__init__(observer)
        self._observer = observer

    def show(self, view: View) -> None:
        """Forward the view."""
        with contextlib.suppress(Exception):
            self._observer.show(view)
