"""The images that `resnet50` trains on and is evaluated on, and the meaning of their labels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piton_trainer.data.image.records import Records
from piton_trainer.data.skipped import SkippedData
from piton_trainer.errors import BadConfig


class Data:
    """The images for training and for validation, from one file of records or two."""

    def __init__(self, paths: Sequence[Path], validation_fraction: float, max_skipped: int = 0) -> None:
        """Open them. `max_skipped` is the number of damaged images of each that could have been left out.

        Raises:
            BadConfig: they do not fit, or there are too few.
        """
        self.training, self.validation = Records(paths[0]), Records(paths[-1])
        self.skipped_data = SkippedData(max_skipped)
        for records in (self.training, self.validation):
            self.skipped_data.add(records.path, records.skipped)
        everything = len(self.training)
        if len(paths) > 1:
            self.count, self.held_out = everything, range(len(self.validation))
        else:
            self.count = everything - math.ceil(everything * validation_fraction)
            self.held_out = range(self.count, everything)
        self.classes = self.training.classes
        self._refuse_nonsense()

    def _refuse_nonsense(self) -> None:
        if not self.count or not self.held_out:
            raise BadConfig(
                f"trainer.config.data: {self.count} training and {len(self.held_out)} validation images are too few"
            )
        names = self.training.about.classes, self.validation.about.classes
        if names[0] != names[1] and all(names):
            odd = sorted(set(names[0]) ^ set(names[1]))
            raise BadConfig(f"trainer.config.validation: it has other classes than data: {', '.join(odd[:5])}")
        if self.validation.classes > self.classes:
            raise BadConfig(
                f"trainer.config.validation: it has {self.validation.classes} classes, and data {self.classes}"
            )


class Classes:
    """The meaning of the model's outputs; a checkpoint carries it."""

    def __init__(self, count: int, names: Sequence[str]) -> None:
        self.count = count
        self.names = list(names)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"count": self.count, "names": self.names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make sure that the checkpoint's outputs mean what ours do.

        Raises:
            BadConfig: they do not.
        """
        if state["count"] != self.count or list(state["names"]) != self.names:
            raise BadConfig(
                f"trainer.config.data: it has {self.count} classes and the checkpoint {state['count']}, or they have "
                "other names; bring those images back or start a new run"
            )
