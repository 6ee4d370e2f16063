"""The files of records that a config needs, and their creation. Without torch: a machine without a GPU prepares them.

A file's name says what it was made from and how, so that another source or form never takes an old file for its own.
Where the images of a source have changed since, a run that has begun goes on with what it began with. A new run has its
file made anew, and where its folder is named in the config, as other runs may use that one, it is refused.
"""

import hashlib
import re
from pathlib import Path

from piton_trainer.checkpoint.format.layout import step_folders, weights_folders
from piton_trainer.data.image import preparation
from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.preparation import WhenChanged
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
    refresh(config, checkpoint_dir)
    for path in files(config, checkpoint_dir):
        preparation.verify(path)


def refresh(config: ResnetConfig, checkpoint_dir: Path) -> None:
    """Compare finished files with their sources. Call it on one rank, before `files` on all.

    Raises:
        BadConfig: the images of a source have changed, and other runs may use its file.
    """
    has_begun = checkpoint_dir.is_dir() and bool(step_folders(checkpoint_dir) or weights_folders(checkpoint_dir))
    changed = WhenChanged.RENEW if config.records is None else WhenChanged.REFUSE
    for source in _sources(config):
        if not source.endswith(SUFFIX):
            path, form = _place(source, config, checkpoint_dir)
            when = WhenChanged.KEEP if has_begun else changed
            preparation.refresh(source, path, form, when, most=config.max_skipped)


def files(config: ResnetConfig, checkpoint_dir: Path) -> list[Path]:
    """The files for training and, where the config names a source of its own for that, validation; made if need be.

    Raises:
        BadConfig: a source cannot be used.
        OutOfSpace: the disk is full.
    """
    return [_file(source, config, checkpoint_dir) for source in _sources(config)]


def _sources(config: ResnetConfig) -> list[str]:
    return [config.data] if config.validation is None else [config.data, config.validation]


def _place(source: str, config: ResnetConfig, checkpoint_dir: Path) -> tuple[Path, Form]:
    """Return the file of records of a source, and the form of its images."""
    form = Form(max_side=config.max_side, quality=config.jpeg_quality)
    folder = checkpoint_dir.parent / FOLDER if config.records is None else Path(config.records)
    return folder / _name(source, form), form


def _file(source: str, config: ResnetConfig, checkpoint_dir: Path) -> Path:
    if source.endswith(SUFFIX):
        return Path(source)
    path, form = _place(source, config, checkpoint_dir)
    preparation.prepare(source, path, form, most=config.max_skipped)
    return path


def _name(source: str, form: Form) -> str:
    told = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[-40:]
    return f"{told}-{hashlib.sha256(f'{source} {form}'.encode()).hexdigest()[:12]}{SUFFIX}"
