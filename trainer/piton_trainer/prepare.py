"""`python -m piton_trainer.prepare`: makes the data of the recipe that the assignment names, before a GPU is paid for.

It reads the same assignment as the training, needs no GPU and no other rank, and may be killed and started again at
any moment. A recipe that has something to prepare has a module `prepare` with `prepare(config, checkpoint_dir)`.
"""

from piton.contract.termination import Outcome, Termination
from piton_trainer import stage
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog


def main() -> None:
    """Prepare, and say how that ended."""
    stage.run(prepare)


def prepare(config: Config) -> Termination:
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
    return Termination(outcome=Outcome.FINISHED, detail="everything is prepared")


if __name__ == "__main__":
    main()
