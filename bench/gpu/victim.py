"""A training on the device that is killed and told to stop: `python -m bench.gpu.victim VARIANT FOLDER`.

Its seed differs from attempt to attempt, so whatever a resumed attempt did not restore, it gets wrong. The last attempt
leaves its weights in FOLDER/weights.pt.
"""

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.config import Config
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import train

STEPS, SAVE_EVERY = 14, 2
KILLED_AT, TOLD_AT = 6, 10
WEIGHTS = "weights.pt"
ORDERS = Assignment(save=SavePolicy(every_steps=SAVE_EVERY))
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Event = Callable[[int], None]


def main() -> None:
    """One attempt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=["fp32", *_HALF, "sharded"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--killed", action="store_true")
    parser.add_argument("--told", action="store_true")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    checkpoints = options.folder / "checkpoints"
    seed = 5 if checkpoints.exists() else 0

    def event(step: int) -> None:
        if options.killed and step == KILLED_AT:
            _die(checkpoints)
        if options.told and step == TOLD_AT:
            signal.raise_signal(signal.SIGTERM)

    config = Config(checkpoint_dir=checkpoints, assignment=ORDERS)
    if options.variant == "sharded":
        weights = sharded(config, event, dry=options.dry)
    else:
        weights = plain(config, options.variant, event, seed=seed, dry=options.dry)
    torch.save(weights, options.folder / WEIGHTS)


def plain(config: Config, variant: str, event: Event, *, seed: int, dry: bool) -> dict[str, Tensor]:
    """A loop as anybody would write it: dropout, autocast, a scaler for fp16, a fused optimizer on a GPU."""
    torch.manual_seed(seed)
    with piton_trainer.session(config) as session:
        device, width = session.device, 64 if dry else 1024
        model = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
        scaler = torch.amp.GradScaler(device.type, enabled=variant == "fp16")
        data = torch.randn(STEPS * 16, width, generator=torch.Generator().manual_seed(1))
        loader = DataLoader(TensorDataset(data), batch_size=16, shuffle=True, pin_memory=device.type == "cuda")
        session.restore(model=model, optimizer=optimizer, loader=loader, scaler=scaler)
        for (batch,) in session.steps(loader, total=STEPS):
            event(session.step + 1)
            x = batch.to(device, non_blocking=True)
            half = _HALF.get(variant, torch.bfloat16)
            with torch.autocast(device.type, dtype=half, enabled=variant in _HALF):
                loss = nn.functional.mse_loss(model(x + 0.01 * torch.randn_like(x)), x)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            session.report(loss=loss)
    return _whole(model)


def sharded(config: Config, event: Event, *, dry: bool) -> dict[str, Tensor]:
    """`charlm` through the shared loop: FSDP2 on one rank, compiled, activations computed again."""
    with one_rank(config.checkpoint_dir.parent), piton_trainer.session(config) as session:
        recipe = Victim(_small(dry=dry), session)
        recipe.event = event
        train(session, recipe)
        assert recipe.model is not None
        return _whole(recipe.model)


class Victim(Charlm):
    """The recipe, to which something happens, and which remembers its model."""

    event: Event
    model: nn.Module | None = None

    def draw_weights(self, model: nn.Module) -> None:
        """Draw the initial weights."""
        self.model = model
        super().draw_weights(model)

    def tune(self, optimizers: object, *, fraction: float, step: int) -> None:
        """Before each step."""
        self.event(step + 1)
        super().tune(optimizers, fraction=fraction, step=step)  # type: ignore[arg-type]


def _small(*, dry: bool) -> CharlmConfig:
    sizes = {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "sequence_length": 32, "device_batch_size": 2}
    full = {"depth": 4, "aspect_ratio": 64, "head_dim": 128, "sequence_length": 512, "device_batch_size": 4}
    chosen = sizes if dry else full
    return CharlmConfig(
        **chosen,
        total_batch_tokens=chosen["sequence_length"] * chosen["device_batch_size"] * 2,
        eval_tokens=chosen["sequence_length"] * 4,
        dropout=0.1,
        steps=STEPS,
        eval_every=STEPS,
        precision="bf16",
        compile=True,
        parallelism="fsdp",
        activation_checkpointing=True,
    )


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """A world of one rank: NCCL for the device beside gloo for the CPU."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = folder / f"rendezvous-{os.getpid()}"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _die(checkpoints: Path) -> None:
    """Without a word, but not before there is something to resume from."""
    while not any(checkpoints.glob(f"{names.STEP_PREFIX}*")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def _whole(model: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, while there is a group to gather shards in."""
    weights = model.state_dict().items()
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu() for name, value in weights}


if __name__ == "__main__":
    main()
