"""The e2e tests: one cluster for all of them."""

from pathlib import Path

import pytest

from support.on_a_cluster import (
    all_nodes_back,
    cluster,
    digest_of,
    drilled,
    namespace,
    the_box,
    training,
)

__all__ = ["all_nodes_back", "cluster", "digest_of", "drilled", "namespace", "the_box", "training"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """There is one box: what needs it stays on one worker, while another trains the small systems, file by file."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            alone = item.get_closest_marker("e2e") is not None
            item.add_marker(pytest.mark.xdist_group(item.path.stem if alone else "box"))
