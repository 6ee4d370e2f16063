"""Preparation of a training's data on a machine without a GPU: examples, collections, the base model."""

from pathlib import Path

from piton_trainer.data.retrieval.sources import collection_of, examples_of
from piton_trainer.data.skipped import SkippedData
from piton_trainer.recipes.common.encoder_source import folder_of
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.run_cache import FOLDER, RunCache
from piton_trainer.runtime.process_group import Ranks


def prepare(config: RetrievalConfig, checkpoint_dir: Path) -> None:
    """Make what is not there yet.

    Raises:
        BadConfig: a source cannot be used.
        OutOfSpace: the disk is full.
    """
    skipped_data = SkippedData(config.max_skipped)
    run_cache = RunCache(checkpoint_dir / FOLDER, Ranks())
    folder_of(config.base_model, "baseModel")
    examples_of(config.data, config.data_split, config.examples, run_cache, skipped_data)
    for source in config.datasets:
        collection_of(source, config.eval_split, run_cache, skipped_data)
