"""The settings that every recipe has, because the shared loop reads them.

No torch here: the command line checks a config before a machine is paid for.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from piton.contract import InputError


class RecipeConfig(BaseModel):
    """Settings that the loop needs. A recipe adds its own fields, each with unit, meaning and reason of its default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps to train. None trains until `limits.trainingTime` is spent, so one of the two has to be there."""
    eval_every: int = Field(default=250, ge=1)
    """Steps between evaluations. The last step has one as well. 250 is what nanochat uses."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the initial weights, the order of the data and dropout. Equal seeds give equal runs on a CPU."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an average of the weights, which is then what gets evaluated, e.g. 0.999. None keeps none.

    The decay warms up as min(ema, (1 + n) / (10 + n)), so that the first weights are soon forgotten.
    """
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of all gradients together; None leaves them alone. 1.0 only touches outliers."""
    on_non_finite: Literal["Diverge", "Skip"] = "Diverge"
    """Skip leaves out a step whose loss or gradients are not finite numbers, on all ranks, and counts it in the metric
    `skipped_steps`; 20 such losses in a row end the training all the same. It makes the host wait for the GPU in each
    step, so it is off."""
    max_skipped: int = Field(default=0, ge=0)
    """Damaged examples of each source of data that may be left out; one more ends the run, as the first does with 0.
    A finished file of records that is named as data is taken with what was left out of it, whatever this number is.
    What is left out is listed beside the prepared data, and counted in the metric `examples_skipped`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 over fp32 weights: what a GPU wants. fp32 gives equal results everywhere."""
    compile: bool = False
    """Compile each block with torch.compile. Off, as it slows the start of every attempt; worth it in long ones."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """ddp keeps the whole model on every rank; fsdp shards weights, gradients and optimizer, for what does not fit."""

    peak_flops: float | None = Field(default=None, gt=0)
    """Operations per second that one GPU can do at best, for the metric `mfu`. None takes the dense bf16 figure of the
    card, where it is a known one; else there is no such metric."""

    def check_length(self, training_seconds: float | None) -> None:
        """Refuse a run without an end.

        Raises:
            ValueError: there are neither steps nor a training time.
        """
        if self.steps is None and training_seconds is None:
            raise InputError("trainer.config.steps: missing, and so is limits.trainingTime; set one of them")

    def check_data(self) -> None:
        """Look for the data that the config names, as far as that is possible without reading or downloading it.

        Raises:
            ValueError: a file or directory is not there.
        """

    def check_world(self, world_size: int) -> None:
        """Check that the batch can be divided among the ranks.

        Raises:
            ValueError: it cannot.
        """
