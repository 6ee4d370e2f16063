"""The queries of a Grafana dashboard, as a Prometheus gets them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

DASHBOARD = Path(__file__).parents[2] / "charts" / "piton" / "dashboards" / "piton.json"
EVERYTHING = {"namespace": ".*", "run": ".*", "__rate_interval": "30s", "__range": "5m"}
"""Values of the dashboard's variables, and of those that Grafana makes."""
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LABEL_VALUES = re.compile(r"label_values\((.+), *(\w+)\)")


@dataclass(frozen=True)
class Query:
    """One of them."""

    title: str
    """Of its panel, or the name of the variable that it fills."""
    expr: str
    legend: str = ""


def load(path: Path = DASHBOARD) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def queries(dashboard: Mapping[str, Any], variables: Mapping[str, str] = EVERYTHING) -> list[Query]:
    """All queries, those of variables too, with the variables put in. One that has no value is a KeyError."""
    return [
        Query(found.title, _VARIABLE.sub(lambda match: variables[match[1] or match[2]], found.expr), found.legend)
        for found in _raw(dashboard)
    ]


def _raw(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert asked, f"the variable {variable['name']} asks for something else than label_values"
            yield Query(variable["name"], f"count by ({asked[2]}) ({asked[1]})")
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Query(panel["title"], target["expr"], target["legendFormat"])


def unanswered(prometheus_url: str, asked: Iterable[Query]) -> list[str]:
    """The queries that this Prometheus has no number for, now. NaN, as of a quantile of nothing, is none."""
    return [f"{query.title}: {query.expr}" for query in asked if not _has_number(prometheus_url, query.expr)]


def _has_number(prometheus_url: str, expr: str) -> bool:
    return any(value not in ("NaN", "+Inf", "-Inf") for value in ask(prometheus_url, expr).values())


def ask(prometheus_url: str, expr: str) -> dict[str, str]:
    """The answer to an instant query: series and value."""
    with urlopen(f"{prometheus_url}/api/v1/query?{urlencode({'query': expr})}", timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    return {json.dumps(series["metric"], sort_keys=True): str(series["value"][1]) for series in result}
