"""The progress server beside the reconcile loop: a thread with an event loop and a client of its own.

    trainers --TLS, HTTP, reviews--> this thread --call_soon_threadsafe--> reconcile loop: the store, the queue
             <------- answer ------- this thread <--------- a lock --------- the requests of the last pass

So no handshake delays a decision, and no pass over a large sweep delays an answer. The two loops share the
certificates, the store of reports behind its lock, and nothing else.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress

from piton.clock import SystemClock
from piton.contract.progress import Progress, TrainerRequests
from piton.kube.client import Client, load_configuration
from piton.kube.metrics import OperatorMetrics
from piton.kube.progress_server import ProgressServer
from piton.kube.report_auth import ReportAuthenticator
from piton.kube.report_store import Sender
from piton.kube.settings import PitonSettings
from piton.kube.tls import Certificates

SWITCH_SECONDS = 0.0005
"""Time for which a thread that computes keeps the others of the process waiting. An answer gives up the interpreter
half a dozen times, for each system call, and with Python's 5 ms a busy reconcile loop would cost it 30 ms."""


class ReportThread:
    """Serves reports from a thread. Belongs to the event loop that runs `run`."""

    def __init__(
        self,
        settings: PitonSettings,
        certificates: Certificates,
        meter: OperatorMetrics,
        *,
        on_report: Callable[[Sender, Progress], None],
        answer: Callable[[Sender], TrainerRequests],
    ) -> None:
        """Remember what to call: `on_report` in the loop of `run`, `answer` in the thread."""
        self._settings = settings
        self._certificates = certificates
        self._meter = meter
        self._on_report = on_report
        self._answer = answer

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the port is taken.
            Exception: whatever else the thread ended with.
        """
        loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_SECONDS)

        def hand_over(sender: Sender, progress: Progress) -> TrainerRequests:
            loop.call_soon_threadsafe(self._on_report, sender, progress)
            return self._answer(sender)

        await run_in_thread(lambda: self._serve(hand_over), name="reports")

    async def _serve(self, hand_over: Callable[[Sender, Progress], TrainerRequests]) -> None:
        settings = self._settings
        async with Client(await load_configuration(settings.api_url)) as client:
            authenticator = ReportAuthenticator(client, SystemClock(), asyncio.get_running_loop())
            server = ProgressServer(
                authenticator,
                hand_over,
                self._certificates,
                host=settings.progress_host,
                port=settings.progress_port,
                count=self._meter.count_report,
            )
            self._meter.watch_connections(server.connections)
            await server.run()


async def run_in_thread(main: Callable[[], Coroutine[None, None, None]], *, name: str) -> None:
    """Run the coroutine in an event loop of a thread of its own; cancelling this cancels it there, and waits for it.

    Raises:
        Exception: what it ended with.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()
    ended: Future[None] = Future()

    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        await main()

    def target() -> None:
        try:
            asyncio.run(body())
        except asyncio.CancelledError:
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread ends the operator
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=target, name=name, daemon=True).start()
    end = asyncio.wrap_future(ended)
    try:
        await asyncio.shield(end)
    except asyncio.CancelledError:
        loop, task = await asyncio.wrap_future(started)
        with suppress(RuntimeError):  # it has just ended by itself
            loop.call_soon_threadsafe(task.cancel)
        await end
        raise
