"""This operator meets statuses of other versions: recorded ones of earlier formats, and invented ones of a newer.

`statuses/` holds what earlier versions, and this one, wrote into runs and sweeps, with the specs that belong to it.
"""

import copy
import json
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from piton.api.status import RunStatus
from piton.crd import KINDS, crd
from piton.drive import reconcile
from piton.observed import ReservationSeen
from piton.sweep.status import SweepStatus
from piton.timing import Timing
from support.apiserver import JOBS, PODS, RUNS, SWEEPS, Body
from support.builders import a_manifest, a_spec
from support.cluster import Runs
from support.fake_world import FakeWorld
from support.pilot import Pilot, a_cluster, a_pilot
from support.schema import objections
from support.sweeps import a_sweep

FOLDER = Path(__file__).parent / "statuses"
NEW = "addedLater"
"""A field of the newer version, in every part of a status; blanks in it are to be kept as well."""
ADDED = {"words": ["", None, {"deep": 1}], "none": None, "empty": ""}
ENDS = ("Succeeded", "Failed", "Suspended", "Refused")
LATER = "SaidLater"
"""A word of the newer version."""


def recorded() -> dict[str, Body]:
    """Every recorded status, with its spec, by a name for it."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return {f"{version} {name}": found for version, names in files.items() for name, found in names.items()}


ALL = recorded()
OF_RUNS = [name for name in ALL if " sweep-" not in name]
OF_SWEEPS = [name for name in ALL if " sweep-" in name]
NOW = {name.partition(" ")[2]: found for name, found in ALL.items() if name.startswith("5-of-today")}


@pytest.fixture
async def pilot() -> AsyncIterator[Pilot]:
    async with a_cluster() as cluster, a_pilot(cluster) as found:
        yield found


def newer(status: Body) -> Body:
    """What a newer operator might have written: new fields everywhere, new reasons, and a new condition."""
    found: Body = _added(copy.deepcopy(status))
    for condition in found["conditions"]:
        condition["reason"] = LATER
    for attempt in found.get("attempts", []):
        if "reason" in attempt:
            attempt["reason"] = LATER
    found["conditions"].append({**found["conditions"][0], "type": "Healthy", "status": "True", "message": "well"})
    return found


def _added(part: Any) -> Any:
    if isinstance(part, list):
        return [_added(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {**{key: _added(value) for key, value in part.items()}, NEW: ADDED}


def lost(before: Any, after: Any, path: str = "status") -> Iterator[str]:
    """Where the newer version's fields, reasons and conditions are missing. What is over may be dropped as a whole."""
    if isinstance(before, list) and isinstance(after, list):
        for item in (found for found in before if isinstance(found, dict)):
            key = next((key for key in ("number", "type", "name") if key in item), "")
            same = [other for other in after if key and other.get(key) == item[key]]
            if not same and ".replicas" not in path and ".metrics" not in path:
                yield f"{path}[{item.get(key)}]"
            for other in same[:1]:
                yield from lost(item, other, f"{path}[{item[key]}]")
        return
    if not isinstance(before, dict):
        return
    if before.get(NEW) != (after or {}).get(NEW):
        yield f"{path}.{NEW}"
    for key in before.keys() & (after or {}).keys() - {NEW}:
        yield from lost(before[key], after[key], f"{path}.{key}")


async def given(pilot: Pilot, found: Body, *, name: str = "ragcun") -> None:
    """The run as the other version left it: its jobs are gone, as after a long time."""
    run = await pilot.cluster.apply({**a_manifest(name), "spec": found["spec"]})
    await pilot.server.put(RUNS, {**run, "status": found["status"]})


def status_of(pilot: Pilot) -> Body:
    run = pilot.run()
    assert run is not None
    found: Body = run["status"]
    return found


def numbers(pilot: Pilot) -> list[int]:
    return [int(job["metadata"]["name"].rpartition("-")[2]) for job in pilot.server.all(JOBS)]


@cache
def _schema(status: type[RunStatus] | type[SweepStatus]) -> Body:
    (kind,) = [kind for kind in KINDS if kind.status is status]
    found: Body = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    return found


@pytest.mark.parametrize("name", ALL)
def test_what_is_read_and_written_back_loses_nothing(name: str) -> None:
    kind = SweepStatus if name in OF_SWEEPS else RunStatus
    status = newer(ALL[name]["status"])
    read = kind.read(status)
    wire = read.to_wire()

    assert read.unreadable is None
    assert not list(lost(status, wire))
    assert not list(objections(_schema(kind), status)), "the API server would prune or refuse it"
    assert kind.read(wire) == read
    assert wire["conditions"][-1] == status["conditions"][-1]


