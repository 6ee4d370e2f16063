"""Tensors come back with the strides that they had: a product of matrices has other last bits with others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import piton_trainer
from piton_trainer.checkpoint.format import codec, strides
from piton_trainer.errors import Stopped
from support import resume, tiny

STEPS, STOP, SIZE = 12, 7, 32


class Eigen(Optimizer):
    """A preconditioner of eigenvectors, which `torch.linalg.eigh` returns by columns."""

    def __init__(self, parameters: Any, *, in_list: bool) -> None:
        super().__init__(parameters, {"lr": 0.05})
        self.in_list = in_list

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, rows = self.state[parameter], parameter.grad.reshape(len(parameter), -1)
                if not state:
                    state |= {"sum": torch.zeros(len(rows), len(rows)), "n": 0}
                    state["vectors"] = [torch.eye(len(rows))] if self.in_list else torch.eye(len(rows))
                state["sum"].lerp_(rows @ rows.T, 0.1)
                state["n"] += 1
                if state["n"] % 5 == 0:  # not at the first save
                    found = torch.linalg.eigh(state["sum"] + 1e-6 * torch.eye(len(rows)))[1]
                    state["vectors"] = [found] if self.in_list else found
                vectors = state["vectors"][0] if self.in_list else state["vectors"]
                parameter.sub_((vectors @ (vectors.T @ rows)).reshape(parameter.shape), alpha=group["lr"])


class Whitened(nn.Module):
    """A buffer that is replaced by eigenvectors in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, SIZE)
        self.register_buffer("vectors", torch.eye(SIZE))
        self.head = nn.Linear(SIZE, 1)

    def forward(self, batch: Tensor) -> Tensor:
        hidden = self.body(batch).tanh()
        found: Tensor = self.head(hidden @ self.vectors)
        return found

    @torch.no_grad()
    def turn(self, step: int) -> None:
        if step == STOP - 2:
            self.vectors = torch.linalg.eigh(self.body.weight @ self.body.weight.T)[1]


class Memory:
    """An object of the user's with a tensor of any strides."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self.make, self.value = make, torch.zeros(SIZE, SIZE)

    def see(self, step: int) -> None:
        if step == STOP - 2:
            self.value = self.make(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(step)))

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def train(
    directory: Path,
    build: Callable[[], nn.Module],
    make: Callable[[nn.Module], Optimizer],
    *,
    memory: Memory | None = None,
    stop: bool = False,
) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """Train; return the weights, and the strides of what is no parameter."""
    torch.manual_seed(0)
    model = build()
    optimizer = make(model)
    torch.manual_seed(1)
    with piton_trainer.session(tiny.config(directory, tiny.every(1))) as session:
        session.restore(model=model, optimizer=optimizer, memory=memory)
        for batch in session.steps([torch.randn(8, 4) for _ in range(STEPS)]):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if isinstance(model, Whitened):
                model.turn(session.step)
            if memory is not None:
                memory.see(session.step)
                with torch.no_grad():
                    next(model.parameters()).add_((memory.value @ memory.value.T).mean() * 1e-3)
            if stop and session.step + 1 == STOP:
                tiny.terminate(session)
    kept = [*model.buffers(), *([] if memory is None else [memory.value])]
    kept += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [parameter.detach().clone() for parameter in model.parameters()], [value.stride() for value in kept]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, SIZE), nn.Tanh(), nn.Linear(SIZE, 1))


def images() -> nn.Module:
    layers = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(8, 1))
    return layers.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.05, momentum=0.9)


CASES: dict[str, Any] = {
    "state of an optimizer": (net, lambda model: Eigen(model.parameters(), in_list=False), None),
    "lists in the state of an optimizer": (net, lambda model: Eigen(model.parameters(), in_list=True), None),
    "buffers": (Whitened, sgd, None),
    "momenta of channels_last": (images, sgd, None),
    "transposed tensors": (net, sgd, Tensor.t),
    "expanded tensors": (net, sgd, lambda rows: rows[:1].expand(SIZE, SIZE)),
    "columns": (net, sgd, lambda rows: rows[:, ::3]),
    "windows that overlap": (net, sgd, lambda rows: rows.reshape(-1).unfold(0, SIZE, 5)),
}


@pytest.mark.parametrize("case", CASES)
@resume.exact("states: tensors with strides of their own: of eigh and qr, channels_last, transposed, expanded", "")
def test_tensors_lie_in_memory_as_they_did(case: str, tmp_path: Path) -> None:
    build, make, remember = CASES[case]

    def memory() -> Memory | None:
        return None if remember is None else Memory(remember)

    weights, layout = train(tmp_path / "whole", build, make, memory=memory())
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", build, make, memory=memory(), stop=True)
    resumed, again = train(tmp_path / "stopped", build, make, memory=memory())
    assert again == layout
    assert all(map(torch.equal, weights, resumed))


def test_momenta_lie_as_their_weights_do_where_the_script_lays_these_otherwise(tmp_path: Path) -> None:
    """A fused step takes no others."""
    with pytest.raises(Stopped):
        train(tmp_path, images, sgd, stop=True)
    _, layout = train(tmp_path, lambda: images().to(memory_format=torch.contiguous_format), sgd)  # type: ignore[call-overload]
    assert (36, 9, 3, 1) in layout


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(6).reshape(6, 1, 1)[::2],
        torch.arange(3.0).expand(4, 3),
        torch.randn(2, 3, dtype=torch.complex64).t().conj(),
        torch.ones(4, 3, dtype=torch.bool).t(),
        torch.zeros(0, 3).t(),
        torch.tensor(1.0),
        torch.arange(10.0).unfold(0, 4, 3),
    ],
)
def test_a_document_has_strides_only_where_numbers_do_not_lie_by_rows(tensor: Tensor) -> None:
    document, tensors = codec.split({"value": tensor}, "key")
    document = json.loads(json.dumps(document))
    rows = {key: value.contiguous().resolve_conj() for key, value in tensors.items()}
    found = codec.join(document, rows.__getitem__)["value"]
    assert torch.equal(found, tensor)
    assert not tensor.numel() or found.stride() == tensor.stride()
    is_by_rows = not tensor.numel() or tensor.stride() == strides.by_rows(tensor.shape)
    assert ("$stride" in document["value"]) == (not is_by_rows)
    assert codec.keys(document) == ["key/value"]


def test_what_spans_much_more_memory_than_it_has_numbers_comes_back_by_rows() -> None:
    document, _ = codec.split(torch.zeros(4, 1000)[:, 0], "key")
    assert document == {"$tensor": "key"}
