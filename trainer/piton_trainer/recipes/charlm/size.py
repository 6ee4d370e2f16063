"""The size of a `charlm`: weights, checkpoints, memory, operations. Plain arithmetic without torch.

So a plan can say what a run will need before a machine is paid for, and the recipe counts with the same numbers.
"""

from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.sizes import FP32_BYTES, Size

SYMBOLS = 128
"""In a plan, as only the text tells. A hundred more are a millionth of a large model."""


def vocabulary_rows(config: CharlmConfig, symbols: int) -> int:
    """Rows of the embedding for so many symbols."""
    return -(-symbols // config.vocabulary_multiple) * config.vocabulary_multiple


def matrix_parameters(config: CharlmConfig) -> int:
    """Weights of the blocks: per block four matrices of attention and two of the MLP, which is four times as wide."""
    return 12 * config.depth * config.width**2


def end_parameters(config: CharlmConfig, symbols: int) -> int:
    """Weights of the embedding, or of the output layer: they are as large as each other."""
    return vocabulary_rows(config, symbols) * config.width


def parameters(config: CharlmConfig, symbols: int) -> int:
    """All weights."""
    return matrix_parameters(config) + 2 * end_parameters(config, symbols)


def weights_bytes(config: CharlmConfig, symbols: int) -> int:
    """Of the weights, and of their average where one is kept: what is left of a checkpoint that was made thin."""
    return FP32_BYTES * parameters(config, symbols) * (1 if config.ema is None else 2)


def checkpoint_bytes(config: CharlmConfig, symbols: int) -> int:
    """Of a whole checkpoint: the weights, one momentum of Muon for the blocks, two of AdamW for the ends.

    Its index and the position in the data come to some kilobytes more.
    """
    momenta = matrix_parameters(config) + 2 * 2 * end_parameters(config, symbols)
    return weights_bytes(config, symbols) + FP32_BYTES * momenta


def resident_bytes(config: CharlmConfig, symbols: int, *, ranks: int) -> int:
    """Return the bytes in each rank's memory between two steps, with gradients; activations come on top."""
    whole = checkpoint_bytes(config, symbols) + FP32_BYTES * parameters(config, symbols)
    return -(-whole // ranks) if config.parallelism == "fsdp" else whole


def flops_per_token(config: CharlmConfig, symbols: int) -> float:
    """Of training: 6 per weight that multiplies (the embedding only looks up), and those of attention."""
    multiplying = parameters(config, symbols) - end_parameters(config, symbols)
    return 6.0 * multiplying + 12.0 * config.depth * config.width * config.sequence_length


def size(config: CharlmConfig) -> Size:
    """All of it, for as many symbols as a text may have."""
    return Size(
        parameters=parameters(config, SYMBOLS),
        checkpoint_bytes=checkpoint_bytes(config, SYMBOLS),
        flops_per_token=flops_per_token(config, SYMBOLS),
        note=f"for {SYMBOLS} symbols",
    )
