"""Export of a checkpoint to formats of other libraries. OUT is written aside and renamed, so it is complete or absent.

safetensors   the weights, for `safetensors.torch.load_file`; the format holds only tensors
hf            a folder for `from_pretrained` of transformers: the weights and the configuration of the model
dcp           for plain `torch.distributed.checkpoint.load`, by the names in the state dicts
torch         for `torch.load(..., weights_only=True)`
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from piton.contract import InputError
from piton.contract.manifest import Manifest
from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.load.loader import load_tensors

_COUNT = "n_averaged"
"""Buffer that AveragedModel of torch keeps beside the weights."""
_ADAPTER = "base_model.model."
"""Beginning of the names that peft gives to the weights of a model with adapters."""
_OS_ERROR = re.compile(r"\(os error ([0-9]{1,3})\)")
"""The system's error in a message of a library in Rust."""
_WRITER = "inline_container"
"""Part of torch that writes files, in its errors."""
_FULL_BELOW_BYTES = 1 << 20
"""A disk with less room than this was filled: the part that was written is still there."""
_CONFIG_SUFFIXES = {".json", ".jinja", ".model", ".txt"}


def export(
    folder: Path, manifest: Manifest, out: Path, *, kind: str, weights: str | None, config: Path | None = None
) -> int:
    """Write a verified checkpoint, and return the number of tensors written.

    Args:
        folder: the folder of the checkpoint.
        manifest: its manifest.
        out: the file or folder to write; it must not exist yet.
        kind: `safetensors`, `dcp` or `torch`.
        weights: the name of the only object to write, under its own names; None: everything.
        config: for `hf`, a config.json, or a folder with one and the other files of the model.

    Raises:
        ValueError: the checkpoint cannot be exported with these arguments.
    """
    check_place(out)
    write = _WRITERS.get(kind, save_tensors)
    if kind in ("safetensors", "hf") and weights is None:
        raise InputError("safetensors holds tensors and nothing else; say --weights-only, or --format dcp")
    if kind == "hf":
        write = partial(_huggingface, _description(folder), config)
    state, tensors = _state(CommittedCheckpoint(folder=folder, manifest=manifest), weights)
    place(out, partial(write, state))
    return tensors


def check_place(out: Path) -> None:
    """Refuse an output path that cannot be written, before anything is read.

    Raises:
        ValueError: the path exists, or its parent folder does not or cannot be written to.
    """
    if out.exists():
        raise InputError(f"{out} is there already; name another place")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder; make it first")
    try:
        with TemporaryFile(dir=out.parent):  # torch's own errors do not say why a folder takes no file
            pass
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}; name another place") from error


