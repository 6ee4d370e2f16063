"""Questions to a run's recipe, answered by the trainer's package where it is installed. Nothing here needs torch.

A recipe refuses a value with a ValueError: a sentence that starts with the path in the spec.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from piton.api.spec import Spec
from piton.contract import InputError
from piton.contract.duration import parse_duration
from piton.rendering.appdef import processes_per_node

if TYPE_CHECKING:
    from piton.cost.estimate import Size


def settings(spec: Spec) -> Any:
    """Return the typed config; None without a recipe or an installed trainer.

    Raises:
        ValueError: the recipe refuses it.
    """
    if spec.trainer.recipe is None:
        return None
    try:
        from piton_trainer.recipes import catalog
    except ImportError:
        return None
    with _in_the_spec():
        return catalog.check(spec.trainer.recipe, spec.trainer.config)


def checked(spec: Spec) -> Any:
    """Return the typed config after checks of its length and the number of processes.

    Raises:
        ValueError: a check failed.
    """
    found = settings(spec)
    if found is not None:
        with _in_the_spec():
            found.check_length(parse_duration(spec.limits.training_time) if spec.limits.training_time else None)
            found.check_world(spec.workers.nodes * processes_per_node(spec))
    return found


def check_data(found: Any) -> None:
    """Check that the data is here, as far as that is known without reading it.

    Raises:
        ValueError: it is missing.
    """
    with _in_the_spec():
        found.check_data()


def can_prepare(spec: Spec) -> bool:
    """True if the run's recipe has a stage Prepare; the run must have a valid recipe."""
    from piton_trainer.recipes import catalog

    return catalog.has(str(spec.trainer.recipe), "prepare")


def length(found: Any) -> str:
    """Return the length of a training, if its config determines it."""
    if found.steps is not None:
        return f"{found.steps:,} steps"
    epochs = getattr(found, "epochs", None)
    return "a time that nobody has set" if epochs is None else f"{epochs:g} epochs"


def size(name: str, found: Any) -> "Size | None":
    """Return the size of the model, if the config determines it."""
    from piton_trainer.recipes import catalog

    module = catalog.part(name, "size")
    return None if module is None else module.size(found)


@contextmanager
def _in_the_spec() -> Iterator[None]:
    """Prefix the message of a ValueError with `spec.`, because a recipe gives the path below it."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"spec.{error}") from error
