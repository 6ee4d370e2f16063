"""Rules on the environment of the program: secrets by reference, none of Piton's own variables."""

import re
from collections import Counter
from collections.abc import Iterator

from piton.api.cel import cel, not_in_cel
from piton.api.spec import Spec
from piton.contract import names

RESERVED_ENV = re.compile(
    r"^(PITON_|PET_|KUBEFLOW_TRAINER_|TORCHELASTIC_)|^(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)
"""Variables of Piton, torchrun and the job's controller, but for `names.USER_ENV`."""
SECRET_ENV = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY(_ID)?)$")
_ONE = "spec.trainer.env[]"


@not_in_cel("the list is a map by name, and the API server itself refuses a name that is there twice")
def no_variable_twice(spec: Spec) -> Iterator[str]:
    """Check that no variable is given twice."""
    for name, times in Counter(variable.name for variable in spec.trainer.env).items():
        if times > 1:
            yield f"spec.trainer.env: '{name}' is given twice; remove one"


RESERVED = "spec.trainer.env: '{name}' is set by Piton; choose another name"


_USERS = ", ".join(f"'{name}'" for name in names.USER_ENV)


def is_reserved(variable: str) -> bool:
    """True if only Piton may set the variable."""
    return RESERVED_ENV.search(variable) is not None and variable not in names.USER_ENV


@cel(_ONE, f"!self.name.matches('{RESERVED_ENV.pattern}') || self.name in [{_USERS}]", RESERVED, name="self.name")
def no_reserved_variable(spec: Spec) -> Iterator[str]:
    """Check that Piton's own variables are not set."""
    for variable in spec.trainer.env:
        if is_reserved(variable.name):
            yield RESERVED.format(name=variable.name)


ONE_VALUE = "spec.trainer.env: exactly one of value and valueFrom is needed for {name}"


@cel(_ONE, "has(self.value) != has(self.valueFrom)", ONE_VALUE, name="self.name")
def one_value(spec: Spec) -> Iterator[str]:
    """Check that a variable has exactly one of a value and a reference."""
    for variable in spec.trainer.env:
        if (variable.value is None) == (variable.value_from is None):
            yield ONE_VALUE.format(name=variable.name)


PLAIN = (
    "spec.trainer.env: {name} looks like a secret; put it into a Secret and write "
    "valueFrom: {{secretKeyRef: {{name: …, key: …}}}}"
)


@cel(
    _ONE,
    f"self.?value.orValue('') == '' || !self.name.matches('{SECRET_ENV.pattern}')",
    PLAIN,
    name="self.name",
)
def secrets_by_reference(spec: Spec) -> Iterator[str]:
    """Check that no secret is given as a plain value."""
    for variable in spec.trainer.env:
        if variable.value and SECRET_ENV.search(variable.name):
            yield PLAIN.format(name=variable.name)


ONE_SOURCE = "spec.trainer.env: exactly one of secretKeyRef and configMapKeyRef is needed in valueFrom of {name}"


@cel(
    _ONE,
    "!has(self.valueFrom) || has(self.valueFrom.secretKeyRef) != has(self.valueFrom.configMapKeyRef)",
    ONE_SOURCE,
    name="self.name",
)
def one_source(spec: Spec) -> Iterator[str]:
    """Check that a reference has exactly one source."""
    for variable in spec.trainer.env:
        source = variable.value_from
        if source and bool(source.secret_key_ref) == bool(source.config_map_key_ref):
            yield ONE_SOURCE.format(name=variable.name)


ENVIRONMENT = (no_variable_twice, no_reserved_variable, one_value, secrets_by_reference, one_source)
"""Rules in the order of display."""
