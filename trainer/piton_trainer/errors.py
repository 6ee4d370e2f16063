"""The ends of a trainer that mean something to Piton, as exceptions.

    SystemExit
      Ended               says how the attempt ended; its exit code comes from piton.contract.termination
        Stopped          143  told to stop, saved
        BadConfig        78   the user's settings or data cannot work
        Diverged         79   20 losses in a row, or the weights, are not finite
        OutOfSpace       80   the checkpoint volume is full
        Fenced           81   a higher attempt owns the checkpoint directory
        VolumeLost       82   the checkpoint volume cannot be written to or read
        DeviceLost       83   a GPU, its driver, or the connection between ranks failed
        NotMirrored      84   all is trained, but the last checkpoint is not in the bucket
        DataUnavailable  85   the bucket of the training data does not answer

They are SystemExits, so an `except Exception` around a user's training step does not swallow them, and the process
ends with the right code and without a traceback. Wrong arguments in code remain ValueErrors.
"""

from typing import ClassVar

from piton.contract.termination import EXIT_CODES, Limit, Outcome


class Ended(SystemExit):
    """An attempt ended in a way that has its own exit code; `detail` is the sentence for a person."""

    outcome: ClassVar[Outcome]

    def __init__(self, detail: str) -> None:
        super().__init__(int(EXIT_CODES[self.outcome]))
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Stopped(Ended):
    """Told to stop, or at a limit of the run's, and nothing that was trained is lost."""

    outcome = Outcome.STOPPED

    def __init__(self, detail: str, limit: Limit | None = None) -> None:
        super().__init__(detail)
        self.limit = limit


class BadConfig(Ended):
    """The user's settings or data cannot work; another attempt would end the same way."""

    outcome = Outcome.BAD_CONFIG


class Diverged(Ended):
    """20 losses in a row, the objective or the weights are not finite numbers; the state is not worth saving."""

    outcome = Outcome.DIVERGED


class OutOfSpace(Ended):
    """A checkpoint did not fit onto its volume; the older ones are untouched."""

    outcome = Outcome.OUT_OF_SPACE


class VolumeLost(Ended):
    """The checkpoint volume fails: it is gone, read-only, its server does not answer, or its checkpoints are lost."""

    outcome = Outcome.VOLUME_LOST


class NotMirrored(Ended):
    """The training is done and on the volume, but not in the bucket; another attempt only has to upload the rest."""

    outcome = Outcome.NOT_MIRRORED


class DataUnavailable(Ended):
    """The bucket of the training data does not answer, or not as an S3 server does; nothing is wrong with the run."""

    outcome = Outcome.DATA_UNAVAILABLE


class DeviceLost(Ended):
    """A GPU, its driver, or the connection between ranks failed. The error that said so is its cause."""

    outcome = Outcome.DEVICE_LOST


class Fenced(Ended):
    """A higher attempt has claimed the checkpoint directory; this one may not commit any more."""

    outcome = Outcome.FENCED

    def __init__(self, detail: str, *, holder: int | None = None) -> None:
        super().__init__(detail)
        self.holder = holder
        """The attempt that may commit, as far as this process has seen it."""


BY_OUTCOME: dict[Outcome, type[Ended]] = {
    kind.outcome: kind
    for kind in (Stopped, BadConfig, Diverged, OutOfSpace, Fenced, VolumeLost, NotMirrored, DataUnavailable, DeviceLost)
}
