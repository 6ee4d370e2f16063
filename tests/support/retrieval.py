"""Tiny retrieval: documents of made-up words, queries that share some with their answers, an encoder of one layer."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.recipes.protocol import DataContext
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.data import Data
from piton_trainer.recipes.retrieval.recipe import Retrieval
from support.attempts import attempt_at
from support.encoders import write_bert

WORDS = [f"w{number}" for number in range(40)]
WIDTH = 16


def write_beir(
    folder: Path,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    grades: Mapping[str, Mapping[str, int]],
    split: str = "test",
) -> Path:
    """A collection as BEIR has them; more splits may follow."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": name, "title": "", "text": text} for name, text in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
    asked = [{"_id": name, "text": text} for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    rows = [f"{query}\t{name}\t{grade}\n" for query, judged in grades.items() for name, grade in judged.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def made_up(folder: Path, count: int = 60) -> Path:
    """So many documents of five words, and as many queries of two of them; every third one is for the test."""
    rng = random.Random(0)
    documents = {f"d{number:03d}": " ".join(rng.sample(WORDS, 5)) for number in range(count)}
    queries = {f"q{name[1:]}": " ".join(text.split()[:2]) for name, text in documents.items()}
    for split in ("train", "test"):
        chosen = {name: {f"d{name[1:]}": 1} for name in queries if (int(name[1:]) % 3 == 0) == (split == "test")}
        write_beir(folder, documents, queries, chosen, split)
    return folder


@dataclass(frozen=True)
class World:
    """The files that a tiny run reads."""

    data: Path
    model: Path

    def config(self, **changes: Any) -> RetrievalConfig:
        """A run of a second."""
        settings = {
            "data": str(self.data),
            "datasets": [str(self.data)],
            "base_model": str(self.model),
            "max_tokens": 8,
            "output_dim": 16,
            "batch_size": 8,
            "steps": 12,
            "eval_every": 4,
            "warmup_steps": 2,
            "base_learning_rate": 0.003,
            "projection_learning_rate": 0.01,
            "slices": 8,
            **changes,
        }
        return RetrievalConfig.model_validate(settings)


def world(folder: Path) -> World:
    """Write them."""
    return World(data=made_up(folder / "tiny"), model=write_bert(folder / "model", WORDS, width=WIDTH))


def a_recipe(config: RetrievalConfig, place: DataContext) -> Retrieval:
    """The recipe, in a session or outside one."""
    return Retrieval(config, place, Data(config, place))


def attempt(directory: Path, config: RetrievalConfig, **drill: Any) -> Mapping[str, float]:
    """One attempt; what it measured at its end."""
    assignment = Assignment(
        recipe="retrieval",
        config=config.model_dump(by_alias=True),
        save=SavePolicy(every_steps=5),
        objective=Objective(metric="ndcg_10", goal="Maximize"),
    )
    return attempt_at(directory, assignment, lambda session: a_recipe(config, session), background_saves=False, **drill)