@pytest.mark.parametrize("version", [lambda status: status, newer], ids=["as it is", "newer"])
@pytest.mark.parametrize("name", OF_RUNS)
async def test_a_run_goes_on_from_the_status_of_another_version(name: str, version: Any, pilot: Pilot) -> None:
    """With all that the status says, with the next number, and to an end."""
    found = {**ALL[name], "status": version(ALL[name]["status"])}
    before = found["status"]
    await given(pilot, found)
    for _ in range(40):
        await pilot.turn()
        assert not list(lost(before, status_of(pilot)))
        if status_of(pilot)["phase"] in ENDS:
            break
    status = RunStatus.read(status_of(pilot))

    assert status.phase in ENDS
    assert status.attempt >= before.get("attempt", 0)
    pending = any(record["state"] == "Pending" for record in before.get("attempts", []))
    assert min(numbers(pilot), default=99) >= before.get("attempt", 0) + (0 if pending else 1)
    assert not status.is_true("StatusUnreadable")
    if before["phase"] in ("Succeeded", "Failed"):
        assert (status.phase, numbers(pilot)) == (before["phase"], [])


@pytest.mark.parametrize("waits_for_quota", [False, True])
async def test_a_run_that_trains_and_reports_keeps_what_a_newer_version_wrote(waits_for_quota: bool) -> None:
    world = FakeWorld(spec=a_spec(stages={"evaluate": {}}), reservation=ReservationSeen() if waits_for_quota else None)
    timing = Timing(backoff_seconds=1, evidence_seconds=2, progress_seconds=2)
    before: Body | None = None
    for _ in range(150):
        for _ in range(8):
            await reconcile(world, world, world, timing)
        writes = world.writes
        await reconcile(world, world, world, timing)
        assert world.writes == writes, "nothing is new, and nothing is written"
        world.admit()
        world.tick()
        written = world.status.to_wire()
        if before is None and "progress" in written and "checkpoint" in written:
            before = newer(written)
            world.status = RunStatus.read(before)
            trainer = world.running()
            assert trainer is not None
            world.preempt(trainer)
        assert before is None or not list(lost(before, world.status.to_wire()))

    assert before is not None
    assert (world.status.phase, world.status.attempt) == ("Succeeded", 3)


@pytest.mark.parametrize("version", [lambda status: status, newer], ids=["as it is", "newer"])
@pytest.mark.parametrize("name", OF_SWEEPS)
async def test_a_sweep_goes_on_from_the_status_of_another_version(name: str, version: Any, pilot: Pilot) -> None:
    before = version(ALL[name]["status"])
    sweep = await pilot.cluster.apply({**a_sweep(), "spec": ALL[name]["spec"]})
    await pilot.server.put(SWEEPS, {**sweep, "status": before})
    for _ in range(40):
        for _ in range(3):
            await pilot.settle_sweeps()
        writes = len(pilot.server.writes)
        await pilot.settle_sweeps()
        assert len(pilot.server.writes) == writes, "nothing is new, and nothing is written"
        after = pilot.server.find(SWEEPS, "ragcun", "team")
        assert after is not None
        assert not list(lost(before, after["status"]))
        if after["status"]["phase"] in ENDS:
            break
        await pilot.cluster.step()
        pilot.advance(5.0)

    assert after is not None
    assert after["status"]["phase"] in ("Succeeded", "Failed")
    done = {row["name"] for row in before.get("runs", []) if row.get("phase") == "Succeeded"}
    assert done.isdisjoint(run["metadata"]["name"] for run in pilot.server.all(RUNS))


def _with(path: str, value: Any) -> Body:
    """The status of a run that trains, changed in one place."""
    status: Body = copy.deepcopy(NOW["life-training"]["status"])
    *steps, last = [int(step) if step.lstrip("-").isdigit() else step for step in path.split(".")]
    part: Any = status
    for step in steps:
        part = part[step]
    part[last] = value
    return status


RIDDLES = {
    "a phase": ("phase", LATER),
    "a state of the newest attempt": ("attempts.-1.state", LATER),
    "a verdict of the newest attempt": ("attempts.-1.verdict", LATER),
    "a stage of the newest attempt": ("attempts.-1.stage", LATER),
    "a stage that has begun": ("stages.0.name", LATER),
    "attempts that are a number": ("attempts", 7),
    "an attempt without a number": ("attempts.0.number", "one"),
    "a number that is a text": ("attempt", "three"),
    "a cost in another currency": ("cost", {"spent": "3 EUR"}),
    "a condition without a time": ("conditions.0.lastTransitionTime", 5),
    "a condition that is no mapping": ("conditions.1", "Training"),
}


