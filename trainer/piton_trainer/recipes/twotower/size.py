"""The size of a `twotower`: the towers by its config, for a thousand ids, because only the data has their number."""

from itertools import pairwise

from piton_trainer.recipes.sizes import FP32_BYTES, Size
from piton_trainer.recipes.twotower.config import TwoTowerConfig

IDS = 1_000
VECTOR = 384
"""Numbers in MiniLM's vectors."""
_ADAM = 2
"""Momenta per weight."""


def size(config: TwoTowerConfig) -> Size:
    """Of all folds together."""
    views = config.heads * config.head_width
    heads = _layers([VECTOR, views]) if views else 0
    queries = _layers([views or VECTOR, *config.query_layers, config.output_dim])
    per_id = _layers([config.id_width, *config.id_layers, config.output_dim])
    parameters = len(config.fold_numbers) * (heads + queries + per_id + IDS * (config.id_width + 1))
    copies = 1 if config.ema is None else 2
    per_query = queries + VECTOR * views
    return Size(
        parameters=parameters,
        checkpoint_bytes=FP32_BYTES * parameters * (copies + _ADAM),
        flops_per_token=6.0
        * (per_query + IDS * (config.output_dim + per_id * config.accumulation / config.batch_queries)),
        note=f"for {IDS:,} ids and vectors of {VECTOR} numbers; data and encoder tell how many they are",
    )


def _layers(widths: list[int]) -> int:
    """Weights and biases."""
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(widths))
