"""The recipes, and validation of their configs before a machine is paid for.

Nothing here or below it may import torch: the command line asks on machines that do not train.
"""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from piton.contract import InputError
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.config import RecipeConfig

if TYPE_CHECKING:
    from piton_trainer.recipes.protocol import Recipe, RunContext

RECIPES: Mapping[str, str] = {
    "charlm": "piton_trainer.recipes.charlm",
    "resnet50": "piton_trainer.recipes.resnet50",
    "retrieval": "piton_trainer.recipes.retrieval",
    "twotower": "piton_trainer.recipes.twotower",
}
"""Name -> package. A package exports `Config`; its module `recipe` has `build(config, session)`. It may also have:

prepare    prepare(config, checkpoint_dir)     makes its data before a GPU is paid for
size       size(config)                        how large it is, as far as the config tells, or None; without torch
export     export(config, weights, out)        writes the trained model in a format of the recipe's own
generate   open_model(trained, device)         a trained model that `piton serve` can ask
"""

PATH = "trainer.config"
"""Path of a config in a TrainingRun's spec."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_too_short": "a text with at least one character",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}
"""Descriptions of the values that pydantic's error types expect."""


def config_model(name: str) -> type[RecipeConfig]:
    """The typed settings of a recipe.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"trainer.recipe: there is no recipe {name}; {_suggestion(name, RECIPES)}")
    model: type[RecipeConfig] = import_module(RECIPES[name]).Config
    return model


def has(name: str, module: str) -> bool:
    """True if a recipe has a module that it may have or not."""
    return find_spec(f"{RECIPES[name]}.{module}") is not None


def part(name: str, module: str) -> ModuleType | None:
    """Return that module; None if the recipe has none."""
    return import_module(f"{RECIPES[name]}.{module}") if has(name, module) else None


def check(name: str, config: Mapping[str, Any]) -> RecipeConfig:
    """Parse a recipe's config.

    Raises:
        ValueError: one sentence that names the path, the value and the fix.
    """
    model = config_model(name)
    try:
        return model.model_validate({str(key): value for key, value in config.items()})
    except ValidationError as error:
        raise InputError(_sentence(name, model, error)) from error


def build(place: "RunContext") -> "Recipe":
    """The recipe of a place's assignment, checked and with its data read.

    Raises:
        BadConfig: it cannot work.
    """
    assignment = place.assignment
    if assignment.recipe is None:
        raise BadConfig("trainer.recipe: missing, and there is no other program to run; name one, such as charlm")
    try:
        config = check(assignment.recipe, assignment.config)
        config.check_length(assignment.training_seconds)
        config.check_world(place.world_size)
        config.check_data()
    except ValueError as error:
        raise BadConfig(str(error)) from error
    recipe: Recipe = import_module(f"{RECIPES[assignment.recipe]}.recipe").build(config, place)
    return recipe


def _sentence(name: str, model: type[RecipeConfig], error: ValidationError) -> str:
    """The first complaint as a sentence; an unknown key comes first, being the likeliest cause of the others."""
    complaints = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    complaint = complaints[0]
    path = ".".join([PATH, *(str(part) for part in complaint["loc"])])
    if complaint["type"] == "extra_forbidden":
        keys = [field.alias or key for key, field in model.model_fields.items()]
        return f"{path}: {name} has no such setting; {_suggestion(str(complaint['loc'][-1]), keys)}"
    if complaint["type"] == "missing":
        return f"{path}: missing; {name} cannot do without"
    if complaint["type"] == "value_error":  # a sentence of the config's own, which begins with the name of the field
        return f"{path}.{complaint['ctx']['error']}"
    return f"{path}: {_expectation(complaint)}"


def _expectation(complaint: ErrorDetails) -> str:
    kind, value = complaint["type"], complaint["input"]
    if kind not in _EXPECTED:
        return f"{value!r} does not fit: {complaint['msg']}"
    wanted = _EXPECTED[kind].format(**complaint.get("ctx", {}))
    shown = "null" if value is None else repr(value)
    fix = _unquoted(value, kind) if kind in {"int_type", "float_type"} and isinstance(value, str) else ""
    return f"has to be {wanted}, not {shown}{fix}"


def _unquoted(text: str, kind: str) -> str:
    """Suggest the spelling of a number: YAML 1.1 reads `1e-3` as text. Empty where it is none that fits."""
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number) or (kind == "int_type" and not number.is_integer()):
        return ""
    return f"; write {int(number)}" if kind == "int_type" else f"; write {number:g}"


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = get_close_matches(word.lower(), [name.lower() for name in names], n=1)
    if close:
        return f"did you mean {next(name for name in names if name.lower() == close[0])}?"
    return f"there is {', '.join(names)}"
