"""Piton with `engine: kubeflow` when nodes die without notice: the bundled engine's stories once more."""

import pytest

from e2e.test_recovery import test_a_killed_node_costs_at_most_one_interval, test_a_node_dies_while_the_operator_is_down
from neighbours.test_kubeflow_engine import engine

__all__ = [
    "engine",
    "test_a_killed_node_costs_at_most_one_interval",
    "test_a_node_dies_while_the_operator_is_down",
]

pytestmark = [pytest.mark.neighbours, pytest.mark.repeated, pytest.mark.timeout(600)]
