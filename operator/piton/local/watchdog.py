"""Stops a run's trainers when `piton run` itself is gone, so that they do not go on unseen. processes.py starts it.

It holds the reading end of a pipe that nobody ever writes to; the pipe closes when `piton run` ends, however it ends.
An orderly end leaves nothing to stop. Standard library only, so that it costs little.
"""

import os
import signal
import sys

from piton.local import orphans


def main(variable: str, grace_seconds: float) -> None:
    """Wait for the end of `piton run`; then SIGTERM, so that trainers save, and SIGKILL to who does not leave."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    sys.stdin.buffer.read()
    left = orphans.marked(variable)
    orphans.send_signal([process for process in left if _leads(process)], signal.SIGTERM)
    orphans.kill(orphans.wait_gone(left, grace_seconds))


def _leads(process: orphans.Process) -> bool:
    """True if it is a trainer's main process; its helpers (data loaders, say) are its own to stop."""
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
