"""What it takes to bring files into a bucket and back, by each client for S3 that is installed here.

All take turns, repetition by repetition, with the same files and as many of them at once; what is printed are medians
of the ratios over boto3's classic transfer manager within a repetition, never seconds. The server is SeaweedFS on this
machine, from the tests, unless AWS_ENDPOINT_URL names another one; then --bucket says where. The last line is one JSON
object, each row of the table by client.

    upload        until all files are in the bucket
    upload_cpu    seconds of processor that this process takes for it: they are the training's
    download      until all files are back
    download_cpu  the same, downwards

Piton's row hashes each file before it is sent, asks for its checksum afterwards, and hashes what comes back.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from s3transfer.manager import TransferConfig, TransferManager

from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.s3 import Tuning
from piton_trainer.s3.client import connect
from support import s3

CLASSIC = "boto3 classic"
FILES_AT_ONCE = 4
TUNING = Tuning()
Ratios = dict[str, dict[str, list[float]]]


class Method(Protocol):
    """One client."""

    def upload(self, path: Path, key: str) -> None:
        """Send a file, in parts."""

    def download(self, path: Path, key: str) -> None:
        """Fetch it."""


class Classic:
    """The transfer manager that boto3 uses without awscrt; each object gets a SHA-256."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        config = TransferConfig(
            multipart_threshold=TUNING.chunk_bytes,
            multipart_chunksize=TUNING.chunk_bytes,
            max_request_concurrency=TUNING.concurrency,
        )
        self.manager = TransferManager(connect(TUNING), config=config)

    def upload(self, path: Path, key: str) -> None:
        """As the mirror does it."""
        self.manager.upload(str(path), self.bucket, key, extra_args={"ChecksumAlgorithm": "SHA256"}).result()

    def download(self, path: Path, key: str) -> None:
        """As the mirror does it."""
        self.manager.download(self.bucket, key, str(path)).result()


class Crt(Classic):
    """The transfer manager of awscrt, which boto3[crt] brings."""

    def __init__(self, bucket: str) -> None:
        import botocore.session
        from s3transfer.crt import (
            BotocoreCRTCredentialsWrapper,
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        self.bucket = bucket
        session = botocore.session.get_session()
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        region = session.get_config_variable("region")
        client = create_s3_crt_client(
            region,
            crt_credentials_provider=BotocoreCRTCredentialsWrapper(
                session.get_credentials()
            ).to_crt_credentials_provider(),
            use_ssl=endpoint.startswith("https"),
            part_size=TUNING.chunk_bytes,
        )
        serializer = BotocoreCRTRequestSerializer(session, {"region_name": region, "endpoint_url": endpoint})
        self.manager = CRTTransferManager(client, serializer)


class S3fs:
    """fsspec's file system."""

    def __init__(self, bucket: str) -> None:
        import s3fs

        self.bucket = bucket
        self.fs = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})

    def upload(self, path: Path, key: str) -> None:
        """With the same size of parts; it knows no SHA-256 for them."""
        self.fs.put_file(str(path), f"{self.bucket}/{key}", chunksize=TUNING.chunk_bytes)

    def download(self, path: Path, key: str) -> None:
        """In one stream."""
        self.fs.get_file(f"{self.bucket}/{key}", str(path))


class Piton:
    """What the mirror does with a file."""

    def __init__(self, bucket: str) -> None:
        self.bucket = Bucket(BucketPrefix(bucket=bucket, prefix=""), TUNING)

    def upload(self, path: Path, key: str) -> None:
        """Hash, send, compare."""
        checksum = self.bucket.fingerprint(path)[1]
        self.bucket.upload(path, key)
        there = self.bucket.look(key)
        assert there is not None
        assert there.checksum == checksum

    def download(self, path: Path, key: str) -> None:
        """Fetch piece by piece, hash on the way, fsync."""
        path.unlink(missing_ok=True)  # what is there would be kept
        self.bucket.download(path, key)


