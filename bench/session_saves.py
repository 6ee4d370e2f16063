"""What a save through a session keeps training from, measured from outside: from the end of a step to the next update.

Everything counts that a loop of one's own would pay: the state dicts of model and optimizer, the plan, the copy. The
peers save the same state dicts, which they ask torch for as one does: `get_state_dict`, then the save. There is one
model of many small parameters and one of few large ones; both, with AdamW's momenta, have as many bytes.

`dcp.async_save` with a process is left out: it needs a file descriptor for each tensor, more than most limits allow.
"""

import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoint_methods import Memcpy, Method, peers, seconds
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.checkpoint.format import codec
from piton_trainer.config import Config

MEMCPY, PITON, BESIDE = "memcpy", "piton", "piton, copied beside a pass"
LAYERS: Mapping[str, tuple[int, int, int]] = {"many": (2000, 64, 64), "few": (8, 1024, 1000)}
"""How many layers, and how wide they are."""
COPIES = 5
"""A pass takes as long as so many copies of the state, where one is copied beside it."""


class Trained:
    """A model and AdamW after a step, and a pass that takes some time."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        count, width, height = LAYERS[kind]
        layers = [nn.Linear(width, height, bias=False) for _ in range(count)]
        blocks = [nn.Sequential(*layers[start : start + 10]) for start in range(0, count, 10)]
        self.model = nn.Sequential(*blocks)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, foreach=True)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self._one, self._other = torch.randn(768, 768), torch.randn(768, 768)
        self.rounds = 0
        self.update = 0.0
        """When the optimizer's newest step began."""

    def state(self) -> dict[str, Any]:
        """As torch has it."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def tune(self, wanted: float) -> None:
        """Let a pass take so many seconds."""
        while seconds(self.pass_through) < wanted:
            self.rounds = 2 * self.rounds or 1

    def pass_through(self) -> None:
        """What stands for forward and backward."""
        for _ in range(self.rounds):
            self._one @ self._other


def stalls_of_a_process(kind: str, repetitions: int, root: Path, seed: int) -> dict[str, list[float]]:
    """Each method's stalls in seconds, by repetition. All save the same state, one after the other."""
    warnings.simplefilter("ignore")
    root.mkdir()
    dist.init_process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=0, world_size=1)
    trained, chance = Trained(kind), random.Random(seed)
    tensors = codec.split(trained.state(), "state")[1]
    floor, others = Memcpy(root, tensors), peers(root, [AsyncCheckpointerType.THREAD])
    found: dict[str, list[float]] = {name: [] for name in (MEMCPY, *others, PITON, BESIDE)}
    with saves(root / "waiting", trained, overlaps=False) as waiting:
        for repetition in range(repetitions + 1):
            turns: dict[str, Callable[[], float]] = {
                MEMCPY: lambda: floor.stall(tensors, 0),
                PITON: lambda: next(waiting),
            } | {name: partial(stall_of, method, trained, repetition) for name, method in others.items()}
            for name, turn in chance.sample(list(turns.items()), len(turns)):
                found[name].append(turn())
    trained.tune(COPIES * statistics.median(found[MEMCPY]))
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # the copy has a core, as on a machine with GPUs
    with saves(root / "overlapped", trained, overlaps=True) as overlapped:
        found[BESIDE] = [next(overlapped) for _ in range(repetitions + 1)]
    for method in others.values():
        method.close()
    dist.destroy_process_group()
    return {name: stalls[1:] for name, stalls in found.items()}  # the first save of a process is a row of its own


def stall_of(method: Method, trained: Trained, step: int) -> float:
    """Seconds until the tensors may change; what is saved is durable, and gone, by the end."""
    took = seconds(lambda: method.save(trained.state(), step))
    method.wait()
    method.tidy()
    return took


@contextmanager
def saves(directory: Path, trained: Trained, *, overlaps: bool) -> Iterator[Iterator[float]]:
    """By how many seconds each save of a session makes the next step's update later; each is durable by then."""
    config = Config(checkpoint_dir=directory, assignment=Assignment(save=SavePolicy(every_steps=2, keep_last=1)))
    with piton_trainer.session(config, overlap_saves=overlaps) as session:
        session.restore(model=trained.model, optimizer=trained.optimizer)
        yield steps_with_saves(session, trained)


def steps_with_saves(session: piton_trainer.Session, trained: Trained) -> Iterator[float]:
    """Train; every other step is saved, and compared with the one before it, which is not."""
    alone = ended = 0.0
    for number in session.steps(count()):
        trained.pass_through()
        # The session lets an optimizer step when all is copied. Its hook is there since the first save, and ours after.
        hook = trained.optimizer.register_step_pre_hook(lambda *_: setattr(trained, "update", time.perf_counter()))
        trained.optimizer.step()
        hook.remove()
        took = trained.update - ended
        if number and number % 2 == 0:
            while not (session.directory / names.step_folder(number)).is_dir():
                time.sleep(0.01)
            yield took - alone
        alone, ended = took, time.perf_counter()