@pytest.mark.parametrize("name", RIDDLES)
async def test_a_run_whose_status_is_not_understood_is_left_alone_until_it_is(name: str, pilot: Pilot) -> None:
    pilot.cluster.script = {number: Runs() for number in range(1, 10)}
    good = NOW["life-training"]
    await pilot.cluster.apply({**a_manifest(), "spec": good["spec"]})
    await pilot.until_phase("Training")
    run = pilot.run()
    assert run is not None
    before = _with(*RIDDLES[name])
    await pilot.server.put(RUNS, {**run, "status": before})
    things = pilot.server.all(JOBS), pilot.server.all(PODS)
    writes = len(pilot.server.writes)

    for _ in range(20):
        await pilot.settle()
        pilot.advance(30.0)

    status = status_of(pilot)
    told = [condition for condition in status["conditions"] if condition not in before["conditions"]]
    assert [(c["type"], c["status"], c["reason"]) for c in told] == [
        ("StatusUnreadable", "True", "StatusUnreadable")
    ], status
    rest = [condition for condition in status["conditions"] if condition in before["conditions"]]
    assert sorted(map(str, rest)) == sorted(map(str, before["conditions"]))
    assert {**status, "conditions": 0} == {**before, "conditions": 0}
    assert (pilot.server.all(JOBS), pilot.server.all(PODS)) == things
    assert [str(write.resource.plural) for write in pilot.server.writes[writes:]] == ["trainingruns", "events"]

    mended = {**good["status"], "conditions": [*good["status"]["conditions"], *told]}
    await pilot.server.put(RUNS, {**pilot.run(), "status": mended})  # type: ignore[dict-item]
    await pilot.settle()
    assert not RunStatus.read(status_of(pilot)).is_true("StatusUnreadable")
    assert status_of(pilot)["attempt"] >= good["status"]["attempt"]


async def test_a_run_whose_status_is_not_understood_can_be_deleted(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase("Training")
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "status": {**run["status"], "phase": LATER, "attempts": 7}})
    await pilot.settle()
    await pilot.server.delete(RUNS, "ragcun", "team")

    await pilot.until(lambda: pilot.run() is None)

    await pilot.cluster.step()
    assert not pilot.server.all(JOBS)


@pytest.mark.parametrize("part", [{"phase": LATER}, {"attempts": 7}])
async def test_a_sweep_leaves_a_run_alone_whose_status_is_not_understood(part: Body, pilot: Pilot) -> None:
    """It counts as under way, keeps its row, and is not suspended with the others."""
    pilot.cluster.fates = {f"ragcun-{variant}-1": Runs() for variant in ("baseline", "isotropy")}
    await pilot.cluster.apply(a_sweep(parallelism=2))
    for _ in range(4):
        await pilot.settle_sweeps()
        await pilot.cluster.step()
        pilot.advance(5.0)
    run = pilot.run("ragcun-baseline")
    assert run is not None
    await pilot.server.put(RUNS, {**run, "status": {**run["status"], **part}})
    sweep = pilot.server.find(SWEEPS, "ragcun", "team")
    assert sweep is not None
    rows = sweep["status"]["runs"]
    await pilot.server.put(SWEEPS, {**sweep, "spec": {**sweep["spec"], "suspend": True}})
    for _ in range(10):
        await pilot.settle_sweeps()
        await pilot.cluster.step()
        pilot.advance(5.0)

    sweep = pilot.server.find(SWEEPS, "ragcun", "team")
    assert sweep is not None
    specs = {run["metadata"]["name"]: run["spec"].get("suspend", False) for run in pilot.server.all(RUNS)}
    assert specs == {"ragcun-baseline": False, "ragcun-isotropy": True}
    assert (sweep["status"]["phase"], sweep["status"]["runs"][0]) == ("Stopping", rows[0])


@pytest.mark.parametrize("part", [{"phase": LATER}, {"runs": 7}, {"counts": {"active": "two"}}])
async def test_a_sweep_whose_status_is_not_understood_creates_nothing(part: Body, pilot: Pilot) -> None:
    before = {**NOW["sweep-training"]["status"], **part}
    sweep = await pilot.cluster.apply({**a_sweep(), "spec": NOW["sweep-training"]["spec"]})
    await pilot.server.put(SWEEPS, {**sweep, "status": before})
    for _ in range(5):
        await pilot.settle_sweeps()
        pilot.advance(30.0)
    after = pilot.server.find(SWEEPS, "ragcun", "team")
    assert after is not None

    assert not pilot.server.all(RUNS)
    *rest, told = after["status"]["conditions"]
    assert (told["type"], told["status"], rest) == ("StatusUnreadable", "True", before["conditions"])
    assert {**after["status"], "conditions": 0} == {**before, "conditions": 0}


async def test_a_row_in_a_phase_of_a_newer_version_is_not_trained_again(pilot: Pilot) -> None:
    before = copy.deepcopy(NOW["sweep-failed"]["status"])
    before |= {"conditions": [], "phase": "Training"}
    before["runs"][0]["phase"] = LATER
    sweep = await pilot.cluster.apply({**a_sweep(), "spec": NOW["sweep-failed"]["spec"]})
    await pilot.server.put(SWEEPS, {**sweep, "status": before})
    await pilot.settle_sweeps()
    after = pilot.server.find(SWEEPS, "ragcun", "team")
    assert after is not None

    assert not pilot.server.all(RUNS)
    assert LATER in after["status"]["conditions"][0]["message"]
