"""Runs whose checkpoints may be made thin, and what is left of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import piton_trainer
from piton.contract.assignment import SavePolicy
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.load.loader import load_tensors
from piton_trainer.checkpoint.retention import RetentionManager
from piton_trainer.state.tracked_objects import EMA, MODEL
from piton_trainer.state.weights_digest import weights_digest
from support import checkpoints, tiny

SAVED = (3, 6, 9, 12, 15)


def wait_for_it(session: piton_trainer.Session) -> None:
    """Each save has an interval to become durable."""
    assert session._services.store is not None
    while session._services.store.in_flight:
        checkpoints.poll(session._services.store, session._ranks)


def trained(directory: Path, *, background: bool = False, **policy: Any) -> Path:
    events: dict[int, tiny.Event] = dict.fromkeys(range(1, tiny.STEPS + 1), wait_for_it)
    orders = tiny.every(3, **policy)
    assert tiny.train(directory, assignment=orders, background_saves=background, at=events).code == 0
    return directory


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five whole checkpoints whose weights stand apart; nobody touches them."""
    return trained(tmp_path_factory.mktemp("pristine"), keep_last=9, keep_weights_only=1)


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A copy of them, the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def retention(directory: Path, **policy: Any) -> RetentionManager:
    return RetentionManager(directory, policy=SavePolicy(**policy), objective=None, disk=layout.Disk())


def whole(directory: Path) -> list[int]:
    return [step for step, _ in layout.step_folders(directory)]


def thin(directory: Path) -> list[int]:
    return [step for step, _ in layout.weights_folders(directory)]


def checkpoint(directory: Path, name: str) -> CommittedCheckpoint:
    return CommittedCheckpoint(folder=directory / name, manifest=layout.read_manifest(directory / name))


def digest_of(found: CommittedCheckpoint, name: str = MODEL) -> str:
    """Of the weights as they are loaded."""
    module: nn.Module = tiny.build()
    if name == EMA:
        module = torch.optim.swa_utils.AveragedModel(module)
    keys = [f"{name}/{key}" for key in module.state_dict()]
    tensors = load_tensors(found, dict.fromkeys(keys))
    module.load_state_dict({key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items()})
    digest = weights_digest({name: module})
    assert digest is not None
    return digest
