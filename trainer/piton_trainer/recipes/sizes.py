"""The size of a recipe's model, as far as its config tells. Without torch: a plan is made where nothing trains."""

from dataclasses import dataclass

FP32_BYTES = 4
"""Of a number in weights and momenta; bf16 computes in fewer, and keeps these."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of one model."""

    parameters: int
    """Numbers that are trained."""
    checkpoint_bytes: int
    """Of a whole checkpoint: weights, average, momenta. Its index and the small things are kilobytes more."""
    flops_per_token: float | None = None
    """Of training, per character, image or whatever the recipe counts; None where that depends on the data."""
    note: str = ""
    """Assumptions about values that only the data can tell."""
