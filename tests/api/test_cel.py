"""What an API server refuses by itself is what Piton refuses, in the same words; without an API server."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piton.api import validation
from piton.api.parse import parse
from piton.crd import KINDS, Kind, crd
from piton.sweep import rules as sweep_rules
from piton.sweep.parse import parse as parse_sweep
from support.builders import a_manifest
from support.crd_cel import broken
from support.judged import COMMAND, RECIPE, RUNS, SHARED, SWEEPS, Judged
from support.sweeps import a_sweep

RUN, SWEEP = KINDS


SCHEMAS: dict[str, Any] = {kind.kind: crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for kind in KINDS}


def said_by_cel(kind: Kind, manifest: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return sorted(sentence for _, sentence in broken(SCHEMAS[kind.kind], manifest, old))


def ids(judged: Judged) -> str:
    return judged.id.replace(" ", "-")


@pytest.mark.parametrize("judged", RUNS, ids=ids)
def test_cel_says_of_a_run_what_piton_says(judged: Judged) -> None:
    assert sorted(parse(judged.run).problems) == sorted(judged.says)
    assert said_by_cel(RUN, judged.run) == ([] if judged.operator_only else sorted(judged.says))


@pytest.mark.parametrize("judged", SWEEPS, ids=ids)
def test_cel_says_of_a_sweep_what_piton_says(judged: Judged) -> None:
    assert sorted(parse_sweep(judged.sweep).problems) == sorted(judged.says)
    assert said_by_cel(SWEEP, judged.sweep) == ([] if judged.operator_only else sorted(judged.says))


@pytest.mark.parametrize("rule", [validation.good_name, *validation.RULES, sweep_rules.good_name, *sweep_rules.RULES])
def test_every_rule_is_in_cel_or_says_why_it_is_not(rule: Any) -> None:
    assert rule.cel or rule.not_in_cel


@pytest.mark.parametrize(("kind", "table"), [(RUN, RUNS), (SWEEP, SWEEPS)], ids=["run", "sweep"])
def test_every_expression_is_seen_to_be_false(kind: Kind, table: tuple[Judged, ...]) -> None:
    manifests = [judged.run if kind is RUN else judged.sweep for judged in table]
    seen = {rule for manifest in manifests for rule, _ in broken(SCHEMAS[kind.kind], manifest)}
    placed = {twin.to_schema()["rule"] for group in kind.cel.values() for twin in group}

    assert placed - seen <= {sweep_rules.UNCHANGED.expression}, "only of updates"


# --- any spec at all --------------------------------------------------------------------------------------------------


def maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


DURATIONS = st.sampled_from(["0s", "0h0m", "10m", "1h0m", "3650d", "3651d", "87601h5s"])
DOLLARS = st.sampled_from(["0", "0.00", "0.05", "12", "10"])
KEY = st.just({"name": "n", "key": "k"})
CONFIG = st.sampled_from([{}, {"k": 1}, {"k": {}}])
PROGRAM = st.sampled_from([[], ["train"]])
AMOUNTS = st.dictionaries(st.sampled_from(["cpu", "nvidia.com/gpu"]), st.just("1"))
RESOURCES = maybe(requests=AMOUNTS, limits=AMOUNTS)
VARIABLES = st.lists(
    st.builds(
        lambda name, rest: {"name": name, **rest},
        st.sampled_from(["A", "RANK", "RANKS", "PET_A", "HF_TOKEN", "api_key", "TOKEN_A"]),
        maybe(value=st.sampled_from(["", "x"]), valueFrom=maybe(secretKeyRef=KEY, configMapKeyRef=KEY)),
    ),
    max_size=3,
    unique_by=lambda variable: variable["name"],
)
TRAINERS = st.builds(
    lambda rest: {"image": "i", **rest},
    maybe(recipe=st.just("charlm"), command=PROGRAM, config=CONFIG, env=VARIABLES),
)
SPECS = st.fixed_dictionaries(
    {
        "trainer": TRAINERS,
        "checkpoint": st.fixed_dictionaries(
            {
                "volume": maybe(
                    claimName=st.just("c"),
                    size=st.just("1Gi"),
                    storageClassName=st.just("s"),
                    accessModes=st.sampled_from([[], ["ReadWriteOnce"], ["ReadWriteOnce", "ReadWriteMany"]]),
                )
            },
            optional={"patience": DURATIONS},
        ),
    },
    optional={
        "workers": maybe(
            nodes=st.integers(1, 3),
            minNodes=st.just(1),
            zones=st.lists(st.sampled_from(["us-east-1a", "a.b"]), max_size=2),
            template=maybe(
                resources=RESOURCES,
                securityContext=maybe(runAsNonRoot=st.booleans(), runAsUser=st.integers(0, 1)),
            ),
        ),
        "capacity": maybe(
            tiers=st.sampled_from([[], ["Spot"], ["Spot", "OnDemand"]]), patience=DURATIONS, maxPricePerHour=DOLLARS
        ),
        "limits": maybe(
            deadline=DURATIONS, trainingTime=DURATIONS, budget=st.builds(lambda usd: {"usd": usd}, DOLLARS)
        ),
        "stages": maybe(
            prepare=maybe(command=PROGRAM, resources=RESOURCES, deadline=DURATIONS),
            evaluate=maybe(
                command=PROGRAM, recipe=st.just("charlm"), config=CONFIG, resources=RESOURCES, deadline=DURATIONS
            ),
        ),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, st.sampled_from(["run", "1st", "a.b", "x" * 46, "x" * 47]))
def test_cel_says_of_any_spec_what_the_rules_say_that_have_a_twin(spec: dict[str, Any], name: str) -> None:
    manifest = a_manifest(name, **spec)
    parsed = parse(manifest)
    assert parsed.asked is not None, parsed.problems
    said = [sentence for rule in validation.RULES if rule.cel for sentence in rule(parsed.asked)]

    assert said_by_cel(RUN, manifest) == sorted([*said, *validation.good_name(name)])


# --- updates ----------------------------------------------------------------------------------------------------------


def test_a_name_that_an_older_version_took_is_in_nobodys_way() -> None:
    """Its finalizer could never be removed, nor its status say why it is refused."""
    for kind, name in ((RUN, "x" * 60), (SWEEP, "x" * 60)):
        manifest = a_manifest(name) if kind is RUN else a_sweep(name)
        assert said_by_cel(kind, manifest)
        assert said_by_cel(kind, {**manifest, "status": {"phase": "Refused"}}, manifest) == []


BEGUN = {"status": {"plan": "abc"}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"folds": 2}, {"folds": 3}),
        ({"folds": 2}, {}),
        ({}, {"folds": 2}),
        ({"seeds": [1]}, {"seeds": [1, 2]}),
        ({"seeds": [1]}, {}),
        ({"baseline": "frozen"}, {"baseline": "isotropy"}),
        ({"metrics": []}, {"metrics": ["loss"]}),
        ({"placement": "Pack"}, {"placement": "Spread"}),
    ],
)
def test_what_makes_runs_comparable_cannot_be_changed_once_the_sweep_has_begun(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = a_sweep(**before), a_sweep(**after)

    assert said_by_cel(SWEEP, {**new, **BEGUN}, {**old, **BEGUN}) == [sweep_rules.CHANGED]
    assert said_by_cel(SWEEP, new, old) == [], "a sweep that was refused can be mended"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"seeds": []}, {}),
        ({"seeds": [1]}, {"seeds": [1], "parallelism": 4}),
        ({}, {"limits": {"deadline": "1h"}}),
        ({}, {"suspend": True}),
    ],
)
def test_the_rest_of_a_sweep_can_be_changed_at_any_time(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = a_sweep(**before), a_sweep(**after)

    assert said_by_cel(SWEEP, {**new, **BEGUN}, {**old, **BEGUN}) == []


def test_whatever_of_a_run_can_be_changed_takes_effect_at_its_next_attempt() -> None:
    """No rule of a run compares with what was: `trainer`, `workers` and the volume may be edited while it trains."""
    old = a_manifest(trainer=RECIPE, checkpoint={"volume": SHARED})
    new = a_manifest(trainer=COMMAND, checkpoint={"volume": {"claimName": "c"}}, workers={"nodes": 4})

    assert said_by_cel(RUN, new, old) == []
