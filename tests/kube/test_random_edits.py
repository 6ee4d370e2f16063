"""Random edits of a spec, at random moments of a run that meets anything: no pass raises, or is repeated for ever.

An exception in a pass is worse than any wrong decision: no limit is kept and no machine is given back until it is over.
"""

import random
from typing import Any

import pytest

from piton.contract import names
from piton.contract.termination import Outcome
from support.apiserver import EVENTS, PODS, RUNS
from support.builders import a_manifest
from support.cluster import Disrupted, Ends, Runs, Vanishes, Waits
from support.kueue import Kueue
from support.pilot import Pilot, a_cluster, a_pilot

NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
VOLUMES = (
    {"size": "1Gi", "accessModes": ["ReadWriteMany"]},
    {"size": "2Gi", "accessModes": ["ReadWriteMany"]},
    {"claimName": "ragcun-checkpoints"},
)
TRAINERS = ({"image": "trainer:1", "recipe": "charlm"}, {"image": "trainer:2", "recipe": "charlm"})
COMMAND = {"image": "trainer:1", "command": ["train"]}
FATES = (
    Runs(), Runs(), Ends(), Disrupted(), Vanishes(), Waits(), Ends(is_silent=True),
    Ends(outcome=Outcome.FAILED, exit_code=1), Waits(reason="ErrImagePull", message="401 Unauthorized"),
)  # fmt: skip


def a_random_spec(dice: random.Random) -> dict[str, Any]:
    limits: dict[str, Any] = {
        "stuckPods": dice.choice(["Report", "ForceDelete"]),
        "startTimeout": dice.choice(["1m", "30m"]),
    }
    spec: dict[str, Any] = {"limits": limits, "trainer": dice.choice([*TRAINERS, COMMAND])}
    if dice.random() < 0.6:
        usd, end = dice.choice(["1", "5", "100"]), dice.choice(["Pause", "Stop"])
        limits["budget"], spec["capacity"] = {"usd": usd, "onExceeded": end}, {"maxPricePerHour": "10"}
    if dice.random() < 0.3:
        limits["deadline"] = dice.choice(["10m", "2h", "3650d"])
    spec["stages"] = {each: {"command": ["x"]} for each in ("prepare", "evaluate") if dice.random() < 0.5}
    spec["workers"] = {"nodes": dice.choice([1, 1, 2]), **({"zones": ["No Zone"]} if dice.random() < 0.15 else {})}
    spec["checkpoint"] = {"volume": dice.choice(VOLUMES)}
    return spec | ({"suspend": True} if dice.random() < 0.15 else {})


async def meddle(pilot: Pilot, dice: random.Random, turn: int) -> None:
    """Do what people and their tools do."""
    if dice.random() < 0.25:
        await pilot.cluster.apply(a_manifest(**a_random_spec(dice)))
    if dice.random() < 0.03:
        await pilot.annotate(names.ANNOTATION_RETRY, str(turn))
    run = pilot.run()
    if run is not None and dice.random() < 0.02 and "deletionTimestamp" not in run["metadata"]:
        await pilot.server.delete(RUNS, "ragcun", "team")


def make_slow(pilot: Pilot, dice: random.Random) -> None:
    """Have pods wait for a machine for a while, and have some of them never end."""
    schedule = pilot.cluster._schedule

    async def later() -> None:
        if dice.random() < 0.5:
            await schedule()
            return
        for pod in pilot.server.all(PODS):
            if pod["status"]["phase"] == "Pending" and not pod["spec"].get("nodeName"):
                pod["status"]["conditions"] = [NO_NODE]
                await pilot.server.put(PODS, pod)

    pilot.cluster._schedule = later  # type: ignore[method-assign]
    if dice.random() < 0.3:
        pilot.cluster.hung = {f"ragcun-{number}-master-0" for number in range(1, 9)}


@pytest.mark.parametrize("seed", range(12))
async def test_no_pass_raises_and_none_is_repeated_for_ever(seed: int) -> None:
    dice = random.Random(seed)
    async with a_cluster() as cluster, a_pilot(cluster) as pilot:
        await Kueue(cluster).install()
        cluster.script = {number: dice.choice(FATES) for number in range(1, 80)}
        cluster.price = dice.choice(["10", None])
        make_slow(pilot, dice)
        manifest = a_manifest(**a_random_spec(dice))
        if dice.random() < 0.3:
            manifest["metadata"]["labels"] = {names.LABEL_QUEUE: "gpus"}
        await cluster.apply(manifest)
        for turn in range(40):
            await meddle(pilot, dice, turn)
            await pilot.turn(dice.choice([2, 5, 30, 120, 600]))
            if pilot.run() is None:
                break
        assert [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == "OperatorError"] == []
