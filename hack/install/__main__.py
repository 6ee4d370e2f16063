"""The command line; see the package."""

import argparse
import os
import sys
import time
from pathlib import Path

from hack.cluster.layout import KUBECONFIG
from hack.cluster.shell import BoxError
from hack.install import chart, piton


def main() -> int:
    """Install or remove; 1 with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m hack.install", description="Piton, into a cluster.")
    parser.add_argument("--remove", action="store_true", help="uninstall it; the CRDs and the runs stay")
    options = parser.parse_args()
    kubeconfig = Path(os.environ.get("KUBECONFIG") or KUBECONFIG)
    started = time.monotonic()
    try:
        if options.remove:
            chart.remove(kubeconfig)
        else:
            piton.install(
                kubeconfig, lambda text: print(f"{time.monotonic() - started:5.1f}s  {text}", file=sys.stderr)
            )
    except BoxError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
