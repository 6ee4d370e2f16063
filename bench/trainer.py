"""What the shared loop costs: `charlm` with session, metrics, progress and checkpoints, over a bare PyTorch loop.

Both train a twin of the same model on the same text with the same optimizers in this process, block by block in turns,
so that the machine's moods hit both alike; a block of ours is compared with the bare blocks before and after it. There
is one checkpoint in each block of ours, begun in its middle and durable before its end, progress goes to a server on
this machine, and metrics to an exporter. Prints a table, and as its last line one JSON object with the median of the
ratios and the number of checkpoints that were not durable in time.
"""

import argparse
import json
import logging
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from session import environment, receiver, seconds, show
from torch import nn
from torch.optim import Optimizer

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import train

CONFIG = CharlmConfig(
    depth=4,
    aspect_ratio=32,
    head_dim=32,
    sequence_length=128,
    device_batch_size=4,
    total_batch_tokens=1024,
    reference_batch_tokens=None,
)
"""That of nanochat-d64-small, on one rank."""


class Bare:
    """The same training as one would write it down."""

    def __init__(self, recipe: Charlm) -> None:
        torch.manual_seed(0)
        self.tokens = recipe.loader.windows.tokens
        self.model = recipe.build()
        recipe.draw_weights(self.model)
        self.optimizers = recipe.optimizers(self.model)
        recipe.tune(self.optimizers, fraction=0.0, step=0)

    def train(self, steps: int) -> None:
        """So many steps, on random places of the text."""
        length, batch = CONFIG.sequence_length, CONFIG.device_batch_size
        passes = CONFIG.total_batch_tokens // (length * batch)
        for _ in range(steps):
            total = 0.0
            for _ in range(passes):
                starts = torch.randint(len(self.tokens) - length, (batch, 1))
                places = starts + torch.arange(length)
                loss = self.model(self.tokens[places].long(), self.tokens[places + 1].long()) / passes
                loss.backward()
                total += loss.item()  # a loop that nobody watches would not know its loss; ours shows it
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()


class Measured(Charlm):
    """Our loop's recipe, which lets the bare loop have its turn in the middle between two checkpoints."""

    def __init__(self, *args: Any, bare: Bare, block: int, directory: Path) -> None:
        super().__init__(*args)
        self.bare, self.block, self.directory = bare, block, directory
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.late = 0
        self._began: float | None = None

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        """Before each step of ours."""
        if step % self.block == self.block // 2:
            self._turn(step)
        super().tune(optimizers, fraction=fraction, step=step)

    def ratios(self) -> list[float]:
        """Ours over theirs, block by block."""
        pairs = zip(self.ours, self.theirs, self.theirs[1:], strict=False)
        return [2 * own / (before + after) for own, before, after in pairs]

    def _turn(self, step: int) -> None:
        now = time.perf_counter()
        if self._began is not None:
            self.ours.append(now - self._began)
            saved = self.directory / names.step_folder(step - self.block // 2)
            self.late += not saved.is_dir()
        self.theirs.append(seconds(lambda: self.bare.train(self.block)))
        self._began = time.perf_counter()


def free_port() -> int:
    """For the exporter."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def measure(blocks: int, block: int) -> Measured:
    """Train so many blocks by each loop; the environment says where to."""
    steps = blocks * block + block // 2 + 1
    config = CONFIG.model_copy(update={"steps": steps, "eval_every": steps})
    with piton_trainer.session(overlap_saves=True) as session:
        bare = Bare(Charlm(config, session))
        recipe = Measured(config, session, bare=bare, block=block, directory=session.directory)
        train(session, recipe)
    return recipe


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--blocks", type=int, default=30)
    arguments.add_argument("--steps", type=int, default=20, help="in a block; two at least")
    given = arguments.parse_args()
    logging.disable(logging.WARNING)
    orders = Assignment(
        recipe="charlm", save=SavePolicy(every_steps=given.steps), objective=Objective(metric="val_loss")
    )
    with tempfile.TemporaryDirectory() as folder, receiver() as port:
        os.environ.update(environment(Path(folder), port, orders) | {names.ENV_METRICS_PORT: str(free_port())})
        measured = measure(given.blocks, given.steps)
    found = measured.ratios()
    show("shared loop over bare loop", found)
    result = {"loop_over_bare": round(statistics.median(found), 4), "blocks": len(found), "late_saves": measured.late}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
