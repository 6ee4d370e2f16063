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
from piton_trainer.checkpoint import volume_start
from piton_trainer.checkpoint.load import readahead
from piton_trainer.recipes import catalog
from piton_trainer.training import signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from piton_trainer import Session
    from piton_trainer.recipes.protocol import Recipe


def main() -> None:
    """Join the run and train."""
    signals.stop_at_once()
    volume_start.look_before_torch(os.environ)
    if directory := os.environ.get(names.ENV_CHECKPOINT_DIR):
        readahead.begin(Path(directory))
    train = import_all()
    import piton_trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with piton_trainer.session(overlap_saves=True) as session:
        train(session, catalog.build(session))


def import_all() -> "Callable[[Session, Recipe], None]":
    """The loop, and with it torch, without the garbage collector: it finds nothing and takes a quarter of the time.

    What is there afterwards stays for good, so the collector never looks at it again.
    """
    gc.disable()
    try:
        import_module("torch._dynamo")  # the first optimizer would, whether or not anything is compiled
        from piton_trainer.training.loop import train
    finally:
        gc.freeze()
        gc.enable()
    return train


if __name__ == "__main__":
    main()
