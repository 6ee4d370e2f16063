"""What a checkpoint of tensors on the device costs, over what PCIe and the disk could do at best, beside other ways.

All methods take turns, repetition by repetition; the rows are medians of ratios within a repetition.

    stall           how long `save` keeps training from going on, over one copy of the state into pinned memory
    durable         until what was saved is on the disk, over one raw write past the page cache
    step            a training step on the device while a save is being written, over one that is alone
    load            the state read back from the disk into the device's tensors, over one raw read
"""

import random
import statistics
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from bench.checkpoint_methods import (
    Dcp,
    DcpAsync,
    Method,
    Piton,
    Raw,
    Safetensors,
    State,
    TorchSave,
    drop_from_cache,
    is_consistent,
    save_file,
    seconds,
)
from bench.gpu.setting import Row, Setting
from bench.gpu.victim import one_rank

PINNED, PAGEABLE, RAW, PITON = "pinned copy", "pageable copy", "raw O_DIRECT", "piton"
REPETITIONS = 3
LAYER_BYTES = 100 << 20
MOST_LAYERS = 8
"""0.8 GB."""
STAGERS_STAY = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 13)
"""`dcp.async_save` of torch 2.11 closes a stager that it is given after one save; 2.12 was not tried."""
Ratios = dict[str, dict[str, list[float]]]


class Copy(Method):
    """Floor of a stall: the state into memory of the host, at PCIe's speed where that is pinned."""

    can_load = False
    only_stall = True

    def __init__(self, folder: Path, state: State, *, pinned: bool) -> None:
        super().__init__(folder)
        self._copies = [torch.empty_like(value, device="cpu", pin_memory=pinned) for value in state.values()]

    def save(self, state: State, step: int) -> None:
        """Copy."""
        for copy, value in zip(self._copies, state.values(), strict=True):
            copy.copy_(value, non_blocking=True)


def measure(setting: Setting) -> list[Row]:
    """Everything, on one state of weights and momenta."""
    warnings.simplefilter("ignore")
    state = _state(setting, layers=setting.size(_layers(setting), 1))
    size = sum(value.nbytes for value in state.values())
    found: Ratios = defaultdict(lambda: defaultdict(list))
    with one_rank(setting.folder):
        methods = _methods(setting, state, size)
        try:
            floors = _saves(setting, methods, state, found)
            _steps(setting, methods, state, found)
            _loads(setting, methods, state, found)
            consistent = is_consistent(methods[PITON], state)
        finally:
            for method in methods.values():
                method.close()
    setting.check(consistent, "a change right after `save` came into the checkpoint")
    return [Row(what="state", value=size / 1e9, unit="GB"), *_floors(floors, size), *_rows(found)]


def _layers(setting: Setting) -> int:
    """Return how many layers this disk writes in about a second, so that all methods have their turns in time."""
    folder = setting.folder / "probe"
    folder.mkdir()
    probe = Raw(folder, 2 * LAYER_BYTES)
    took = seconds(partial(probe.save, {}, 0))
    probe.tidy()
    return max(1, min(MOST_LAYERS, int(2 / took)))


def _state(setting: Setting, *, layers: int) -> State:
    """Return weights and Adam's momenta of transformer layers: 0.1 GB for each, or 6 MB on the CPU."""
    width = setting.size(1024, 256)
    shapes = {"attention": (4 * width, width), "up": (4 * width, width), "norm": (width,)}
    names = [f"{kind}/{layer}/{name}" for kind in "wmv" for layer in range(layers) for name in shapes]
    return {name: torch.randn(shapes[name.rpartition("/")[2]], device=setting.device) for name in names}


