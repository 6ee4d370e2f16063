"""A character-level GPT after nanochat: rotary embeddings, norms without weights, relu squared, nothing with a bias.

Weights are drawn by `draw_weights`, apart from the building: a model that is sharded over ranks exists without memory
first, and every rank then draws the same numbers and keeps its part. So one seed gives one model, sharded or not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows
from torch.utils.checkpoint import checkpoint

from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.memory import Memory
from piton_trainer.recipes.charlm.size import vocabulary_rows

ROTARY_BASE = 10_000.0
LOGITS_MAX = 15.0


class Attention(nn.Module):
    """Causal attention with rotary embeddings, and norms on queries and keys after them."""

    def __init__(self, config: CharlmConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_q = nn.Linear(config.width, config.width, bias=False)
        self.c_k = nn.Linear(config.width, config.width, bias=False)
        self.c_v = nn.Linear(config.width, config.width, bias=False)
        self.c_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, memory: Memory | None = None) -> Tensor:
        """(batch, time, width) -> the same. With a memory, x is what comes after what it holds."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.c_q, self.c_k, self.c_v)
        )
        query, key = norm(rotate(query, rotary)), norm(rotate(key, rotary))
        if memory is not None:
            key, value = memory.add(key, value)
        # What follows on something remembered comes one at a time, and may see all of it.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[-2] == key.shape[-2])
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(-2))
        return projected


class Block(nn.Module):
    """Attention, then an MLP of four times the width, each beside a residual path."""

    def __init__(self, config: CharlmConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = Attention(config)
        self.c_fc = nn.Linear(config.width, 4 * config.width, bias=False)
        self.c_proj = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, memory: Memory | None = None) -> Tensor:
        """(batch, time, width) -> the same."""
        x = x + F.dropout(self.attention(norm(x), rotary, memory), self.dropout, self.training)
        hidden = F.relu(self.c_fc(norm(x))).square()
        return x + F.dropout(self.c_proj(hidden), self.dropout, self.training)


class CharGPT(nn.Module):
    """The whole model: characters in, the loss or the logits of the next character out."""

    rotary: Tensor

    def __init__(self, config: CharlmConfig, *, symbols: int) -> None:
        super().__init__()
        self.config = config
        vocabulary = vocabulary_rows(config, symbols)
        self.wte = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.lm_head = nn.Linear(config.width, vocabulary, bias=False)
        self.register_buffer("rotary", rotary_table(config), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (batch, time, vocabulary) in fp32, or with targets the mean loss in nats per character."""
        x = F.dropout(norm(self.wte(ids)), self.config.dropout, self.training)
        # FSDP2 would cast it for each block, and in torch 2.11 not when a block's activations are computed again.
        rotary = self.rotary[:, : ids.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = self._through(block, x, rotary)
        logits = self._logits(x)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def go_on(self, ids: Tensor, memories: Sequence[Memory]) -> Tensor:
        """Logits of what comes after ids, which come after what the memories hold: nothing yet, or else one id."""
        position = memories[0].length
        rotary = self.rotary[:, position : position + ids.shape[1]]
        x = norm(self.wte(ids))
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, rotary, memory)
        return self._logits(x[:, -1])

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(norm(x)).float()
        return LOGITS_MAX * torch.tanh(logits / LOGITS_MAX)

    def matrices(self) -> list[nn.Parameter]:
        """The weights of the blocks: all of them are matrices, and Muon trains them."""
        return list(self.blocks.parameters())

    def _through(self, block: nn.Module, x: Tensor, rotary: Tensor) -> Tensor:
        if self.training and self.config.activation_checkpointing:
            x = checkpoint(block, x, rotary, use_reentrant=False)
        else:
            x = block(x, rotary)
        return x

    @torch.no_grad()
    def draw_weights(self, seed: int) -> None:
        """Draw the initial weights. The projections back into the residual path start at zero."""
        generator = torch.Generator(device=self.rotary.device).manual_seed(seed)
        bound = 3**0.5 * self.config.width**-0.5
        for name, weight in self.named_parameters():
            whole = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
            if name.startswith("wte"):
                whole.normal_(0.0, 1.0, generator=generator)
            elif name.startswith("lm_head"):
                whole.normal_(0.0, 0.001, generator=generator)
            elif "c_proj" not in name:
                whole.uniform_(-bound, bound, generator=generator)
            weight.copy_(part_of(whole, weight))
        self.rotary.copy_(rotary_table(self.config))


def norm(x: Tensor) -> Tensor:
    """RMSNorm without weights."""
    return F.rms_norm(x, (x.shape[-1],))


def rotary_table(config: CharlmConfig) -> Tensor:
    """Cosines and sines of every position's angles: (2, time, headDim / 2)."""
    half = config.head_dim // 2
    frequencies = ROTARY_BASE ** -(torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(config.sequence_length, dtype=torch.float32), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn the two halves of each head against each other by the angle of the position: (batch, heads, time, dim)."""
    cosine, sine = rotary.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosine + right * sine, right * cosine - left * sine], dim=-1)


def part_of(whole: Tensor, weight: Tensor) -> Tensor:
    """The part of a drawn tensor that this rank holds; every rank drew the same, so nothing has to be sent."""
    if not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
