"""What a session costs: the same training step in a bare PyTorch loop and inside `session.steps`, in turns.

Both loops train a twin of the same model in this process, block by block, so that the machine's moods hit both alike.
The session reports progress to a server on this machine and tracks an objective; saves are not part of it. Prints a
table, and as its last line one JSON object with the median of the ratios.
"""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch
from torch import Tensor, nn

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, Objective, SavePolicy

BLOCKS, STEPS_PER_BLOCK, WIDTH, BATCH = 60, 20, 512, 256


class Receiver(BaseHTTPRequestHandler):
    """Takes progress reports and asks for nothing."""

    def do_POST(self) -> None:
        """Read the report, answer OK."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Twin:
    """A model, its optimizer, and one training step on random data."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batch = torch.randn(BATCH, WIDTH)

    def step(self) -> Tensor:
        """Forward, backward, update; the loss as a 0-d tensor."""
        loss = (self.model(self.batch) - self.batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


NO_SAVES = Assignment(save=SavePolicy(every_seconds=3600.0), objective=Objective(metric="val_loss"))


def environment(folder: Path, port: int, assignment: Assignment = NO_SAVES) -> dict[str, str]:
    """What an attempt on a cluster would find."""
    config = folder / "config.json"
    config.write_text(assignment.to_json())
    return {
        names.ENV_RUN: "bench",
        names.ENV_ATTEMPT: "1",
        names.ENV_CHECKPOINT_DIR: str(folder / "checkpoints"),
        names.ENV_CONFIG: str(config),
        names.ENV_TERMINATION_LOG: str(folder / "termination"),
        names.ENV_SERVER_URL: f"http://127.0.0.1:{port}/status",
        names.ENV_REPORT_SECONDS: "1",
    }


def seconds(block: Callable[[], None]) -> float:
    """How long a block takes."""
    start = time.perf_counter()
    block()
    return time.perf_counter() - start


def ratios() -> Iterator[float]:
    """Session over bare, block by block; which goes first changes every time."""
    bare, twin = Twin(), Twin()
    total = (BLOCKS + 1) * STEPS_PER_BLOCK + 1
    with piton_trainer.session() as session:
        session.restore(model=twin.model, optimizer=twin.optimizer)
        steps = session.steps(range(total))

        def inside() -> None:
            for _ in range(STEPS_PER_BLOCK):
                next(steps)
                session.report(loss=twin.step())

        def outside() -> None:
            for _ in range(STEPS_PER_BLOCK):
                bare.step().item()  # a loop that nobody watches would not know its loss; ours shows it

        seconds(inside), seconds(outside)
        for number in range(BLOCKS):
            first, second = (inside, outside) if number % 2 else (outside, inside)
            a, b = seconds(first), seconds(second)
            yield a / b if number % 2 else b / a


@contextmanager
def receiver() -> Iterator[int]:
    """A server on this machine that takes progress reports; its port."""
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def show(title: str, found: Sequence[float]) -> None:
    """A table of the ratios' quartiles."""
    quarters = statistics.quantiles(found, method="inclusive")
    print(f"{title:<28}{'q1':>8}{'median':>8}{'q3':>8}")
    print(f"{'time of a training step':<28}" + "".join(f"{quarter:>8.3f}" for quarter in quarters))


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as folder, receiver() as port:
        os.environ.update(environment(Path(folder), port))
        found = list(ratios())
    show("session over bare loop", found)
    print(json.dumps({"session_over_bare": round(statistics.median(found), 4), "blocks": BLOCKS}))


if __name__ == "__main__":
    main()
