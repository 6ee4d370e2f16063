"""The command line of the box; see the package."""

import argparse
import sys
import time
from pathlib import Path

from hack.cluster import addons, box, depot, drills, nodes, prometheus
from hack.cluster.layout import KUBECONFIG, Node
from hack.cluster.programs import Say
from hack.cluster.shell import BoxError

_NOTICE_SECONDS = 120.0  # what AWS gives


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 with a sentence when it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (BoxError, ValueError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    say = _sayer()
    match options.command:
        case "up":
            with box.use_alone():
                box.up(spot_nodes=options.nodes, say=say, kubernetes=options.kubernetes)
            say(f"export KUBECONFIG={KUBECONFIG}")
        case "down":
            with box.use_alone():
                box.down()
        case "status":
            print(box.status())
        case "kubeconfig":
            print(KUBECONFIG)
        case "restart":
            box.restart(options.part)
        case "load":
            _load(options.image)
        case "node":
            _node(options)
        case "prometheus" | "promtool" | "addons" | "discovery":
            _SERVICES[options.command]()


def _node(options: argparse.Namespace) -> None:
    box.require_root()
    node = Node.named(options.node)
    match options.drill:
        case "add":
            drills.add(node)
        case "reclaim":
            drills.reclaim(node, notice_seconds=options.notice)
        case "kill":
            drills.kill(node)
        case "cut":
            drills.cut(node)
        case "heal":
            drills.heal(node)


def _load(tar: Path) -> None:
    box.require_root()
    depot.add_tar(tar)
    nodes.refresh_all_images()


def _prometheus() -> None:
    box.require_root()
    if not box.is_up():
        raise BoxError("the box is not up: there is nothing to scrape")
    prometheus.start()
    print(prometheus.URL)


def _promtool() -> None:
    prometheus.need()
    print(prometheus.find("promtool"))


_SERVICES = {"prometheus": _prometheus, "promtool": _promtool, "addons": addons.serve, "discovery": prometheus.discover}


def _sayer() -> Say:
    started = time.monotonic()
    return lambda text: print(f"{time.monotonic() - started:5.1f}s  {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.cluster", description="A real Kubernetes in a box.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring it up; returns when every node is Ready")
    up.add_argument("--nodes", type=int, default=2, help="spot nodes, besides node-0 (default: 2)")
    up.add_argument("--kubernetes", metavar="VERSION|DIR", help="a minor version (1.33), or a folder of programs")
    commands.add_parser("down", help="stop everything; logs and the cache stay")
    commands.add_parser("status", help="what runs")
    commands.add_parser("kubeconfig", help="print the path for KUBECONFIG")
    commands.add_parser("load", help="import an image into every node").add_argument("image", type=Path)
    commands.add_parser("restart", help="crash a part of the control plane and start it again").add_argument("part")
    commands.add_parser("prometheus", help="start a Prometheus that scrapes the pods, and print its address")
    commands.add_parser("promtool", help="fetch Prometheus, and print where its promtool is")
    commands.add_parser("addons")  # what `up` starts
    commands.add_parser("discovery")  # what `prometheus` starts
    node = commands.add_parser("node", help="the ways in which a node goes and comes")
    drills_of = node.add_subparsers(dest="drill", required=True)
    for drill in ("add", "kill", "cut", "heal", "reclaim"):
        drills_of.add_parser(drill).add_argument("node", help="its name: node-1")
    drills_of.choices["reclaim"].add_argument("--notice", type=float, default=_NOTICE_SECONDS, metavar="SECONDS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
