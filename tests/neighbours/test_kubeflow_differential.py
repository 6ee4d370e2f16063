"""Random PyTorchJobs through Kubeflow's training operator and through ours, side by side: every object compared."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config

from hack.cluster import api
from hack.cluster.layout import KUBECONFIG
from hack.install.chart import DEPLOYMENT, NAMESPACE
from hack.neighbours import kubeflow
from piton.kube.client import Client
from support.differential_play import Life, play
from support.differential_sides import KUBEFLOWS, Arena, clear, prepare
from support.live import LiveCluster
from support.live_operator import without_operator

JOBS = int(os.environ.get("PITON_DIFFERENTIAL_JOBS", "100"))
SEED = int(os.environ.get("PITON_DIFFERENTIAL_SEED", "0"))
AT_ONCE = int(os.environ.get("PITON_DIFFERENTIAL_AT_ONCE", "24"))


@pytest.fixture
def nobody_else(request: pytest.FixtureRequest) -> Iterator[None]:
    """The box, or its API server alone, on which nobody serves PyTorchJobs."""
    if not api.ready():
        request.getfixturevalue("cluster")  # with Piton: helm does not install its definitions over Kubeflow's
    cluster = LiveCluster(KUBECONFIG)
    installed = cluster.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{DEPLOYMENT}")
    with without_operator(cluster) if installed else nullcontext():
        yield


@pytest.mark.neighbours
@pytest.mark.timeout(3600)
async def test_random_jobs_come_out_alike(nobody_else: None) -> None:
    kubeflow.start(only=KUBEFLOWS)
    try:
        lives = await _all()
    finally:
        kubeflow.stop()
    print(*sorted(Counter(rule for life in lives for rule in life.excused).items()), sep="\n")
    bad = [life for life in lives if life.differences]
    print(f"{len(lives) - len(bad)} of {len(lives)} jobs came out alike")
    for life in bad:
        print(life)
    assert not bad, f"{len(bad)} of {len(lives)} jobs came out differently; the first: {bad[0]}"


async def _all() -> list[Life]:
    configuration = Configuration()
    await load_kube_config(str(KUBECONFIG), client_configuration=configuration)
    async with Client(configuration) as client:
        await prepare(client)
        buffer = Arena(configuration, client)
        running = asyncio.create_task(buffer.run())
        at_once = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> Life:
            async with at_once:
                return await play(buffer, seed)

        try:
            await asyncio.sleep(1)
            everything = asyncio.gather(*(one(seed) for seed in range(SEED, SEED + JOBS)))
            both: list[asyncio.Future[Any]] = [running, everything]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                everything.cancel()
                await running
            return await everything
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await clear(client)
