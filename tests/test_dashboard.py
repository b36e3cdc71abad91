"""The Grafana dashboard asks for metrics and labels that GET /metrics has."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from api.text.tokenizer import Tokenizer
from scheduler.messages import Report
from tests.api.fakes import Server, chat
from tests.api.protocols.test_metrics import CACHE, SCHEDULER, Samples, scrape

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "deploy" / "grafana" / "cortex.json").read_text()
)
NAME: Final = re.compile(r"\b(?:vllm:|cortex_)[a-z0-9_]+")
SELECTOR: Final = re.compile(r"((?:vllm:|cortex_)[a-z0-9_]+)\{([^}]*)\}")
GROUPED: Final = re.compile(r"by \(([^)]*)\)")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return variables + [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.fixture
async def samples(tokenizer: Tokenizer) -> Samples:
    """What a server shows after a request, with tenants in the scheduler."""
    server = Server(tokenizer)
    tenants = [{"tenant": "ann", "priority": 1, "running": 1, "waiting": 0, "service": 1.0}]
    server.engine.report = Report(SCHEDULER | {"tenants": tenants}, CACHE)
    server.answers()
    await server.post(chat())
    return await scrape(server)


async def test_every_query_uses_metrics_and_labels_that_exist(samples: Samples) -> None:
    assert len(queries()) > 30
    for query in queries():
        names = NAME.findall(query)
        assert names, query
        assert set(names) <= set(samples), query
        labels = {label for name in names for values in samples[name] for label, _ in values}
        for name, selector in SELECTOR.findall(query):
            asked = set(re.findall(r"(\w+)\s*=", selector))
            assert all(asked <= {label for label, _ in values} for values in samples[name]), query
        for group in GROUPED.findall(query):
            assert set(re.split(r",\s*", group)) <= labels, query


async def test_the_dashboard_shows_every_metric(samples: Samples) -> None:
    """A histogram counts as shown if its buckets are."""
    shown = set(NAME.findall(" ".join(queries())))
    buckets = {name.removesuffix("_bucket") for name in shown if name.endswith("_bucket")}
    assert shown | {f"{name}_{part}" for name in buckets for part in ("sum", "count")} == set(samples)


def test_panels_have_places_of_their_own() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (place["x"] + column, place["y"] + row)
        for place in places
        for column in range(place["w"])
        for row in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
