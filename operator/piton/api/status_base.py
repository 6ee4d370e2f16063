"""Base of every status that Piton writes: conditions, and parsing of statuses of other versions."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import AwareDatetime, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import to_json

from piton.api.fields import Model
from piton.api.reasons import Reason
from piton.contract.open_enum import OpenEnum


class Answer(Model):
    """Base of all parts of a status: unknown fields are kept, in reading and in writing."""

    model_config = ConfigDict(extra="allow")

    KEY: ClassVar[str] = "name"
    """Field that identifies an item of a list."""

    def with_unknown_of(self, old: Self | None) -> Self:
        """Return a copy that keeps the fields of `old` that this version does not know, at every level."""
        if old is None or old is self:
            return self
        inside = {name: _kept(getattr(self, name), getattr(old, name)) for name in type(self).model_fields}
        changed = {name: value for name, value in inside.items() if value is not getattr(self, name)}
        return self.model_copy(update={**(old.model_extra or {}), **(self.model_extra or {}), **changed})

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON for the API server. Absent and empty values are omitted: old servers refuse empty strings."""
        return _without_blanks(self, self.model_dump(mode="json", by_alias=True))


def _without_blanks(answer: Answer, dumped: dict[str, Any]) -> dict[str, Any]:
    """Remove blank values from the fields that this version knows; unknown fields stay as they are."""
    for name, field in type(answer).model_fields.items():
        key, value = field.alias or name, getattr(answer, name)
        if value is None or value == "":
            del dumped[key]
        elif isinstance(value, Answer):
            _without_blanks(value, dumped[key])
        elif isinstance(value, tuple):
            for item, entry in zip(value, dumped[key], strict=True):
                if isinstance(item, Answer):
                    _without_blanks(item, entry)
    return dumped


def _kept(new: Any, old: Any) -> Any:
    if isinstance(new, Answer) and isinstance(old, Answer):
        return new.with_unknown_of(old)
    if not isinstance(new, tuple) or not isinstance(old, tuple):
        return new
    known = {getattr(item, item.KEY): item for item in old if isinstance(item, Answer)}
    items = tuple(
        item.with_unknown_of(known.get(getattr(item, item.KEY))) if isinstance(item, Answer) else item for item in new
    )
    return new if all(one is other for one, other in zip(items, new, strict=True)) else items


class ConditionStatus(OpenEnum):
    """Status of a condition, as in metav1.Condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Answer):
    """A metav1.Condition."""

    KEY = "type"

    type: str = Field(
        description="Accepted, Training, Waiting, Suspended, Succeeded, Failed, or one of those in docs/reasons.md."
    )
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Reason = Field(description="Why, in one word.")
    message: str = Field(default="", description="Why, in a sentence.")
    last_transition_time: AwareDatetime = Field(description="When the status last changed.")
    observed_generation: int = Field(default=0, description="Generation of the spec that this was derived from.")


class Phase(OpenEnum):
    """Summary of the conditions, for the printer column."""

    PENDING = "Pending"
    REFUSED = "Refused"
    QUEUED = "Queued"
    STARTING = "Starting"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    STOPPING = "Stopping"
    RECOVERING = "Recovering"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Conditioned(Answer):
    """Base of every status that Piton writes. Conditions are the truth; phase is derived from them."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this was derived from.")
    phase: Phase = Field(default=Phase.PENDING, description="A summary of the conditions.")
    conditions: tuple[Condition, ...] = Field(default=(), description="The truth about it.")

    _raw: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    """Fields of an unexpected type, as they were written; of the conditions, only the unreadable ones."""

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Self:
        """Parse a status of any version. Fields of an unexpected type are kept aside, and written back.

        Raises:
            ValueError: it is not a mapping, or its conditions are not a list.
        """
        try:
            return cls.model_validate_json(to_json(written), strict=True)
        except ValidationError as error:
            if not isinstance(written, Mapping) or not isinstance(written.get("conditions", []), list):
                raise ValueError("the status is no status: it is no mapping, or its conditions are no list") from error
            raw = {key: written[key] for key in dict.fromkeys(str(found["loc"][0]) for found in error.errors())}
        good = {key: value for key, value in written.items() if key not in raw}
        if "conditions" in raw:
            good["conditions"] = [condition for condition in raw["conditions"] if _is_condition(condition)]
            raw["conditions"] = [condition for condition in raw["conditions"] if not _is_condition(condition)]
        status = cls.model_validate_json(to_json(good), strict=True)
        status._raw = raw  # noqa: SLF001 - this makes it
        return status

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON for the API server, with the unreadable fields as they were."""
        wire = super().to_wire()
        others = self._raw.get("conditions", [])
        return {**wire, **self._raw, "conditions": [*wire["conditions"], *others]}

    def without_growth(self) -> Self:
        """Return the status without the sums that grow with the clock alone."""
        return self

    @property
    def unreadable(self) -> str | None:
        """First part that this version must interpret and cannot, as a message; None if it may act on the status."""
        return next(self._unreadable_parts(), None)

    def _unreadable_parts(self) -> Iterator[str]:
        if self._raw:
            yield f"status.{next(iter(self._raw))} has another type than this version of Piton knows"
        yield from unknown_values("phase", self.phase)
        for condition in self.conditions:
            yield from unknown_values(f"conditions[{condition.type}].status", condition.status)

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of that type; None if it is absent."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: str) -> bool:
        """True if the condition of that type is True."""
        condition = self.condition(kind)
        return condition is not None and condition.status is ConditionStatus.TRUE


def _is_condition(written: object) -> bool:
    try:
        Condition.model_validate_json(to_json(written), strict=True)
    except ValidationError:
        return False
    return True


def unknown_values(path: str, value: OpenEnum | None) -> Iterator[str]:
    """Yield a message if this version does not know the word in this field of the status."""
    if value is not None and not value.is_known:
        yield f"status.{path} is {value}, a word that this version of Piton does not know"
