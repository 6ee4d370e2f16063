"""The command line of the programs; see the package."""

import argparse
import sys
import time

from hack.cluster.programs.build import need
from hack.cluster.programs.families import FAMILIES, named
from hack.cluster.programs.pin import pin
from hack.cluster.shell import BoxError


def main() -> int:
    """Run one command; 1 with a sentence when it cannot be done."""
    options = _parser().parse_args()
    started = time.monotonic()
    try:
        if options.command == "pin":
            pin(named(options.family), options.version)
        else:
            need(options.families, lambda text: print(f"{time.monotonic() - started:5.1f}s  {text}", flush=True))
    except BoxError as error:
        print(f"programs: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    names = [family.name for family in FAMILIES]
    parser = argparse.ArgumentParser(prog="python -m hack.cluster.programs", description="Programs from Go modules.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build what is not in the cache")
    build.add_argument("families", nargs="+", choices=names, metavar="FAMILY", help=", ".join(names))
    of_version = commands.add_parser("pin", help="write go.mod and go.sum of a version")
    of_version.add_argument("family", choices=names)
    of_version.add_argument("version", help="of its module: v1.37.2")
    return parser


if __name__ == "__main__":
    sys.exit(main())