CLIENTS: dict[str, tuple[str, Callable[[str], Method]]] = {
    CLASSIC: ("boto3", Classic),
    "boto3 crt": ("awscrt", Crt),
    "s3fs": ("s3fs", S3fs),
    "piton": ("boto3", Piton),
}


@contextmanager
def a_server(root: Path) -> Iterator[None]:
    """SeaweedFS, unless the environment names a server."""
    if "AWS_ENDPOINT_URL" in os.environ:
        yield
        return
    server = s3.Server(root / "server", volume_megabytes=1024)
    os.environ.update(s3.environment(server.url))
    try:
        yield
    finally:
        server.stop()


def cost(action: Callable[[Path], object], files: list[Path]) -> tuple[float, float]:
    """Seconds, and seconds of processor, until all files are done, several at a time."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(action, files))
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def send(method: Method, name: str, path: Path) -> None:
    """One file up."""
    method.upload(path, f"{name}/{path.name}")


def fetch(method: Method, name: str, back: Path, path: Path) -> None:
    """One file down."""
    method.download(back / path.name, f"{name}/{path.name}")


def measure(methods: Mapping[str, Method], root: Path, files: list[Path], repetitions: int) -> Ratios:
    """All methods in turns; another one begins each time. The first round only warms up."""
    found: Ratios = defaultdict(lambda: defaultdict(list))
    items = list(methods.items())
    back = root / "back"
    back.mkdir()
    for repetition in range(repetitions + 1):
        costs: dict[str, dict[str, float]] = {}
        cut = repetition % len(items)
        for name, method in items[cut:] + items[:cut]:
            up = cost(partial(send, method, name), files)
            down = cost(partial(fetch, method, name, back), files)
            if not repetition:
                assert all((back / path.name).read_bytes() == path.read_bytes() for path in files), name
            for file in back.iterdir():
                file.unlink()
            costs[name] = dict(zip(("upload", "upload_cpu", "download", "download_cpu"), up + down, strict=True))
        print(f"repetition {repetition} of {repetitions}", file=sys.stderr, flush=True)
        for name, values in costs.items() if repetition else ():
            for row, value in values.items():
                found[row][name].append(value / costs[CLASSIC][row])
    return found


def checksums(methods: Mapping[str, Method], bucket: str, file: Path) -> dict[str, bool]:
    """Whether S3 has a SHA-256 of what a method sent."""
    client: Any = connect(TUNING)
    return {
        name: "ChecksumSHA256" in client.head_object(Bucket=bucket, Key=f"{name}/{file.name}", ChecksumMode="ENABLED")
        for name in methods
    }


def show(found: Ratios) -> None:
    """The table, and the JSON object."""
    medians = {row: {name: statistics.median(ratios) for name, ratios in by.items()} for row, by in found.items()}
    print(f"{'over boto3 classic':<20}" + "".join(f"{row:>14}" for row in medians))
    for name in medians["upload"]:
        print(f"{name:<20}" + "".join(f"{by[name]:>14.2f}" for by in medians.values()))
    print(json.dumps({row: {name: round(ratio, 4) for name, ratio in by.items()} for row, by in medians.items()}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="What it takes to bring files into a bucket and back.")
    parser.add_argument("--megabytes", type=int, default=64, help="of each file")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--bucket", default=s3.BUCKET)
    parser.add_argument("--directory", type=Path, default=Path(), help="where the files lie")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory.absolute()))
    try:
        files = [root / f"{number}" for number in range(options.files)]
        for file in files:
            file.write_bytes(os.urandom(options.megabytes << 20))
        with a_server(root):
            there = {name: make for name, (needs, make) in CLIENTS.items() if importlib.util.find_spec(needs)}
            for name in CLIENTS.keys() - there.keys():
                print(f"{name} is left out: {CLIENTS[name][0]} is not installed here")
            methods = {name: make(options.bucket) for name, make in there.items()}
            found = measure(methods, root, files, options.repetitions)
            print(f"S3 has a SHA-256 of what was sent: {checksums(methods, options.bucket, files[0])}")
    finally:
        shutil.rmtree(root)
    show(found)


if __name__ == "__main__":
    main()
