"""The live view under the load of `python -m bench load`."""

import re

import pytest
from playwright.sync_api import expect

from tests.api.servers import SECONDS, CortexServer, wait_until
from tests.page import recorded
from tests.page.load import load
from tests.page.plugin import Visit
from tests.page.visitor import Visitor

REGIONS = ("Steps", "KV cache", "Queue", "Latency", "Throughput", "Models", "Memory")
LOAD = ("--workload", "uniform", "--users", "6", "--requests", "24", "--output-tokens", "48")
UNDER_LOAD = ("Steps", "KV cache", "Queue", "Latency", "Throughput")

PACE = 250.0
"""Milliseconds between two events of the feed."""

LOOK = """
(region) => [region.innerText, ...[...region.querySelectorAll("canvas")].map((each) => each.toDataURL())].join()
"""
"""What a region shows: its text and its drawings."""


def looks(visitor: Visitor) -> dict[str, str]:
    return {name: str(visitor.region(name).evaluate(LOOK)) for name in REGIONS}


def test_the_live_views_move_under_load(visit: Visit, server: CortexServer) -> None:
    visitor = visit(view="live")
    for name in REGIONS:
        expect(visitor.region(name)).to_be_visible()
    expect(visitor.region("Models")).to_contain_text(server.model)
    seen: dict[str, set[str]] = {name: set() for name in REGIONS}
    with load(server.url, *LOAD):

        def all_moved() -> bool:
            visitor.page.wait_for_timeout(PACE)
            for name, look in looks(visitor).items():
                seen[name].add(look)
            return all(len(seen[name]) > 3 for name in UNDER_LOAD)

        wait_until(all_moved, f"the regions move: { {name: len(each) for name, each in seen.items()} }", SECONDS)
        visitor.assert_no_faults()


def test_the_numbers_of_the_queue_follow_the_load(visit: Visit, server: CortexServer) -> None:
    visitor = visit(view="live")
    queue = visitor.region("Queue")
    with load(server.url, *LOAD):
        expect(queue).to_contain_text(re.compile(r"[1-6] running"))
    expect(queue).to_contain_text("Nothing runs or waits.")
    visitor.assert_no_faults()


def test_the_feed_ends_with_the_view(visit: Visit, server: CortexServer) -> None:
    """The engine collects nothing while nobody looks."""
    visitor = visit(view="chat")
    feeds: list[str] = []
    visitor.context.on("request", lambda request: feeds.append("asked") if "/v1/live" in request.url else None)
    for event in ("requestfailed", "requestfinished"):
        visitor.context.on(event, lambda request: feeds.append("ended") if "/v1/live" in request.url else None)
    expect(visitor.message).to_be_visible()
    assert feeds == []
    visitor.tab("Live").click()
    expect(visitor.region("Models")).to_contain_text(server.model)
    assert feeds == ["asked"]
    visitor.tab("Chat").click()
    expect(visitor.message).to_be_visible()

    def has_ended() -> bool:
        visitor.page.wait_for_timeout(PACE)  # Playwright sees events only while it waits
        return feeds == ["asked", "ended"]

    wait_until(has_ended, "the feed ends")


def test_an_engine_that_fails_to_report_is_an_error(visitor: Visitor) -> None:
    body = recorded.events(recorded.live("small", error="The engine failed to report."))
    visitor.context.route("**/v1/live", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    visitor.tab("Live").click()
    expect(visitor.alert).to_have_text("small: The engine failed to report.")
    for name in ("KV cache", "Queue", "Memory"):
        expect(visitor.region(name)).to_contain_text("The engine failed to report.")
    visitor.assert_no_faults()


def test_no_prompt_is_shown(visit: Visit, server: CortexServer) -> None:
    visitor = visit(view="live")
    with load(server.url, *LOAD):
        expect(visitor.region("Queue")).to_contain_text(re.compile(r"[1-6]"))
        text = visitor.page.locator("body").inner_text()
    assert "robot" not in text


@pytest.mark.parametrize("name", REGIONS)
def test_a_plot_has_its_numbers_as_text(visit: Visit, server: CortexServer, name: str) -> None:
    visitor = visit(view="live")
    with load(server.url, *LOAD):
        expect(visitor.region(name)).to_contain_text(re.compile(r"\d"))
