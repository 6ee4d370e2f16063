"""One form for each value of a spec that can be written in several: `60m` is `1h`, `1024Mi` is `1Gi`, `5.00` is `5`.

Specs are compared in this form, so that what is only written in another way is no change. What runs is made from the
spec as it is written.

The form of a value is the one that people write most. So the digests of older operators, of the text as it is written,
are mostly the same.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

from pydantic import BaseModel, PlainSerializer, SerializationInfo

from piton.contract.duration import parse_duration
from piton.contract.quantity import parse_quantity

ModelT = TypeVar("ModelT", bound=BaseModel)

_ASKED_FOR = object()
"""Context in which a model is written in one form. Without it each text is written as it stands."""
_HOUR, _MINUTE = 3_600, 60
_DECIMAL = {"E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "": 0, "m": -3, "u": -6, "n": -9}
_BINARY = {"Ei": 60, "Pi": 50, "Ti": 40, "Gi": 30, "Mi": 20, "Ki": 10}
QUANTITY_MAX = 24
"""Characters of the longest quantity that a spec may have."""


def in_one_form(model: ModelT) -> ModelT:
    """Return the model with each duration, quantity and amount of dollars in its one form."""
    return type(model).model_validate_json(model.model_dump_json(by_alias=True, context=_ASKED_FOR), strict=True)


def writes(form: Callable[[str], str]) -> PlainSerializer:
    """Return the annotation of a type whose texts have one form."""

    def serialize(text: str, info: SerializationInfo) -> str:
        if info.context is not _ASKED_FOR:
            return text
        try:
            return form(text)
        except ValueError:
            return text  # a word, such as auto, that a field takes beside its values

    return PlainSerializer(serialize, return_type=str)


def duration_form(text: str) -> str:
    """Return the duration in the largest unit in which it is a whole number; days are hours, as in `24h`."""
    seconds = int(parse_duration(text))
    if not seconds:
        return "0s"
    unit, size = next((unit, size) for unit, size in (("h", _HOUR), ("m", _MINUTE), ("s", 1)) if not seconds % size)
    return f"{seconds // size}{unit}"


def dollars_form(text: str) -> str:
    """Return the amount without zeros that say nothing."""
    return f"{Decimal(text).normalize():f}"


def quantity_form(text: str) -> str:
    """Return the shorter of the decimal and the binary form; the text itself where it is finer or longer than these."""
    return min((form for form in _forms(parse_quantity(text)) if len(form) <= QUANTITY_MAX), key=len, default=text)


def _forms(amount: Fraction) -> Iterator[str]:
    """Yield the amount in the largest decimal and the largest binary unit in which it is a whole number."""
    if not amount:
        yield "0"
        return
    for base, powers in ((10, _DECIMAL), (2, _BINARY)):
        counts = ((unit, amount / Fraction(base) ** power) for unit, power in powers.items())
        yield from [f"{count}{unit}" for unit, count in counts if count.denominator == 1][:1]
