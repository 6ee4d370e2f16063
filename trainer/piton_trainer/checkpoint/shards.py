"""torch's writer of shards, with the disk's own word for what went wrong. Apart from `layout`, which needs no torch."""

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future


class Writer(FileSystemWriter):
    """Writes the shards of one rank."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write, and name the disk's error: torch.save covers an OSError up with a RuntimeError of its own."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError):
                raise cause from None
            raise
