from collections.abc import AsyncIterator

import pytest

from support.cluster import Cluster
from support.pilot import Pilot, a_cluster, a_pilot


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with a_cluster() as found:
        yield found


@pytest.fixture
async def pilot(cluster: Cluster) -> AsyncIterator[Pilot]:
    async with a_pilot(cluster) as found:
        yield found
