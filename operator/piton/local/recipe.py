"""What the trainer's package says of a run's recipe, where it is installed. Nothing here needs torch."""

from typing import TYPE_CHECKING, Any

from piton.contract.duration import parse_duration
from piton.core.model import Spec
from piton.core.render import processes_per_node

if TYPE_CHECKING:
    from piton.core.estimate import Size


def settings(spec: Spec) -> Any:
    """The typed config; None where there is no recipe, or no trainer to ask.

    Raises:
        ValueError: the recipe refuses it; a sentence that begins with the path in the spec.
    """
    if spec.trainer.recipe is None:
        return None
    try:
        from piton_trainer.recipes import catalog
    except ImportError:
        return None
    try:
        return catalog.check(spec.trainer.recipe, spec.trainer.config)
    except ValueError as error:
        raise ValueError(f"spec.{error}") from error


def check(spec: Spec) -> None:
    """Whether the recipe takes its config, on so many processes.

    Raises:
        ValueError: it does not; a sentence that begins with the path in the spec.
    """
    found = settings(spec)
    if found is None:
        return
    try:
        found.check_length(parse_duration(spec.limits.training_time) if spec.limits.training_time else None)
        found.check_world(spec.workers.nodes * processes_per_node(spec))
    except ValueError as error:
        raise ValueError(f"spec.{error}") from error


def length(found: Any) -> str:
    """How long a config trains, as it says it itself."""
    if found.steps is not None:
        return f"{found.steps:,} steps"
    epochs = getattr(found, "epochs", None)
    return "a time that nobody has set" if epochs is None else f"{epochs:g} epochs"


def size(name: str, found: Any) -> "Size | None":
    """How large the model is, where the recipe can tell by its config alone."""
    from piton_trainer.recipes import catalog

    module = catalog.part(name, "size")
    return None if module is None or not hasattr(module, "size") else module.size(found)
