"""`python -m piton_trainer`: trains the recipe that the assignment names. What is wrong with it costs one sentence.

Importing torch takes seconds: it waits until the checkpoint is on its way from the disk, and has the process to itself.
"""

import gc
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from piton.contract import names
from piton_trainer import signals
from piton_trainer.checkpoint import readahead
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog

if TYPE_CHECKING:
    from collections.abc import Callable

    from piton_trainer import Session
    from piton_trainer.recipes.protocol import Employee, Recipe


def main() -> None:
    """Join the run and train."""
    signals.stop_at_once()
    if directory := os.environ.get(names.ENV_CHECKPOINT_DIR):
        readahead.begin(Path(directory))
    train = import_all()
    import piton_trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with piton_trainer.session(overlap_saves=True) as session:
        train(session, prepare(session))


def import_all() -> "Callable[[Session, Recipe], None]":
    """The loop, and with it torch, without the garbage collector: it finds nothing and takes a quarter of the time.

    What is there afterwards stays for good, so the collector never looks at it again.
    """
    gc.disable()
    try:
        import_module("torch._dynamo")  # the first optimizer would, whether or not anything is compiled
        from piton_trainer.loop import train
    finally:
        gc.freeze()
        gc.enable()
    return train


def prepare(place: "Employee") -> "Recipe":
    """The recipe of a place's assignment, checked and with its data read.

    Raises:
        BadConfig: it cannot work.
    """
    assignment = place.assignment
    if assignment.recipe is None:
        raise BadConfig("trainer.recipe: missing, and there is no other program to run; name one, such as charlm")
    try:
        config = catalog.check(assignment.recipe, assignment.config)
        config.check_length(assignment.training_seconds)
        config.check_world(place.world_size)
        config.check_data()
    except ValueError as error:
        raise BadConfig(str(error)) from error
    recipe: Recipe = import_module(f"{catalog.RECIPES[assignment.recipe]}.recipe").build(config, place)
    return recipe


if __name__ == "__main__":
    main()
