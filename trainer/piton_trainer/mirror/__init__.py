"""A second copy of the checkpoints in a bucket. It follows commits, and training never waits for it.

    place      keys and the one record that moves: what lies where (pure)
    claim      whose bucket it is (pure)
    bucket     S3, as little of it as is needed, with its errors in our words
    upload     the volume's checkpoints into the bucket, and out of it what may go
    restore    the newest checkpoint out of the bucket into a volume
    listing    what is in the bucket, for people
    follow     the thread that does so while training goes on

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
