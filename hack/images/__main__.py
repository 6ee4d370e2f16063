"""The command line of the images; see the package."""

import sys
import time

from hack.cluster import box
from hack.cluster.shell import BoxError
from hack.images import load


def main() -> int:
    """Build and load; 1 with a sentence when it cannot be done."""
    started = time.monotonic()
    try:
        box.require_root()
        load(lambda text: print(f"{time.monotonic() - started:5.1f}s  {text}", file=sys.stderr, flush=True))
    except (BoxError, ValueError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
