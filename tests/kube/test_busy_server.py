"""An API server that has too many requests, or is slow: it restarts nothing, and is left in peace."""

from typing import Any

import pytest
from kubernetes.aio.client import ApiException

from piton.api.status_base import Phase
from piton.kube.errors import Busy, translate
from support.apiserver import RUNS
from support.builders import a_manifest
from support.cluster import Ends, Runs
from support.pilot import Pilot

MANY = 30


def too_many(**headers: str) -> ApiException:
    error = ApiException(status=429, reason="Too Many Requests", body='{"message": "too many requests"}')
    error.headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return error


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7),
        ({}, 1),
        ({"Retry_After": "0"}, 1),
        ({"Retry_After": "86400"}, 60),
        ({"Retry_After": "Mon, 23 Nov 2026 12:00:00 GMT"}, 1),
    ],
)
def test_the_server_says_when_to_come_again(headers: dict[str, str], seconds: float) -> None:
    found = translate(too_many(**headers))

    assert isinstance(found, Busy)
    assert found.seconds == seconds


class Overload:
    """While it is on, each call that is sent is answered with 429."""

    def __init__(self, pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_on = False
        self.calls = 0
        answered = pilot.client._call

        async def call(*args: Any) -> Any:
            self.calls += 1
            if self.is_on:
                raise too_many(Retry_After="5")
            return await answered(*args)

        monkeypatch.setattr(pilot.client, "_call", call)


async def _train(pilot: Pilot, runs: list[str]) -> None:
    pilot.cluster.script[1] = Runs()
    for name in runs:
        await pilot.cluster.apply(a_manifest(name))
    await pilot.until(lambda: all(pilot.status(name).phase is Phase.TRAINING for name in runs))


async def test_no_call_is_sent_before_the_server_wants_one_however_many_runs_are_woken(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [f"r{number}" for number in range(MANY)]
    await _train(pilot, runs)
    before = [pilot.server.find(RUNS, name, "team") for name in runs]
    overload = Overload(pilot, monkeypatch)
    overload.is_on = True
    pilot.controller._doubtful.update(("team", name) for name in runs)  # each reads live

    for _ in range(30):  # half a minute, in which everything wakes every run every second
        for name in runs:
            pilot.controller.wake("team", name)
        await pilot.settle(resync=False)
        pilot.advance(1)

    assert 6 <= overload.calls <= 8, "one each 5 s"
    assert [pilot.server.find(RUNS, name, "team") for name in runs] == before
    overload.is_on = False
    pilot.advance(5)
    await pilot.settle(resync=False)
    assert overload.calls > 2 * MANY, "all of them are looked at"
    assert [pilot.server.find(RUNS, name, "team") for name in runs] == before


async def test_a_slow_server_restarts_nothing_and_no_pass_is_so_long_that_the_kubelet_ends_the_operator(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer takes 5 s. A run of 8 nodes needs the most of them."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest(workers={"nodes": 8}))
    await pilot.until_phase(Phase.TRAINING)
    answered, longest = pilot.client._call, 0.0

    async def slowly(*args: Any) -> Any:
        nonlocal longest
        found = await answered(*args)
        pilot.advance(5)
        longest = max(longest, *(pilot.timer.time() - since for since in pilot.controller._busy_since.values()), 0.0)
        return found

    with monkeypatch.context() as slow:
        slow.setattr(pilot.client, "_call", slowly)
        for _ in range(10):
            pilot.controller._doubtful.add(("team", "ragcun"))  # it reads live
            await pilot.turn(30)

    assert (pilot.status().phase, pilot.status().attempt) == (Phase.TRAINING, 1)
    assert 0 < longest < pilot.controller._settings.stuck_seconds / 2
    pilot.cluster.script[1] = Ends()
    assert (await pilot.until_phase(Phase.SUCCEEDED)).attempt == 1
