"""What one pass has to know of the pass before, of which the operator keeps no more than it needs."""

from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.contract import names
from support.apiserver import CLAIMS, EVENTS, PODS, RUNS, ApiServer, Body
from support.builders import a_manifest
from support.cluster import Runs, Waits
from support.pilot import Pilot

PRICED = {"maxPricePerHour": "5"}


async def say(pilot: Pilot, reason: str, message: str) -> None:
    """Two components speak about the pod, each of its own trouble."""
    pod = pilot.server.all(PODS)[0]["metadata"]
    about = {"kind": "Pod", "name": pod["name"], "uid": pod["uid"]}
    time = pilot.clock.now().isoformat()
    event: Body = {"metadata": {"name": f"{pod['name']}.{reason}", "namespace": "team"}, "involvedObject": about}
    event |= {"reason": reason, "message": message, "type": "Warning", "firstTimestamp": time, "lastTimestamp": time}
    await pilot.server.put(EVENTS, event)


@pytest.mark.parametrize(
    ("price", "spec"),
    [(None, {}), ("2.5", {}), (None, {"capacity": PRICED, "limits": {"budget": {"usd": "100"}}})],
    ids=["no price", "a price", "a budget"],
)
async def test_words_that_alternate_are_written_each_ten_seconds_by_an_operator(
    pilot: Pilot, price: str | None, spec: dict[str, Any]
) -> None:
    """Also where money is spent: what it has cost until now is no news by itself."""
    pilot.cluster.price = price
    pilot.cluster.script[1] = Waits(reason="ContainerCreating", message="")
    await pilot.cluster.apply(a_manifest(**spec))
    for _ in range(5):
        await pilot.turn()
    before = pilot.count("PUT").get("trainingruns", 0)
    for second in range(100):
        await say(pilot, "FailedMount", f"no socket of the {'abcdef'[second % 6] * 3} driver")
        await say(pilot, "FailedAttachVolume", f"{'uvwxyz'[second % 6] * 3} is busy")
        await pilot.settle(resync=False)
        pilot.advance(1)
    assert 8 <= pilot.count("PUT")["trainingruns"] - before <= 12


async def test_a_mark_that_a_webhook_takes_off_again_is_put_back_with_back_off_and_people_are_told(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = ApiServer._update

    async def strip(self: ApiServer, kind: Any, namespace: str | None, old: Body, new: Body, **options: Any) -> Body:
        if kind in (RUNS, CLAIMS):
            new = {**new, "metadata": {k: v for k, v in new["metadata"].items() if k != "finalizers"}}
        return await update(self, kind, namespace, old, new, **options)

    monkeypatch.setattr(ApiServer, "_update", strip)
    await pilot.cluster.apply(a_manifest())
    for _ in range(60):
        await pilot.settle(resync=False)
        pilot.advance(1)
    assert pilot.count("PATCH")["trainingruns"] <= 10
    told = [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == Reason.REFUSED]
    assert len(told) == 1
    assert "mutating webhook" in told[0]


async def test_of_a_run_without_trouble_nothing_is_kept_from_pass_to_pass(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase("Training")
    pilot.advance(60)
    await pilot.settle()
    assert ("team", "ragcun") not in vars(pilot.controller)["_failures"]
    assert names.FINALIZER in pilot.server.all(RUNS)[0]["metadata"]["finalizers"]
