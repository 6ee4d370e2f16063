"""A node whose device was lost is named with a command, and the command keeps the next attempt away from it."""

import json
import re

import pytest

from piton.contract import names
from piton.contract.termination import ExitCode, Outcome, Termination
from support.live import LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

ECC = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
LAST_WORDS = Termination(outcome=Outcome.DEVICE_LOST, detail=ECC).to_json()
LOSES_ITS_DEVICE_ONCE = f"""
import os, pathlib, sys
if os.environ[{names.ENV_ATTEMPT!r}] == "1":
    pathlib.Path(os.environ[{names.ENV_TERMINATION_LOG!r}]).write_text({LAST_WORDS!r})
    sys.exit({int(ExitCode.DEVICE_LOST)})
"""
COMMAND = re.compile(rf"kubectl (taint node \S+ {re.escape(names.TAINT_DEVICE_FAULT)}=\S+:NoSchedule)")


def command_told(cluster: LiveCluster, run: Training) -> str | None:
    """What follows `kubectl` in the Event that names the node, once there is one."""
    events = json.loads(cluster.kubectl("-n", run.namespace, "get", "events", "-o", "json"))["items"]
    told = [event["message"] for event in events if event["involvedObject"]["name"] == run.name]
    found = next((found for message in told if ECC in message and (found := COMMAND.search(message))), None)
    return found[1] if found else None


def test_the_command_of_the_event_keeps_the_next_attempt_away_from_a_node_that_lost_a_device(
    cluster: LiveCluster, training: NewTraining
) -> None:
    run, spec = training(), paced(1, 0.0)
    spec["trainer"]["command"] = ["python", "-c", LOSES_ITS_DEVICE_ONCE]
    run.apply(spec)
    first = run.wait_for_node(1)
    command = wait_for(lambda: command_told(cluster, run), "the Event names the node", seconds=60, say=run.say)
    assert command.split()[2] == first
    try:
        cluster.kubectl(*command.split())  # attempt 2 begins 10 s after the end of the first
        assert run.wait_for_node(2) != first
        wait_for(lambda: run.phase == "Succeeded", "it has succeeded", seconds=60, say=run.say)
    finally:
        cluster.kubectl("taint", "node", first, f"{names.TAINT_DEVICE_FAULT}-", check=False)

    status = run.status
    assert (status["failures"], status["preemptions"]) == (0, 0)
    assert [attempt["reason"] for attempt in status["attempts"]] == ["DeviceLost", "ExitedZero"]
