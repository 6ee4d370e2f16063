"""The copy of the API server's objects: what is newer, what is a change, and what is found again."""

import json
import random
from typing import Any

import pytest

from piton.kube import kept_fields
from piton.kube.cache import by_label
from piton.kube.resources import Body, Selector
from piton.kube.store import Change, Store

LABEL = "piton.dev/run"


def a_pod(name: str = "a", version: int = 1, *, uid: str = "", run: str = "r", **status: Any) -> Body:
    metadata = {"name": name, "namespace": "team", "uid": uid or f"uid-{name}", "labels": {LABEL: run}}
    return {"metadata": {**metadata, "resourceVersion": str(version)}, "spec": {}, "status": status}


def a_store(**options: Any) -> Store:
    return Store(kept_fields.of_own, by_label(LABEL), **options)


def names(store: Store, run: str, namespace: str | None = "team") -> list[str]:
    return [str(body["metadata"]["name"]) for body in store.select(namespace, {LABEL: run})]


def test_a_reader_gets_a_copy_of_its_own() -> None:
    store = a_store()
    store.put(a_pod(phase="Running"))
    found = store.get("team", "a")
    assert found is not None
    found["status"]["phase"] = "Failed"
    assert store.get("team", "a") == a_pod(phase="Running")


@pytest.mark.parametrize("version", [1, 2], ids=["older", "the same"])
def test_a_state_that_is_not_newer_changes_nothing(version: int) -> None:
    store = a_store()
    store.put(a_pod(version=2, phase="Running"))
    assert store.put(a_pod(version=version, phase="Pending")) is None
    assert store.get("team", "a") == a_pod(version=2, phase="Running")


def test_a_newer_state_that_differs_in_nothing_that_is_kept_is_no_change_but_its_version_counts() -> None:
    store = a_store()
    store.put(a_pod(version=1))
    written = a_pod(version=2)
    written["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    assert store.put(written) is None
    found = store.get("team", "a")
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "2"


def test_a_change_has_the_state_before_and_after() -> None:
    store = a_store()
    first = store.put(a_pod(version=1, phase="Pending"))
    second = store.put(a_pod(version=2, phase="Running"))
    assert first is not None
    assert second is not None
    assert first.before is None
    assert second.before is not None
    assert second.after is not None
    assert (second.before["status"], second.after["status"]) == ({"phase": "Pending"}, {"phase": "Running"})
    assert (first.deleted, second.deleted) == (False, False)


def test_a_deletion_shows_the_last_state() -> None:
    store = a_store()
    store.put(a_pod(version=1, phase="Running"))
    change = store.remove(a_pod(version=5, phase="Failed"))
    assert change is not None
    assert change.deleted
    assert change.body["status"] == {"phase": "Failed"}
    assert (len(store), names(store, "r")) == (0, [])


def test_an_object_that_was_deleted_does_not_come_back_by_an_answer_that_arrives_late() -> None:
    store = a_store()
    store.put(a_pod(version=1))
    store.remove(a_pod(version=3))
    assert store.put(a_pod(version=2)) is None
    assert store.get("team", "a") is None


def test_a_deletion_of_an_earlier_bearer_of_the_name_leaves_the_new_one() -> None:
    store = a_store()
    store.put(a_pod(version=4, uid="new"))
    assert store.remove(a_pod(version=3, uid="old")) is None
    assert store.get("team", "a") == a_pod(version=4, uid="new")


def test_a_list_finds_what_was_deleted_and_keeps_what_was_written_after_it() -> None:
    store = a_store()
    for name, version in (("gone", 1), ("stays", 2), ("written", 9)):
        store.put(a_pod(name, version))
    changes = store.replace([a_pod("stays", 2), a_pod("new", 5)], version=6)
    assert sorted(names(store, "r")) == ["new", "stays", "written"]
    assert {(str(change.body["metadata"]["name"]), change.deleted) for change in changes} == {
        ("gone", True),
        ("new", False),
    }


def test_after_a_restore_of_etcd_older_versions_count_again() -> None:
    store = a_store()
    for name in ("stays", "gone"):
        store.put(a_pod(name, 90, phase="Running"))
    changes = store.replace([a_pod("stays", 7, phase="Pending")], version=10, restored=True)
    assert (len(changes), names(store, "r")) == (2, ["stays"])
    assert store.get("team", "stays") == a_pod("stays", 7, phase="Pending")
    assert store.put(a_pod("stays", 11, phase="Running")) is not None


def test_an_object_comes_back_by_a_state_that_is_newer_than_its_end() -> None:
    """A watch with a selector says DELETED when a label is taken off, and ADDED of the same uid when it is put back."""
    store = a_store()
    store.put(a_pod(version=1))
    store.remove(a_pod(version=3))
    change = store.put(a_pod(version=4, phase="Running"))
    assert change is not None
    assert (change.before, names(store, "r")) == (None, ["a"])
    assert store.remove(a_pod(version=3)) is None
    assert names(store, "r") == ["a"]


def test_what_a_list_lacked_comes_back_with_the_next_list_or_a_newer_state_and_by_no_late_answer() -> None:
    store = a_store()
    for name in ("listed", "written", "late"):
        store.put(a_pod(name, 5))
    store.replace([], version=20)
    assert store.put(a_pod("late", 12)) is None
    assert store.put(a_pod("written", 21)) is not None
    store.replace([a_pod("listed", 5), a_pod("written", 21)], version=30)
    assert sorted(names(store, "r")) == ["listed", "written"]


@pytest.mark.parametrize("version", [45, 10_000], ids=["the versions begin again", "the versions go on rising"])
def test_after_a_restore_of_etcd_the_list_counts_more_than_what_was_seen_since_the_backup(version: int) -> None:
    """With `--bump-revision` the list is newer than ever, and its objects are older than those that are known."""
    store = a_store()
    store.replace([a_pod("deleted", 10), a_pod("changed", 11, phase="Pending")], version=50)
    store.remove(a_pod("deleted", 60))
    store.put(a_pod("changed", 61, phase="Running"))
    store.put(a_pod("new", 62))
    changes = store.replace(
        [a_pod("deleted", 10), a_pod("changed", 11, phase="Pending")], version=version, restored=version < 62
    )
    assert sorted(names(store, "r")) == ["changed", "deleted"]
    assert store.get("team", "changed") == a_pod("changed", 11, phase="Pending")
    assert len(changes) == 3
    assert store.put(a_pod("changed", version + 1, phase="Failed")) is not None


def test_a_list_is_older_than_a_deletion_that_was_seen_after_it() -> None:
    store = a_store()
    store.put(a_pod(version=5))
    store.remove(a_pod(version=9))
    store.replace([a_pod(version=5)], version=7)
    assert names(store, "r") == []


def test_an_object_is_found_by_its_label_also_after_the_label_has_changed() -> None:
    store = a_store()
    store.put(a_pod("a", 1, run="one"))
    store.put(a_pod("b", 2, run="two"))
    store.put(a_pod("a", 3, run="two"))
    assert (names(store, "one"), sorted(names(store, "two"))) == ([], ["a", "b"])
    assert names(store, "two", namespace="elsewhere") == []


def test_a_store_with_a_limit_drops_what_changed_longest_ago() -> None:
    store = a_store(most=2)
    for name, version in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        store.put(a_pod(name, version, phase=str(version)))
    assert sorted(names(store, "r")) == ["a", "c"]


@pytest.mark.parametrize("seed", range(50))
def test_events_late_repeated_and_in_any_order_end_in_the_same_state(seed: int) -> None:
    """One object's life, its answers to our own writes among the events: each state may arrive several times."""
    rng = random.Random(seed)
    life: list[tuple[str, Body]] = [("put", a_pod("a", version, phase=str(version))) for version in range(1, 6)]
    if rng.random() < 0.5:
        life.append(("remove", a_pod("a", 6)))
    arriving = [event for event in life for _ in range(rng.randint(1, 3))]
    rng.shuffle(arriving)
    store = a_store()
    for kind, body in arriving:
        store.put(body) if kind == "put" else store.remove(body)
    assert store.get("team", "a") == (None if life[-1][0] == "remove" else a_pod("a", 5, phase="5"))


# --- selectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "fields", "expected"),
    [
        (f"{LABEL}=r", None, True),
        (f"{LABEL}=other", None, False),
        (LABEL, None, True),
        (f"!{LABEL}", None, False),
        ("!absent", None, True),
        (f"{LABEL}=r,!absent,other=1", None, False),
        (None, "status.phase=Running", True),
        (None, "status.phase=Failed", False),
        (None, "status.absent.deeper=1", False),
        (None, None, True),
    ],
)
def test_a_selector_is_understood_as_by_the_api_server(labels: str | None, fields: str | None, expected: bool) -> None:
    assert Selector.parse(labels, fields).matches(a_pod(phase="Running")) is expected


