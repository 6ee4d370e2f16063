"""The writer's process, as its trainer sees it: started, given orders, replaced once when it dies over them."""

from contextlib import suppress

from piton_trainer.checkpoint.save.messages import Answer, Expedite, Failed, Order, Write, WriterSettings
from piton_trainer.runtime.child_process import Helper

_LEAVE_SECONDS = 10.0


class WriterClient:
    """One rank's writer. It starts at once, so that it is ready when the first save is."""

    def __init__(self, settings: WriterSettings, *, memory: int) -> None:
        self._settings = settings
        self._memory = memory
        self._orders: list[Order] = []
        self._answered = 0
        self._has_died = False
        self._hurry: Expedite | None = None
        self._helper: Helper | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        """The process; None when there is none."""
        return None if self._helper is None else self._helper.pid

    def get_ready(self) -> None:
        """Have a process for the next save. The thread that calls this has to live as long as it is needed."""
        if self._helper is not None and not self._helper.is_running:
            self.kill()
        if self._helper is None:
            self._start()

    def begin(self, order: Order) -> None:
        """Give the first order of a save. Any thread may, while no other one is at it."""
        self._orders, self._answered, self._has_died, self._hurry = [], 0, False, None
        self.go_on(order)

    def go_on(self, order: Order) -> None:
        """Give a further order of the same save."""
        self._orders.append(order)
        with suppress(OSError):  # it is dead, and the next look for an answer says so
            self._connection.send(order)

    def answer(self, *, wait: bool) -> Answer | None:
        """The answer to the newest order, or the first failure; None: not yet. Each is given once."""
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
            if self._answered == len(self._orders):
                return answer
        return None

    def close(self) -> None:
        """Let the process end, which it does when it has done what it is at."""
        if self._helper is not None:
            self._helper.leave(_LEAVE_SECONDS)
            self._forget()

    def kill(self) -> None:
        """End the process at once, whatever it is at."""
        if self._helper is not None:
            self._helper.kill()
            self._forget()

    def _forget(self) -> None:
        self._helper = None
        self._connection.close()

    def _expedite(self) -> None:
        """Say once a save that training stands still for it."""
        first = self._orders[0]
        if self._hurry is None and isinstance(first, Write):
            self._hurry = Expedite(step=first.step)
            with suppress(OSError):  # it is dead, and the wait for its answer says so
                self._connection.send(self._hurry)

    def _failed(self, failure: Failed) -> Failed:
        """Forget the process, and with it the answers to orders that followed on this one."""
        self.kill()
        return failure

    def _replace(self) -> None:
        """Start a new process, and have it do all of this save: the memory still holds it."""
        self.kill()
        self._has_died, self._answered = True, 0
        self._start()
        with suppress(OSError):  # it is dead as well, and the next look for an answer says so
            for message in [*self._orders, *([] if self._hurry is None else [self._hurry])]:
                self._connection.send(message)

    def _start(self) -> None:
        self._helper = Helper("piton_trainer.checkpoint.save.writer", self._memory)
        self._connection = self._helper.line
        with suppress(OSError):  # it is dead already, and the next look for an answer says so
            self._connection.send(self._settings)
