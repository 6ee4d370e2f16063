"""One rank's random number generators: Python's, numpy's, torch's on the CPU and on its GPU, and a loader's own."""

import hashlib
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch


def capture(generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """The state of every generator, as JSON and tensors (see `codec`)."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "generators": [generator.get_state() for generator in generators],
    }
    # numpy is not ours to import: who has not imported it has drawn nothing from it.
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = (name, keys.tolist(), *rest)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any], generators: Sequence[torch.Generator] = ()) -> None:
    """Put every generator back to where `capture` found it."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    for generator, saved in zip(generators, state["generators"], strict=False):
        generator.set_state(saved)
    if "numpy" in state:
        import numpy as np

        np.random.set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def derive(*, seed: int, step: int, rank: int) -> None:
    """Seed the generators of a rank that did not exist when the state was saved; always the same way."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    random.seed(digest)
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(digest[8:12], "little"))
