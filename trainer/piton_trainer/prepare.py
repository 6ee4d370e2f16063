"""`python -m piton_trainer.prepare`: makes the data of the recipe that the assignment names, before a GPU is paid for.

It reads the same assignment as the training, needs no GPU and no other rank, and may be killed and started again at
any moment. A recipe that has something to prepare has a module `prepare` with `prepare(config, checkpoint_dir)`.
"""

import logging
import os

from piton.contract.ends import Outcome, Termination
from piton_trainer.config import Config, termination_log
from piton_trainer.distributed import Ranks
from piton_trainer.ending import TerminationLog, outcome_of, say
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog


def main() -> None:
    """Prepare, and say how that ended as a training does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = TerminationLog(termination_log(os.environ), Ranks())
    try:
        prepare(_config())
    except BaseException as error:
        outcome, detail = outcome_of(error)
        say(detail)
        log.leave(Termination(outcome=outcome, detail=detail))
        raise
    log.leave(Termination(outcome=Outcome.FINISHED, detail="everything is prepared"))


def prepare(config: Config) -> None:
    """Make the data of an assignment.

    Raises:
        BadConfig: it cannot be made.
        OutOfSpace: the disk is full.
    """
    name = config.assignment.recipe
    if name is None:
        raise BadConfig("trainer.recipe: missing; only a recipe has something to prepare")
    try:
        settings = catalog.check(name, config.assignment.config)
        settings.check_data()
    except ValueError as error:
        raise BadConfig(str(error)) from error
    module = catalog.part(name, "prepare")
    if module is None:
        raise BadConfig(f"trainer.recipe: {name} has nothing to prepare")
    module.prepare(settings, config.checkpoint_dir)


def _config() -> Config:
    try:
        return Config.from_env(os.environ)
    except ValueError as error:
        raise BadConfig(str(error)) from error


if __name__ == "__main__":
    main()
