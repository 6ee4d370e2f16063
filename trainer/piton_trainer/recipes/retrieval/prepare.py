"""What a training reads, made before a GPU is paid for, on a machine without one: examples, collections, the model."""

from pathlib import Path

from piton_trainer.data.retrieval_sources import collection_of, examples_of
from piton_trainer.distributed import Ranks
from piton_trainer.encoder_place import folder_of
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.shelf import FOLDER, Shelf


def prepare(config: RetrievalConfig, checkpoint_dir: Path) -> None:
    """Make what is not there yet.

    Raises:
        BadConfig: a source cannot be used.
        OutOfSpace: the disk is full.
    """
    shelf = Shelf(checkpoint_dir / FOLDER, Ranks())
    folder_of(config.base_model, "baseModel")
    examples_of(config.data, config.data_split, config.examples, shelf)
    for source in config.datasets:
        collection_of(source, config.eval_split, shelf)
