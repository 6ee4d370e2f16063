"""`piton export` and `piton serve`: a recipe's trained model, found by a run, a directory or a checkpoint.

`piton checkpoint export` writes any checkpoint as it is; these two take the model out of a recipe's, ready for use.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from piton.cli.checkpoints import directory_of, of_step
from piton.contract import InputError, names

if TYPE_CHECKING:
    from piton_trainer.checkpoint.inspect import CheckpointInfo
    from piton_trainer.serving.trained_model import TrainedModel

BEST, LATEST = "best", "latest"


def export(place: Path, out: Path, *, step: str | None, weights: str | None) -> int:
    """Write the model to a folder."""
    trained = read(place, step=step, weights=weights)
    from piton_trainer.serving import trained_model as models

    models.write(trained, out)
    click.echo(f"step {trained.step:,} of {trained.recipe} ({trained.which}) is in {out}")
    return 0


def serve(place: Path, *, step: str | None, weights: str | None, host: str, port: int) -> int:
    """Answer over HTTP until told to stop."""
    trained = read(place, step=step, weights=weights)
    try:
        from piton_trainer.serving import server
    except ImportError as error:
        raise InputError(f"there is no server here ({error}); say pip install 'piton-operator[serve]'") from error
    server.serve(trained, host=host, port=port, ready=lambda line: click.echo(line, err=True))
    return 0


def read(place: Path, *, step: str | None, weights: str | None) -> "TrainedModel":
    """The model of a run's folder, a checkpoint directory, one checkpoint, or what `piton export` has written.

    Raises:
        ValueError: there is none.
    """
    if place.parts[:1] == ("s3:",):
        raise InputError(f"{place} is in a bucket; fetch it with piton checkpoint restore, and name the folder")
    from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
    from piton_trainer.serving import trained_model as models

    if models.is_written(place):
        if step is not None or weights is not None:
            raise InputError(f"{place} is one model already; --step and --weights choose among checkpoints")
        return models.from_folder(place)
    directory, own = located(place)
    if own is not None and step is not None:
        raise InputError(f"{place} is one checkpoint; name its directory to choose another with --step")
    found = chosen(directory, own or step)
    assert found.manifest is not None
    return models.from_checkpoint(CommittedCheckpoint(folder=found.folder, manifest=found.manifest), weights)


def located(place: Path) -> tuple[Path, str | None]:
    """The checkpoint directory that is meant, and the step if one checkpoint is."""
    if (found := names.parse_step_folder(place.name)) is None:
        found = names.parse_weights_folder(place.name)
    if found is not None:
        return place.parent, str(found)
    return directory_of(place), None


def chosen(directory: Path, step: str | None) -> "CheckpointInfo":
    """The checkpoint of that step, verified; without a step the best one, or where nothing says which, the newest.

    Raises:
        ValueError: it is not there, or damaged.
    """
    from piton_trainer.checkpoint import inspect

    found = inspect.survey(directory)
    if step is None or step == BEST:
        best = next((b for item in found if item.problem is None and (b := inspect.best_step(item)) is not None), None)
        if best is None and step == BEST:
            raise InputError(f"{directory} does not say which step is the best: no objective was judged there")
        step = LATEST if best is None else str(best)
    wanted = found if step == LATEST else of_step(found, _whole(step), str(directory))
    good = inspect.newest_good(wanted)
    if good is None:
        which = "" if step == LATEST else f" of step {step}; --step {LATEST} takes the newest that is"
        raise InputError(f"{directory} has no good checkpoint{which}")
    return good


def _whole(step: str) -> int:
    if not (step.isascii() and step.isdigit()):
        raise InputError(f"--step: {step!r} is no step; write a number, {BEST} or {LATEST}")
    return int(step)
