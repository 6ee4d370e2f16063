"""The operator goes by the clock that dates the objects."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from piton.clock import ServerClock, SystemClock


def http(time: datetime) -> str:
    return format_datetime(time.replace(microsecond=0), usegmt=True)


def ahead(clock: ServerClock) -> float:
    return (clock.now() - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("hours", [-24, -2, 2, 24])
def test_an_api_server_with_another_clock_is_believed(hours: int) -> None:
    clock = ServerClock()
    clock.hear(http(datetime.now(UTC) + timedelta(hours=hours)))
    assert ahead(clock) == pytest.approx(hours * 3600, abs=3)

    clock.hear(http(datetime.now(UTC)))
    assert ahead(clock) == pytest.approx(0, abs=1), "somebody has set the clock"


@pytest.mark.parametrize("seconds", [-4, 0, 3])
def test_the_way_of_an_answer_moves_no_clock(seconds: int) -> None:
    clock = ServerClock()
    clock.hear(http(datetime.now(UTC) + timedelta(seconds=seconds)))
    assert ahead(clock) == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("date", [None, "", "soon", "2026-11-21T12:00:00Z"])
def test_what_is_no_date_changes_nothing(date: str | None) -> None:
    clock = ServerClock()
    clock.hear(date)
    assert ahead(clock) == pytest.approx(0, abs=0.5)
    assert isinstance(clock, SystemClock)
