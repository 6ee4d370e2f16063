"""Client of the writer process: starts it, sends requests, and replaces it once if it dies."""

from contextlib import suppress

from piton_trainer.checkpoint.save.messages import Answer, Expedite, Request, Write, WriterSettings
from piton_trainer.runtime.child_process import ChildProcess, Failed

_LEAVE_SECONDS = 10.0


class WriterClient:
    """Writer process of one rank. It starts at once, so that it is ready for the first save."""

    def __init__(self, settings: WriterSettings, *, memory: int) -> None:
        self._settings = settings
        self._memory = memory
        self._requests: list[Request] = []
        self._answered = 0
        self._has_died = False
        self._hurry: Expedite | None = None
        self._helper: ChildProcess | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        """ID of the process; None if there is none."""
        return None if self._helper is None else self._helper.pid

    def get_ready(self) -> None:
        """Make sure that a process is running. The calling thread has to live as long as the process is needed."""
        if self._helper is not None and not self._helper.is_running:
            self.kill()
        if self._helper is None:
            self._start()

    def begin(self, request: Request) -> None:
        """Send the first request of a save. Any thread may call this, but only one at a time."""
        self._requests, self._answered, self._has_died, self._hurry = [], 0, False, None
        self.go_on(request)

    def go_on(self, request: Request) -> None:
        """Send a further request of the same save."""
        self._requests.append(request)
        with suppress(OSError):  # it is dead, and the next read of an answer reports so
            self._connection.send(request)

    def answer(self, *, wait: bool) -> Answer | None:
        """Return the answer to the newest request, or the first failure, once; None if there is none yet."""
        if wait:
            self._expedite()
        while wait or self._connection.poll():
            try:
                answer: Answer = self._connection.recv()
            except (EOFError, OSError):
                if self._has_died:
                    return self._failed(Failed(detail="the writer's process died twice"))
                self._replace()
                continue
            self._answered += 1
            if isinstance(answer, Failed):
                return self._failed(answer)
            if self._answered == len(self._requests):
                return answer
        return None

    def close(self) -> None:
        """Let the process exit after its current work."""
        if self._helper is not None:
            self._helper.leave(_LEAVE_SECONDS)
            self._forget()

    def kill(self) -> None:
        """Kill the process at once."""
        if self._helper is not None:
            self._helper.kill()
            self._forget()

    def _forget(self) -> None:
        self._helper = None
        self._connection.close()

    def _expedite(self) -> None:
        """Notify the writer, once per save, that training waits for it."""
        first = self._requests[0]
        if self._hurry is None and isinstance(first, Write):
            self._hurry = Expedite(step=first.step)
            with suppress(OSError):  # it is dead, and the wait for its answer reports so
                self._connection.send(self._hurry)

    def _failed(self, failure: Failed) -> Failed:
        """Kill the process, and discard with it the answers to later requests."""
        self.kill()
        return failure

    def _replace(self) -> None:
        """Start a new process, and repeat all requests of this save: the memory still holds the data."""
        self.kill()
        self._has_died, self._answered = True, 0
        self._start()
        with suppress(OSError):  # it is dead as well, and the next read of an answer reports so
            for message in [*self._requests, *([] if self._hurry is None else [self._hurry])]:
                self._connection.send(message)

    def _start(self) -> None:
        self._helper = ChildProcess("piton_trainer.checkpoint.save.writer", self._memory)
        self._connection = self._helper.line
        with suppress(OSError):  # it is dead already, and the next read of an answer reports so
            self._connection.send(self._settings)
