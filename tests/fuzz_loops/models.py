"""The parts of a model, by their words."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fuzz_loops.loop import FSDP2, Loop

INPUTS, WIDTH = 4, 8


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.one(x)))  # type: ignore[no-any-return]


class Unused(nn.Module):
    """A layer that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Recurrent(nn.Module):
    """A GRU over a sequence of two."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(torch.stack((x, -x), dim=1))[0][:, -1]  # type: ignore[no-any-return]


class Convolution(nn.Module):
    """A convolution along the features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]


class Embedded(nn.Module):
    """An embedding of the sign of the first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table((x[:, 0] > 0).long())  # type: ignore[no-any-return]


class ExtraState(nn.Module):
    """A layer that counts its calls in state of its own, and scales by them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1 + 0.01 * self.calls)

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class Calls(nn.Module):
    """A layer that counts its calls in a buffer of whole numbers."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls.item())


class Transposed(nn.Module):
    """A weight whose numbers lie in columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(WIDTH, WIDTH).t())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Scalar(nn.Module):
    """A weight that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.9))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class OwnNoise(nn.Module):
    """Noise from a generator of its own, which no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def linear() -> nn.Linear:
    """Return a layer as wide as all of them."""
    return nn.Linear(WIDTH, WIDTH)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "tanh": nn.Tanh,
    "dropout": lambda: nn.Dropout(0.2),
    "batchnorm": lambda: nn.BatchNorm1d(WIDTH),
    "layernorm": lambda: nn.LayerNorm(WIDTH),
    "weightnorm": lambda: weight_norm(linear()),
    "spectralnorm": lambda: spectral_norm(linear()),
    "tied": Tied,
    "frozen": lambda: linear().requires_grad_(False),
    "unused": Unused,
    "gru": Recurrent,
    "conv": Convolution,
    "embedding": Embedded,
    "extra state": ExtraState,
    "calls": Calls,
    "transposed": Transposed,
    "scalar": Scalar,
    "own noise": OwnNoise,
}


def net_of(loop: Loop) -> nn.Sequential:
    """Return the model of a loop, the same on all ranks, sharded where the loop says so."""
    parts = [MAKERS[word]() for word in loop.parts]
    net = nn.Sequential(nn.Linear(INPUTS, WIDTH), *parts, nn.Linear(WIDTH, 1))
    if loop.bfloat16:
        net.to(torch.bfloat16)
    if loop.parallel == FSDP2:
        mesh = init_device_mesh("cpu", (loop.ranks,))
        for part in (*(part for part in net if any(True for _ in part.parameters())), net):
            fully_shard(part, mesh=mesh)
    return net
