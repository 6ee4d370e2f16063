"""The script under Piton, and the same script without it: the oracle."""

import multiprocessing
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

import piton_trainer
from fuzz_loops.feeds import Shuffled
from fuzz_loops.loop import KILL, Kill, Loop
from fuzz_loops.models import OwnNoise
from fuzz_loops.script import Script, Trace
from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.config import Config
from piton_trainer.state import rng


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an attempt leaves what it has to say."""

    folder: Path
    name: str

    def file(self, kind: str, rank: int) -> Path:
        """Return a file of one rank."""
        return self.folder / f"{self.name}.{rank}.{kind}"


def _begin(place: Place) -> int:
    """Send what this process writes to a file, let it have workers, and be as lenient as torch; return its rank."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    rank = int(os.environ["RANK"])
    warnings.simplefilter("ignore")
    output = place.file("log", rank).open("a", buffering=1)
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    sys.stdout = sys.stderr = output
    return rank


def under_piton(loop: Loop, place: Place, checkpoints: Path, *, seed: int, kill: Kill | None) -> None:
    """Run one attempt of a loop."""
    rank = _begin(place)

    def at(number: int, phase: str) -> None:
        # Not every step has each phase; "end" always comes.
        if kill is not None and (kill.step, kill.rank) == (number, rank) and phase in (kill.phase, "end"):
            if kill.signal == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.raise_signal(signal.SIGTERM)

    policy = Assignment(save=SavePolicy(every_steps=loop.every))
    config = Config(checkpoint_dir=checkpoints, assignment=policy, background_saves=loop.background)
    with piton_trainer.session(config, overlap_saves=loop.overlaps) as session:
        script = Script(loop, rank=rank, seed=seed)
        trace = Trace(place.file("trace", rank), script)
        optimizers: Any = script.optimizers if len(script.optimizers) > 1 else script.optimizers[0]
        restored = session.restore(model=script.model, optimizer=optimizers, loader=script.loader, **script.extras())
        trace.begin(None if restored is None else restored.step)
        accumulate = loop.accumulate if loop.declared else None
        for x in session.steps(script.loader, epochs=loop.epochs, accumulate=accumulate):
            number = session.step + 1
            trace.step(number, x, script.step(number, x, at))
    trace.end()


def without(
    loop: Loop, place: Place, *, seed: int, saves: frozenset[int] = frozenset(), load: Path | None = None
) -> None:
    """Run the whole of a loop, or what is left of it after a save. Saves have the number of their step."""
    rank = _begin(place)
    if loop.ranks > 1:
        dist.init_process_group("gloo")
    script = Script(loop, rank=rank, seed=seed)
    trace = Trace(place.file("trace", rank), script)
    for number, x in _batches(script, place, rank=rank, saves=saves, load=load):
        trace.step(number, x, script.step(number, x, lambda number, phase: None))
    trace.end()
    if loop.ranks > 1:
        dist.destroy_process_group()


def _batches(
    script: Script, place: Place, *, rank: int, saves: frozenset[int], load: Path | None
) -> Iterator[tuple[int, Tensor]]:
    """The batches as a plain script has them, with `torch.save` after some and `torch.load` before the first."""
    loader: Any = script.loader
    length = 1 if script.loop.loader == "stream" else len(loader)
    saved = None if load is None else _load(script, load, rank)
    number, epoch, done = (0, 0, 0) if saved is None else (saved["number"], saved["epoch"], saved["done"])
    if saved is not None and length != saved["batches"]:
        done = done * length // saved["batches"]
    while epoch < script.loop.epochs:
        batches, begun = _open(loader, epoch, done, saved, rank)
        saved = None
        for x in batches:
            number, done = number + 1, done + 1
            yield number, x
            if number in saves:
                counts = {"number": number, "epoch": epoch, "done": done, "batches": length}
                _save(script, place.folder / f"saved-{number}", rank, counts, begun)
        epoch, done = epoch + 1, 0


def _open(loader: Any, epoch: int, done: int, saved: dict[str, Any] | None, rank: int) -> tuple[Iterator[Tensor], Any]:
    """Return the batches of an epoch that are left, and the random numbers that it began with."""
    sampler: Any = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    if saved is not None:
        if epoch and getattr(loader, "persistent_workers", False):
            iter(loader)  # starts the workers with a random number, which no later epoch draws
        _restore_random(saved["epoch random" if done else "random"], saved, rank, loader)
    begun, batches = _random(loader), iter(loader)
    if not hasattr(loader, "load_state_dict"):
        for _ in range(done):
            next(batches)
    if saved is not None and done:  # with more ranks, what was done may be less than one batch: the epoch begins anew
        _restore_random(saved["random"], saved, rank, loader)
    return batches, begun


