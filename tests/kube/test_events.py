"""Events: told once, counted when repeated, and never in the way."""

from collections.abc import AsyncIterator
from typing import Literal

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Meta
from piton.core.effects import Announcement
from piton.kube.client import Client
from piton.kube.events import BURST, REFILL_SECONDS, EventAnnouncer, EventRateLimiter
from support.apiserver import EVENTS, refusal
from support.builders import NOW
from support.cluster import Cluster
from support.pilot import configuration

META = Meta(name="ragcun", namespace="team", uid="uid-1", created=NOW)


def _news(message: str = "Created attempt 1", *, severity: Literal["Normal", "Warning"] = "Normal") -> Announcement:
    return Announcement(severity=severity, reason=Reason.STARTING, message=message)


@pytest.fixture
async def announcer(cluster: Cluster) -> AsyncIterator[EventAnnouncer]:
    async with Client(configuration(cluster.server)) as client:
        yield EventAnnouncer(client, cluster.clock, EventRateLimiter(cluster.clock), lambda: META)


async def test_an_announcement_becomes_an_event_of_the_run(cluster: Cluster, announcer: EventAnnouncer) -> None:
    await announcer.announce(_news(severity="Warning"))
    (event,) = cluster.server.all(EVENTS)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Starting", "Created attempt 1")
    about = event["involvedObject"]
    assert (about["kind"], about["name"], about["uid"]) == ("TrainingRun", "ragcun", "uid-1")


async def test_the_same_news_again_is_counted_and_not_repeated(cluster: Cluster, announcer: EventAnnouncer) -> None:
    await announcer.announce(_news())
    cluster.clock.advance(60)
    for _ in range(2):
        await announcer.announce(_news())
    await announcer.announce(_news("Created attempt 2"))
    first, second = cluster.server.all(EVENTS)
    assert (first["count"], first["firstTimestamp"], first["lastTimestamp"]) == (
        3,
        "2026-11-21T12:00:00Z",
        "2026-11-21T12:01:00Z",
    )
    assert second["count"] == 1


async def test_another_run_of_the_same_name_has_events_of_its_own(cluster: Cluster, announcer: EventAnnouncer) -> None:
    await announcer.announce(_news())
    async with Client(configuration(cluster.server)) as client:
        reborn = META.model_copy(update={"uid": "uid-2"})
        await EventAnnouncer(client, cluster.clock, EventRateLimiter(cluster.clock), lambda: reborn).announce(_news())
    assert [event["count"] for event in cluster.server.all(EVENTS)] == [1, 1]


async def test_a_talkative_run_is_heard_less_and_less(cluster: Cluster, announcer: EventAnnouncer) -> None:
    for number in range(BURST + 10):
        await announcer.announce(_news(f"attempt {number}"))
    assert len(cluster.server.all(EVENTS)) == BURST
    cluster.clock.advance(2 * REFILL_SECONDS)
    for number in range(100, 110):
        await announcer.announce(_news(f"attempt {number}"))
    assert len(cluster.server.all(EVENTS)) == BURST + 2


async def test_a_message_that_is_too_long_is_cut(cluster: Cluster, announcer: EventAnnouncer) -> None:
    await announcer.announce(_news("ä" * 2000))
    (event,) = cluster.server.all(EVENTS)
    assert len(event["message"].encode()) <= 1024
    assert event["message"].endswith("ä...")


@pytest.mark.parametrize(("status", "reason"), [(403, "Forbidden"), (500, "InternalError"), (404, "NotFound")])
async def test_what_cannot_be_told_is_no_error(
    cluster: Cluster, announcer: EventAnnouncer, status: int, reason: str
) -> None:
    cluster.server.refuse = lambda request: refusal(status, reason, "no")
    await announcer.announce(_news())
    assert cluster.server.all(EVENTS) == []
