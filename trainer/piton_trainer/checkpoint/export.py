"""A checkpoint in formats that others read, made aside and renamed, so that OUT is whole or not there.

safetensors   the weights, for `safetensors.torch.load_file`; nothing but tensors fits into it
dcp           for plain `torch.distributed.checkpoint.load`, by the names that state dicts have
torch         for `torch.load(..., weights_only=True)`
"""

import shutil
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from piton.contract.manifest import Manifest
from piton_trainer import codec
from piton_trainer.checkpoint import layout
from piton_trainer.checkpoint.layout import Checkpoint
from piton_trainer.checkpoint.load import load_tensors


def export(folder: Path, manifest: Manifest, out: Path, *, kind: str, weights: str | None) -> int:
    """Write a checkpoint that has been verified; how many tensors were written.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
        out: what to write; it must not be there yet.
        kind: `safetensors`, `dcp` or `torch`.
        weights: the name of the object whose state alone is written, under its own names; None: everything.

    Raises:
        ValueError: it cannot be done so.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; name another place")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is no folder; make it first")
    write = _WRITERS[kind]
    if kind == "safetensors" and weights is None:
        raise ValueError("safetensors holds tensors and nothing else; say --weights-only, or --format dcp")
    state, tensors = _state(Checkpoint(folder=folder, manifest=manifest), weights)
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(state, aside)
        aside.rename(out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
    return tensors


def _state(checkpoint: Checkpoint, weights: str | None) -> tuple[dict[str, Any], int]:
    """What the objects' own state dicts said, and how many tensors that has."""
    objects = layout.read_document(checkpoint.folder)["objects"]
    if weights is not None and weights not in objects:
        raise ValueError(f"{checkpoint.folder.name} has no {weights}; it has {', '.join(sorted(objects))}")
    document = objects if weights is None else objects[weights]
    tensors = load_tensors(checkpoint, dict.fromkeys(codec.keys(document)))
    state = codec.join(document, tensors.__getitem__)
    # A session takes one optimizer or a list of them; one alone is what everybody else expects.
    if weights is None:
        state = {name: part[0] if isinstance(part, list) and len(part) == 1 else part for name, part in state.items()}
    return state, len(tensors)


def _safetensors(state: dict[str, Any], path: Path) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ValueError(f"safetensors is not installed here ({error}); say pip install safetensors") from error
    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) < len(state):
        other = next(name for name in state if name not in tensors)
        raise ValueError(f"{other} is no tensor, and safetensors holds nothing else; say --format dcp")
    save_file(tensors, path, metadata={"format": "pt"})


def _dcp(state: dict[str, Any], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        state_dict_saver.save(state, storage_writer=FileSystemWriter(path), no_dist=True)


def _torch(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)


_WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "safetensors": _safetensors,
    "dcp": _dcp,
    "torch": _torch,
}