# --- fields -----------------------------------------------------------------------------------------------------------


def test_a_heartbeat_is_no_change_of_a_node() -> None:
    def a_node(version: int, beat: str) -> Body:
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": beat, "lastTransitionTime": "x"}
        return {"metadata": {"name": "n", "resourceVersion": str(version)}, "status": {"conditions": [ready]}}

    store = Store(kept_fields.of_node)
    assert isinstance(store.put(a_node(1, "12:00")), Change)
    assert store.put(a_node(2, "12:05")) is None


def test_of_a_pod_no_environment_and_no_configuration_is_kept() -> None:
    """These are most of its size."""
    container = {"name": "pytorch", "env": [{"name": "X", "value": "y" * 1000}], "resources": {"limits": {"cpu": "1"}}}
    pod = a_pod(phase="Running") | {"spec": {"nodeName": "n", "containers": [container], "volumes": [{"name": "v"}]}}
    pod["metadata"]["annotations"] = {"piton.dev/config": "z" * 1000}
    kept = kept_fields.of_pod(pod)
    assert kept["spec"] == {"nodeName": "n", "containers": [{"name": "pytorch", "resources": {"limits": {"cpu": "1"}}}]}
    assert len(json.dumps(kept)) < 400


def test_of_the_volumes_of_a_pod_its_claims_are_kept() -> None:
    """By them a pod that hangs is judged."""
    volumes = [{"name": "shm", "emptyDir": {}}, {"name": "v", "persistentVolumeClaim": {"claimName": "once"}}]

    kept = kept_fields.of_pod(a_pod() | {"spec": {"volumes": volumes}})

    assert kept["spec"]["volumes"] == [{"persistentVolumeClaim": {"claimName": "once"}}]


def test_of_a_quota_nothing_is_kept_but_what_it_allows_and_what_is_used() -> None:
    amounts = {"hard": {"pods": "9"}, "used": {"pods": "1"}}
    name = {"name": "q", "namespace": "team", "uid": "u"}
    quota = {"metadata": {**name, "annotations": {"a": "b"}}, "spec": {"hard": {"pods": "9"}}, "status": amounts}
    assert kept_fields.of_quota(quota) == {"metadata": name, "status": amounts}
