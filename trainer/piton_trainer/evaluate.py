"""`python -m piton_trainer.evaluate`: what the recipe that the assignment names measures of the best checkpoint.

PITON_CHECKPOINT says which one that is; where it is gone or damaged, the newest good one is taken. Nothing is claimed,
saved or changed, so it may be killed and started again at any moment.
"""

import os
from pathlib import Path
from typing import Any

from piton.contract import names
from piton.contract.termination import Outcome, Termination
from piton_trainer import stage
from piton_trainer.checkpoint.export import expect_one_model
from piton_trainer.checkpoint.load.loader import Loaded, load_newest
from piton_trainer.checkpoint.load.rank_loader import Document, Targets
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog
from piton_trainer.runtime.device_faults import require_gpus
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.tracked_objects import TrackedObjects
from piton_trainer.state.train_state import TrainState
from piton_trainer.training import loop
from piton_trainer.training.context import RankContext
from piton_trainer.training.run_restore import states_of


def main() -> None:
    """Evaluate, and say what came of it."""
    stage.run(evaluate)


def evaluate(config: Config) -> Termination:
    """Measure the best checkpoint of an assignment's training.

    Raises:
        BadConfig: the assignment cannot work, or there is nothing to evaluate.
        DeviceLost: there are fewer GPUs than the pod asked for.
    """
    require_gpus(config.gpus)
    ranks = Ranks.join(config.collective_seconds, config.join_seconds)
    named = Path(os.environ.get(names.ENV_CHECKPOINT) or "").name
    visitor = CheckpointEvaluation(config, ranks, best=names.parse_step_folder(named))
    metrics = loop.evaluate(visitor, catalog.build(visitor))
    ranks.leave()
    told = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
    detail = f"evaluated at step {visitor.step}: {told}"
    return Termination(outcome=Outcome.FINISHED, step=visitor.step, metrics=metrics, detail=detail)


class CheckpointEvaluation(RankContext):
    """The context of a recipe and the loop while a checkpoint is evaluated and nothing is trained."""

    def __init__(self, config: Config, ranks: Ranks, *, best: int | None) -> None:
        super().__init__(config, ranks)
        self._best = best
        self._state = TrainState()

    @property
    def step(self) -> int:
        """The step of what was restored."""
        return self._state.step

    def fraction(self, total: int | None) -> float:
        """Return the fraction of a training of `total` steps that was done at that step."""
        return self._state.fraction_done(self.assignment, total)

    def restore(self, **objects: Any) -> None:
        """Put the checkpoint into these objects.

        Raises:
            BadConfig: there is none, or it is one of other objects.
        """
        given = TrackedObjects(objects)
        loaded = self._load(given)
        if loaded is None:
            raise BadConfig(f"there is no good checkpoint in {self.directory}, so there is nothing to evaluate")
        states = states_of(loaded.document, self._ranks)
        self._ranks.together(lambda: given.restore(states, loaded.settle(), loaded.dtypes))
        self._state = TrainState.from_document(loaded.document["train"])

    def _load(self, given: TrackedObjects) -> Loaded | None:
        if not self.directory.is_dir():
            return None

        def wanted(document: Document) -> Targets:
            expect_one_model(document, self.directory)
            return given.wanted(states_of(document, self._ranks))

        return load_newest(self.directory, self._ranks, wanted, first=self._best)


if __name__ == "__main__":
    main()
