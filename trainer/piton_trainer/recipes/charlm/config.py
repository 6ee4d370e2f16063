"""The settings of `charlm`, without torch. Where no reason is given the default is nanochat's own."""

import math
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from piton.contract import InputError
from piton_trainer.data.text.sources import PYDOC
from piton_trainer.recipes.config import RecipeConfig
from piton_trainer.s3 import S3_SCHEME


class CharlmConfig(RecipeConfig):
    """Depth is the one knob: it sets the width, and with it everything else."""

    # The model.
    depth: int = Field(default=20, ge=1)
    """Number of transformer blocks. 20 is nanochat's own model of 0.5 billion parameters; 64 gives 12.9 billion."""
    aspect_ratio: int = Field(default=64, ge=1)
    """Width per block: the model is aspectRatio x depth wide, rounded up to a multiple of headDim."""
    head_dim: int = Field(default=128, ge=2)
    """Width of one attention head; even, because rotary embeddings turn pairs. Models for a CPU want less, e.g. 32."""
    sequence_length: int = Field(default=2048, ge=2)
    """Characters that the model sees at once."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped after the embedding, attention and MLP. Worth it when a text is read many times."""
    vocabulary_multiple: int = Field(default=8, ge=1)
    """The vocabulary is padded to a multiple of this: tensor cores and shards want even sizes."""
    activation_checkpointing: bool = False
    """Keep only what goes into each block, and compute the rest again in the backward pass: a third more work, for a
    fraction of the memory. The weights come out the same."""

    # The batch.
    device_batch_size: int = Field(default=4, ge=1)
    """Sequences per forward pass and rank: as many as the memory holds."""
    total_batch_tokens: int = Field(default=524_288, ge=2)
    """Characters per optimizer step over all ranks; what one pass of all ranks lacks is accumulated."""

    # The optimizers. Rates are those at referenceBatchTokens and at the width 768.
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Of Muon, for the matrices of the blocks."""
    embedding_learning_rate: float = Field(default=0.3, gt=0)
    """Of AdamW, for the embedding; times (width / 768)^-0.5."""
    head_learning_rate: float = Field(default=0.004, gt=0)
    """Of AdamW, for the output layer; times (width / 768)^-0.5."""
    reference_batch_tokens: int | None = Field(default=524_288, ge=1)
    """The batch, in characters, at which the rates hold: another one scales all of them by the square root of the
    ratio. None takes the rates as they are."""
    warmdown_fraction: float = Field(default=0.4, ge=0, le=1)
    """The last part of the training, in which the rates fall linearly to 0."""

    # The data.
    data: str = Field(default=PYDOC, min_length=1)
    """`pydoc` (Python's own documentation topics, which every machine has), a text file, a directory of *.txt and
    *.md files, or s3://bucket/prefix with such objects, which are fetched once per node (docs/data.md)."""
    documents: bool = False
    """The text consists of documents with blank lines between them; each then begins with a symbol of its own."""
    rare_below: int = Field(default=10, ge=1)
    """Characters seen fewer times than this share one replacement symbol, so that the vocabulary stays small."""
    validation_fraction: float = Field(default=0.05, gt=0, le=0.5)
    """Share of the text, taken from its end, that is only for validation."""
    eval_tokens: int = Field(default=131_072, ge=2)
    """Characters per evaluation, or the whole validation text where it is shorter. Always the same ones, so that two
    evaluations differ by the model alone. Enough for a stable third digit at little cost."""

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return math.ceil(self.aspect_ratio * self.depth / self.head_dim)

    @property
    def width(self) -> int:
        """Width of the model."""
        return self.heads * self.head_dim

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.head_dim % 2:
            raise InputError(
                f"headDim: {self.head_dim} is odd and rotary embeddings turn pairs; take {self.head_dim + 1}"
            )
        _divide("deviceBatchSize x sequenceLength", self.device_batch_size * self.sequence_length, self)
        if self.eval_tokens < self.sequence_length:
            raise InputError(
                f"evalTokens: {self.eval_tokens} is less than one sequence; take at least {self.sequence_length}"
            )
        return self

    def check_world(self, world_size: int) -> None:
        """Check that the batch is a whole number of passes of all ranks.

        Raises:
            ValueError: it is not.
        """
        try:
            tokens = world_size * self.device_batch_size * self.sequence_length
            _divide(f"{world_size} ranks x deviceBatchSize x sequenceLength", tokens, self)
        except ValueError as error:
            raise InputError(f"trainer.config.{error}") from error

    def check_data(self) -> None:
        """Look for the file or directory; what lies in S3 shows when it is read.

        Raises:
            ValueError: there is no such file or directory.
        """
        if self.data == PYDOC or self.data.startswith(S3_SCHEME):
            return
        if not Path(self.data).exists():
            raise InputError(
                f"trainer.config.data: there is no file or directory {self.data}; "
                f"give one, s3://bucket/prefix, or {PYDOC}"
            )


def _divide(what: str, tokens: int, config: CharlmConfig) -> None:
    if config.total_batch_tokens % tokens:
        fitting = max(1, round(config.total_batch_tokens / tokens)) * tokens
        raise InputError(
            f"totalBatchTokens: {config.total_batch_tokens} is not a multiple of {what} = {tokens}; take {fitting}"
        )
