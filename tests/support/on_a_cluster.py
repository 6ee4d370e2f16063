"""The fixtures of tests on a real cluster with Piton on it: the box, or whatever KUBECONFIG names.

A missing part fails the tests in CI and skips them elsewhere, with the reason: nothing is quietly left out.
"""

import functools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hack import images
from hack.cluster import box, drills, network, nodes
from hack.cluster.layout import KUBECONFIG, Node
from hack.cluster.shell import BoxError
from hack.install import piton
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced
from support.missing import missing

SPOT_NODES = 2


@pytest.fixture(scope="session")
def the_box() -> Iterator[None]:
    """A box, with or without Piton. One that was up stays up."""
    if _somebody_elses():
        missing("this needs the box: unset KUBECONFIG")
    with the_right_to_a_box():
        was_up = box.is_up()
        try:
            images.load(print)  # cheaper before there are nodes
            box.up(spot_nodes=SPOT_NODES, say=print)
            yield
        except BoxError as error:
            missing(str(error))
        finally:
            if not was_up:
                box.down()


@contextmanager
def the_right_to_a_box() -> Iterator[None]:
    """Have the box alone. That this machine can have none is a missing part; that somebody uses it is a failure."""
    try:
        box.require_root()
    except BoxError as error:
        missing(str(error))
    with box.use_alone():
        yield


@pytest.fixture
def all_nodes_back(the_box: None) -> Iterator[None]:
    """The right to lose nodes of a box that need not have Piton; they are back afterwards."""
    yield
    box.up(spot_nodes=SPOT_NODES, say=print)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> LiveCluster:
    """A cluster with Piton: the box, or somebody else's, which has Piton already."""
    if theirs := _somebody_elses():
        return LiveCluster(theirs)
    request.getfixturevalue("the_box")
    piton.install_in_box(spot_nodes=SPOT_NODES, say=print)
    return LiveCluster(KUBECONFIG)


@pytest.fixture
def drilled(cluster: LiveCluster) -> Iterator[None]:
    """The right to lose nodes; all of them are back afterwards."""
    if _somebody_elses():
        missing("nodes are lost in the box only: unset KUBECONFIG")
    yield
    for number in range(1, SPOT_NODES + 1):
        if not nodes.alive(node := Node(number=number)):
            drills.add(node)
        elif network.is_cut(node):
            drills.heal(node)
            nodes.wait_until_ready(node)


@pytest.fixture
def namespace(cluster: LiveCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    with _namespace(cluster, request.node.name.removeprefix("test_")) as name:
        yield name


@pytest.fixture
def training(cluster: LiveCluster, namespace: str) -> NewTraining:
    """Makes the handle of a run in the test's namespace."""
    return lambda name="run": Training(cluster, namespace, name)


@pytest.fixture(scope="session")
def digest_of(cluster: LiveCluster) -> Iterator[DigestOf]:
    """The digest of `paced.py` after so many steps, trained on the cluster without any disturbance; each once."""
    with _namespace(cluster, "undisturbed") as namespace:
        yield functools.cache(lambda steps: _undisturbed(Training(cluster, namespace, f"steps-{steps}"), steps))


def _undisturbed(run: Training, steps: int) -> str:
    run.apply(paced(steps, 0.0, save_every=steps))
    status = run.wait_for_phase("Succeeded")
    assert status["attempt"] == 1
    digest: str = status["result"]["weightsDigest"]
    return digest


@contextmanager
def _namespace(cluster: LiveCluster, name: str) -> Iterator[str]:
    """One that nobody had before: deleting takes a while, and nobody waits for it."""
    words = re.sub("[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    name = f"{words}-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def _somebody_elses() -> Path | None:
    theirs = os.environ.get("KUBECONFIG")
    return Path(theirs) if theirs and Path(theirs) != KUBECONFIG else None
