"""How fast the recipes train on the device, what holds them back, and what compiling costs.

Each recipe is trained by the shared loop's `TrainableModel` on data that is made up here, in the sizes of the real
systems.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from bench.gpu import data
from bench.gpu.place import Bench
from bench.gpu.setting import Row, Setting
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.recipes.protocol import Recipe
from piton_trainer.telemetry.peak_flops import mfu_per_token, peak_flops
from piton_trainer.training.loop import TrainableModel

NANOCHAT = "nanochat's dev log: MFU 41 to 46 % on H100"
FFCV = "FFCV's ResNet-50: about 3,000 images/s on one of 8 A100, 160 to 192 pixels, fp16"
WARM_STEPS, STEPS, PROFILED_STEPS = 3, 8, 3


def charlm(setting: Setting, depth: int) -> list[Row]:
    """Tokens per second and MFU, compiled, in bf16, as the run would train."""
    return _measured(setting, Charlm(charlm_config(setting, depth), Bench(setting)), "tokens", beside=NANOCHAT)


def charlm_config(setting: Setting, depth: int, **changes: Any) -> CharlmConfig:
    """Nanochat's model of that depth; half a million tokens per step would take too long, so it is an eighth."""
    if setting.dry:
        sizes: dict[str, Any] = {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "sequence_length": 64}
        sizes |= {"device_batch_size": 2, "total_batch_tokens": 256, "eval_tokens": 128}
    else:
        batch = 32 if depth <= 12 else 16
        sizes = {"depth": depth, "device_batch_size": batch, "total_batch_tokens": 65_536, "eval_tokens": 2048}
    return CharlmConfig.model_validate({**sizes, "steps": 100, "precision": "bf16", "compile": True, **changes})


def resnet50(setting: Setting) -> list[Row]:
    """Images per second, from JPEGs on the disk to the optimizer's step, and of the device alone."""
    recipe = data.resnet50(setting)
    return _measured(setting, recipe, "images", beside=FFCV, alone=True)


def retrieval(setting: Setting) -> list[Row]:
    """Pairs per second: a base model of mpnet's size, texts of 128 tokens."""
    return _measured(setting, data.retrieval(setting), "pairs")


def twotower(setting: Setting) -> list[Row]:
    """Folds per hour, ten side by side, at the size of the Million-LLM judgments."""
    recipe = data.twotower(setting)
    rows = _measured(setting, recipe, "queries x folds")
    steps = recipe.config.steps
    assert steps is not None
    hour = 3600 * rows[0].value / (recipe.tokens_per_step * steps) * len(recipe.folds)
    return [*rows, Row(what=f"folds per hour ({steps:,} steps each)", value=hour, unit="folds/h")]


def compile_cache(setting: Setting) -> list[Row]:
    """Seconds until the first step of a compiled model is done: nothing kept, and with what the first process kept."""
    took = {}
    for attempt in ("cold", "from a kept cache"):
        folder = {"TORCHINDUCTOR_CACHE_DIR": str(setting.folder / "inductor"), "TRITON_CACHE_DIR": str(setting.folder)}
        command = [sys.executable, "-m", "bench.gpu.throughput", *(["--dry"] if setting.dry else [])]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | folder)
        took[attempt] = float(json.loads(done.stdout.splitlines()[-1]))
    return [Row(what=f"first step, compiled, {name}", value=seconds, unit="s") for name, seconds in took.items()]


def _first_step() -> None:
    """In a process of its own: the seconds of the first step."""
    setting = Setting(dry="--dry" in sys.argv, folder=Path())
    recipe = Charlm(charlm_config(setting, 12), Bench(setting))
    trainee = TrainableModel(recipe, recipe.place)
    trainee.connect()
    batches = next(iter(recipe.loader))
    print(json.dumps(setting.seconds(lambda: trainee.step(batches))))


def _measured(setting: Setting, recipe: Recipe, unit: str, *, beside: str = "", alone: bool = False) -> list[Row]:
    """Speed with the loader, its MFU, the device's peak of memory, and a short profile."""
    trainee = TrainableModel(recipe, Bench(setting))
    trainee.connect()
    recipe.tune(trainee.optimizers, fraction=0.1, step=10)
    batches = iter(recipe.loader)
    first = setting.seconds(lambda: trainee.step(next(batches)))
    warm, steps = setting.size((WARM_STEPS, STEPS), (1, 2))
    for batch in islice(batches, warm):
        trainee.step(batch)
    took = setting.seconds(lambda: [trainee.step(batch) for batch in islice(batches, steps)]) / steps
    speed = recipe.tokens_per_step / took
    rows = [Row(what=f"{unit} per second", value=speed, unit=f"{unit}/s", beside=beside)]
    rows += _mfu(setting, recipe, trainee, speed)
    rows.append(Row(what="first step, with compiling", value=first, unit="s"))
    if alone:
        same = next(batches)
        took = setting.seconds(lambda: [trainee.step(same) for _ in range(steps)]) / steps
        rows.append(
            Row(what=f"{unit} per second without the loader", value=recipe.tokens_per_step / took, unit=f"{unit}/s")
        )
    if setting.device.type == "cuda":
        rows.append(Row(what="most memory", value=torch.cuda.max_memory_allocated() / 2**30, unit="GiB"))
    return rows + _profiled(setting, trainee, batches)


def _mfu(setting: Setting, recipe: Recipe, trainee: TrainableModel, speed: float) -> list[Row]:
    peak = peak_flops(torch.cuda.get_device_name(0)) if setting.device.type == "cuda" else 1e12
    if peak is None:
        return []
    share = speed * mfu_per_token(recipe.flops_per_token(trainee.model), peak=peak, devices=1)
    return [Row(what="MFU", value=100 * share, unit="%", beside=f"of {peak / 1e12:,.0f} TFLOP/s")]


def _profiled(setting: Setting, trainee: TrainableModel, batches: Iterator[Any]) -> list[Row]:
    """What holds it back: the share of the time in which the device does nothing, and copies, and its top kernels."""
    on_gpu = setting.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    steps = setting.size(PROFILED_STEPS, 1)
    wanted = list(islice(batches, steps))
    setting.synchronize()
    start = time.perf_counter()
    with profile(activities=activities) as profiler:
        for batch in wanted:
            trainee.step(batch)
        setting.synchronize()
    wall = 1e6 * (time.perf_counter() - start)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type == kind and not event.is_user_annotation:  # a range of the program is no work of its own
            took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times[event.key] = times.get(event.key, 0.0) + took
    busy = sum(times.values()) or 1.0
    copies = sum(took for name, took in times.items() if name.startswith("Memcpy") or "copy_" in name)
    rows = [
        Row(what="the device does nothing (profiled)", value=100 * max(0.0, 1 - busy / wall), unit="%"),
        Row(what="copies", value=100 * copies / busy, unit="% of its work"),
    ]
    top = sorted(times.items(), key=lambda item: -item[1])[:5]
    return rows + [Row(what=f"kernel {name[:60]}", value=100 * took / busy, unit="% of its work") for name, took in top]


if __name__ == "__main__":
    _first_step()