def _save(script: Script, folder: Path, rank: int, counts: dict[str, int], begun: Any) -> None:
    folder.mkdir(exist_ok=True)
    loader = script.loader
    state = {
        **counts,
        "epoch random": begun,
        "random": _random(loader),
        "trained": [weight.requires_grad for weight in script.net[0].parameters()],
        "noise": [part.generator.get_state() for part in _noises(script.net)],
        "loader": loader.state_dict() if hasattr(loader, "state_dict") else None,
        "model": _whole(script.net.state_dict()),
        "optimizers": [_whole(optimizer.state_dict()) for optimizer in script.optimizers],
        "extras": {name: _state_of(value) for name, value in script.extras().items()},
    }
    torch.save(state, folder / f"{rank}.pt")


def _load(script: Script, folder: Path, rank: int) -> dict[str, Any]:
    """Load the file of a rank; a rank that was not there has that of rank 0, and random numbers of its own."""
    own = folder / f"{rank}.pt"
    saved: dict[str, Any] = torch.load(own if own.exists() else folder / "0.pt", weights_only=False)
    saved["is new"] = not own.exists()
    if len(list(folder.glob("*.pt"))) != script.loop.ranks:  # Piton says so: all ranks go on with the buffers of rank 0
        first = torch.load(folder / "0.pt", weights_only=False)["model"]
        saved["model"].update({name: first[name] for name, _ in script.net.named_buffers() if name in first})
    _load_module(script.net, saved["model"])
    for weight, is_trained in zip(script.net[0].parameters(), saved["trained"], strict=True):
        weight.requires_grad_(is_trained)
    for part, state in () if saved["is new"] else zip(_noises(script.net), saved["noise"], strict=True):
        part.generator.set_state(state)
    is_cast = saved["model"]["0.weight"].dtype != script.net[0].weight.dtype
    for optimizer, state in zip(script.optimizers, saved["optimizers"], strict=True):
        _load_optimizer(optimizer, state, is_cast=is_cast)
    for name, value in script.extras().items():
        state = saved["extras"][name]
        if isinstance(value, torch.Generator):
            value.set_state(state)
        elif isinstance(value, torch.nn.Module):
            _load_module(value, state)
        else:
            value.load_state_dict(state)
    if hasattr(script.loader, "load_state_dict"):
        script.loader.load_state_dict(saved["loader"])
    return saved


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any], *, is_cast: bool) -> None:
    """Load a state, and put back what torch rounds to the type of the weights, unless these have another one now."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    entries = {number: _spread(entry, weights[number]) for number, entry in state["state"].items()}
    optimizer.load_state_dict({**state, "state": entries})
    for number, entry in () if is_cast else entries.items():
        live = optimizer.state[weights[number]]
        live.update(
            {key: value for key, value in entry.items() if isinstance(value, Tensor) and value.dtype != live[key].dtype}
        )


def _load_module(module: torch.nn.Module, state: dict[str, Any]) -> None:
    live = module.state_dict()
    module.load_state_dict({name: _spread(value, live.get(name)) for name, value in state.items()})


def _state_of(value: Any) -> Any:
    return value.get_state() if isinstance(value, torch.Generator) else _whole(value.state_dict())


def _whole(value: Any) -> Any:
    """Return a state with the whole of each sharded tensor."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {**value, **{name: _whole(part) for name, part in value.items()}} if _has_shards(value) else value
    return [_whole(part) for part in value] if type(value) is list else value


def _has_shards(value: Any) -> bool:
    """True if a state has sharded tensors; one without is saved as it is, in its own types."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, DTensor) or any(map(_has_shards, parts))


def _spread(value: Any, like: Any) -> Any:
    """Return a state with tensors sharded as this one, those of its shape."""
    if isinstance(value, dict):
        return {name: _spread(part, like) for name, part in value.items()}
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def _noises(net: torch.nn.Module) -> list[OwnNoise]:
    return [part for part in net.modules() if isinstance(part, OwnNoise)]


def _generators(loader: Any) -> list[torch.Generator]:
    owners = (loader, getattr(loader, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in dict.fromkeys(found) if generator is not None]


def _random(loader: Any) -> Any:
    own = [generator.get_state() for generator in _generators(loader)]
    sampler = getattr(loader, "sampler", None)
    drawn = sampler.random.getstate() if isinstance(sampler, Shuffled) else None
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), own, torch.initial_seed(), drawn


def _restore_random(state: Any, saved: dict[str, Any], rank: int, loader: Any) -> None:
    """Put random numbers back. A new rank has Piton's: nothing else says what they should be."""
    if saved["is new"]:
        rng.derive(seed=state[4], step=saved["number"], rank=rank)
        return
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])
    for generator, own in zip(_generators(loader), state[3], strict=True):
        generator.set_state(own)
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, Shuffled):
        sampler.random.setstate(state[5])
