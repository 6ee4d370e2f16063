"""A real S3 server on free ports of this machine, and a proxy in front of it that breaks what a test says.

server = Server(folder)        SeaweedFS, one process; stop() kills it by its process id
with Proxy(server) as proxy:   proxy.fail(method="PUT", key="MANIFEST", code="SlowDown", times=2)
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from support.local_server import LocalServer
from support.ports import free_ports

ACCESS_KEY, SECRET_KEY = "piton", "piton-secret"
BUCKET = "piton-tests"
"""One for all tests: the server sets room aside for each."""
_START_SECONDS = 60.0
_TRIES = 5
_OF_THE_HOP = frozenset({"transfer-encoding", "connection", "content-length", "date", "server"})
_PARTS = ("master", "volume", "filer", "s3")
_STATUS = {"InternalError": 500, "SlowDown": 503, "NotImplemented": 501}
"""Of the codes whose status is not 403."""
_CONFIG = {
    "identities": [
        {
            "name": "piton",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ],
    "kms": {
        "default_provider": "local",
        "providers": {"local": {"type": "local", "enableOnDemandCreate": True}},
    },
}
"""Keys of its KMS are made when somebody names them; names that look like an ARN are not."""
_KEY_OF_SSE_S3 = {"WEED_S3_SSE_KEK": "5e" * 32}


def environment(url: str) -> dict[str, str]:
    """What a trainer's environment has for a bucket there."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class Server:
    """SeaweedFS with its S3 door open; nothing of it leaves this machine."""

    def __init__(self, folder: Path, *, volume_megabytes: int = 64) -> None:
        """Start it; `volume_megabytes` of room are added to its files at a time, 20 times at most."""
        self._folder = folder
        self._volume_megabytes = volume_megabytes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "s3.json").write_text(json.dumps(_CONFIG))
        for tries_left in reversed(range(_TRIES)):
            self._ports = free_ports(8)
            self.start()
            try:
                self.client = self.wait()
            except (BotoCoreError, ClientError, OSError, KeyError):
                died = self._process.poll() is not None  # somebody else was quicker to take one of its ports
                self.stop()
                if not (died and tries_left):
                    raise
            else:
                return

    def start(self) -> None:
        """Start the process, at first or again, with the data that are there. `wait` says when it answers."""
        folder = self._folder
        ports = dict(zip(_PARTS, self._ports[:4], strict=True))
        grpc = dict(zip(_PARTS, self._ports[4:], strict=True))
        self.port, self._master = ports["s3"], ports["master"]
        options = [f"-{part}.port={port}" for part, port in ports.items()]
        options += [f"-{part}.port.grpc={port}" for part, port in grpc.items()]
        options += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}"]
        options += [
            "-master.telemetry=false",
            "-master.electionTimeout=500ms",
            "-master.heartbeatInterval=100ms",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-master.volumeSizeLimitMB={self._volume_megabytes}",
            "-volume.max=20",
        ]
        options += [f"-filer.localSocket={folder / 'f'}", f"-s3.localSocket={folder / 's'}"]
        program = str(Path(sys.executable).parent / "weed")
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, f"-logdir={folder}", "server", *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | _KEY_OF_SSE_S3,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> Any:
        """Until it answers; a client."""
        client = client_of(self.url)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                # Before the volume server has reported, a first write would wait for seconds.
                with urlopen(f"http://127.0.0.1:{self._master}/dir/assign?collection={BUCKET}", timeout=5) as answer:
                    json.load(answer)["fid"]
                with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                    client.create_bucket(Bucket=BUCKET)
            except (BotoCoreError, ClientError, OSError, KeyError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return client

    def stop(self) -> None:
        """Told to end in order, it takes its time."""
        self._process.kill()
        self._process.wait()
        for part, port in zip(_PARTS, self._ports[4:], strict=True):
            # No option says where these go, and it leaves them behind in any case.
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)


def client_of(url: str) -> Any:
    """A client that does not retry."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=config,
    )


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with which requests."""

    method: str
    key: str
    """A pattern for the path and query."""
    code: str | None = None
    """S3's word for it; None cuts the connection."""
    times: int = 1
    before: bool = True
    """Before the server has heard of it; else only its answer is lost."""
    half: bool = False
    """The answer is cut in the middle of its body."""
    answer: tuple[int, str, str] | None = None
    """Status, content type and body of another answer than S3's."""


class Proxy(LocalServer):
    """Hands requests on to the server, but for those that a fault takes."""

    def __init__(self, server: Server) -> None:
        self.seen: list[str] = []
        """`<method> <path>` of every request."""
        self.bytes = 0
        """Of bodies, towards the server."""
        self.fetched = 0
        """Of bodies, from the server."""
        self.on_request: Callable[[str, str], object] | None = None
        """Called with method and path before a request is handed on."""
        self.dropped: set[str] = set()
        """Headers that answers to HEAD leave out, in small letters."""
        self.dropped_of_writes: set[str] = set()
        """The same for answers to PUT."""
        self.alter: Callable[[str, str, HTTPResponse, bytes], bytes] | None = None
        """Called with method, path and answer of the server; it may change status and headers, and returns the body."""
        self.weather: Callable[[], Fault | None] | None = None
        """Called for each request that no fault of `fail` takes."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        super().__init__(_handler(self, server.port))

    def fail(self, *, method: str = ".*", key: str = ".*", **fault: Any) -> None:
        """From now on."""
        self._faults.append(Fault(method=method, key=key, **fault))

    def heal(self) -> None:
        """Nothing fails any more."""
        self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of this request, used up."""
        with self._lock:
            self.seen.append(f"{method} {path}")
            for fault in self._faults:
                if fault.times > 0 and re.fullmatch(fault.method, method) and re.search(fault.key, path):
                    fault.times -= 1
                    return fault
            return None if self.weather is None else self.weather()


def _handler(proxy: Proxy, port: int) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - one small class
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, HTTPException):
                self.close_connection = True

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.take(self.command, self.path)
            if fault is not None and fault.before and not fault.half:
                self._break(fault)
                return
            if proxy.on_request is not None:
                proxy.on_request(self.command, self.path)
            proxy.bytes += len(body)
            with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            if proxy.alter is not None:
                data = proxy.alter(self.command, self.path, answer, data)
            proxy.fetched += len(data)
            if fault is None:
                self._answer(answer, data)
            elif fault.half:
                self._answer(answer, data, data[: len(data) // 2])
                self._cut()
            else:
                self._break(fault)

        def _answer(self, answer: HTTPResponse, data: bytes, sent: bytes | None = None) -> None:
            self.send_response(answer.status)
            dropped = {"HEAD": proxy.dropped, "PUT": proxy.dropped_of_writes}.get(self.command, set())
            for name, value in answer.getheaders():
                if name.lower() not in _OF_THE_HOP | dropped:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            if self.command != "HEAD" or "content-length" not in proxy.dropped:
                self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data if sent is None else sent)

        def _break(self, fault: Fault) -> None:
            if fault.code is None and fault.answer is None:
                self._cut()
                return
            error = f"<Error><Code>{fault.code}</Code><Message>as the test says</Message></Error>"
            status, kind, body = fault.answer or (_STATUS.get(fault.code or "", 403), "application/xml", error)
            text = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Nothing: the tests look at `seen`."""

    return Handler


def keys(client: Any, prefix: str) -> list[str]:
    """Everything below a prefix."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return sorted(item["Key"].removeprefix(prefix) for item in found)
