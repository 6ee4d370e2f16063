"""`python -m piton_trainer`: trains the recipe that the assignment names. What is wrong with it costs one sentence."""

import logging
from importlib import import_module

import piton_trainer
from piton_trainer import Session
from piton_trainer.errors import BadConfig
from piton_trainer.loop import train
from piton_trainer.recipes import catalog
from piton_trainer.recipes.protocol import Recipe


def main() -> None:
    """Join the run and train."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with piton_trainer.session(overlap_saves=True) as session:
        train(session, prepare(session))


def prepare(session: Session) -> Recipe:
    """The recipe of this session's assignment, checked and with its data read.

    Raises:
        BadConfig: it cannot work.
    """
    assignment = session.assignment
    if assignment.recipe is None:
        raise BadConfig("trainer.recipe: missing, and there is no other program to run; name one, such as charlm")
    try:
        config = catalog.check(assignment.recipe, assignment.config)
        config.check_length(assignment.training_seconds)
        config.check_world(session.world_size)
        config.check_data()
    except ValueError as error:
        raise BadConfig(str(error)) from error
    recipe: Recipe = import_module(f"{catalog.RECIPES[assignment.recipe]}.recipe").build(config, session)
    return recipe


if __name__ == "__main__":
    main()
