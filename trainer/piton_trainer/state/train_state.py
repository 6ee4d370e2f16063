"""The one place that knows all that resuming needs, apart from the objects that carry their own state.

    TrainState   how far the run is, how good it was, how long it trained; the same on every rank
    Position     where in the data a rank is

A checkpoint's state.json is made from both and from the objects' own JSON; see `tracked_objects` for those.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from piton.contract.assignment import Assignment, Objective
from piton_trainer.checkpoint.save_interval import IntervalEvidence


@dataclass(kw_only=True)
class Position:
    """The position in the data: `batch` batches of epoch `epoch` are done."""

    epoch: int = 0
    batch: int = 0
    batches: int | None = None
    """Number of batches of the epoch, if the loader knows it; it depends on the world size."""

    def rescale(self, batches: int | None) -> None:
        """Move to the same place of an epoch that has another number of batches."""
        if batches is not None and self.batches and batches != self.batches:
            self.batch = self.batch * batches // self.batches
        self.batches = batches


@dataclass(kw_only=True)
class TrainState:
    """The progress that the current weights stand for."""

    step: int = 0
    training_seconds: float = 0.0
    best_step: int | None = None
    best_metric: float | None = None
    evaluations_since_best: int = 0
    ended: str | None = None
    """The reason why the script left its loop, or ended it; ends by the assignment are computed anew."""
    tells_sessions_apart: bool = False
    """True if the run began with a trainer that refuses two trainings in one folder, see `earlier_sessions`."""
    compares_data: bool = False
    """True if the run began with a trainer that refuses other data, see `data_shape`."""
    position: Position = field(default_factory=Position)
    evidence: IntervalEvidence = field(default_factory=IntervalEvidence)
    """Rank 0's: what the save interval is chosen from."""

    def judge(self, value: float, objective: Objective) -> bool:
        """Count an evaluation; whether it is the best so far."""
        if objective.better(value, self.best_metric):
            self.best_step, self.best_metric, self.evaluations_since_best = self.step, value, 0
            return True
        self.evaluations_since_best += 1
        return False

    def fraction_done(self, assignment: Assignment, total: int | None) -> float:
        """Return the fraction of the training that is done, 0 to 1: by steps or by time, the larger of the two."""
        by_steps = self.step / total if total else 0.0
        by_time = self.training_seconds / assignment.training_seconds if assignment.training_seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def to_document(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Parse what `to_document` made; a field that this version does not know is left out."""
        parts = ("position", "evidence")
        known = {f.name: document[f.name] for f in fields(cls) if f.name in document and f.name not in parts}
        return cls(
            **known,
            position=Position(**document["position"]),
            evidence=IntervalEvidence.from_document(document.get("evidence", {})),
        )
