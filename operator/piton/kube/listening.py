"""Listeners on every address of the pod, of IPv4 and of IPv6: one of an IPv6-only cluster has no other."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from piton.contract import InputError

_HAS_BOTH = socket.has_dualstack_ipv6()
EVERYWHERE = "::" if _HAS_BOTH else "0.0.0.0"  # noqa: S104 - the kubelet, Prometheus and trainers ask from outside
"""The address that means all of them, for libraries that leave IPV6_V6ONLY as the kernel has it."""


_BACKLOG = 1024
"""Connections that wait to be accepted: after a restart all trainers come at once."""


def listening(port: int, *, host: str = "") -> socket.socket:
    """Return a socket that listens on this address; without one, on every address.

    Raises:
        OSError: the port is taken.
    """
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    elif _HAS_BOTH:
        found = socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    else:
        found = socket.create_server(("", port), backlog=_BACKLOG)
    found.setblocking(False)
    return found


@asynccontextmanager
async def probed(ailment: Callable[[], str | None], port: int | None) -> AsyncIterator[None]:
    """Answer the kubelet's probes at /healthz meanwhile: 500 with what is wrong, or 200.

    Raises:
        ValueError: the port is taken.
    """
    if port is None:
        yield
        return

    async def answer(_: web.Request) -> web.Response:
        found = ailment()
        return web.Response(status=500, text=found) if found else web.Response(text="working")

    application = web.Application()
    application.add_routes([web.get("/healthz", answer)])
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.SockSite(runner, listening(port)).start()
        except OSError as error:
            raise InputError(f"the probe cannot be served on port {port}: {error}") from error
        yield
    finally:
        await runner.cleanup()
