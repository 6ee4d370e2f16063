"""Collections and examples in a bucket are what they are on a disk."""

from pathlib import Path

import pytest

from piton_trainer.data.retrieval.sources import collection_of, examples_of
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks
from support import s3
from support.retrieval import made_up


def upload(server: s3.Server, folder: Path, uri: str) -> None:
    prefix = uri.rpartition("/")[2]
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder)}"
            server.client.put_object(Bucket=s3.BUCKET, Key=key, Body=path.read_bytes())


def test_a_folder_in_a_bucket_is_the_collection_that_it_is_on_a_disk(
    server: s3.Server, proxy: s3.Proxy, uri: str, tmp_path: Path
) -> None:
    folder = made_up(tmp_path / "x", count=9)
    upload(server, folder, uri)
    run_cache = RunCache(tmp_path / "cache", Ranks())
    here, there = (collection_of(place, "test", run_cache) for place in (str(folder), uri))
    assert list(here.texts) == list(there.texts)
    assert here.grades.codes.tolist() == there.grades.codes.tolist()
    _, examples = examples_of(uri, "train", None, run_cache)
    assert len(examples) == 6
    proxy.seen.clear()
    collection_of(uri, "test", run_cache)
    assert {line.partition(" ")[0] for line in proxy.seen} == {"HEAD"}


def test_a_split_that_is_not_there_is_the_users_to_mend(
    server: s3.Server, proxy: s3.Proxy, uri: str, tmp_path: Path
) -> None:
    upload(server, made_up(tmp_path / "x", count=9), uri)
    assert proxy.url
    with pytest.raises(BadConfig, match=r"there is no object .*qrels/dev\.tsv"):
        collection_of(uri, "dev", RunCache(tmp_path / "cache", Ranks()))
