"""A second copy of the checkpoints in a bucket. It follows commits, and training never waits for it.

    client     what the session has of it: a process of its own, told of commits, asked how far it is
    messages   what the two say to each other
    process    the process
    sync       what it does: the bucket is kept like the volume
    upload     the volume's checkpoints into the bucket, and out of it what may go
    restore    the newest checkpoint out of the bucket into a volume
    transfer   how far a checkpoint is on its way
    bucket     the objects of one place
    keys       keys and the one record that moves: what lies where (pure)
    ownership  whose bucket it is (pure)
    inspect    what is in the bucket, for people

Nothing here needs torch. Credentials and endpoint come from the environment, the way every AWS tool has them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lag:
    """How far the bucket is behind the volume."""

    steps: int
    seconds: float
    """Since the oldest commit that the bucket has nothing as new as; 0 when there is none."""
    errors: int = 0
    """Attempts to upload that failed, so far."""
