"""Process that mirrors checkpoints while a trainer trains. It imports no torch.

`client` starts it. It restores on request, follows commits on notification, and ends with its trainer. It is separate
from the process that writes checkpoints, because that one is killed when a save fails, and an upload should continue.
Also, the trainer waits for the writer, which must not wait for a network.
"""

import logging
import threading
from multiprocessing.connection import Connection
from typing import assert_never

from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig, Ended
from piton_trainer.mirror.messages import Answer, Committed, LogMessage, MirrorState, Request, Restore, RestoreDone
from piton_trainer.mirror.sync import BucketSync
from piton_trainer.runtime import child_process
from piton_trainer.runtime.child_process import Failed
from piton_trainer.s3 import S3Error


class Channel:
    """Connection to the trainer for several threads, which send one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, answer: Answer) -> None:
        """Send a message; it is dropped if the trainer is gone."""
        with self._lock:
            try:
                self._connection.send(answer)
            except OSError:
                return


class Sentences(logging.Handler):
    """Log handler that sends messages to the log of the trainer."""

    def __init__(self, line: Channel) -> None:
        super().__init__(logging.WARNING)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message of a record."""
        self._line.send(LogMessage(sentence=record.getMessage()))


def serve(connection: Connection, line: Channel, clock: Clock) -> None:
    """Execute incoming requests until the trainer closes the connection."""
    settings = connection.recv()
    try:
        sync = BucketSync(settings, clock=clock, send=line.send)
    except (S3Error, ValueError) as error:
        line.send(Failed.by(BadConfig(f"checkpoint.mirror: {error}")))
        line.send(MirrorState(known=None, mirrored=None, is_idle=True, is_over=True))
        return
    try:
        while True:
            execute(sync, connection.recv(), line)
    except (EOFError, ConnectionError):
        sync.close()


def execute(sync: BucketSync, request: Request, line: Channel) -> None:
    """Execute a request; an error is sent as an answer."""
    match request:
        case Committed():
            sync.committed(request.step)
        case Restore():
            try:
                line.send(RestoreDone(step=sync.restore(request.newer_than)))
            except (Exception, Ended) as error:  # noqa: BLE001 - the trainer raises it
                line.send(Failed.by(error))
        case _:
            assert_never(request)


def main() -> None:
    """Serve the trainer that started this process."""
    trainer, _ = child_process.join()
    line = Channel(trainer)
    logging.getLogger("piton_trainer").addHandler(Sentences(line))
    with trainer:
        serve(trainer, line, Clock())


if __name__ == "__main__":
    main()
