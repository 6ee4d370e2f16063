"""Volumes that are mirrored, without a trainer, and what is in the bucket then.

volume.commit(4)        a checkpoint, by hand
volume.mirrored(4)      a mirror of its own takes it to the bucket, and ends; whether all is there
volume.mirror()         one to talk to: the real thing, but its process is a thread here (`InThread`)
"""

import os
import shutil
import socket
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from piton.cli import main
from piton.contract import names
from piton.contract.assignment import Assignment, Encryption, MirrorPolicy, Objective, SavePolicy
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.file_digest import digest_of
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.mirror.client import MirrorClient
from piton_trainer.mirror.keys import BucketPrefix, Latest, folder_of
from piton_trainer.mirror.messages import Timeouts
from piton_trainer.mirror.process import Channel, serve
from piton_trainer.s3 import Tuning
from support import s3

MIB = 1 << 20
QUICK = Timeouts(backoff=0.02, backoff_max=0.05, restore=0.2, finish=20, stop=20, behind=0.3)
HASTY = Tuning(tries=1, chunk_bytes=5 * MIB, connect_seconds=1, read_seconds=5)
ORDERS = Assignment(save=SavePolicy(every_steps=1), objective=Objective(metric="val_loss"))
SHARD = "__0_0.distcp"
FILES = {SHARD, layout.STATE_FILE, names.MANIFEST_FILE}


class InThread:
    """Serves a mirror like its process does, without the time that a process takes to start."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        ours, theirs = socket.socketpair()
        self.line, self._theirs = Connection(ours.detach()), Connection(theirs.detach())
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def leave(self, seconds: float) -> None:
        self._shut(socket.SHUT_WR)
        self._thread.join(seconds)
        self.kill()

    def kill(self) -> None:
        self._shut(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with self._theirs:
            serve(self._theirs, Channel(self._theirs), self._clock)

    def _shut(self, how: int) -> None:
        with socket.socket(fileno=os.dup(self.line.fileno())) as end:
            end.shutdown(how)


@dataclass
class Volume:
    """A checkpoint directory with a process that holds it."""

    directory: Path
    uri: str
    attempt: int = 1
    uid: str | None = "uid-of-this-run"
    durable_step: int | None = None
    assignment: Assignment = ORDERS
    tuning: Tuning = HASTY
    encryption: Encryption | None = None

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.fence = Fence(self.directory, disk=layout.Disk(), attempt=self.attempt)
        self.fence.claim()

    def commit(self, step: int, *, size: int = 1000, **metrics: float) -> str:
        """A checkpoint, of bytes that no other attempt's has; the name of its folder in the bucket."""
        folder = self.directory / names.step_folder(step)
        folder.mkdir()
        data = {SHARD: f"{self.attempt} {step} ".encode().ljust(size, b"x"), layout.STATE_FILE: b"{}"}
        for name, content in data.items():
            (folder / name).write_bytes(content)
        files = {n: FileEntry(size=len(c), digest=digest_of(c)) for n, c in data.items()}
        manifest = Manifest(step=step, attempt=self.attempt, world_size=1, files=files, metrics=metrics)
        (folder / names.MANIFEST_FILE).write_text(manifest.to_json())
        return folder_of(step, manifest.to_json())

    def drop(self, step: int) -> None:
        shutil.rmtree(self.directory / names.step_folder(step))

    def content(self, step: int) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.directory / names.step_folder(step)).iterdir()}

    def mirror(self, patience: Timeouts = QUICK, **parts: Any) -> MirrorClient:
        return MirrorClient(
            Config(
                checkpoint_dir=self.directory,
                assignment=self.assignment,
                attempt=self.attempt,
                uid=self.uid,
                durable_step=self.durable_step,
            ),
            BucketPrefix.parse(self.uri, "run"),
            MirrorPolicy(uri=self.uri, encryption=self.encryption),
            fence=self.fence,
            clock=Clock(),
            patience=patience,
            tuning=self.tuning,
            **{"start": InThread, "report": lambda _: None, **parts},
        )

    def mirrored(self, step: int) -> bool:
        """Mirror up to this step with a process of its own; whether all is there."""
        mirror = self.mirror()
        mirror.committed(step)
        return mirror.close(20)

    def restored(self, newer_than: int | None, patience: Timeouts = QUICK, **parts: Any) -> int | None:
        """Restore with a process of its own; the step."""
        mirror = self.mirror(patience, **parts)
        try:
            return mirror.restore(newer_than)
        finally:
            mirror.close(0)


class Contents:
    """What is in the bucket, below a place."""

    def __init__(self, client: Any, uri: str) -> None:
        self.client = client
        self.place = BucketPrefix.parse(uri, "run")

    def folders(self) -> dict[str, set[str]]:
        """The files by folder."""
        found: dict[str, set[str]] = {}
        for key in s3.keys(self.client, self.place.prefix):
            folder, _, name = key.partition("/")
            if name:
                found.setdefault(folder, set()).add(name)
        return found

    def latest(self) -> Latest:
        return Latest.from_json(self.read("latest").decode())

    def newest(self) -> str | None:
        """The folder that `latest` names."""
        pointer = self.latest().newest
        return None if pointer is None else pointer.folder

    def read(self, *parts: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=s3.BUCKET, Key=self.place.key(*parts))["Body"].read()
        return body

    def encryption(self) -> dict[str, tuple[str | None, str | None]]:
        """How the server says that each object is encrypted, and with which key, by the last part of its name."""
        found = {}
        for key in s3.keys(self.client, self.place.prefix):
            head = self.client.head_object(Bucket=s3.BUCKET, Key=self.place.prefix + key)
            found[key.rpartition("/")[2]] = head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")
        return found

    def write(self, body: bytes, *parts: str) -> None:
        self.client.put_object(Bucket=s3.BUCKET, Key=self.place.key(*parts), Body=body)

    def unfinished(self) -> list[Any]:
        """Uploads in parts that nobody has finished."""
        answer = self.client.list_multipart_uploads(Bucket=s3.BUCKET, Prefix=self.place.prefix)
        uploads: list[Any] = answer.get("Uploads", [])
        return uploads

    def assert_sound(self) -> None:
        """Whatever has a manifest has all files, each with the content that the manifest says."""
        for folder, files in self.folders().items():
            if names.MANIFEST_FILE not in files:
                continue
            manifest = Manifest.from_json(self.read(folder, names.MANIFEST_FILE).decode())
            assert manifest.files.keys() == files - {names.MANIFEST_FILE}
            for name, entry in manifest.files.items():
                assert digest_of(self.read(folder, name), entry) == entry.digest


def errors(mirror: MirrorClient) -> int:
    """How many requests of the mirror have failed, of whatever class."""
    return sum(mirror.errors().values())


def wait_for(condition: Any, seconds: float = 10.0) -> bool:
    """Poll, often."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        pause.wait(0.01)
    return False


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Say `piton checkpoint` with these arguments; the exit code."""
    monkeypatch.setattr(sys, "argv", ["piton", "checkpoint", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code
