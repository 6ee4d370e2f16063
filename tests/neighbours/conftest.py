"""The suite of neighbours: Piton in the box, beside the controllers that it meets in real clusters."""

from pathlib import Path

import pytest

from support.on_a_cluster import cluster, digest_of, drilled, namespace, the_box, training

__all__ = ["cluster", "digest_of", "drilled", "namespace", "the_box", "training"]

pytest.register_assert_rewrite("e2e")  # the stories that run here with another engine


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """There is one box: all of these stay on one worker."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("box"))
