"""A trainer whose first attempt is told to stop in the middle, and whose volume is gone afterwards.

`python -m support.loses_its_volume`, with `--keep` to train undisturbed. What the session is told stands in the
environment, as in a pod.
"""

import os
import shutil
import signal
import sys

import torch

import piton_trainer
from support import tiny

LAST_STEP_OF_THE_FIRST = 10


def main() -> None:
    """Train."""
    with piton_trainer.session() as session:
        torch.manual_seed(session.rank)
        model = tiny.build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        session.restore(model=model, optimizer=optimizer)
        for x in session.steps([torch.ones(2, 4)] * 20):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            if is_doomed() and session.step + 1 == LAST_STEP_OF_THE_FIRST:
                signal.raise_signal(signal.SIGTERM)


def is_doomed() -> bool:
    """Whether this is the attempt that loses everything."""
    return "--keep" not in sys.argv and os.environ["PITON_ATTEMPT"] == "1"


if __name__ == "__main__":
    try:
        main()
    finally:
        if is_doomed():
            shutil.rmtree(os.environ["PITON_CHECKPOINT_DIR"])
