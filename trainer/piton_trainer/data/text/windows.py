"""Windows of a text in a shuffled order that can start anywhere.

The position counts windows that all ranks together have seen; it is the whole state. So an attempt with another
number of ranks goes on exactly where the last one stopped, and every window is seen once per epoch.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from piton.contract import InputError
from piton_trainer.data.permutations import Permutations
from piton_trainer.errors import BadConfig

Batch = tuple[Tensor, Tensor]
"""Characters, and for each the one that follows: two tensors (sequences, time)."""


IGNORED = -100
"""A target without a loss: what `cross_entropy` takes for one."""


class Windows:
    """A text cut into windows of equal length; what is left at its end is not used."""

    def __init__(self, tokens: Tensor, length: int) -> None:
        self.tokens = tokens
        self.length = length
        self.starts = torch.arange(length, device="cpu")

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.length)

    def batch(self, numbers: Tensor, device: torch.device) -> Batch:
        """The windows of these numbers."""
        places = numbers.unsqueeze(1) * self.length + self.starts
        inputs, targets = self.tokens[places].long(), self.tokens[places + 1].long()
        if device.type == "cuda":  # from pinned memory the copy runs beside the computation
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    @cached_property
    def digest(self) -> str:
        """Says which text this is and how it is cut."""
        return hashlib.sha256(f"{self.length}:".encode() + self.tokens.numpy().tobytes()).hexdigest()


class ShuffledWindows:
    """Endless training data: each item is one optimizer step of this rank, a list of micro-batches."""

    position_is_global: ClassVar[bool] = True

    def __init__(
        self,
        windows: Windows,
        *,
        device_batch: int,
        total_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """Cut `total_batch` windows per step into `device_batch` windows per micro-batch and rank."""
        if total_batch % (device_batch * world_size):
            raise InputError(f"{total_batch} windows do not divide into {world_size} x {device_batch}")
        self.windows = windows
        self.device_batch = device_batch
        self.total_batch = total_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = device or torch.device("cpu")
        self.position = 0
        """Windows that all ranks together have seen."""
        self._order = Permutations(len(windows), seed)

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            numbers = self._order.numbers(self.position, self.total_batch)
            self.position += self.total_batch
            passes = numbers.view(-1, self.world_size, self.device_batch)
            yield [self.windows.batch(part, self.device) for part in passes[:, self.rank]]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the same on every rank."""
        return {"position": self.position, "seed": self.seed, "digest": self.windows.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was.

        Raises:
            BadConfig: the text, its cut or the seed is not the checkpoint's, so that the position means nothing.
        """
        if state["digest"] != self.windows.digest:
            raise BadConfig(
                "trainer.config.data: the text or sequenceLength is not the one of the checkpoint; "
                "bring it back or start a new run"
            )
        if state["seed"] != self.seed:
            raise BadConfig(
                f"trainer.config.seed: {self.seed} is not the checkpoint's {state['seed']}; "
                "bring it back or start a new run"
            )
        self.position = int(state["position"])


def in_order(
    windows: Windows, *, limit: int, batch: int, rank: int, world_size: int, device: torch.device
) -> Iterator[tuple[Batch, int]]:
    """The first windows, for an evaluation: this rank's batches, and how many windows of each count.

    Every rank gets equally many batches of one size, because ranks that share a model have to run it equally often.
    What fills up the last ones has targets that the loss ignores.
    """
    total = min(limit, len(windows))
    step = batch * world_size
    for first in range(rank * batch, -(-total // step) * step, step):
        numbers = torch.arange(first, first + batch, device="cpu")
        inputs, targets = windows.batch(numbers.clamp(max=total - 1), device)
        filler = (numbers >= total).to(device)
        yield (inputs, targets.masked_fill(filler.unsqueeze(1), IGNORED)), int((numbers < total).sum())
