"""Lightning's LearningRateFinder and BatchSizeFinder: they try out values before the first step, and set the best one.

A training that goes on has them in its checkpoint. To try again would begin Lightning's loops anew, after their state
has come back. It has been tried with Lightning 2.6.6.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_hasattr, lightning_setattr

_RATES = ("lr", "learning_rate")
"""Where Lightning looks for the learning rate, unless it is told."""


class Finders:
    """The finders among a Trainer's callbacks."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._own = [item for item in trainer.callbacks if isinstance(item, BatchSizeFinder | LearningRateFinder)]

    @property
    def names(self) -> list[str]:
        """Their classes."""
        return [type(item).__name__ for item in self._own]

    def found(self) -> dict[str, Any]:
        """Return the attributes of the module, or of its data, that they set."""
        module = self._trainer.lightning_module
        return {name: lightning_getattr(module, name) for name in map(self._attribute, self._own) if name}

    def put_back(self, found: Mapping[str, Any]) -> None:
        """Set what was found in the first attempt."""
        for name, value in found.items():
            lightning_setattr(self._trainer.lightning_module, name, value)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep them from trying before the first step."""
        for item in self._own:
            item.on_fit_start = lambda *_: None
        try:
            yield
        finally:
            for item in self._own:
                del item.on_fit_start

    def _attribute(self, item: Any) -> str:
        if isinstance(item, BatchSizeFinder):
            names: tuple[str, ...] = (item._batch_arg_name,)  # noqa: SLF001
        elif item._update_attr:  # noqa: SLF001
            names = (item._attr_name,) if item._attr_name else _RATES  # noqa: SLF001
        else:
            names = ()
        return next((name for name in names if lightning_hasattr(self._trainer.lightning_module, name)), "")
