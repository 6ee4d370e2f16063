"""Lightning's checkpoint as a part of ours: its own account of the training, without the weights.

It goes in and out through a CheckpointIO; checkpoints of other callbacks are saved as before.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from piton_trainer.integrations.lightning_data import Makings, Wraps
from piton_trainer.integrations.lightning_loops import Finders, Loops
from piton_trainer.integrations.lightning_memory import OwnAttributes
from piton_trainer.integrations.lightning_results import EpochMetrics
from piton_trainer.state.refusals import Stateful
from piton_trainer.training.step_patience import StepPatience

logger = logging.getLogger(__name__)

PATH = "the checkpoint that Piton has chosen"
WEIGHTS = "state_dict"
"""The key of the weights in Lightning's checkpoint."""
_FOUND = "found"
"""The key of what finders have set, which Lightning's checkpoint has not."""
_NOT_STATE = ("hyper_parameters", "hparams_name", "hparams_type")
"""Keys that Lightning adds for building a module from a checkpoint; here the script builds it."""
_STEPS = "steps_by_hand"
"""The key of what is known of optimizers that step by hand."""
_LOADED_IN = "loaded_in"
"""The key of the epoch in which the loaders were made."""
_IS_WHOLE = "is_whole"
"""The key of the marker that says at which moment a checkpoint was made."""
_RESULTS = "results"
"""The key of the metrics in the marker."""
_MEMORY, _MAKINGS, _WRAPS = "memory", "makings", "wraps"
"""Keys of what parts remember, and of when loaders were made and begun, in the marker."""


class Made:
    """A marker: a checkpoint was made here, with all of its step done. It has what each rank has of its own."""

    def __init__(self, results: EpochMetrics, memory: OwnAttributes, makings: Makings, wraps: Wraps) -> None:
        self._results = results
        self._parts: dict[str, Stateful] = {_MEMORY: memory, _MAKINGS: makings, _WRAPS: wraps}

    def state_dict(self) -> dict[str, Any]:
        """For who reads it."""
        own = {name: part.state_dict() for name, part in self._parts.items()}
        return {"version": str(lightning.__version__), _IS_WHOLE: True, _RESULTS: self._results.state_dict(), **own}

    @staticmethod
    def is_whole(marker: Any) -> bool:
        """True if schedules and counts of the step are in the checkpoint; earlier versions saved before those."""
        return marker is not None and bool(marker.get(_IS_WHOLE))

    @staticmethod
    def has_metrics(marker: Any) -> bool:
        """True if metrics are in the checkpoint."""
        return marker is not None and bool(marker.get(_RESULTS))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lightning looks at the version that its own part has."""
        self._results.load_state_dict(state.get(_RESULTS, {}))
        for name, part in self._parts.items():
            part.load_state_dict(state.get(name, {}))


class Part:
    """The content of Lightning's checkpoint file, without the weights."""

    def __init__(self, trainer: Any, patience: StepPatience) -> None:
        self._trainer = trainer
        self._patience = patience
        self.loaded: dict[str, Any] = {}
        self.loaded_in: int | None = None
        """The epoch in which the loaders of the save were made, if that is known."""

    def state_dict(self) -> dict[str, Any]:
        """Loops, optimizers, schedules, scaler, callbacks, and what hooks add. Lightning hands it to rank 0 only."""
        io = self._trainer.strategy.checkpoint_io
        self._trainer.save_checkpoint(PATH, weights_only=False)
        taken = io.take()
        live = self._trainer.lightning_module.state_dict()
        is_live = _is_same(taken.get(WEIGHTS, {}), live)  # else a callback has put others there, such as an average
        omitted = {WEIGHTS} if is_live else set()
        kept = {name: part for name, part in taken.items() if name not in omitted and not name.endswith(_NOT_STATE)}
        if not kept:
            return {}  # Lightning hands nothing to this rank
        found, steps = Finders(self._trainer).found(), self._patience.state_dict()
        ours = {_FOUND: found or None, _STEPS: steps or None, _LOADED_IN: Loops(self._trainer).loaded_in}
        return kept | {name: part for name, part in ours.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lightning restores it when it has built the rest; it knows nothing of what its finders have set."""
        finders, found = Finders(self._trainer), state.get(_FOUND, {})
        if lacking := finders.found().keys() - found.keys():
            logger.warning(
                "%s: the checkpoint, of an earlier version of Piton, does not have what a finder has set; the "
                "optimizers go on with it, and the module's attribute is that of the script",
                ", ".join(sorted(lacking)),
            )
        finders.put_back(found)
        self._patience.load_state_dict(state.get(_STEPS, {}))
        self.loaded_in = state.get(_LOADED_IN)
        self.loaded = {name: part for name, part in state.items() if name not in (_FOUND, _STEPS, _LOADED_IN)}


class _LightningState(CheckpointIO):  # type: ignore[misc]
    """The CheckpointIO for Lightning's checkpoints. Those of other callbacks are saved as before."""

    def __init__(self, before: Any, load: Callable[[], dict[str, Any]]) -> None:
        self.before = before
        self._load = load
        self._taken: dict[str, Any] = {}

    def take(self) -> dict[str, Any]:
        """The checkpoint that was saved last. Lightning passes it to rank 0 only."""
        taken, self._taken = self._taken, {}
        return taken

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Keep ours; it becomes part of a checkpoint of Piton."""
        if _is_ours(path):
            self._taken = checkpoint
        else:
            self.before.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Ours comes out of the session."""
        if _is_ours(path):
            return self._load()
        return self.before.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Retention looks after ours."""
        self.before.remove_checkpoint(path)


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two states have the same names, and tensors that lie in the same place."""
    if one.keys() != other.keys():
        return False
    both = ((value, other[name]) for name, value in one.items() if isinstance(value, Tensor))
    return all(isinstance(there, Tensor) and here.data_ptr() == there.data_ptr() for here, there in both)


def _is_ours(path: Any) -> bool:
    return str(path) == PATH


@contextmanager
def passed_through(trainer: Any, load: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Have Lightning's checkpoints of this name go through ours; `load` returns what it asks for."""
    before = trainer.strategy.checkpoint_io
    trainer.strategy.checkpoint_io = _LightningState(before, load)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
            yield
    finally:
        trainer.strategy.checkpoint_io = before
