"""nDCG@10 by BEIR's protocol: against trec_eval, with ties, missing documents and queries that are documents."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
from numpy.typing import NDArray
from torch import Tensor

import piton_trainer
from piton_trainer.config import Config
from piton_trainer.data.retrieval.collection import Collection
from piton_trainer.data.retrieval.sources import collection_of
from piton_trainer.recipes.protocol import DataContext
from piton_trainer.recipes.retrieval.evaluation import measure, name_of
from piton_trainer.recipes.retrieval.nearest import Nearest
from support import ranks
from support.retrieval import write_beir
from support.seats import CPU, FakeRankContext

Judged = dict[str, dict[str, int]]


def vectors(texts: list[str]) -> Tensor:
    """A text is its own vector: small whole numbers, so that many distances are equal, and exact."""
    return torch.tensor([[float(number) for number in text.split()] for text in texts])


def points(rng: random.Random, count: int) -> list[str]:
    return [" ".join(str(rng.randint(0, 2)) for _ in range(3)) for _ in range(count)]


def encoded(collection: Collection, numbers: NDArray[np.int64]) -> Tensor:
    return vectors([collection.texts[int(number)] for number in numbers])


def ours(folder: Path, place: DataContext, batch: int = 7) -> dict[str, float]:
    collection = collection_of(str(folder), "test", place.run_cache)
    return measure({"x": collection}, {"x": partial(encoded, collection)}, dim=3, batch=batch, place=place)


def trec_eval(documents: dict[str, str], queries: dict[str, str], grades: Judged) -> float:
    """As BEIR asks it: a document with the query's name is taken out, unless it is an answer with another text."""
    found = vectors(list(documents.values()))
    run, competing = {}, {}
    for query in grades:
        is_answer = grades[query].get(query, 0) > 0 and documents.get(query) != queries[query]
        out = set() if is_answer else {query}
        scores = -(vectors([queries[query]]) - found).square().sum(1)
        run[query] = {name: score for name, score in zip(documents, scores.tolist(), strict=True) if name not in out}
        competing[query] = {name: grade for name, grade in grades[query].items() if name not in out}
    evaluated = pytrec_eval.RelevanceEvaluator(competing, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([evaluated[query]["ndcg_cut_10"] for query in grades]))


def a_collection(seed: int, documents: int = 60) -> tuple[dict[str, str], dict[str, str], Judged]:
    """Half of the queries have the name of a document, some judged documents are not there, some grades are 0."""
    rng = random.Random(seed)
    names = rng.sample([str(number) for number in range(200)], documents)
    corpus = dict(zip(names, points(rng, documents), strict=True))
    queries = dict(zip([*names[:6], *(f"q{number}" for number in range(6))], points(rng, 12), strict=True))
    for name in names[:3]:
        queries[name] = corpus[name]
    grades = {
        query: {name: rng.randint(0, 3) for name in rng.sample([*names, "gone", "lost"], 15)} for query in queries
    }
    for name, grade in zip(names[1:5], (2, 0, 0, 3), strict=True):  # of the same text, and of another one
        grades[name][name] = grade
    return corpus, queries, grades


@pytest.mark.parametrize("seed", range(5))
def test_any_collection_has_the_figure_of_trec_eval(tmp_path: Path, seed: int) -> None:
    documents, queries, grades = a_collection(seed)
    write_beir(tmp_path / "x", documents, queries, grades)
    found = ours(tmp_path / "x", FakeRankContext(tmp_path))
    assert found["ndcg_10"] == pytest.approx(trec_eval(documents, queries, grades), abs=1e-6)


def test_a_query_does_not_find_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = {"1": "0 0 0", "2": "0 0 1", "3": "2 2 2"}
    write_beir(tmp_path / "x", documents, {"1": "0 0 0"}, {"1": {"2": 1}})
    # The document "1" takes no rank from "2".
    assert ours(tmp_path / "x", FakeRankContext(tmp_path))["ndcg_10"] == pytest.approx(1)
    assert caplog.messages == []


