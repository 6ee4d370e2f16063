"""Ports of this machine that nobody else takes between the moment they are found and the moment they are used."""

import random
import socket
from contextlib import suppress

_RANGE = (20_000, 30_000)
"""Above the fixed ports of the box, the last of which is 19456. Below those of Services, and those that the kernel
gives outgoing connections."""
_DICE = random.SystemRandom()
"""Sessions of the trainer seed the other one, and two workers of pytest would find the same ports."""


def free_ports(count: int) -> list[int]:
    """So many, all different."""
    found: set[int] = set()
    while len(found) < count:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", _DICE.randrange(*_RANGE)))
            found.add(probe.getsockname()[1])
    return list(found)


def free_port() -> int:
    """One."""
    return free_ports(1)[0]