def place(out: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder under a temporary name, and rename it.

    Raises:
        ValueError: it cannot be written.
    """
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(aside)
        aside.rename(out)
    except InputError:
        raise
    except Exception as error:
        if (reason := _disks_reason(error, out.parent)) is None:
            raise
        raise InputError(f"{out} cannot be written: {reason}; name a place with room that may be written to") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # on a read-only disk also where it does not exist
            aside.unlink()


def _disks_reason(error: BaseException, folder: Path) -> str | None:
    """Return why the disk of a folder refuses a file; None if the error has another cause.

    torch and safetensors raise errors of their own for a full disk. Some name the number of the system's error, some
    have it as their context, and some complain about the length of what they have written.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        if number := _OS_ERROR.search(str(seen)):
            return os.strerror(int(number[1]))
        seen = seen.__cause__ or seen.__context__
    if shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:
        return os.strerror(errno.ENOSPC)
    return "the disk, or a quota, does not take all of it" if _WRITER in str(error) else None


def weights_of(checkpoint: CommittedCheckpoint, name: str) -> dict[str, Any]:
    """Return the weights of this object, under the names of the model also if they are an average.

    Raises:
        ValueError: the checkpoint has no such object.
    """
    return _named_as_the_model(_state(checkpoint, name)[0])


def _state(checkpoint: CommittedCheckpoint, weights: str | None) -> tuple[dict[str, Any], int]:
    """Return the state dicts of the objects, and the number of tensors in them."""
    document = layout.read_document(checkpoint.folder)
    expect_one_model(document, checkpoint.folder)
    objects = document["objects"]
    if weights is not None and weights not in objects:
        raise InputError(f"{checkpoint.folder.name} has no {weights}; it has {', '.join(sorted(objects))}")
    part = objects if weights is None else objects[weights]
    tensors = load_tensors(checkpoint, dict.fromkeys(codec.keys(part)))
    state = codec.join(part, tensors.__getitem__, is_exact=False)
    # A session takes one optimizer or a list of them; other libraries expect a single one without a list.
    if weights is None:
        state = {name: part[0] if isinstance(part, list) and len(part) == 1 else part for name, part in state.items()}
    return state, len(tensors)


def expect_one_model(document: Mapping[str, Any], folder: Path) -> None:
    """Make sure that a state is of one model, and not of one for each rank.

    Raises:
        ValueError: each rank has weights of its own.
    """
    parts = document.get("ranks", ())
    if any(part.get(layout.PER_RANK) for part in parts):
        raise InputError(
            f"{folder.name}: each of {len(parts)} ranks has weights of its own (per_rank=True), and this takes one "
            "model; put the weights together in the script that trains them, and save them there"
        )


def save_tensors(state: dict[str, Any], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        ValueError: a value is not a tensor, or the library is not installed.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise InputError(f"safetensors is not installed here ({error}); say pip install safetensors") from error
    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) < len(state):
        other = next(name for name in state if name not in tensors)
        raise InputError(f"{other} is no tensor, and safetensors holds nothing else; say --format dcp")
    save_file(tensors, path, metadata={"format": "pt"})


def _description(folder: Path) -> dict[str, Any]:
    """Return the description that the callback for transformers has saved with the weights."""
    description = layout.read_document(folder)["objects"].get(layout.DESCRIPTION, {})
    return codec.join(description, _no_tensor, is_exact=False)  # type: ignore[no-any-return]


def _no_tensor(key: str) -> Tensor:
    raise InputError(f"the description of the model holds a tensor, {key}")


def _huggingface(description: dict[str, Any], config: Path | None, state: dict[str, Any], path: Path) -> None:
    if any(name.startswith(_ADAPTER) for name in state):
        raise InputError(
            "these are the weights of a PeftModel, and from_pretrained would take none of them; merge them into the "
            "model in the script, with merge_and_unload(), or say --format safetensors and load them with peft"
        )
    path.mkdir()
    if config is not None:
        _copy_config(config, path)
    elif "config" in description:
        for name in ("config", "generation_config"):
            if name in description:
                (path / f"{name}.json").write_text(json.dumps(description[name], indent=2) + "\n", encoding="utf-8")
    else:
        raise InputError("the checkpoint does not say what kind of model it is of; name its config.json with --config")
    save_tensors(_weights_for_transformers(state, description.get("tied", {})), path / "model.safetensors")


def _weights_for_transformers(state: dict[str, Any], tied: dict[str, str]) -> dict[str, Any]:
    """Return the weights as transformers writes them: tied ones once, averaged ones under the names of the model."""
    state = _named_as_the_model(state)
    again = {name for name, first in tied.items() if name in state and _is_same(state[name], state.get(first))}
    return {name: value for name, value in state.items() if name not in again}


def _named_as_the_model(state: dict[str, Any]) -> dict[str, Any]:
    """Remove the names that AveragedModel adds, because it wraps the model."""
    if _COUNT not in state:
        return state
    return {name.removeprefix("module."): value for name, value in state.items() if name != _COUNT}


def _is_same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(tensor, other)


def _copy_config(config: Path, path: Path) -> None:
    """Copy a config.json; from a folder copy all files except weights, because the tokenizer is needed as well."""
    if config.is_dir():
        found = [file for file in config.iterdir() if file.suffix in _CONFIG_SUFFIXES and ".index." not in file.name]
        for file in found:
            shutil.copyfile(file, path / file.name)
    elif config.is_file():
        shutil.copyfile(config, path / "config.json")
    if not (path / "config.json").is_file():
        raise InputError(f"{config} is no config.json, nor a folder with one")


def _dcp(state: dict[str, Any], path: Path) -> None:
    try:
        state_dict_saver.save(state, storage_writer=FileSystemWriter(path), no_dist=True)
    except CheckpointException as error:  # it is no Exception, and keeps what happened to itself
        raise next(iter(error.failures.values()))[0] from None


def _torch(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)


_WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "safetensors": save_tensors,
    "dcp": _dcp,
    "torch": _torch,
}
