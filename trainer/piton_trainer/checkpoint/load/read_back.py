"""The first checkpoint of a training is read again and compared with what was to be saved, beside the training.

Files that match their manifest can still be of the wrong state: a tensor that was copied too early, a kind of tensor
that its archive does not hold as it is. Copies are kept of at most 64 MiB of each object, on rank 0 and until they have
been compared.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.codec import bytes_of, is_array
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load.loader import load_tensors

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Of each object."""
_CURE = "leave it out of session.restore(), and report this as a bug of Piton"
_STOP_SECONDS = 5.0
"""For a read that is under way."""


class ReadBack:
    """One comparison. Problems of the volume are none of its own: whoever needs the checkpoint hears of them."""

    @torch.no_grad()
    def __init__(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies of tensors that are saved as of this step."""
        self.step = step
        self.problem: str | None = None
        """A tensor that is not as it was saved, and what to do; None as far as all are."""
        self._kept: dict[str, Tensor] = {}
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        room: dict[str, int] = {}
        for key, tensor in tensors.items():
            owner = key.partition("/")[0]
            left = room.setdefault(owner, MOST_BYTES) - (tensor.nbytes if is_array(tensor) else MOST_BYTES + 1)
            if left >= 0:
                room[owner], self._kept[key] = left, tensor.detach().to("cpu", copy=True)

    def begin(self, folder: Path) -> None:
        """Compare with this checkpoint, which is durable. Only the first call counts."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(folder,), name="piton-read-back", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all is compared, so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Compare nothing any more."""
        self._is_over.set()
        self.wait(_STOP_SECONDS)

    def _run(self, folder: Path) -> None:
        try:
            manifest, problem = layout.look(folder)
            if manifest is None or problem is not None:
                return
            checkpoint, kept = CommittedCheckpoint(folder=folder, manifest=manifest), self._kept
            for owner in dict.fromkeys(key.partition("/")[0] for key in kept):
                own = {key: tensor for key, tensor in kept.items() if key.partition("/")[0] == owner}
                if self._is_over.is_set():
                    return
                found = load_tensors(checkpoint, dict.fromkeys(own), retry=Retry(is_stopping=lambda: True))
                wrong = [key for key, tensor in own.items() if not _is_same(tensor, found[key])]
                if wrong:
                    self.problem = f"{wrong[0]} is not what was saved when {folder.name} is read again; {_CURE}"
                    return
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a look that fails proves nothing
            logger.info("%s was not read back: %s", folder.name, error)
        finally:
            self._kept = {}


def _is_same(one: Tensor, other: Tensor) -> bool:
    """True if two tensors have the same type, shape and numbers, to the last bit."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(bytes_of(one), bytes_of(other))
