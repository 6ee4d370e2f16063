"""The trainings that this process has finished, so that another one does not take their weights for its own.

    the same objects again            goes on, as a longer training does; told if that leaves nothing to train
    another model or optimizer        refused: it would begin with the weights and at the step of the first
    another trainer of a framework    goes on, and is told: it may be a longer training, or another one
    a name                            another folder; told if it is used for two trainings
    a Config, without a name          a folder that the script has chosen itself

Only the first step tells a training from a look at a model that is trained, so it is judged there.
"""

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from piton.contract import InputError
from piton_trainer.errors import BadConfig
from piton_trainer.state.tracked_objects import MODEL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A training that this process has finished: its model and optimizers, or its model and a framework's trainer."""

    objects: list["weakref.ref[Any]"]
    trainer: "weakref.ref[Any] | None"

    def is_of(self, objects: list[Any]) -> bool:
        """True if it was a training of these very objects, in whatever order."""
        return {id(found()) for found in self.objects} == set(map(id, objects))

    def is_by(self, trainer: object) -> bool:
        """True if it was the same trainer's, or none's."""
        return trainer is (None if self.trainer is None else self.trainer())


_finished: dict[Path, _Finished] = {}


_CURE = 'name each training: piton_trainer.session(name="fold-1"), or PitonCallback(name="fold-1")'


class SessionFolder:
    """The folder of a session, where another training of this process may have finished before."""

    def __init__(self, directory: Path, *, is_chosen: bool, is_named: bool) -> None:
        """`is_chosen`: the script has named the folder. `is_named`: it has named the session."""
        self._directory = directory.absolute()
        self._is_chosen = is_chosen
        self._is_named = is_named

    def finish(self, objects: list[Any], trainer: object, *, has_trained: bool) -> None:
        """Remember that a training of these objects has finished here; tell if another one left it nothing to do."""
        if self._earlier is not None and not has_trained:
            logger.warning("%s, which left nothing to train; if this is another one, %s", self._words, _CURE)
        by = None if trainer is None else weakref.ref(trainer)
        _finished.setdefault(self._directory, _Finished(objects=list(map(weakref.ref, objects)), trainer=by))

    def refuse_another(self, objects: list[Any], trainer: object, *, step: int, tells_apart: bool) -> None:
        """Refuse a training of other objects that resumes here, at this step, from one that has finished.

        Without `tells_apart` the run began with a trainer that had no such rule: it is warned. So is whatever may be a
        longer training: one of the same model by another trainer, and one that was given the name of the first.

        Raises:
            BadConfig: it would silently begin with the other's weights.
        """
        earlier = self._earlier
        if earlier is None or (earlier.is_of(objects) and earlier.is_by(trainer)):
            return
        is_other = not earlier.is_of(objects)
        what = "of another model or optimizer" if is_other else f"by another {type(trainer).__name__}"
        text = (
            f"{self._words}, and this one is {what}: it would begin with the weights of the first, at step {step}; "
            f"{_CURE}"
        )
        if is_other and tells_apart and not self._is_named:
            raise BadConfig(text)
        logger.warning(text)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say of a refusal that the checkpoint may be another training's.

        Raises:
            ValueError, BadConfig: as in the block.
        """
        try:
            yield
        except (InputError, BadConfig) as error:
            if self._earlier is None or _CURE in str(error):
                raise
            raise type(error)(f"{error}. {self._words}; if this is another one, {_CURE}") from error

    @property
    def _earlier(self) -> _Finished | None:
        return None if self._is_chosen else _finished.get(self._directory)

    @property
    def _words(self) -> str:
        return f"session: a training of this script has finished in {self._directory}"


def trained(objects: Mapping[str, Any], *, has_own_loop: bool) -> list[Any]:
    """Return what makes a training another one: its model and optimizers. A framework builds its optimizers anew."""
    values = [value for given in objects.values() for value in (given if isinstance(given, list | tuple) else [given])]
    optimizers = [value for value in values if has_own_loop and isinstance(value, Optimizer)]
    return [*(value for value in [objects.get(MODEL)] if isinstance(value, nn.Module)), *optimizers]
