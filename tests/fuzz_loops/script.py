"""The loop as a user writes it, and a trace of all that it is made of after each step."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fuzz_loops.feeds import loader_of
from fuzz_loops.loop import DDP, Loop
from fuzz_loops.models import net_of
from fuzz_loops.optimizers import MOVES_AT, move_groups, optimizers_of, scheduler_of, spelled
from fuzz_loops.states import objects_of

At = Callable[[int, str], object]
"""Called at each moment of a step: where a kill comes from."""
DECAY = 0.9


class Shadow:
    """An average of the weights in a class of one's own."""

    def __init__(self, net: nn.Module) -> None:
        self._weights = {name: weight.detach().clone() for name, weight in net.named_parameters()}
        self._updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self._updates += 1
        for name, weight in net.named_parameters():
            self._weights[name].lerp_(weight, 1 - DECAY)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights, self._updates = state["weights"], state["updates"]


class Average(nn.Module):
    """An average of the weights in a second model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        for own, weight in zip(self.net.parameters(), net.parameters(), strict=True):
            own.lerp_(weight, 1 - DECAY)


class Averaged(AveragedModel):
    """torch's average."""

    def update(self, net: nn.Module) -> None:
        self.update_parameters(net)


class Script:
    """Everything that a script builds before its loop, and its step."""

    def __init__(self, loop: Loop, *, rank: int, seed: int) -> None:
        """Build it. Attempts have other seeds: what does not come back at a resume is another than before."""
        self.loop = loop
        torch.manual_seed(seed)
        self.net = net_of(loop)
        self.net[0].requires_grad_(not loop.thaws)
        self.optimizers = optimizers_of(loop, self.net)
        self.scheduler = scheduler_of(loop, self.optimizers[0])
        self.ema = self._average()
        torch.manual_seed(1000 * seed + rank)
        random.seed(1000 * seed + rank)
        np.random.seed(1000 * seed + rank)
        first = 1000 * rank + seed if loop.apart else seed
        self.objects = objects_of(loop.objects, first)
        self.generator = torch.Generator().manual_seed(seed + rank) if "generator" in loop.objects else None
        self.scaler = (
            torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3) if "scaler" in loop.objects else None
        )
        self.loader = loader_of(loop, rank)
        self.names = {id(weight): name for name, weight in self.net.named_parameters()}
        self._wrapped: nn.Module | None = self.wrap() if loop.wrapped else None

    def _average(self) -> Any:
        match self.loop.ema:
            case "averaged" | "with buffers" as kind:
                average = get_ema_multi_avg_fn(DECAY)  # type: ignore[no-untyped-call]
                return Averaged(self.net, multi_avg_fn=average, use_buffers=kind == "with buffers")
            case "shadow":
                return Shadow(self.net)
            case "module":
                return Average(net_of(self.loop))
            case _:
                return None

    def wrap(self) -> nn.Module:
        """Return the model that the batches go through."""
        if self.loop.parallel != DDP:
            return self.net
        unused, broadcasts = "unused" in self.loop.parts, self.loop.broadcasts
        ddp = DistributedDataParallel(self.net, find_unused_parameters=unused, broadcast_buffers=broadcasts)
        if self.loop.ranks > 2:
            ddp.register_comm_hook(None, _sum_by_rank)
        return ddp

    @property
    def model(self) -> nn.Module:
        """What the session is given as the model."""
        return self._wrapped or self.net

    def extras(self) -> dict[str, Any]:
        """Return all objects with state but model, optimizers and loader, by name."""
        given = {"scheduler": self.scheduler, "ema": self.ema, "generator": self.generator, "scaler": self.scaler}
        return {name: value for name, value in (*given.items(), *self.objects.items()) if value is not None}

    def step(self, number: int, x: Tensor, at: At) -> float:
        """Train on a batch, the one of this number, counted from 1; return its loss."""
        loop, self._wrapped = self.loop, self._wrapped or self.wrap()
        at(number, "batch")
        if number == MOVES_AT:
            move_groups(loop, self.net, self.optimizers[0])
            self.net[0].requires_grad_(True)
        x = x + self._noise(x)
        steps = number % loop.accumulate == 0
        if not loop.clears_after and (number - 1) % loop.accumulate == 0:
            self._clear()
        if loop.optimizer == "LBFGS":
            loss: Any = self.optimizers[0].step(lambda: self._backward(x))  # type: ignore[arg-type, return-value]
            at(number, "step")
        else:
            waits = loop.parallel == DDP and not steps
            with self._wrapped.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss = self._backward(x, lambda phase: at(number, phase))
            if steps:
                self._update()
                at(number, "step")
        if steps:
            self._after(loss)
        at(number, "end")
        return float(loss)

    def _noise(self, x: Tensor) -> Tensor:
        loop, noise = self.loop, torch.zeros_like(x)
        for value in self.objects.values():
            noise = noise + value.see(x)
        if self.generator is not None:
            noise = noise + 0.1 * torch.randn(x.shape, generator=self.generator)
        if "torch" in loop.noise:
            noise = noise + 0.1 * torch.randn(x.shape)
        if "python" in loop.noise:
            noise = noise + 0.1 * random.random()
        return noise + 0.1 * float(np.random.rand()) if "numpy" in loop.noise else noise

    def _backward(self, x: Tensor, at: Callable[[str], object] = lambda phase: None) -> Tensor:
        if self.loop.optimizer == "LBFGS":
            self._clear()
        assert self._wrapped is not None
        x = x.to(torch.bfloat16) if self.loop.bfloat16 else x
        loss: Tensor = (self._wrapped(x).squeeze(1) - x.sum(dim=1)).square().mean()
        at("forward")
        loss.register_hook(lambda _: at("backward"))  # type: ignore[no-untyped-call]
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self) -> None:
        if self.loop.clips:
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step() if self.scaler is None else self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()

    def _after(self, loss: Tensor) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(self._mean(loss))
        elif self.scheduler is not None:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.net)
        if self.loop.clears_after:
            self._clear()

    def _mean(self, loss: Tensor) -> float:
        """Return the mean of all ranks, so that they keep the same rate."""
        total = loss.float().clone()
        if self.loop.ranks > 1:
            dist.all_reduce(total)
        return float(total)

    def _clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def state(self) -> dict[str, str]:
        """Return digests of all that the script is made of, as of now."""
        found = {
            "weights": dict(self.net.named_parameters()),
            "buffers": dict(self.net.named_buffers()),
            "trained": [name for name, weight in self.net.named_parameters() if weight.requires_grad],
            "model": {name: value for name, value in self.net.state_dict().items() if not isinstance(value, Tensor)},
            "optimizers": [spelled(optimizer, self.names) for optimizer in self.optimizers],
            "random numbers": [torch.get_rng_state(), random.getstate(), np.random.get_state()],
        }
        for name, value in self.extras().items():
            found[name] = value.get_state() if isinstance(value, torch.Generator) else value.state_dict()
        return {name: digest(value) for name, value in found.items()}


