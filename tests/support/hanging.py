"""A script that trains on one number, and stands still at a step: `python hanging.py WAY STEP`."""

import os
import re
import signal
import sys
import time

import torch
import torch.distributed as dist

import piton_trainer


def hang(way: str, rank: int) -> None:
    """Stand still in that way."""
    match way:
        case "gil":
            re.match("(a+)+$", "a" * 60 + "b")  # takes 2**60 steps, all in C
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "collective":
            if rank == 1:
                time.sleep(600)
            dist.barrier()
        case "evaluate":
            time.sleep(2)
        case "nothing":
            pass


def main(way: str, at: int) -> None:
    """Train, and stand still at a step of the first attempt."""
    with piton_trainer.session() as session:
        model = torch.nn.Linear(1, 1)
        session.restore(model=model)
        for _ in session.steps(range(30), total=30):
            if session.step + 1 == at and session.attempt == 1:
                if way == "evaluate":
                    with session.untimed():
                        hang(way, session.rank)
                else:
                    hang(way, session.rank)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