def _methods(setting: Setting, state: State, size: int) -> dict[str, Method]:
    def folder(name: str) -> Path:
        path = setting.folder / name.replace(" ", "-")
        path.mkdir()
        return path

    on_gpu = setting.device.type == "cuda"
    methods: dict[str, Method] = {
        PINNED: Copy(folder(PINNED), state, pinned=on_gpu),
        PAGEABLE: Copy(folder(PAGEABLE), state, pinned=False),
        RAW: Raw(folder(RAW), size),
        "torch.save": TorchSave(folder("torch.save")),
        "dcp.save": Dcp(folder("dcp.save")),
        "dcp.async_save thread": DcpAsync(folder("dcp-thread"), AsyncCheckpointerType.THREAD, cached=STAGERS_STAY),
        "dcp.async_save process": DcpAsync(folder("dcp-process"), AsyncCheckpointerType.PROCESS, cached=STAGERS_STAY),
    }
    if save_file is not None:
        methods["safetensors"] = Safetensors(folder("safetensors"))
    methods[PITON] = Piton(folder(PITON), state)
    return methods


def _saves(setting: Setting, methods: Mapping[str, Method], state: State, found: Ratios) -> dict[str, float]:
    """Stall and durable time; the seconds of the floors. A first save warms its memory and does not count."""
    chance, floors = random.Random(0), defaultdict(list)
    for repetition in range(REPETITIONS + 1):
        stalls, durable = {}, {}
        for name, method in chance.sample(list(methods.items()), len(methods)):
            stalls[name] = setting.seconds(partial(method.save, state, repetition))
            durable[name] = stalls[name] + setting.seconds(method.wait)
            method.tidy()
        if repetition == 0:
            continue
        for name in methods:
            if name in (PINNED, PAGEABLE, RAW):
                floors[name].append(durable[name])
            found["stall / pinned copy"][name].append(stalls[name] / stalls[PINNED])
            found["durable / raw write"][name].append(durable[name] / durable[RAW])
    return {name: statistics.median(times) for name, times in floors.items()}


def _steps(setting: Setting, methods: Mapping[str, Method], state: State, found: Ratios) -> None:
    """Steps of the device alone, and while a method writes."""
    side = setting.size(4096, 256)
    matrix = torch.randn(side, side, device=setting.device, dtype=setting.size(torch.bfloat16, torch.float32))

    def step() -> float:
        return setting.seconds(lambda: [matrix @ matrix for _ in range(10)])

    for _ in range(5):
        step()
    for name, method in methods.items():
        if not method.goes_on:
            continue
        alone = [step() for _ in range(30)]
        method.save(state, 1000)
        saving = []
        while not method.is_durable():
            saving.append(step())
        method.wait()
        method.tidy()
        if saving:
            found["step while saving / alone"][name].append(statistics.mean(saving) / statistics.mean(alone))


def _loads(setting: Setting, methods: Mapping[str, Method], state: State, found: Ratios) -> None:
    """What is there, back into tensors on the device."""
    into = {key: torch.empty_like(value) for key, value in state.items()}
    able = {name: method for name, method in methods.items() if method.can_load}
    for method in able.values():
        method.get_ready_to_load(sum(value.nbytes for value in state.values()))
        method.save(state, 0)
        method.wait()
    for _ in range(2):
        took = {}
        for name, method in able.items():
            drop_from_cache(method.path)
            took[name] = setting.seconds(partial(method.load, into))
        for name, spent in took.items():
            found["load / raw read"][name].append(spent / took[RAW])
    for method in able.values():
        method.tidy()


def _floors(floors: Mapping[str, float], size: int) -> list[Row]:
    return [Row(what=name, value=size / 1e9 / took, unit="GB/s", beside="a floor") for name, took in floors.items()]


def _rows(found: Ratios) -> list[Row]:
    """Ours, beside the best of the others."""
    rows = []
    for what, by in found.items():
        medians = {name: statistics.median(ratios) for name, ratios in by.items()}
        ours = medians.pop(PITON, None)
        others = {name: value for name, value in medians.items() if name not in (PINNED, PAGEABLE, RAW)}
        told = ", ".join(f"{name} {value:.2f}" for name, value in sorted(others.items(), key=lambda item: item[1]))
        if ours is not None:
            rows.append(Row(what=what, value=ours, unit="x", beside=told))
    return rows
