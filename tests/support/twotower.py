"""Tiny two-tower runs: made-up judgments with something to learn, vectors without an encoder, seats without a session.

An id is good at the queries of its own subject, and some ids are better than others at everything.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import piton_trainer
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.data.ranking.judgments import Collector, Judgments
from piton_trainer.data.ranking.rows import JudgmentRow
from piton_trainer.recipes.common.text_encoder import Embedded
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.recipe import TwoTowers
from support.attempts import attempt_at
from support.seats import FakeRankContext

CPU = torch.device("cpu")
SUBJECTS, WIDTH = 4, 12
TINY = TwoTowerConfig(
    data="made up",
    folds=3,
    heads=2,
    head_width=6,
    query_layers=[8],
    id_width=8,
    id_layers=[],
    output_dim=8,
    temperature=0.3,
    dropout=0.1,
    batch_queries=8,
    learning_rate=0.02,
    steps=20,
    eval_every=5,
    ema=0.8,
)


def made_up(*, queries: int = 60, ids: int = 12, guesses: int = 0) -> Judgments:
    """Judgments of every second pair; the guesses are about queries of their own."""
    collector = Collector()
    for query in range(queries + guesses):
        subject = query % SUBJECTS
        for number in range(query % 2, ids, 2):
            good = number % SUBJECTS == subject or number > ids - 2
            collector.add(
                JudgmentRow(
                    query=f"q{query}",
                    id=f"id{number:02d}",
                    text=f"query {query} about {subject}",
                    gain=(1.0 if number % 3 else 0.7) if good else 0.0,
                    original=query < queries,
                    confidence=0.5,
                )
            )
    return collector.judgments("made up")


def vectors_of(judgments: Judgments) -> Embedded:
    """A vector per query: its subject, and noise."""
    rng = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(len(judgments.texts), WIDTH, generator=rng)
    subjects = torch.tensor([int(text.rpartition(" ")[2]) for text in judgments.texts])
    noise[torch.arange(len(subjects)), subjects] += 1.0
    return Embedded(key="made up", vectors=noise, rows=torch.arange(len(judgments.texts)))


def a_recipe(config: TwoTowerConfig = TINY, *, context: Any = None, judgments: Judgments | None = None) -> TwoTowers:
    """The recipe on made-up data."""
    found = judgments or made_up()
    return TwoTowers(config, context or FakeRankContext(), found, vectors_of(found))


def attempt(
    directory: Path, config: TwoTowerConfig = TINY, *, judgments: Judgments | None = None, **drill: Any
) -> Mapping[str, float]:
    """One attempt; what it measured at its end."""
    data = judgments or made_up()
    assignment = Assignment(
        recipe="twotower",
        config=config.model_dump(by_alias=True),
        save=SavePolicy(every_steps=5),
        objective=Objective(metric="inner_ndcg_10", goal="Maximize"),
    )

    def build(session: piton_trainer.Session) -> TwoTowers:
        return TwoTowers(config, session, data, vectors_of(data))

    return attempt_at(directory, assignment, build, background_saves=False, **drill)


def changed(**changes: Any) -> TwoTowerConfig:
    return TwoTowerConfig.model_validate(TINY.model_dump() | changes)


def logit(gain: float) -> float:
    return math.log(gain / (1 - gain))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
