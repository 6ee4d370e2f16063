"""Types of fields that several models of the resource share, and the base of these models."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel

from piton.api.one_form import QUANTITY_MAX, dollars_form, duration_form, quantity_form, writes
from piton.contract import duration, quantity

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Duration = Annotated[
    str, StringConstraints(pattern=duration.PATTERN, min_length=2, max_length=32), writes(duration_form)
]
Dollars = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]{1,2})?$", max_length=12), writes(dollars_form)]
Quantity = Annotated[str, StringConstraints(pattern=quantity.PATTERN, max_length=QUANTITY_MAX), writes(quantity_form)]
Amount = Annotated[
    Quantity,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    WithJsonSchema({"type": "string", "x-kubernetes-int-or-string": True}),
]
"""Amount of a resource. As in core/v1 a whole number needs no quotes: `cpu: 4`."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=63)]
"""Value of a label that others write. Clouds spell theirs in their own ways: `Standard_NC24ads_A100_v4`, `PHX-AD-1`."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Word = Annotated[str, StringConstraints(max_length=32_768)]
"""One argument of a command, which may be empty; long enough for a script after `python -c` or `bash -c`."""
UnixId = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Numeric ID of a user or a group."""
Capability = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z_]*$", max_length=63)]
"""Name of a Linux capability without `CAP_`, or ALL."""
Label = Annotated[str, StringConstraints(pattern=DNS_LABEL, max_length=63)]


class Model(BaseModel):
    """Base of all models: frozen, camelCase in JSON, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)
