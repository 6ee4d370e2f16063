"""Runs in a queue of Kueue's whose jobs Kubeflow's training operator serves: both controllers beside Piton."""

import pytest

from neighbours.test_kubeflow_engine import engine
from neighbours.test_kueue import (
    queue,
    test_a_gang_is_admitted_as_a_whole_or_waits,
    test_preempted_by_a_higher_priority_it_saves_stops_and_waits_its_turn,
    the_kueue,
)

__all__ = [
    "engine",
    "queue",
    "test_a_gang_is_admitted_as_a_whole_or_waits",
    "test_preempted_by_a_higher_priority_it_saves_stops_and_waits_its_turn",
    "the_kueue",
]

pytestmark = [pytest.mark.neighbours, pytest.mark.repeated, pytest.mark.timeout(900)]
