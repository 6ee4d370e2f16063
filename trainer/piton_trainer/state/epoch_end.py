"""The end of an epoch in which ranks have different numbers of batches: with the first rank that has no more."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from piton_trainer.runtime.process_group import Ranks

LEFT_MOST = 100
"""Batches of the other ranks that are counted at the end of an epoch; there may be no end to them."""
_END = object()


class EpochEnd:
    """Agrees with the other ranks on the end of each epoch: a word before every batch."""

    def __init__(self, ranks: Ranks, tell: Callable[[str], None]) -> None:
        """`tell` receives what the others had left; it is called on all ranks."""
        self._ranks = ranks
        self._tell = tell

    def batches(self, own: Iterator[Any]) -> Iterator[Any]:
        """The batches of this rank, until the first rank has no more. What the others have left is passed over."""
        while True:
            batch = next(own, _END)
            if self._ranks.agree([float(batch is _END)])[0]:
                break
            yield batch
        left = 0 if batch is _END else 1 + sum(1 for _ in islice(own, LEFT_MOST - 1))
        self._report(self._of_all(left))

    def _of_all(self, left: int) -> list[int]:
        mine = [float(left if rank == self._ranks.rank else 0) for rank in range(self._ranks.world_size)]
        return list(map(int, self._ranks.agree(mine)))

    def _report(self, left: list[int]) -> None:
        others = [
            f"rank {rank} had {f'at least {LEFT_MOST}' if count == LEFT_MOST else count} left"
            for rank, count in enumerate(left)
            if count
        ]
        if others:
            ended = ", ".join(str(rank) for rank, count in enumerate(left) if not count)
            self._tell(
                f"loader: the epoch ends on all ranks, as rank {ended} has no more data; "
                f"{', '.join(others)}, on which nobody trains"
            )
