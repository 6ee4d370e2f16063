"""One S3 server for all tests here, a proxy for each, and a place of its own in the bucket."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import s3
from support.alone import outside_piton, quiet_torch
from support.mirrored import Contents, Volume

__all__ = ["outside_piton", "quiet_torch"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All on one worker, where there are several: starting the server takes longer than most of them together."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("s3"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    found = s3.Server(tmp_path_factory.mktemp("s3"))
    yield found
    found.stop()


@pytest.fixture
def proxy(server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Proxy]:
    with s3.Proxy(server) as found:
        for name, value in s3.environment(found.url).items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://{s3.BUCKET}/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"


@pytest.fixture
def volume(tmp_path: Path, uri: str, proxy: s3.Proxy) -> Volume:
    assert proxy.url
    return Volume(tmp_path / "volume", uri)


@pytest.fixture
def bucket(server: s3.Server, uri: str) -> Contents:
    return Contents(server.client, uri)


@pytest.fixture
def lost(volume: Volume, tmp_path: Path, uri: str) -> Volume:
    """The next attempt, on an empty volume, after steps 4 and 6 were mirrored."""
    volume.commit(4)
    volume.commit(6)
    assert volume.mirrored(6)
    return Volume(tmp_path / "empty", uri, attempt=2)
