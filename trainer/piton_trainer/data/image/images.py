"""Batches of images from a file of records, decoded by threads ahead of their use, in an order that can start anywhere.

The position counts images that all ranks together have seen; it is the whole state, as with `windows`. Order, crops and
sizes follow from it, so an attempt with another number of ranks goes on exactly where the last one stopped.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piton.contract import InputError
from piton_trainer.data.image.crops import Crop, center_crop, generator_of, random_crop
from piton_trainer.data.image.pictures import cut
from piton_trainer.data.image.records import Records
from piton_trainer.data.image.shuffle import shuffled
from piton_trainer.errors import BadConfig

AHEAD = 2
"""Steps that are decoded before they are asked for."""
SHARE = 8
"""Images that a thread takes at a time: few, so that a slow thread delays nobody, and enough to cost nothing."""
Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one size and their labels."""

    images: Tensor
    """(count, height, width, 3), bytes: half of what half precision would send to a GPU."""
    labels: Tensor
    """(count,), int64."""
    first: int
    """Position of the first one. No two batches of a training have the same."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        images, labels = (part.to(device, non_blocking=True) for part in (self.images, self.labels))
        return Batch(images=images, labels=labels, first=self.first)


@dataclass(frozen=True)
class _Pending:
    """A batch that threads fill."""

    batch: Batch
    parts: Sequence[Future[None]]

    def wait(self) -> Batch:
        for part in self.parts:
            part.result()
        return self.batch


class Decoder:
    """Threads that cut images out of records."""

    def __init__(self, records: Records, *, threads: int, pin: bool) -> None:
        self.records = records
        self.pin = pin
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="piton-decode")

    def close(self) -> None:
        """Let go of what nobody waits for any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, numbers: Numbers, crop: Callable[[int, int], Crop], *, size: int, first: int) -> _Pending:
        """Start a batch of these records; `crop` is told the place in the batch and the number of the record."""
        images = torch.empty(len(numbers), size, size, 3, dtype=torch.uint8, device="cpu", pin_memory=self.pin)
        labels = torch.from_numpy(self.records.labels[numbers])
        target = images.numpy()

        def fill(places: range) -> None:
            for place in places:
                number = int(numbers[place])
                target[place] = cut(self.records, number, crop(place, number), size)

        shares = [range(start, min(start + SHARE, len(numbers))) for start in range(0, len(numbers), SHARE)]
        parts = [self._pool.submit(fill, share) for share in shares]
        return _Pending(Batch(images=images, labels=labels.pin_memory() if self.pin else labels, first=first), parts)


@contextmanager
def _decoding(records: Records, threads: int, device: torch.device) -> Iterator[Decoder]:
    decoder = Decoder(records, threads=threads, pin=device.type == "cuda")
    try:
        yield decoder
    finally:
        decoder.close()


class ShuffledImages:
    """Endless training data: each item is one optimizer step of this rank, a list of micro-batches."""

    position_is_global: ClassVar[bool] = True

    def __init__(
        self,
        records: Records,
        *,
        count: int,
        device_batch: int,
        total_batch: int,
        size_at: Callable[[int], int],
        min_area: float,
        flip: bool,
        window: int,
        seed: int,
        threads: int = 1,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """Train on the first `count` records, at the sizes that `size_at` says for a position."""
        if total_batch % (device_batch * world_size):
            raise InputError(f"{total_batch} images do not divide into {world_size} x {device_batch}")
        self.records = records
        self.count = count
        self.device_batch = device_batch
        self.total_batch = total_batch
        self.size_at = size_at
        self.min_area = min_area
        self.flip = flip
        self.window = window
        self.seed = seed
        self.threads = threads
        self.rank = rank
        self.world_size = world_size
        self.device = device or torch.device("cpu")
        self.position = 0
        """Images that all ranks together have seen."""
        self._epoch = -1
        self._order: Numbers = np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[Batch]]:
        with _decoding(self.records, self.threads, self.device) as decoder:
            ahead: deque[list[_Pending]] = deque()
            while True:
                while len(ahead) < AHEAD:
                    ahead.append(self._begin(decoder, self.position + len(ahead) * self.total_batch))
                batches = [pending.wait().to(self.device) for pending in ahead.popleft()]
                self.position += self.total_batch
                yield batches

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the same on every rank."""
        return {"position": self.position, **self._order_is()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was.

        Raises:
            BadConfig: the images or their order are not the checkpoint's, so that the position means nothing.
        """
        names = {"digest": "data", "count": "validationFraction", "seed": "seed", "window": "shuffleWindow"}
        for key, value in self._order_is().items():
            if state[key] != value:
                raise BadConfig(
                    f"trainer.config.{names[key]}: the images or their order are not those of the checkpoint "
                    f"({state[key]}, now {value}); bring them back or start a new run"
                )
        self.position = int(state["position"])

    def _order_is(self) -> dict[str, Any]:
        return {"digest": self.records.digest, "count": self.count, "seed": self.seed, "window": self.window}

    def _begin(self, decoder: Decoder, position: int) -> list[_Pending]:
        """This rank's micro-batches of the step at a position."""
        size, each = self.size_at(position), self.device_batch
        first = position + self.rank * each
        return [
            self._begin_batch(decoder, start, size)
            for start in range(first, position + self.total_batch, self.world_size * each)
        ]

    def _begin_batch(self, decoder: Decoder, first: int, size: int) -> _Pending:
        epochs, places = np.divmod(np.arange(first, first + self.device_batch), self.count)
        numbers = np.concatenate([self._shuffled(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

        def crop(place: int, number: int) -> Crop:
            height, width, _ = self.records.shape(number)
            own = generator_of(self.seed, int(epochs[place]), number)
            return random_crop(height, width, min_area=self.min_area, flip=self.flip, rng=own)

        return decoder.begin(numbers, crop, size=size, first=first)

    def _shuffled(self, epoch: int) -> Numbers:
        if epoch != self._epoch:
            self._order = shuffled(self.count, window=self.window, seed=self.seed, epoch=epoch)
            self._epoch = epoch
        return self._order


def in_turn(
    records: Records,
    numbers: range,
    *,
    batch: int,
    size: int,
    crop_ratio: float,
    threads: int,
    rank: int,
    world_size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """This rank's share of these records, from their middles: for an evaluation."""

    def crop(_: int, number: int) -> Crop:
        height, width, _ = records.shape(number)
        return center_crop(height, width, ratio=crop_ratio)

    with _decoding(records, threads, device) as decoder:
        ahead: deque[_Pending] = deque()
        for first in range(rank * batch, len(numbers), world_size * batch):
            part = numbers[first : first + batch]
            ahead.append(decoder.begin(np.array(part), crop, size=size, first=first))
            if len(ahead) > AHEAD:
                yield ahead.popleft().wait().to(device)
        for pending in ahead:
            yield pending.wait().to(device)
