"""What a checkpoint costs, over what the machine could do at best: one memcpy, one write past the page cache.

All methods take turns, repetition by repetition, so that the machine's moods hit all alike; what is printed are medians
of the ratios within a repetition, never seconds. The last line is one JSON object, each row of the table by method.

    stall_over_memcpy        how long `save` keeps training from going on
    durable_over_raw         until what was saved is on the disk, while nobody trains
    step_time_while_saving   a training step on one core while a save is being written, over one that is alone
    first_over_steady        the first stall of a process over the median of its later ones, in several processes
    first_over_memcpy        the same stall over one memcpy: who is slow every time is not slower at first
    load_over_raw            the state read back from the disk, not from the cache; ours verified
    reshard_over_raw         a state that two ranks saved, loaded by one
    many_over_memcpy         the stall of a model of many small parameters, from outside: ours through a session, the
                             others with torch's `get_state_dict`
    few_over_memcpy          the same of a model of few large parameters with as many bytes
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from checkpoint_methods import (
    Memcpy,
    Method,
    Piton,
    PitonBeside,
    Raw,
    Safetensors,
    State,
    drop_from_cache,
    folder_in,
    is_consistent,
    peers,
    restore,
    save_file,
    seconds,
    warm_memory,
)
from session_saves import BESIDE, LAYERS, MEMCPY, PITON, stalls_of_a_process
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from piton_trainer.runtime.process_group import Ranks

RAW = "raw O_DIRECT"
WIDTH, HIDDEN = 512, 2048
PROCESSES = 3
Ratios = dict[str, dict[str, list[float]]]
Seconds = dict[str, list[float]]


def build_state(megabytes: int) -> State:
    """Weights and Adam's two momenta of a stack of transformer layers."""
    layer = {"attention": (4 * WIDTH, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN), "norm": (WIDTH,)}
    layer_bytes = 3 * 4 * sum(torch.Size(shape).numel() for shape in layer.values())
    count = max(1, round(megabytes * 1e6 / layer_bytes))
    names = [f"{kind}/{number}/{name}" for kind in "wmv" for number in range(count) for name in layer]
    return {name: torch.randn(layer[name.rpartition("/")[2]]) for name in names}


def size_of(state: State) -> int:
    """Bytes."""
    return sum(value.nbytes for value in state.values())


def make_methods(root: Path, state: State) -> dict[str, Method]:
    """Floors first."""
    methods: dict[str, Method] = {
        MEMCPY: Memcpy(folder_in(root, MEMCPY), state),
        RAW: Raw(folder_in(root, RAW), size_of(state)),
        **peers(root),
    }
    if save_file is not None:
        methods["safetensors"] = Safetensors(folder_in(root, "safetensors"))
    methods[PITON] = Piton(folder_in(root, PITON), state)
    methods[BESIDE] = PitonBeside(folder_in(root, BESIDE), state)
    return methods


def turns(methods: Mapping[str, Method], chance: random.Random) -> list[tuple[str, Method]]:
    """All methods, in any order: what one leaves to the kernel is not always the same next one's trouble."""
    return chance.sample(list(methods.items()), len(methods))


def measure_saves(megabytes: int, repetitions: int, root: Path, found: Ratios) -> None:
    """Stall and durable time. Only a process has a first save, so there are several of them."""
    for number in range(PROCESSES):
        say(f"saves, process {number + 1} of {PROCESSES}")
        folder = root / f"saves-{number}"
        with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as process:
            stalls, durable = process.submit(saves_of_a_process, megabytes, repetitions, folder, number).result()
        for name, (first, *steady) in stalls.items():
            found["stall_over_memcpy"][name] += ratios(steady, stalls[MEMCPY][1:])
            if name in durable:
                found["durable_over_raw"][name] += ratios(durable[name][1:], durable[RAW][1:])
                found["first_over_steady"][name].append(first / statistics.median(steady))
                found["first_over_memcpy"][name].append(first / stalls[MEMCPY][0])


def measure_sessions(repetitions: int, root: Path, found: Ratios) -> None:
    """What a loop of one's own waits for: state dicts and all."""
    for kind in LAYERS:
        say(f"saves through a session, of {kind} parameters")
        with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as process:
            stalls = process.submit(stalls_of_a_process, kind, repetitions, root / kind, 0).result()
        for name, took in stalls.items():
            found[f"{kind}_over_memcpy"][name] += ratios(took, stalls[MEMCPY])


def saves_of_a_process(megabytes: int, repetitions: int, root: Path, seed: int) -> tuple[Seconds, Seconds]:
    """Each method's stalls and durable times; the first ones come first.

    No floor is measured beside each method: memory that was just used is quicker than what nobody touched for a while.
    """
    chance = random.Random(seed)
    with alone(root, megabytes) as (methods, state):
        stalls: Seconds = {name: [] for name in methods}
        durable: Seconds = {name: [] for name, method in methods.items() if not method.only_stall}
        for repetition in range(repetitions + 1):
            for name, method in turns(methods, chance):
                start = time.perf_counter()
                stalls[name].append(method.stall(state, repetition))
                method.wait()
                if name in durable:
                    durable[name].append(time.perf_counter() - start)
                method.tidy()
    return stalls, durable


def ratios(times: list[float], floors: list[float]) -> list[float]:
    """One of each repetition."""
    return [value / floor for value, floor in zip(times, floors, strict=True)]


@contextmanager
def alone(root: Path, megabytes: int) -> Iterator[tuple[dict[str, Method], State]]:
    """All methods and what they save, in a process group of one."""
    warnings.simplefilter("ignore")
    root.mkdir()
    dist.init_process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=0, world_size=1)
    torch.manual_seed(0)
    state = build_state(megabytes)
    methods = make_methods(root, state)
    yield methods, state
    for method in methods.values():
        method.close()
    dist.destroy_process_group()
    shutil.rmtree(root)


