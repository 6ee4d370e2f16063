"""Settings that are known to matter, each switched alone: the time of a step with it, over one without."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Muon

from bench.gpu import data
from bench.gpu.place import Bench
from bench.gpu.setting import Row, Setting
from bench.gpu.throughput import charlm_config
from piton_trainer.recipes.charlm.muon import BatchedMuon
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import TrainableModel

ROUNDS = 3
Step = Callable[[], object]


def compare(setting: Setting) -> list[Row]:
    """Two of each in turns, round by round."""
    depth = 12
    eager = _charlm(setting, depth, compile=False)
    rows = [
        _row(setting, "charlm: torch.compile", _charlm(setting, depth), eager),
        _row(setting, "charlm: bf16 over fp32", eager, _charlm(setting, depth, compile=False, precision="fp32")),
        _row(setting, "charlm fp32: TF32", *_tf32(_charlm(setting, depth, compile=False, precision="fp32"))),
        _row(setting, "charlm: SDPA's flash attention over its math", eager, _within(eager, _math_attention)),
        _row(setting, "charlm: activations computed again", *_checkpointing(setting, depth, eager)),
        _row(setting, "Muon: shape by shape", *(_muon(setting, kind) for kind in (BatchedMuon, Muon))),
        _row(setting, "AdamW: fused, over torch's default", _adamw(setting, fused=True), _adamw(setting, fused=None)),
        _row(setting, "retrieval: torch.compile", _retrieval(setting), _retrieval(setting, compile=False)),
        _row(setting, "batch to the device: pinned, not waiting", *_copies(setting)),
        _row(setting, "resnet50: channels_last", *_memory_formats(setting)),
        _row(setting, "resnet50: cudnn.benchmark", *_cudnn(setting)),
    ]
    if setting.device.type == "cuda":
        rows.append(_row(setting, "a step of small layers: CUDA graph", *_graphs(setting)))
    return rows


def _row(setting: Setting, what: str, with_it: Step, without: Step) -> Row:
    for step in (with_it, without):
        setting.seconds(step)  # compiles, and fills caches
    ratios = [
        setting.median_seconds(with_it, warm=1, times=3) / setting.median_seconds(without, warm=1, times=3)
        for _ in range(setting.size(ROUNDS, 1))
    ]
    return Row(what=what, value=statistics.median(ratios), unit="x the time")


def _charlm(setting: Setting, depth: int, **changes: Any) -> Step:
    """A step of `charlm` on one batch."""
    tokens = setting.size({"total_batch_tokens": 16_384, "device_batch_size": 8}, {})
    recipe = Charlm(charlm_config(setting, depth, **tokens, **changes), Bench(setting))
    trainee = TrainableModel(recipe, recipe.place)
    trainee.connect()
    recipe.tune(trainee.optimizers, fraction=0.1, step=10)
    batches = next(iter(recipe.loader))
    return lambda: trainee.step(batches)


def _retrieval(setting: Setting, *, compile: bool = True) -> Step:  # noqa: A002 - as the config names it
    """A step of `retrieval` on one batch."""
    recipe = data.retrieval(setting, compile=compile)
    trainee = TrainableModel(recipe, Bench(setting))
    trainee.connect()
    recipe.tune(trainee.optimizers, fraction=0.1, step=10)
    batches = next(iter(recipe.loader))
    return lambda: trainee.step(batches)


def _checkpointing(setting: Setting, depth: int, eager: Step) -> tuple[Step, Step]:
    return _charlm(setting, depth, compile=False, activation_checkpointing=True), eager


def _within(step: Step, context: Callable[[], Any]) -> Step:
    def inside() -> None:
        with context():
            step()

    return inside


def _math_attention() -> Any:
    return sdpa_kernel(SDPBackend.MATH)


def _tf32(step: Step) -> tuple[Step, Step]:
    @contextmanager
    def allowed() -> Iterator[None]:
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision("highest")

    return _within(step, allowed), step


def _muon(setting: Setting, kind: type[Muon]) -> Step:
    """A step of the blocks of `depth: 12`, with nothing around it."""
    width, depth = setting.size((768, 12), (32, 2))
    shapes = [*4 * [(width, width)], (4 * width, width), (width, 4 * width)]
    weights = [nn.Parameter(torch.randn(shape, device=setting.device)) for _ in range(depth) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return kind(weights, lr=0.02, weight_decay=0.0).step


def _adamw(setting: Setting, *, fused: bool | None) -> Step:
    """A step of many weights, with nothing around it."""
    count, side = setting.size((100, 1024), (10, 32))
    weights = [nn.Parameter(torch.randn(side, side, device=setting.device)) for _ in range(count)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return torch.optim.AdamW(weights, lr=1e-4, fused=fused).step


def _copies(setting: Setting) -> tuple[Step, Step]:
    """A batch of images, beside some work of the device."""
    count = setting.size(256, 4)
    plain = torch.randint(256, (count, 176, 176, 3), dtype=torch.uint8)
    pinned = plain.pin_memory() if setting.device.type == "cuda" else plain
    side = setting.size(4096, 64)
    matrix = torch.randn(side, side, device=setting.device)

    def work(batch: torch.Tensor, *, waits: bool) -> Step:
        return lambda: (matrix @ matrix, batch.to(setting.device, non_blocking=not waits))

    return work(pinned, waits=False), work(plain, waits=True)


def _memory_formats(setting: Setting) -> tuple[Step, Step]:
    """The recipe's own model, whose channels are last, over one that is contiguous."""

    def step(memory_format: torch.memory_format) -> Step:
        model = data.resnet50(setting, compile=False).build().to(setting.device, memory_format=memory_format)
        side = setting.size((128, 176), (4, 32))
        images = torch.randn(side[0], 3, side[1], side[1], device=setting.device).to(memory_format=memory_format)

        def once() -> None:
            with torch.autocast(setting.device.type, dtype=torch.bfloat16):
                loss = model(images).float().square().mean()
            loss.backward()

        return once

    return step(torch.channels_last), step(torch.contiguous_format)


def _cudnn(setting: Setting) -> tuple[Step, Step]:
    step, _ = _memory_formats(setting)

    @contextmanager
    def benchmark() -> Iterator[None]:
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = False

    return _within(step, benchmark), _within(step, nullcontext)


def _graphs(setting: Setting) -> tuple[Step, Step]:
    """The two towers' like: many small layers, whose launches cost more than their work."""
    layers: Sequence[nn.Module] = [nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(20)]
    model = nn.Sequential(*layers).to(setting.device)
    x = torch.randn(64, 256, device=setting.device)

    def step() -> None:
        model(x).square().mean().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay, step
