"""The common part of the stages beside the training: assignment, termination message, and stop.

Neither has anything to save, and both may be killed and started again at any moment: so SIGTERM ends them at once.
"""

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from piton.contract.termination import Termination
from piton_trainer.checkpoint.volume_start import drop_unusable_caches
from piton_trainer.config import Config, termination_log
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.termination import TerminationLog, end_as_lost_device, outcome_of, print_status


def run(work: Callable[[Config], Termination]) -> None:
    """Do a stage's work, and say how that ended as a training does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = TerminationLog(termination_log(os.environ), Ranks(local_rank=int(os.environ.get("LOCAL_RANK") or 0)))
    drop_unusable_caches(os.environ)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        words = work(_config())
    except BaseException as error:
        outcome, detail = outcome_of(error)
        print_status(detail)
        log.leave(Termination(outcome=outcome, detail=detail))
        end_as_lost_device(error)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    print_status(words.detail)
    log.leave(words)


def _stop(_signum: int, _frame: FrameType | None) -> None:
    raise Stopped("told to stop by SIGTERM; another attempt does what is left")


def _config() -> Config:
    try:
        return Config.from_env(os.environ)
    except ValueError as error:
        raise BadConfig(str(error)) from error
