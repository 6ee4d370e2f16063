"""Factory of the checkpointer, by the settings and the abilities of the machine."""

import logging
import sys
from pathlib import Path

from piton.contract.assignment import Objective, SavePolicy
from piton_trainer.checkpoint import Checkpointer
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.checkpoint.save.blocking_save import BlockingCheckpointer
from piton_trainer.clock import Clock
from piton_trainer.runtime.process_group import Ranks

logger = logging.getLogger(__name__)


def make_checkpointer(
    directory: Path,
    *,
    ranks: Ranks,
    fence: Fence,
    policy: SavePolicy,
    objective: Objective | None,
    disk: layout.Disk,
    clock: Clock,
    background: bool,
) -> Checkpointer:
    """Return a checkpointer that saves in the background, if requested and possible; the same kind on all ranks."""
    made: AsyncCheckpointer | None = None
    if background and ranks.agree([sys.platform != "linux" or not sys.executable])[0] == 0:
        try:
            made = AsyncCheckpointer(
                directory, ranks=ranks, fence=fence, policy=policy, objective=objective, clock=clock
            )
        except OSError as error:
            logger.warning(
                "no process can be started that writes checkpoints (%s); training waits for each save", error
            )
        if ranks.agree([made is None])[0] == 0:
            assert made is not None
            return made
        if made is not None:
            made.close()
    return BlockingCheckpointer(
        directory, ranks=ranks, fence=fence, policy=policy, objective=objective, disk=disk, clock=clock
    )
