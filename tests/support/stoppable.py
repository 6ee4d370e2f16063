"""A trainer for torchrun that trains until it is told to stop: `torchrun -m support.stoppable READY`.

READY.<rank> appears when a periodic save has become durable, and READY.<rank>.trained holds the last step whose body
was done. What the session is told stands in the environment, as in a pod.
"""

import sys
import time
from pathlib import Path

import torch

import piton_trainer
from support import tiny


def main() -> None:
    """Train."""
    ready = Path(sys.argv[1])
    with piton_trainer.session() as session:
        torch.manual_seed(0)
        model = tiny.build()  # with the same weights on all ranks
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        session.restore(model=model, optimizer=optimizer)
        own = ready.with_name(f"{ready.name}.{session.rank}")
        for x in session.steps([torch.ones(2, 4)] * 1000, epochs=1000):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            time.sleep(0.005)  # a step that takes as long as steps do
            own.with_suffix(f"{own.suffix}.trained").write_text(str(session.step + 1))
            if (
                session._services.store is not None
                and session._services.store.durable_step is not None
                and not own.exists()
            ):
                own.touch()


if __name__ == "__main__":
    main()