def say(what: str) -> None:
    """Where it is, for whoever waits."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


def measure_steps(methods: Mapping[str, Method], state: State, repetitions: int, found: Ratios) -> None:
    """Steps on one core, alone before and after each method writes, and meanwhile."""
    torch.set_num_threads(1)
    a, b = torch.randn(384, 384), torch.randn(384, 384)

    def step() -> float:
        return seconds(lambda: a @ b)

    chance = random.Random(0)
    for repetition in range(repetitions):
        for name, method in turns(methods, chance):
            if not method.goes_on or method.only_stall:
                continue
            os.sync()  # what the method before has left to the kernel is not this one's doing
            alone = [step() for _ in range(200)]
            method.save(state, 1000 + repetition)
            saving = list(steps_until_durable(method, step))
            method.wait()
            method.tidy()
            os.sync()
            alone += [step() for _ in range(200)]
            found["step_time_while_saving"][name].append(statistics.mean(saving) / statistics.mean(alone))
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def steps_until_durable(method: Method, step: Callable[[], float]) -> Iterator[float]:
    """The times of steps meanwhile. Nobody waits for the method, which would make ours hurry."""
    while not method.is_durable():
        yield step()


def measure_loads(methods: Mapping[str, Method], state: State, repetitions: int, found: Ratios) -> None:
    """What is there, brought back into tensors."""
    into = {key: torch.empty_like(value) for key, value in state.items()}
    for method in methods.values():
        if method.only_stall or not method.can_load:
            continue
        method.get_ready_to_load(size_of(state))
        method.save(state, 0)
        method.wait()
    chance = random.Random(0)
    for _ in range(repetitions):
        took = {}
        for name, method in turns(methods, chance):
            if method.can_load and not method.only_stall:
                drop_from_cache(method.path)
                took[name] = seconds(lambda method=method: method.load(into))
        for name, value in took.items():
            found["load_over_raw"][name].append(value / took[RAW])


def save_sharded(rank: int, megabytes: int, root: str, rendezvous: str) -> None:
    """One of two ranks: half of each matrix is its own."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    state = {
        key: distribute_tensor(value, mesh, [Shard(0) if value.ndim > 1 else Replicate()])
        for key, value in build_state(megabytes).items()
    }
    dcp.save(state, checkpoint_id=Path(root) / "dcp-2")
    world = Ranks(rank=rank, world_size=2, group=dist.new_group(backend="gloo"))
    ours = Piton(Path(root) / "piton-2", state, world)
    ours.save(state, 1)
    ours.wait()
    ours.close()
    dist.destroy_process_group()


def measure_reshards(root: Path, megabytes: int, raw: Method, state: State, repetitions: int, found: Ratios) -> None:
    """Two ranks' shards into one rank's whole tensors."""
    for name in ("dcp-2", "piton-2"):
        (root / name).mkdir()
    torch.multiprocessing.spawn(save_sharded, (megabytes, str(root), str(root / "rendezvous")), nprocs=2)
    into = {key: torch.empty_like(value) for key, value in state.items()}
    spare = warm_memory(size_of(state))
    loads = {
        "dcp.save": (root / "dcp-2", lambda: dcp.load(into, checkpoint_id=root / "dcp-2")),
        PITON: (root / "piton-2", lambda: restore(root / "piton-2", into, spare.bytes)),
    }
    for _ in range(repetitions):
        floor = seconds(lambda: raw.load(into))
        for name, (path, load) in loads.items():
            drop_from_cache(path)
            found["reshard_over_raw"][name].append(seconds(load) / floor)
    spare.close()


def measure_tensors(megabytes: int, repetitions: int, root: Path, found: Ratios) -> None:
    """All that a checkpointer does with tensors that are handed to it."""
    measure_saves(megabytes, -(-repetitions // PROCESSES), root, found)
    with alone(root / "alone", megabytes) as (methods, state):
        say("loads")
        measure_loads(methods, state, repetitions, found)
        say("steps while a save is being written")
        measure_steps(methods, state, repetitions, found)
        say("loads of what two ranks saved")
        raw = methods[RAW]
        raw.save(state, 0)
        measure_reshards(root, megabytes, raw, state, repetitions, found)
        consistent = {name: is_consistent(method, state) for name, method in methods.items() if method.goes_on}
        print(f"a change after save stays out of the checkpoint: {consistent}")


def show(found: Ratios) -> None:
    """The table, and the JSON object."""
    medians = {row: {name: statistics.median(ratios) for name, ratios in by.items()} for row, by in found.items()}
    headings = [row.replace("_over_", "/").removesuffix("_time_while_saving") for row in medians]
    print(f"{'':<32}" + "".join(f"{heading:>14}" for heading in headings))
    for name in dict.fromkeys(name for by in medians.values() for name in by):
        cells = (f"{by[name]:>14.2f}" if name in by else f"{'':>14}" for by in medians.values())
        print(f"{name:<32}" + "".join(cells))
    print(json.dumps({row: {name: round(ratio, 4) for name, ratio in by.items()} for row, by in medians.items()}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="What a checkpoint costs, over one memcpy and one raw write.")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the state")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only-sessions", action="store_true", help="only the saves through a session")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to save; the disk that is measured")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory.absolute()))
    found: Ratios = defaultdict(lambda: defaultdict(list))
    try:
        measure_sessions(options.repetitions, root, found)
        if not options.only_sessions:
            measure_tensors(options.megabytes, options.repetitions, root, found)
    finally:
        shutil.rmtree(root)
    show(found)


if __name__ == "__main__":
    main()