def _sum_by_rank(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum gradients in the order of the ranks.

    torch lays its buckets out anew after the first step of a process, and where a gradient lies decides in which order
    three ranks are summed: a resume over torch.save is not exact either.
    """
    own = bucket.buffer()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(torch.stack(parts).sum(dim=0) / len(parts))
    return done


class Trace:
    """A file that has a line for each step, also if the process is killed."""

    def __init__(self, path: Path, script: Script) -> None:
        self._file = path.open("a")
        self._script = script

    def begin(self, resumed_from: int | None) -> None:
        """Note the step that this attempt resumes from."""
        self._write({"step": "begin", "from": resumed_from})

    def step(self, number: int, batch: Tensor, loss: float) -> None:
        """Note all that there is after a step."""
        self._write({"step": number, "batch": digest(batch), "loss": loss.hex(), **self._script.state()})

    def end(self) -> None:
        """Note all that there is after the loop."""
        self._write({"step": "end", **self._script.state()})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def digest(value: Any) -> str:
    """Return a digest of a state: types and contents, of a sharded tensor this rank's part."""
    found = hashlib.blake2b(digest_size=6)
    for part in _flat(value):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()


@torch.no_grad()
def _flat(value: Any) -> Iterable[bytes]:
    kind = type(value)
    if isinstance(value, Tensor):
        local = value.to_local() if isinstance(value, DTensor) else value
        local = local.to_dense() if local.layout is not torch.strided else local
        yield f"{value.dtype} {tuple(value.shape)} {value.layout}".encode()
        yield local.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        yield f"{kind.__name__} {getattr(value, 'default_factory', '')}".encode()
        items = (
            value.items() if kind.__name__ == "OrderedDict" else sorted(value.items(), key=lambda item: repr(item[0]))
        )
        for name, part in items:
            yield from _flat(name)
            yield from _flat(part)
    elif isinstance(value, list | tuple | set) or kind.__name__ == "deque":
        yield f"{kind.__name__} {len(value)} {getattr(value, 'maxlen', '')}".encode()
        for part in sorted(value) if isinstance(value, set) else value:
            yield from _flat(part)
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _flat([kind.__name__, *(getattr(value, field.name) for field in fields(value))])
    else:
        yield f"{kind.__name__} {value.hex() if kind is float else value!r}".encode()
