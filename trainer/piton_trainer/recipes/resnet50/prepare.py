"""The files of records that a config needs, and their creation. Without torch: a machine without a GPU prepares them.

A file's name says what it was made from and how, so that another source or form never takes an old file for its own.
What a source *contains* is not looked at again once its file is there: delete the file to have it made anew.
"""

import hashlib
import re
from pathlib import Path

from piton_trainer.data.image import preparation
from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.records import SUFFIX
from piton_trainer.recipes.resnet50.config import ResnetConfig

FOLDER = "records"
"""Beside the checkpoints, on the run's volume."""


def prepare(config: ResnetConfig, checkpoint_dir: Path) -> None:
    """Make the files that are not there yet, and compare the checksums of all.

    Raises:
        BadConfig: a source cannot be used, or a file is damaged.
        OutOfSpace: the disk is full.
    """
    for path in files(config, checkpoint_dir):
        preparation.verify(path)


def files(config: ResnetConfig, checkpoint_dir: Path) -> list[Path]:
    """The files for training and, where the config names a source of its own for that, validation; made if need be.

    Raises:
        BadConfig: a source cannot be used.
        OutOfSpace: the disk is full.
    """
    sources = [config.data] if config.validation is None else [config.data, config.validation]
    return [_file(source, config, checkpoint_dir) for source in sources]


def _file(source: str, config: ResnetConfig, checkpoint_dir: Path) -> Path:
    if source.endswith(SUFFIX):
        return Path(source)
    form = Form(max_side=config.max_side, quality=config.jpeg_quality)
    folder = checkpoint_dir.parent / FOLDER if config.records is None else Path(config.records)
    path = folder / _name(source, form)
    preparation.prepare(source, path, form, most=config.max_skipped)
    return path


def _name(source: str, form: Form) -> str:
    told = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[-40:]
    return f"{told}-{hashlib.sha256(f'{source} {form}'.encode()).hexdigest()[:12]}{SUFFIX}"
