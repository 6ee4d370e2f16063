"""Training data in a real S3 server: read in parts, through interruptions, and as of one version."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from piton_trainer.data.ranking.rows import CsvReading, JudgmentRow, csv_rows
from piton_trainer.data.ranking.sources import judgments_of
from piton_trainer.errors import BadConfig, DataUnavailable
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.s3 import reader
from support import s3

GAINS = {0.0: 0.0, 1.0: 1.0, 2.0: 0.7}
LINES = "query_id,llm_id,qrel,query_text\n" + "".join(
    f"q{number // 10},id{number % 10},{number % 3},text {number // 10}\n" for number in range(2000)
)


PIECE = 10_000
Put = Callable[[str, bytes], str]


@pytest.fixture
def put(server: s3.Server, proxy: s3.Proxy, uri: str) -> Put:
    """Put an object; its URI. The environment's S3 is the proxy."""

    def write(name: str, data: bytes) -> str:
        server.client.put_object(Bucket=s3.BUCKET, Key=f"{uri.rpartition('/')[2]}/{name}", Body=data)
        return f"{uri}/{name}"

    return write


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PIECE_BYTES", PIECE)


def rows_of(uri: str) -> list[JudgmentRow]:
    found: list[JudgmentRow] = []
    csv_rows(uri, CsvReading(gains=GAINS), found.append)
    return found


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_an_object_is_read_as_a_stream_of_parts(put: Put, proxy: s3.Proxy, name: str) -> None:
    data = gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode()
    found = rows_of(put(name, data))
    assert len(found) == 2000
    assert found[-1] == JudgmentRow(query="q199", id="id9", text="text 199", gain=1.0)
    assert len([line for line in proxy.seen if line.startswith("GET")]) == -(-len(data) // PIECE)


def test_a_cut_connection_and_a_busy_server_cost_a_part_each(put: Put, proxy: s3.Proxy) -> None:
    uri = put("x.csv", LINES.encode())
    proxy.fail(method="GET")
    proxy.fail(method="GET", code="SlowDown")
    assert len(rows_of(uri)) == 2000


def test_an_object_that_is_replaced_meanwhile_is_not_half_of_each(put: Put, proxy: s3.Proxy) -> None:
    uri = put("x.csv", LINES.encode())
    gets = 0

    def replace(method: str, path: str) -> None:
        nonlocal gets
        gets += method == "GET"
        if gets == 1:
            put("x.csv", LINES.replace("text", "other").encode())

    proxy.on_request = replace
    with pytest.raises(DataUnavailable, match="was written to while it was read"):
        rows_of(uri)


def test_an_object_that_is_replaced_before_its_turn_is_not_taken_for_what_it_was(
    put: Put, proxy: s3.Proxy, tmp_path: Path
) -> None:
    first, second = put("x.csv", LINES.encode()), put("y.csv", LINES.encode())
    sources = {uri: CsvReading(gains=GAINS) for uri in (first, second)}

    def replace(method: str, path: str) -> None:
        if method == "GET" and "x.csv" in path:
            put("y.csv", LINES.replace("id9", "id8b").encode())

    proxy.on_request = replace
    with pytest.raises(BadConfig) as caught:
        judgments_of(sources, RunCache(tmp_path, Ranks()))
    assert caught.value.detail == (
        f"trainer.config.data: {second} has changed while it was read; start again when it is complete"
    )
    assert not list(tmp_path.glob("judgments-*"))


def test_a_missing_object_is_the_users_to_mend(put: Put) -> None:
    uri = put("x.csv", b"").replace("x.csv", "y.csv")
    with pytest.raises(BadConfig) as caught:
        rows_of(uri)
    assert caught.value.detail == f"trainer.config.data: there is no object {uri}"


def test_a_wrong_row_in_a_bucket_has_a_line_as_well(put: Put) -> None:
    uri = put("x.csv", LINES.encode() + b"q9,id1,5,text 9\n")
    with pytest.raises(BadConfig) as caught:
        rows_of(uri)
    assert caught.value.detail == (
        f"trainer.config.data: {uri}, line 2002: column qrel: there is no gain for grade 5; "
        "trainer.config.gains has 0, 1, 2"
    )


def test_the_next_attempt_reads_the_volume_and_not_the_bucket(put: Put, proxy: s3.Proxy, tmp_path: Path) -> None:
    run_cache = RunCache(tmp_path, Ranks())
    sources: dict[str, Any] = {put("x.csv", LINES.encode()): CsvReading(gains=GAINS)}
    first = judgments_of(sources, run_cache)
    proxy.seen.clear()
    assert judgments_of(sources, run_cache).digest == first.digest
    assert [line.partition(" ")[0] for line in proxy.seen] == ["HEAD"]
    put("x.csv", LINES.replace("id9", "id8b").encode())
    assert "id8b" in judgments_of(sources, run_cache).names
