"""What one attempt has compiled, the next one does not compile again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from piton.contract import names
from piton.rendering.appdef import TrainerPlace, appdef
from support.builders import a_spec, meta

COMPILE = """
import json, torch
from torch._dynamo.utils import counters

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(self.layer(x)) * 2

torch.set_num_threads(1)
model = Small()
model.compile()
model(torch.ones(2, 4)).sum().backward()
print(json.dumps(counters["inductor"]))
"""


def attempt(number: int, checkpoints: Path) -> dict[str, Any]:
    """Compile as an attempt does; what torch has counted meanwhile."""
    env = appdef(meta(), a_spec(), number, TrainerPlace(checkpoint_dir=str(checkpoints))).roles[0].env
    caches = {name: env[name] for name in (names.ENV_INDUCTOR_CACHE, names.ENV_TRITON_CACHE)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=os.environ | caches, capture_output=True, check=True)
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counted


def libraries(checkpoints: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in (checkpoints / names.CACHE_FOLDER).rglob("*.so")}


@pytest.mark.crash  # a compiler that starts for the first time takes half a minute
@pytest.mark.skipif(not (os.environ.get("CXX") or shutil.which("g++")), reason="there is no C++ compiler here")
def test_the_second_attempt_takes_what_the_first_has_compiled(tmp_path: Path) -> None:
    first = attempt(1, tmp_path)
    compiled = libraries(tmp_path)
    second = attempt(2, tmp_path)
    assert compiled
    assert libraries(tmp_path) == compiled
    assert first["fxgraph_cache_miss"] == second["fxgraph_cache_hit"] == 2
    assert "fxgraph_cache_miss" not in second
