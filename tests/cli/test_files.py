"""A file is what kubectl makes of it: each scalar, each key, and each of its documents."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Piton
from piton.cli import files
from piton.sweep.parse import ParsedSweep

TABLE = """
1e-3 -> 0.001 | 3E-4 -> 0.0003 | 1e5 -> 100000 | 1.0e5 -> 100000 | 1e+5 -> 100000 | 5e-1 -> 0.5 | 1e5_0 -> 1e50
.5 -> 0.5 | -.5 -> -0.5 | +.5 -> 0.5 | 1. -> 1 | 1_0.5 -> 10.5 | ._5 -> "._5" | 08.5 -> 8.5 | -0.0 -> 0 | 100.0 -> 100
12:30 -> "12:30" | 1:30:00 -> "1:30:00" | -1:30 -> "-1:30" | 190:20:30.15 -> "190:20:30.15"
0o17 -> 15 | -0O17 -> -15 | 017 -> 15 | -010 -> -8 | 09 -> 9 | 0o8 -> "0o8" | 0b1_1 -> 3 | 0X1F -> 31 | 0x -> "0x"
1_000 -> 1000 | _1 -> "_1" | 1e -> "1e" | 1e400 -> "1e400" | 12345678901234567890 -> 1.2345678901234567e19
y -> true | N -> false | on -> true | Off -> false | YES -> true | tRUE -> "tRUE" | ~ -> null | Null -> null | -> null
2026-11-21 -> "2026-11-21" | = -> "=" | << -> "<<" | inf -> "inf" | 1 2 -> "1 2" | - -> [null] | + -> "+"
!!str 12 -> "12" | !!float 3 -> 3 | !!float 0x10 -> 16 | !!int '5' -> 5 | !!bool y -> true | !!str yes -> "yes"
'1e3' -> "1e3" | "y" -> "y"
"""
"""What kubectl 1.32 makes of scalars, as JSON."""
CELLS = [cell.rpartition("->") for line in TABLE.strip().splitlines() for cell in line.split(" | ")]
SCALARS: dict[str, Any] = {text.strip(): json.loads(value) for text, _, value in CELLS}
KEYS = {"1e5": "100000", "1.5": "1.5", "0x1F": "31", "y": "true", "12:30": "12:30", "1e-3": "0.001", "'y'": "y"}
REFUSED = ["!!int 1.0", "!!float 12:30", "!!bool 1", ".inf", "-.Inf", ".nan"]


def read(folder: Path, text: str) -> Any:
    path = folder / "a.yaml"
    path.write_text(text)
    return files._document(path)


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_what_kubectl_makes_of_it(text: str, tmp_path: Path) -> None:
    assert json.dumps(read(tmp_path, f"a:\n- {text}\n")) == json.dumps({"a": [SCALARS[text]]})


@pytest.mark.parametrize("text", KEYS)
def test_a_key_is_what_kubectl_makes_of_it(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"a:\n  ? {text}\n  : 5\n") == {"a": {KEYS[text]: 5}}


@pytest.mark.parametrize("text", REFUSED)
def test_what_kubectl_refuses_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is (no|nothing that JSON has)"):
        read(tmp_path, f"a:\n- {text}\n")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is the oracle")
def test_kubectl_itself_makes_that_of_them(tmp_path: Path) -> None:
    given, patch = tmp_path / "given.yaml", tmp_path / "patch.yaml"
    given.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")
    scalars = "".join(f"- {text}\n" for text in SCALARS)
    patch.write_text(f"a:\n{scalars}b:\n" + "".join(f"  ? {text}\n  : 5\n" for text in KEYS))
    command = [
        "kubectl",
        "patch",
        "--local",
        "-f",
        f"{given}",
        "--type=merge",
        "--patch-file",
        f"{patch}",
        "-o",
        "json",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout, parse_int=float)

    assert found["a"] == list(SCALARS.values())
    assert found["b"] == dict.fromkeys(KEYS.values(), 5)


SWEEP = """
apiVersion: piton.dev/v1alpha1
kind: TrainingSweep
metadata: {name: a}
spec:
  template:
    spec:
      trainer: {image: x, recipe: charlm}
      workers: {gpusPerNode: 0}
      checkpoint: {volume: {size: 1Gi}}
      objective: {metric: val_loss, target: 5e-1}
"""


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("{trainer.config.matrixLearningRate: [1e-3, 3e-4]}", "{trainer.config.matrixLearningRate: [0.001, 0.0003]}"),
        ("{trainer.config.width: [1.0, 2e1]}", "{trainer.config.width: [1, 20]}"),
    ],
)
def test_a_sweep_has_the_same_runs_here_as_on_a_cluster(written: str, stored: str, tmp_path: Path) -> None:
    plans = []
    for matrix in (written, stored):
        path = tmp_path / "a.yaml"
        path.write_text(f"{SWEEP}  matrix: {matrix}\n")
        found = files.read_any(path)
        assert isinstance(found, ParsedSweep)
        plans.append(found.plan)

    assert plans[0] == plans[1]


RUN = """
apiVersion: piton.dev/v1alpha1
kind: TrainingRun
metadata: {name: a}
spec:
  trainer: {image: x, command: [a]}
  workers: {gpusPerNode: 0}
  checkpoint: {volume: {size: 1Gi}}
"""
NAMESPACE = "\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"


@pytest.mark.parametrize("parts", [[RUN, ""], ["", RUN], [RUN, "# the end\n"], [RUN, NAMESPACE], [NAMESPACE, RUN, ""]])
def test_the_one_run_among_documents_is_meant(parts: list[str], tmp_path: Path, piton: Piton) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("---\n".join(parts))

    assert piton("validate", path).out == f"{path}: ok, a is a TrainingRun that can work\n"


@pytest.mark.parametrize(
    ("parts", "ours"), [([RUN, SWEEP], "2"), ([RUN, RUN, NAMESPACE], "2"), ([NAMESPACE] * 2, "none")]
)
def test_documents_of_which_several_or_none_can_be_meant_are_refused(
    parts: list[str], ours: str, tmp_path: Path, piton: Piton
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("---\n".join(parts))
    found = piton("validate", path)

    assert found.code == 2
    assert f"holds {len(parts)} documents, and {ours} of them of the kind TrainingRun or TrainingSweep" in found.err
