"""The command line; see the package."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hack.cluster import box
from hack.cluster.layout import KUBECONFIG
from hack.cluster.shell import BoxError
from hack.install import chart, piton


def main() -> int:
    """Install or remove; 1 with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m hack.install", description="Piton, into a cluster.")
    parser.add_argument("--nodes", type=int, default=2, help="spot nodes of the box (default: 2)")
    parser.add_argument("--kubernetes", metavar="VERSION|DIR", help="of the box: 1.33, or a folder of programs")
    parser.add_argument("--remove", action="store_true", help="uninstall it; the CRDs and the runs stay")
    options = parser.parse_args()
    theirs = os.environ.get("KUBECONFIG")
    kubeconfig = Path(theirs) if theirs else KUBECONFIG
    try:
        if options.remove:
            chart.remove(kubeconfig)
        elif kubeconfig == KUBECONFIG:
            with box.use_alone():
                piton.install_in_box(spot_nodes=options.nodes, say=_sayer(), kubernetes=options.kubernetes)
        else:
            chart.install(kubeconfig)
    except BoxError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


def _sayer() -> Callable[[str], None]:
    started = time.monotonic()
    return lambda text: print(f"{time.monotonic() - started:5.1f}s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
