"""What ten folds cost, over one fold trained the plain way: the data and sizes of two-tower-small.

The plain way is that of the baseline's scripts: every fold encodes all queries for itself, and trains on batches of
rows, each of which goes through both towers. Both see every row of their training queries equally often. They take
turns in this process, so that the machine's moods hit both alike. Prints a table, and as its last line one JSON object
with the median of the ratios.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer
from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.config import Config
from piton_trainer.recipes.common.encoder_source import folder_of
from piton_trainer.recipes.common.text_encoder import Encoder, Encoding
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.recipe import TwoTowers, build
from piton_trainer.training.loop import train

MANIFEST = Path(__file__).parents[1] / "manifests" / "seeds" / "two-tower-small.yaml"
ROWS = 96
"""In a batch of the baseline's."""
RATE = 0.003


class Plain(nn.Module):
    """The towers of one fold, as anybody would write them."""

    def __init__(self, config: TwoTowerConfig, width: int, prior: torch.Tensor) -> None:
        super().__init__()
        self.query = nn.Linear(width, config.output_dim)
        self.embedding = nn.Embedding(len(prior), config.id_width)
        self.id = nn.Linear(config.id_width, config.output_dim)
        self.prior = nn.Parameter(prior)

    def forward(self, vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """A score per row."""
        return torch.cosine_similarity(self.query(vectors), self.id(self.embedding(ids)), dim=-1) + self.prior[ids]


def ten_folds(config: TwoTowerConfig, folder: Path) -> TwoTowers:
    """The recipe through the shared loop, from the data to the last evaluation."""
    orders = Assignment(recipe="twotower", save=SavePolicy(every_steps=50))
    with piton_trainer.session(Config(checkpoint_dir=folder, assignment=orders)) as session:
        recipe = build(config, session)
        train(session, recipe)
    return recipe


def plain_fold(recipe: TwoTowers) -> None:
    """The rows of the first fold's training queries, as often as the recipe sees its queries."""
    config, judgments, fold = recipe.config, recipe.judgments, recipe.folds[0]
    encoding = Encoding(
        encoder=config.encoder,
        max_tokens=config.encoder_max_tokens,
        batch_texts=config.encoder_batch,
        stored=config.embeddings,
    )
    vectors = Encoder(folder_of(config.encoder), encoding, torch.device("cpu")).encode(judgments.texts)
    queries = np.repeat(np.arange(len(judgments.queries)), np.diff(judgments.starts))
    mine = np.isin(queries, fold.train.numpy())
    rows = TensorDataset(
        *(torch.from_numpy(np.ascontiguousarray(part[mine])) for part in (queries, judgments.ids, judgments.gains))
    )
    model = Plain(config, vectors.shape[1], torch.from_numpy(recipe.criterion.priors[0].smoothed).float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    assert config.steps is not None
    left = round(config.steps * config.batch_queries / len(fold.train) * len(rows) / ROWS)
    while left > 0:
        for numbers, ids, gains in DataLoader(rows, batch_size=ROWS, shuffle=True):
            loss = nn.functional.binary_cross_entropy_with_logits(model(vectors[numbers], ids), gains)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            left -= 1
            if left == 0:
                break


def seconds(block: Callable[[], object]) -> float:
    """How long a block takes."""
    start = time.perf_counter()
    block()
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, help="fewer than the manifest's, for a quick look")
    given = arguments.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    settings = yaml.safe_load(MANIFEST.read_text())["spec"]["trainer"]["config"]
    config = TwoTowerConfig.model_validate(settings | ({"steps": given.steps} if given.steps else {}))
    with tempfile.TemporaryDirectory() as folder:
        recipe = ten_folds(config.model_copy(update={"steps": 1}), Path(folder) / "warm")  # imports, and the folds
    recipe.config = config
    found = []
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            blocks = [lambda folder=folder: ten_folds(config, Path(folder)), lambda: plain_fold(recipe)]
            first, second = (blocks[::-1]) if number % 2 else blocks
            a, b = seconds(first), seconds(second)
        ten, one = (b, a) if number % 2 else (a, b)
        found.append(ten / one)
        print(
            f"round {number + 1}: ten folds {ten:.1f} s, one plain fold {one:.1f} s, ratio {ten / one:.3f}", flush=True
        )
    print(json.dumps({"ten_folds_over_one_plain_fold": round(statistics.median(found), 4), "rounds": given.rounds}))


if __name__ == "__main__":
    main()
