"""The dashboard asks only for what there is, in words that Prometheus understands; docs/metrics.md names it all."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from hack.cluster import prometheus
from support import exported
from support.dashboard import Query, load, queries
from support.missing import missing

ROOT = Path(__file__).parents[2]
EXPORTED = [*exported.operator(), *exported.trainer()]
SAMPLES = {sample: family for family in EXPORTED for sample in family.samples}
_NAME = re.compile(r"\bpiton_\w+")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring) *\(([^)]*)\)")
_MATCHED = re.compile(r"(\w+) *(?:=~|!~|!=|=) *\"")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")
_ROW = re.compile(r"\| `(piton_\w+)` \| (\w+) \|([^|]*)\|[^|]+\|[^|]+\|")


def asked() -> list[Query]:
    return queries(load())


@pytest.mark.parametrize("query", asked(), ids=lambda query: query.title)
def test_a_query_asks_for_metrics_and_labels_that_are_exported(query: Query) -> None:
    names = _NAME.findall(query.expr)
    assert names, "a query asks for something"
    assert set(names) <= SAMPLES.keys()

    known = {"le", *exported.TARGET_LABELS, *(label for name in names for label in SAMPLES[name].labels)}
    grouped = {label.strip() for labels in _GROUPED.findall(query.expr) for label in labels.split(",")}
    assert grouped | set(_MATCHED.findall(query.expr)) <= known
    assert set(_LEGEND.findall(query.legend)) <= grouped, "a legend names what the query leaves"


def test_every_query_parses(tmp_path: Path) -> None:
    promtool = prometheus.find("promtool")
    if promtool is None:
        missing("there is no promtool; python -m hack.cluster promtool fetches it")
    rules = [{"record": f"query:{number}", "expr": query.expr} for number, query in enumerate(asked())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = subprocess.run([str(promtool), "check", "rules", str(path)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_the_data_source_is_a_choice() -> None:
    dashboard = load()
    sources = {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"}

    assert sources == {"${datasource}"}
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "namespace", "run"]


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels = load()["panels"]
    cells = [
        (place["x"] + dx, place["y"] + dy)
        for place in (panel["gridPos"] for panel in panels)
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_docs_name_every_metric_with_its_type_and_labels() -> None:
    rows = _ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    documented = [(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows]

    assert documented == [(family.name, family.kind, family.labels) for family in EXPORTED]


@pytest.mark.parametrize("family", EXPORTED, ids=lambda family: family.name)
def test_a_name_follows_the_conventions(family: exported.Exported) -> None:
    assert family.name.startswith("piton_")
    assert (family.kind == "counter") == family.name.endswith("_total")
    assert not re.search(r"(milliseconds|minutes|percent|_count|_bucket|_sum)", family.name)
