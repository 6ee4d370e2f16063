"""The process that mirrors while a trainer trains. It imports no torch.

It is started by `client`, restores when asked, follows commits when told of them, and ends with its trainer. It is not
the process that writes checkpoints: that one is killed over a save that failed, and an upload should live on; and the
one that writes is awaited, and must not wait for a network.
"""

import logging
import threading
from multiprocessing.connection import Connection
from typing import assert_never

from piton_trainer.checkpoint.save.messages import Failed
from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig, Ended
from piton_trainer.mirror.messages import Answer, Committed, LogMessage, MirrorState, Order, Restore, RestoreDone
from piton_trainer.mirror.sync import BucketSync
from piton_trainer.runtime import child_process
from piton_trainer.s3 import S3Error


class Channel:
    """What several threads say to the trainer, one after the other."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def say(self, answer: Answer) -> None:
        """Send it; a trainer that is gone hears nothing."""
        with self._lock:
            try:
                self._connection.send(answer)
            except OSError:
                return


class Sentences(logging.Handler):
    """Has the trainer log what is said here."""

    def __init__(self, line: Channel) -> None:
        super().__init__(logging.WARNING)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a sentence on."""
        self._line.say(LogMessage(sentence=record.getMessage()))


def serve(connection: Connection, line: Channel, clock: Clock) -> None:
    """Do what comes in, until the trainer hangs up."""
    settings = connection.recv()
    try:
        sync = BucketSync(settings, clock=clock, tell=line.say)
    except (S3Error, ValueError) as error:
        line.say(Failed.by(BadConfig(f"checkpoint.mirror: {error}")))
        line.say(MirrorState(known=None, mirrored=None, is_idle=True, is_over=True, errors=0))
        return
    try:
        while True:
            execute(sync, connection.recv(), line)
    except (EOFError, ConnectionError):
        sync.close()


def execute(sync: BucketSync, order: Order, line: Channel) -> None:
    """Carry out an order; what goes wrong is an answer too."""
    match order:
        case Committed():
            sync.committed(order.step)
        case Restore():
            try:
                line.say(RestoreDone(step=sync.restore(order.newer_than)))
            except (Exception, Ended) as error:  # noqa: BLE001 - the trainer raises it
                line.say(Failed.by(error))
        case _:
            assert_never(order)


def main() -> None:
    """Serve the trainer that started this process."""
    trainer, _ = child_process.join()
    line = Channel(trainer)
    logging.getLogger("piton_trainer").addHandler(Sentences(line))
    with trainer:
        serve(trainer, line, Clock())


if __name__ == "__main__":
    main()
