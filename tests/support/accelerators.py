"""The memory that accelerate has of a process, which outlives an Accelerator."""

from accelerate.state import AcceleratorState, GradientState


def forget_accelerators() -> None:
    """Have the next Accelerator find out by itself whether there are other ranks."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
