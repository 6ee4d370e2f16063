"""Listeners that a pod of an IPv4 cluster, of an IPv6-only one, and of both can be reached at."""

import asyncio
import socket

import aiohttp
import pytest

from piton.kube.listening import EVERYWHERE, listening, probed
from piton.kube.metrics import Registry, served
from support.ports import free_port

LOOPBACKS = ["127.0.0.1", "[::1]"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]


async def _status(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("address", LOOPBACKS)
async def test_the_probe_and_the_metrics_answer_on_both_families(address: str) -> None:
    probe, metrics = free_port(), free_port()
    async with probed(lambda: None, probe), served(Registry(), metrics):
        assert await _status(f"http://{address}:{probe}/healthz") == (200, "working")
        assert (await _status(f"http://{address}:{metrics}/metrics"))[0] == 200


async def test_the_probe_says_what_is_wrong() -> None:
    port = free_port()
    async with probed(lambda: "runs: a pass takes 400 s", port):
        assert await _status(f"http://127.0.0.1:{port}/healthz") == (500, "runs: a pass takes 400 s")


async def test_a_probe_port_that_is_taken_is_said() -> None:
    with listening(0) as taken, pytest.raises(ValueError, match="the probe cannot be served on port"):
        async with probed(lambda: None, taken.getsockname()[1]):
            pass


@pytest.mark.parametrize("address", [address.strip("[]") for address in LOOPBACKS])
async def test_trainers_reach_the_socket_for_reports_on_both_families(address: str) -> None:
    with listening(0) as found:
        _, writer = await asyncio.open_connection(address, found.getsockname()[1])
        writer.close()
    assert EVERYWHERE in ("::", "0.0.0.0")
