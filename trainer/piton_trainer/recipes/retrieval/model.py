"""The model: a base encoder, and a projection into the space in which distances count.

    text -> base model -> mean over the tokens -> length 1 -> projection

The projection begins as a rotation: orthogonal, and larger by the root of the base model's width, so that a dimension
has a mean square of 1 and the ranking is the base model's, or near it where outputDim is smaller. From random layers
retrieval never recovers; without the factor all vectors lie within a hundredth of each other on the scale on which the
loss compares them, and it pulls them to one point.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piton_trainer.recipes.common.text_encoder import Encoding, pooled, pretrained

Inputs = Tensor | dict[str, Tensor]
"""Vectors of a frozen base model, or tokens with their mask."""


class Retriever(nn.Module):
    """Texts as vectors."""

    def __init__(self, base: nn.Module | None, *, width: int, output_dim: int) -> None:
        """With the base model that is trained; None takes its vectors, which are `width` wide."""
        super().__init__()
        self.base = base
        self.projection = nn.Linear(width, output_dim)

    def forward(self, *groups: Inputs) -> Tensor:
        """The vectors of all groups, one after another, in fp32; each group has its own length of texts."""
        return torch.cat([self._project(self._pooled(group)) for group in groups])

    def _pooled(self, inputs: Inputs) -> Tensor:
        if isinstance(inputs, Tensor):
            return inputs
        assert self.base is not None
        hidden = self.base(**inputs).last_hidden_state
        return pooled(hidden, inputs["attention_mask"])

    def _project(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):  # squared distances cancel in half precision
            projected: Tensor = self.projection(vectors.float())
        return projected

    @torch.no_grad()
    def draw_weights(self, seed: int) -> None:
        """The projection's first weights."""
        weight = self.projection.weight
        rng = torch.Generator().manual_seed(seed)
        drawn = nn.init.orthogonal_(torch.empty(weight.shape), generator=rng)
        weight.copy_(drawn * math.sqrt(max(weight.shape)))
        self.projection.bias.zero_()


def new_base(folder: Path, *, checkpointing: bool) -> nn.Module:
    """The base model on the default device, with numbers that do not matter."""
    from transformers import AutoConfig, AutoModel

    base: Any = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    if checkpointing:
        base.activation_checkpointing_enable()
    for name, weight in base.named_parameters():
        if name.startswith("pooler."):
            weight.requires_grad_(False)  # of another task: nothing here depends on it
    return base  # type: ignore[no-any-return]


def load_base(base: nn.Module, folder: Path, encoding: Encoding) -> None:
    """Give it the weights that it comes with."""
    base.load_state_dict(pretrained(folder, encoding).state_dict())


def layers_of(base: nn.Module) -> Iterable[nn.Module]:
    """Its layers: the longest list of modules in it."""
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[base])