def test_a_query_that_is_judged_to_find_itself_need_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = {"1": "0 0 0", "2": "0 0 1", "3": "2 2 2"}
    write_beir(tmp_path / "x", documents, {"1": "0 0 0"}, {"1": {"2": 1, "1": 3}})
    assert ours(tmp_path / "x", FakeRankContext(tmp_path))["ndcg_10"] == pytest.approx(1)
    assert caplog.messages == [
        f"{tmp_path}/x: 1 relevant judgments name the query itself, the first 1; they do not count"
    ]


@pytest.mark.parametrize("shift", [0, 1])
def test_queries_and_documents_that_are_both_counted_are_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shift: int
) -> None:
    documents = {f"{number}": f"{number} 0 1" for number in range(20)}
    queries = {f"{number}": f"{(number + shift) % 20} 0 0" for number in range(20)}
    grades = {name: {f"{(int(name) + shift) % 20}": 1} for name in queries if name != "19"}
    write_beir(tmp_path / "x", documents, queries, grades)
    assert ours(tmp_path / "x", FakeRankContext(tmp_path))["ndcg_10"] == pytest.approx(1)
    told = f"{tmp_path}/x: 19 relevant judgments name the document that has the name of its query, the first 0; these"
    assert [message.startswith(told) for message in caplog.messages] == [True] * (1 - shift)


def test_fewer_documents_than_ranks_that_count_are_all_there_is(tmp_path: Path) -> None:
    write_beir(tmp_path / "x", {"a": "0 0 0", "b": "1 0 0"}, {"q": "0 0 0"}, {"q": {"b": 1}})
    assert ours(tmp_path / "x", FakeRankContext(tmp_path))["ndcg_10"] == pytest.approx(1 / np.log2(3))


def on_a_rank(folder: Path, directory: Path) -> dict[str, float]:
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        return ours(folder, session, batch=5)


def test_ranks_that_share_the_documents_come_to_the_same_figures(tmp_path: Path) -> None:
    documents, queries, grades = a_collection(7, documents=61)
    write_beir(tmp_path / "x", documents, queries, grades)
    alone = ours(tmp_path / "x", FakeRankContext(tmp_path / "alone"))
    one, other = (end.result for end in ranks.run(2, partial(on_a_rank, tmp_path / "x", tmp_path / "two")))
    assert one == other == {name: pytest.approx(value, rel=1e-6) for name, value in alone.items()}


def test_of_several_collections_each_has_its_figure_and_all_have_the_mean(tmp_path: Path) -> None:
    collections = {}
    for name, seed in (("one", 1), ("two", 2)):
        write_beir(tmp_path / name, *a_collection(seed))
        collections[name] = collection_of(str(tmp_path / name), "test", FakeRankContext(tmp_path).run_cache)
    encode = {name: partial(encoded, found) for name, found in collections.items()}
    found = measure(collections, encode, dim=3, batch=16, place=FakeRankContext(tmp_path))
    assert found["ndcg_10"] == pytest.approx((found["ndcg_10_one"] + found["ndcg_10_two"]) / 2)
    assert found["ndcg_10_one"] == pytest.approx(trec_eval(*a_collection(1)), abs=1e-6)


@pytest.mark.parametrize(
    ("source", "name"),
    [("s3://bucket/beir/scifact/", "scifact"), ("foldoc:", "foldoc"), ("/data/webis-touche2020", "webis_touche2020")],
)
def test_a_collection_is_called_by_the_last_part_of_its_place(source: str, name: str) -> None:
    assert name_of(source) == name


def test_equal_scores_are_told_apart_by_number_and_minus_zero_is_zero() -> None:
    nearest = Nearest(torch.zeros(1, 1), 3, torch.tensor([-1]))
    nearest.add(torch.tensor([[1.0], [0.0], [-0.0], [2.0], [1e-9]]), torch.tensor([9, 4, 2, 1, 3]))
    assert nearest.numbers().tolist() == [[4, 2, 3]] or nearest.numbers().tolist() == [[4, 3, 2]]


def test_scores_far_below_zero_are_ordered_as_well() -> None:
    nearest = Nearest(torch.zeros(1, 1), 4, torch.tensor([-1]))
    nearest.add(torch.tensor([[1e4], [3.0], [1e-3], [50.0]], device=CPU), torch.tensor([0, 1, 2, 3]))
    assert nearest.numbers().tolist() == [[2, 1, 3, 0]]
