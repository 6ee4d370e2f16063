"""The trainings that this process has finished, so that another one does not take their weights for its own.

    the same objects again                     goes on, as a longer training does
    another model or optimizer, same folder    refused: it would begin with the weights and at the step of the first
    a name, or a Config, of its own            another folder, or one that the script has chosen itself

Only the first step tells a training from a look at a model that is trained, so it is judged there.
"""

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from piton_trainer.errors import BadConfig
from piton_trainer.state.tracked_objects import MODEL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A training that this process has finished: its model and its optimizers."""

    objects: list["weakref.ref[Any]"]

    def is_of(self, objects: list[Any]) -> bool:
        """True if it was a training of these very objects, in whatever order."""
        return {id(found()) for found in self.objects} == set(map(id, objects))


_finished: dict[Path, _Finished] = {}


class SessionFolder:
    """The folder of a session, where another training of this process may have finished before."""

    def __init__(self, directory: Path, *, is_chosen: bool) -> None:
        """`is_chosen`: the script has named the folder, or the session."""
        self._directory = directory.absolute()
        self._is_chosen = is_chosen

    def finish(self, objects: list[Any]) -> None:
        """Remember that a training of these objects has finished here."""
        _finished.setdefault(self._directory, _Finished(objects=[weakref.ref(thing) for thing in objects]))

    def refuse_another(self, objects: list[Any], *, step: int, tells_apart: bool) -> None:
        """Refuse a training of other objects that resumes here, at this step, from one that has finished.

        Without `tells_apart` the run began with a trainer that had no such rule: it is warned.

        Raises:
            BadConfig: it would silently begin with the other's weights.
        """
        finished = _finished.get(self._directory)
        if finished is None or self._is_chosen or finished.is_of(objects):
            return
        text = (
            f"session: a training of this script has finished in {self._directory}, and this one is of another model "
            f"or optimizer: it would begin with the weights of the first, at step {step}. Name each training: "
            'piton_trainer.session(name="fold-1"), or PitonCallback(name="fold-1")'
        )
        if tells_apart:
            raise BadConfig(text)
        logger.warning(text)


def trained(objects: Mapping[str, Any], *, has_own_loop: bool) -> list[Any]:
    """Return what makes a training another one: its model and optimizers. A framework builds its optimizers anew."""
    values = [value for given in objects.values() for value in (given if isinstance(given, list | tuple) else [given])]
    optimizers = [value for value in values if has_own_loop and isinstance(value, Optimizer)]
    return [*(value for value in [objects.get(MODEL)] if isinstance(value, nn.Module)), *optimizers]
