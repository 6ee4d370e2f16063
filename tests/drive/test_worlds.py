"""What every world promises to the core. The fake passes the same suite as the real ones."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.clock import SystemClock
from piton.core.effects import AddFinalizer, CreateVolume, RemoveFinalizer, RemoveReplica, StartAttempt, StopAttempt
from piton.kube.client import Client
from piton.kube.run_world import KubeWorld
from piton.local.progress_server import receiving
from piton.local.run_folder import LocalState, RunFolder
from piton.local.world import LocalWorld
from piton.observed import AttemptSeen, Observed
from piton.ports import Conflict, World
from support.builders import NOW, a_manifest, a_spec, a_status, an_ended
from support.fake_world import FakeWorld
from support.pilot import a_cluster, configuration

WHY = Reason.FIRST_ATTEMPT
LOOKS_MAX = 600
"""Times 0.05 s: how long a real process may take to do what it was told."""


class Bench:
    """A world under test, and how its time passes."""

    def __init__(
        self, world: World, step: Callable[[], Awaitable[None]], other: Callable[[], World] | None = None
    ) -> None:
        self.world = world
        self.step = step
        self.other = other
        """A second observer of the same run, where there can be one."""

    async def look(self) -> Observed:
        observed = await self.world.observe()
        assert observed is not None
        return observed

    async def until(self, true: Callable[[AttemptSeen | None], bool], number: int = 1) -> AttemptSeen | None:
        for _ in range(LOOKS_MAX):
            seen = (await self.look()).attempt(number)
            if true(seen):
                return seen
            await self.step()
        raise AssertionError(f"not so after {LOOKS_MAX} looks: {seen}")

    async def begin(self) -> None:
        """As the core would: held, a volume, an attempt."""
        for effect in (AddFinalizer(reason=WHY), CreateVolume(reason=WHY), StartAttempt(number=1, reason=WHY)):
            await self.look()
            await self.world.apply(effect)


@contextlib.asynccontextmanager
async def a_fake(_: Path) -> AsyncIterator[Bench]:
    world = FakeWorld()

    async def step() -> None:
        world.tick()

    yield Bench(world, step)


@contextlib.asynccontextmanager
async def a_kube(_: Path) -> AsyncIterator[Bench]:
    async with a_cluster() as cluster, Client(configuration(cluster.server)) as client:
        await cluster.apply(a_manifest())

        async def step() -> None:
            await cluster.step()
            cluster.clock.advance(5)

        def another() -> World:
            return KubeWorld(client, cluster.clock, "team", "ragcun")

        yield Bench(another(), step, another)


@contextlib.asynccontextmanager
async def a_local(root: Path, *command: str) -> AsyncIterator[Bench]:
    trainer: dict[str, Any] = {"image": "none", "command": list(command or ("sleep", "600"))}
    spec = a_spec(trainer=trainer, workers={"gpusPerNode": 0})
    folder = RunFolder(root)
    with receiving(lambda _number, _progress: None) as receiver:
        world = LocalWorld(
            folder=folder,
            state=LocalState(name="ragcun", created=NOW, spec=spec),
            receiver=receiver,
            clock=SystemClock(),
        )

        async def step() -> None:
            world.poll()
            await asyncio.sleep(0.05)

        try:
            yield Bench(world, step)
        finally:
            world.kill()
            while world.alive:
                await step()


@pytest.fixture(params=[a_fake, a_kube, a_local], ids=["fake", "kube", "local"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with request.param(tmp_path) as found:
        yield found


async def test_holding_and_releasing_are_seen(bench: Bench) -> None:
    assert not (await bench.look()).meta.held
    await bench.world.apply(AddFinalizer(reason=WHY))
    assert (await bench.look()).meta.held
    await bench.world.apply(RemoveFinalizer(reason=WHY))
    assert not (await bench.look()).meta.held


async def test_a_volume_is_made_once(bench: Bench) -> None:
    assert not (await bench.look()).volume.exists
    for _ in range(2):
        await bench.world.apply(CreateVolume(reason=WHY))
        volume = (await bench.look()).volume
        assert volume.exists
        assert volume.ours


async def test_an_attempt_that_was_started_is_seen_and_started_once(bench: Bench) -> None:
    await bench.begin()
    first = await bench.until(lambda seen: seen is not None and seen.running)
    assert first is not None
    assert first.ours
    assert not first.over

    await bench.world.apply(StartAttempt(number=1, reason=WHY))

    again = (await bench.look()).attempt(1)
    assert again is not None
    assert [replica.uid for replica in again.replicas] == [replica.uid for replica in first.replicas]


async def test_an_attempt_that_was_stopped_comes_to_an_end(bench: Bench) -> None:
    await bench.begin()
    await bench.until(lambda seen: seen is not None and seen.running)

    await bench.world.apply(StopAttempt(number=1, reason=WHY))

    await bench.until(lambda seen: seen is None or seen.over)


async def test_what_is_not_there_can_be_stopped_and_removed(bench: Bench) -> None:
    await bench.look()
    await bench.world.apply(StopAttempt(number=7, reason=WHY))
    await bench.world.apply(RemoveReplica(number=7, name="ragcun-7-master-0", uid="nobody", reason=WHY))

    assert (await bench.look()).attempts == ()


async def test_a_status_that_was_written_is_observed(bench: Bench) -> None:
    await bench.look()
    status = a_status(an_ended(checkpoint_step=7), phase=Phase.RECOVERING)

    await bench.world.write_status(status)

    assert (await bench.look()).status == status


async def test_on_this_machine_an_attempt_is_told_to_save_without_a_second_copy_in_memory(tmp_path: Path) -> None:
    told = tmp_path / "told"
    async with a_local(
        tmp_path / "run", "sh", "-c", f"echo $PITON_SAVES > {told}.part; mv {told}.part {told}"
    ) as bench:
        await bench.world.apply(StartAttempt(number=1, blocking_saves=True, reason=WHY))
        await bench.until(lambda _: told.exists())
    assert told.read_text() == "blocking\n"


async def test_on_this_machine_a_run_has_no_time_to_live(tmp_path: Path) -> None:
    async with a_local(tmp_path) as bench:
        world = bench.world
        assert isinstance(world, LocalWorld)
        world.state = world.state.model_copy(update={"spec": a_spec(ttlAfterFinished="1s")})

        spec = (await bench.look()).spec

    assert spec is not None
    assert spec.ttl_after_finished is None


async def test_on_a_cluster_a_status_that_is_based_on_old_news_is_refused(tmp_path: Path) -> None:
    async with a_kube(tmp_path) as bench:
        assert bench.other is not None
        other = bench.other()
        await bench.look()
        await other.observe()
        await other.write_status(a_status(an_ended(2), phase=Phase.RECOVERING))

        with pytest.raises(Conflict):
            await bench.world.write_status(a_status(an_ended(1), phase=Phase.RECOVERING))

        assert (await bench.look()).status.attempt == 2
