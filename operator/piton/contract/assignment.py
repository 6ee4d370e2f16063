"""Assignment of a run's trainers: the JSON file that `PITON_CONFIG` names.

On a cluster it is an annotation of the pod, mounted through the downward API, so it needs no object of its own.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Save intervals and retention. The interval that passes first triggers a save."""

    auto: bool = False
    """True if the interval follows the cost of saves and rate of interruptions; `every_seconds` is then ignored."""
    every_seconds: float | None = None
    every_steps: int | None = None
    keep_last: int = 2
    """At least 2 whole checkpoints: with a single one, a bad disk block ends the run."""
    keep_best: int = 1
    keep_weights_only: int = 0
    """Number of further checkpoints of which only the weights are kept."""
    patience_seconds: float = 3600.0
    """Seconds for which training continues while nothing can be saved."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The metric that says how good the model is, and when that is good enough."""

    metric: str
    goal: Literal["Minimize", "Maximize"] = "Minimize"
    target: float | None = None
    """Training ends once the metric is at least as good as this."""
    patience: int | None = None
    """Training ends after this many evaluations in a row without improvement."""

    def better(self, value: float, than: float | None) -> bool:
        """True if `value` beats `than` (None: nothing measured yet). NaN never does."""
        if value != value:
            return False
        if than is None:
            return True
        return value < than if self.goal == "Minimize" else value > than

    def reached(self, value: float) -> bool:
        """True if `value` meets the target."""
        if self.target is None or value != value:
            return False
        return value <= self.target if self.goal == "Minimize" else value >= self.target


@dataclass(frozen=True, kw_only=True)
class Encryption:
    """Server-side encryption of objects in a bucket."""

    type: str
    """`SSE-S3` or `SSE-KMS`. A trainer that does not know the word writes nothing."""
    key_id: str | None = None
    """ID, ARN or alias of the KMS key; None unless the type is `SSE-KMS`."""


@dataclass(frozen=True, kw_only=True)
class MirrorPolicy:
    """Destination of a second copy of the checkpoints, and the limit of its uploads."""

    uri: str
    """`s3://bucket/prefix`; the run's name is added to it."""
    megabytes_per_second: int | None = None
    """At most so much of the network, for uploads; None takes what is there."""
    encryption: Encryption | None = None
    """None: as the bucket does by itself."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One run's orders for its trainers; the same for every attempt and every rank."""

    recipe: str | None = None
    """A recipe that piton_trainer ships; None for the user's own code."""
    config: Mapping[str, Any] = field(default_factory=dict)
    save: SavePolicy = SavePolicy(auto=True)
    objective: Objective | None = None
    mirror: MirrorPolicy | None = None
    training_seconds: float | None = None
    """Time to spend training, summed over attempts; None trains for as many steps as the recipe says."""

    def to_json(self) -> str:
        """The file's text, with sorted keys so that equal assignments are equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the file's text. Keys that are not known are a newer operator's, and passed over.

        Raises:
            ValueError: it is not JSON, or a key is missing.
        """
        try:
            known = _known(cls, json.loads(text))
            save, objective = known.pop("save"), known.pop("objective")
            mirror = known.pop("mirror", None)  # an older operator does not know of it
            return cls(
                save=SavePolicy(**_known(SavePolicy, save)),
                objective=Objective(**_known(Objective, objective)) if objective else None,
                mirror=_mirror(mirror) if mirror else None,
                **known,
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not an assignment: {error}") from error


def _mirror(written: Mapping[str, Any]) -> MirrorPolicy:
    known = _known(MirrorPolicy, written)
    encryption = known.pop("encryption", None)
    return MirrorPolicy(
        encryption=Encryption(**_known(Encryption, encryption)) if encryption is not None else None, **known
    )


def _known(kind: type, written: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in written.items() if name in names}
