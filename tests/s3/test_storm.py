"""A storm over the mirror: random answers of all classes during 200 saves. It ends whole, or the run says how not."""

import gc
import random
import threading
from collections.abc import Iterator

import pytest

from piton.contract.assignment import Assignment, SavePolicy
from support import s3
from support.mirrored import Contents, Volume

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
SAVES = 200
PAGE = "<!DOCTYPE html><html><body>Log in</body></html>"
REFUSED = "<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
CODES = (
    "SlowDown",
    "InternalError",
    "ExpiredToken",
    "AccessDenied",
    "InvalidAccessKeyId",
    "RequestTimeTooSkewed",
    "InvalidObjectState",
    "NotImplemented",
)
FAULTS = [
    *({"code": code} for code in CODES),
    *({"code": code, "before": False} for code in ("SlowDown", "AccessDenied")),
    *({"answer": (status, "text/html", PAGE)} for status in (200, 301, 302, 404, 502)),
    *({"answer": (404, "text/plain", text)} for text in ("", "404 page not found")),
    {"answer": (200, "application/xml", REFUSED)},
    {"answer": (200, "application/xml", "")},
    {},
    {"before": False},
    {"half": True},
]
"""What may happen to any request, before the server has heard of it or after."""


@pytest.fixture(autouse=True)
def _collects_connections() -> Iterator[None]:
    """Collect here a connection that was never closed: one was seen in a storm, once. What leaves it is not known."""
    yield
    gc.collect()


def storm(seed: int, chance: float) -> "Storm":
    return Storm(random.Random(seed), chance)


class Storm:
    """Strikes some requests; of those that came through, most still do."""

    def __init__(self, dice: random.Random, chance: float) -> None:
        self._dice = dice
        self._chance = chance

    def __call__(self) -> s3.Fault | None:
        if self._dice.random() >= self._chance:
            return None
        return s3.Fault(method=".*", key=".*", **self._dice.choice(FAULTS))  # type: ignore[arg-type]


def versions(bucket: Contents) -> dict[str, str]:
    """All objects of a run, with their versions."""
    found = bucket.client.list_objects_v2(Bucket=s3.BUCKET, Prefix=bucket.place.prefix).get("Contents", [])
    return {item["Key"]: item["ETag"] for item in found}


@pytest.mark.parametrize("seed", [1, 2])
def test_200_saves(
    seed: int, volume: Volume, proxy: s3.Proxy, bucket: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    neighbour = Volume(volume.directory.with_name("neighbour"), f"{volume.uri}/run-of-others", uid="another")
    neighbour.commit(7)
    assert neighbour.mirrored(7)
    theirs = Contents(bucket.client, neighbour.uri)
    before, asked = versions(theirs), len(proxy.seen)
    volume.assignment = Assignment(save=SavePolicy(every_steps=1, keep_last=2, keep_best=0))
    pause = threading.Event()
    mirror = volume.mirror()

    proxy.weather = storm(seed, 0.1)
    for step in range(1, SAVES + 1):
        volume.commit(step)
        if step > 2:
            volume.drop(step - 2)
        mirror.committed(step)
        pause.wait(0.01)
    is_whole = mirror.close(2)

    assert is_whole or f"is behind: it has step {mirror._mirrored} of {SAVES}" in caplog.text
    proxy.weather = None
    bucket.assert_sound()
    volume.attempt = 2
    again = Volume(volume.directory, volume.uri, attempt=2, assignment=volume.assignment)
    newest = again.commit(SAVES + 1)
    again.drop(SAVES - 1)
    assert again.mirrored(SAVES + 1)
    assert bucket.newest() == newest
    assert len(bucket.folders()) == 2
    assert bucket.unfinished() == []
    bucket.assert_sound()
    assert versions(theirs) == before
    assert not [line for line in proxy.seen[asked:] if "run-of-others" in line]
