"""Hostile answers run nothing, send nothing, hide nothing, and do not stop the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.page import hostile, recorded
from tests.page.plugin import Visit
from tests.page.visitor import Visitor

PROMPT = "Say it."
INSPECT = Path(__file__).with_name("inspect_answer.js").read_text()
"""Returns what an answer must not have: other tags and attributes than Markdown needs, and other links."""


POINT = """
(answer) => answer.querySelectorAll("*").forEach((element) => {
    element.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    element.dispatchEvent(new FocusEvent("focus"));
})
"""


def assert_harmless(visitor: Visitor) -> None:
    """Looks at the answers, points at everything in them, and looks again."""
    for answer in visitor.answers.all():
        assert answer.evaluate(INSPECT) == []
        answer.evaluate(POINT)
    assert visitor.page.url.startswith(visitor.url)
    assert visitor.page.title().endswith("Cortex")
    expect(visitor.message).to_be_visible()
    expect(visitor.button("Send")).to_be_visible()
    expect(visitor.key_dialog).to_have_count(0)
    assert visitor.log.get_by_label("API key").count() == 0
    visitor.assert_no_faults()


@pytest.mark.parametrize("kind", ["SCRIPTS", "MUTATIONS", "LINKS", "REQUESTS", "FENCES", "ENTITIES", "CLOBBERS"])
def test_a_hostile_answer_runs_nothing(visitor: Visitor, kind: str) -> None:
    texts: tuple[str, ...] = getattr(hostile, kind)
    recorded.answer_chats(visitor.context, *(recorded.stream(text) for text in texts))
    for number, text in enumerate(texts, 1):
        visitor.ask(PROMPT)
        expect(visitor.answers).to_have_count(number)
        assert visitor.answers.last.evaluate(INSPECT) == [], text
        visitor.assert_no_faults()
    assert_harmless(visitor)
    visitor.page.reload()
    expect(visitor.answers).to_have_count(len(texts))
    assert_harmless(visitor)


def test_all_of_them_in_one_answer_and_cut_anywhere_run_nothing(visitor: Visitor) -> None:
    texts = ["\n".join(hostile.ALL[start : start + 10]) for start in range(0, len(hostile.ALL), 10)]
    cuts = [text[: len(text) * part // 7] for text in texts for part in range(1, 8)]
    recorded.answer_chats(visitor.context, *(recorded.stream(text, piece=7) for text in cuts))
    for _ in cuts:
        visitor.ask(PROMPT)
    assert_harmless(visitor)


@pytest.mark.parametrize("text", hostile.ENTITIES[:4] + hostile.FENCES[:1])
def test_what_is_not_run_is_shown_as_text(visitor: Visitor, text: str) -> None:
    recorded.answer_chats(visitor.context, recorded.stream(text))
    expect(visitor.ask(PROMPT)).to_contain_text("pwned()")


def test_thoughts_tool_calls_and_questions_run_nothing(visitor: Visitor) -> None:
    bodies = [
        recorded.stream("ok", thoughts=text, calls=((text, json.dumps({"x": text})), (text, text)))
        for text in hostile.ALL[::3]
    ]
    recorded.answer_chats(visitor.context, *bodies)
    for text in hostile.ALL[::3]:
        visitor.ask(text.replace("\0", ""))
        visitor.answers.last.locator("details").evaluate_all("(all) => all.forEach((each) => { each.open = true; })")
    assert_harmless(visitor)
    visitor.page.reload()
    expect(visitor.answers).to_have_count(len(bodies))
    assert_harmless(visitor)


def test_a_hostile_error_runs_nothing(visitor: Visitor) -> None:
    recorded.refuse_chats(visitor.context, "".join(hostile.SCRIPTS))
    visitor.send(PROMPT)
    expect(visitor.alert).to_contain_text(hostile.IMAGE)
    assert visitor.alert.locator("img, script, svg[onload]").count() == 0
    visitor.assert_no_faults(refusals=True)


def test_hostile_names_of_models_and_tenants_run_nothing(visit: Visit) -> None:
    visitor = visit()
    name = f"{hostile.IMAGE}<svg onload=pwned()>"

    def rename(route: Any) -> None:
        body = json.dumps({"object": "list", "data": [{"id": name, "object": "model", "created": 1, "owned_by": name}]})
        route.fulfill(content_type="application/json", body=body)

    visitor.context.route("**/v1/models", rename)
    visitor.context.route(
        "**/v1/live",
        lambda route: route.fulfill(content_type="text/event-stream", body=recorded.events(recorded.live(name))),
    )
    visitor.page.goto(f"{visitor.url}/#live")
    visitor.page.reload()
    expect(visitor.region("Models")).to_contain_text(hostile.IMAGE)
    visitor.tab("Chat").click()
    expect(visitor.page.get_by_role("combobox", name="Model")).to_contain_text(hostile.IMAGE)
    visitor.assert_no_faults()


@pytest.mark.parametrize("number", range(len(hostile.LONG)))
def test_a_long_answer_does_not_stop_the_page(visit: Visit, number: int) -> None:
    visitor = visit(viewport={"width": 360, "height": 740})
    recorded.answer_chats(
        visitor.context, recorded.stream(hostile.LONG[number], piece=1000), recorded.stream("Still here.")
    )
    visitor.ask(PROMPT)
    assert visitor.overflow() <= 0
    expect(visitor.ask(PROMPT)).to_contain_text("Still here.")
    assert visitor.overflow() <= 0
    assert_harmless(visitor)


def test_the_policy_alone_stops_scripts_styles_and_requests(visitor: Visitor) -> None:
    """If the cleaning of an answer failed, the browser would still refuse."""
    headers = visitor.page.request.get(visitor.url).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";") if part.strip())
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    visitor.page.evaluate(
        """(text) => {
            const place = document.createElement("div");
            document.body.append(place);
            place.innerHTML = text;
            const script = document.createElement("script");
            script.textContent = "pwned('inline')";
            document.body.append(script);
            const last = new Image();
            document.body.append(last);
            return new Promise((done) => { last.onerror = done; last.src = "x?last"; }).then(() => true);
        }""",
        "".join(hostile.SCRIPTS + hostile.REQUESTS).replace("http-equiv=refresh", ""),
    )
    assert any("script-src" in fault for fault in visitor.faults)
    wrong = [fault for fault in visitor.faults if fault.startswith(("a script", "a dialog"))]
    assert wrong == []
    assert "elsewhere.test" not in visitor.page.url
