"""Attributes of the modules of a model, and buffers that are not persistent: no checkpoint of the model holds them."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from piton_trainer.state.sketches import sketch

OF_HUGGING_FACE = ("transformers.", "sentence_transformers.", "accelerate.", "peft.")
_OF_FRAMEWORKS = ("torch.", "torchmetrics.", "torchvision.", "timm.", *OF_HUGGING_FACE, "piton_trainer.")
"""Packages whose modules make what they keep by themselves."""


def attribute_sketches(name: str, root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the path and a sketch of each attribute and passing buffer of a user's own modules below `root`.

    A tensor with a graph is left out, because a module computes it in each step.
    """
    for path, module in root.named_modules():
        kind = type(module)
        if kind.__module__.startswith(_OF_FRAMEWORKS) or kind.get_extra_state is not nn.Module.get_extra_state:
            continue
        own = {key: value for key, value in vars(module).items() if key not in _of_torch()}
        passing = {key: module._buffers.get(key) for key in module._non_persistent_buffers_set}  # noqa: SLF001
        for key, value in (own | passing).items():
            is_computed = isinstance(value, Tensor) and value.requires_grad
            if not is_computed and (seen := sketch(value)) is not None:
                yield ".".join(filter(None, (name, path, key))), seen


@cache
def _of_torch() -> frozenset[str]:
    return frozenset(vars(nn.Module()))
