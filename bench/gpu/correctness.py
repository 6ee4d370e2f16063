"""Whether what was proven on CPUs holds on a GPU: random numbers, groups of ranks, resuming after SIGKILL and SIGTERM.

A resumed training has to end with the weights of one that nobody disturbed. Where torch's kernels add in any order, two
undisturbed trainings differ as well; then a resumed one may differ from them as much as `NOISE` times that.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bench.gpu import victim
from bench.gpu.setting import CheckFailedError, Row, Setting, checked
from piton_trainer.checkpoint.format import codec
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state import rng

NOISE = 4.0
"""Rounding that came in one step earlier has had more steps to grow; it stays within this factor."""
_KILLED, _TOLD = -9, 143


def generators(setting: Setting) -> list[Row]:
    """The device's generator, and one that a user made there, go on where a save found them."""
    device = setting.device
    own = torch.Generator(device=device).manual_seed(1)

    def draw() -> list[Tensor]:
        drawn = [torch.rand(1000, device=device), torch.randn(1000, device=device, generator=own), torch.rand(10)]
        return [*drawn, torch.nn.functional.dropout(torch.ones(1000, device=device), 0.3)]

    draw()
    document, tensors = codec.split(rng.RandomNumbers([own]).capture(), "rng")
    first = draw()
    rng.RandomNumbers([own]).restore(codec.join(document, tensors.__getitem__))
    setting.check(
        all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True)), "the draws differ after a restore"
    )
    return checked("the generators of CPU and device, and a user's own, go on where they were saved")


def process_groups(setting: Setting) -> list[Row]:
    """Words over gloo while the device computes over its own backend."""
    with victim.one_rank(setting.folder):
        ranks = Ranks.join()
        value = torch.ones(1 << 20, device=setting.device)
        for number in range(20):
            work = dist.all_reduce(value, async_op=True)
            setting.check(ranks.agree([float(number)]) == [float(number)], "gloo and the device's backend mixed")
            setting.check(ranks.on_main(lambda number=number: number) == number, "a word got lost")
            assert work is not None
            work.wait()
        setting.check(bool((value == 1).all()), "the sum over one rank is wrong")
        took = setting.median_seconds(lambda: ranks.agree([1.0]))
    backend = "NCCL" if setting.device.type == "cuda" else "gloo"
    return [*checked(f"gloo beside {backend}"), Row(what="ranks agree (one rank)", value=took * 1e6, unit="µs")]


def resume(setting: Setting, variant: str) -> list[Row]:
    """Killed in step 6, told to stop in step 10, and resumed each time, over one that nobody disturbed."""
    whole = _live(setting, variant, "whole")
    _live(setting, variant, "disturbed", "--killed", ends=_KILLED)
    _live(setting, variant, "disturbed", "--told", ends=_TOLD)
    resumed = _live(setting, variant, "disturbed")
    off = _difference(resumed, whole)
    if off == 0:
        return checked(f"{variant}: resumed after SIGKILL and SIGTERM, equal bit for bit")
    noise = _difference(_live(setting, variant, "once-more"), whole)
    setting.check(
        off <= NOISE * noise,
        f"{variant}: a resumed training ends {off:.3g} from an undisturbed one; two of those are {noise:.3g} apart",
    )
    return [
        Row(what=f"{variant}: resumed, largest difference", value=off, unit="", beside=f"{noise:.3g} without a stop")
    ]


def _live(setting: Setting, variant: str, folder: str, *arguments: str, ends: int = 0) -> dict[str, Tensor]:
    """One attempt in that folder; its weights, if it came to the end."""
    path = setting.folder / folder
    path.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bench.gpu.victim", variant, str(path), *arguments]
    if setting.dry:
        command.append("--dry")
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | _cache(setting.folder))
    if done.returncode != ends:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckFailedError(f"an attempt ended with {done.returncode} instead of {ends}: {last}")
    return torch.load(path / victim.WEIGHTS, weights_only=True) if ends == 0 else {}


def _cache(folder: Path) -> dict[str, str]:
    """Compiled code that all attempts share, so that only the first of them waits."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "TRITON_CACHE_DIR": str(folder / "triton")}


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest, over the largest weight of that tensor."""
    pairs = [(one[name].double(), other[name].double()) for name in one]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)
