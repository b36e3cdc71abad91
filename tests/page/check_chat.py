"""The chat, with real answers of the embedded model."""

import json
import re
from typing import Any

from playwright.sync_api import expect

from tests.api.servers import CortexServer
from tests.page import recorded
from tests.page.plugin import Visit
from tests.page.visitor import Visitor

PROMPT = "Tell me a long story about a friendly robot."
ANSWER = "One **two** `three`.\n\n```python\nprint(4)\n```\n"


def change_requests(visitor: Visitor, **fields: object) -> list[dict[str, Any]]:
    """Adds fields to the bodies of the chats. Returns the bodies as the page sent them."""
    bodies: list[dict[str, Any]] = []

    def change(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.continue_(post_data=json.dumps(bodies[-1] | fields))

    visitor.context.route("**/v1/chat/completions", change)
    return bodies


def test_an_answer_appears_piece_by_piece(visitor: Visitor) -> None:
    change_requests(visitor, max_tokens=200, ignore_eos=True)
    visitor.send(PROMPT)
    expect(visitor.questions).to_have_text([re.compile(re.escape(PROMPT))])
    answer = visitor.answers.last
    expect(answer).to_contain_text(re.compile(r"\w+ \w+"))
    early = answer.inner_text()
    expect(visitor.button("Stop")).to_be_visible()
    visitor.wait_for_end()
    assert len(answer.inner_text()) > len(early)
    visitor.assert_no_faults()


def test_an_answer_has_its_speed_and_its_cached_tokens(visitor: Visitor) -> None:
    change_requests(visitor, max_tokens=16, ignore_eos=True)
    visitor.ask(PROMPT)
    answer = visitor.ask("Go on.")
    expect(answer).to_contain_text(re.compile(r"[\d.,]+\s*tokens/s", re.IGNORECASE))
    expect(answer).to_contain_text(re.compile(r"cached", re.IGNORECASE))
    visitor.assert_no_faults()


def test_stop_ends_the_answer_and_the_request(visitor: Visitor, server: CortexServer) -> None:
    before, _ = server.statistics()
    change_requests(visitor, max_tokens=1800, ignore_eos=True)
    visitor.send(PROMPT)
    answer = visitor.answers.last
    expect(answer).to_contain_text(re.compile(r"\w+ \w+"))
    visitor.button("Stop").click()
    visitor.wait_for_end()
    scheduler, _ = server.statistics()  # waits until nothing runs
    assert scheduler["decode_tokens"] - before["decode_tokens"] < 1800
    expect(answer).to_contain_text(re.compile(r"\w+ \w+"))
    visitor.assert_no_faults()
    change_requests(visitor, max_tokens=8)
    visitor.ask("Go on.")
    expect(visitor.answers).to_have_count(2)
    visitor.assert_no_faults()


def test_a_conversation_survives_a_reload(visitor: Visitor) -> None:
    bodies = change_requests(visitor, max_tokens=16)
    text = visitor.ask(PROMPT).inner_text()
    visitor.page.reload()
    expect(visitor.questions).to_have_count(1)
    expect(visitor.questions).to_contain_text(PROMPT)
    assert visitor.answers.last.inner_text() == text
    visitor.ask("Go on.")
    assert [each["role"] for each in bodies[-1]["messages"]] == ["user", "assistant", "user"]
    assert bodies[-1]["messages"][0]["content"] == PROMPT
    visitor.assert_no_faults()


def test_conversations_are_listed_and_kept_apart(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First answer."), recorded.stream("Second answer."))
    visitor.ask("First question")
    visitor.button("New conversation").click()
    expect(visitor.answers).to_have_count(0)
    visitor.ask("Second question")
    conversations = visitor.page.get_by_role("list", name="Conversations")
    expect(conversations.get_by_role("listitem")).to_have_count(2)
    conversations.get_by_text("First question").click()
    expect(visitor.answers).to_have_count(1)
    expect(visitor.answers).to_contain_text("First answer.")
    visitor.assert_no_faults()


def test_an_edited_question_is_asked_again(visitor: Visitor) -> None:
    bodies = change_requests(visitor, max_tokens=8)
    visitor.ask("What is the capital of France?")
    visitor.ask("And of Italy?")
    visitor.questions.first.hover()
    visitor.questions.first.get_by_role("button", name="Edit").click()
    visitor.questions.first.get_by_role("textbox", name="Edited question").fill("What is the capital of Spain?")
    visitor.button("Ask again").click()
    visitor.wait_for_end()
    expect(visitor.questions).to_have_count(1)
    expect(visitor.questions).to_contain_text("Spain")
    expect(visitor.answers).to_have_count(1)
    assert [each["content"] for each in bodies[-1]["messages"]] == ["What is the capital of Spain?"]
    visitor.assert_no_faults()


def test_an_answer_is_written_again(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First."), recorded.stream("Second."))
    answer = visitor.ask(PROMPT)
    expect(answer).to_contain_text("First.")
    answer.hover()
    visitor.button("Regenerate").last.click()
    visitor.wait_for_end()
    expect(visitor.answers).to_have_count(1)
    expect(visitor.answers).to_contain_text("Second.")
    expect(visitor.questions).to_have_count(1)
    visitor.assert_no_faults()


def test_an_answer_is_copied_as_markdown(visit: Visit) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    recorded.answer_chats(visitor.context, recorded.stream(ANSWER))
    answer = visitor.ask(PROMPT)
    answer.hover()
    answer.get_by_role("button", name="Copy", exact=True).last.click()
    copied = visitor.page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == ANSWER.strip()
    visitor.assert_no_faults()


def test_markdown_and_code_are_shown(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream(f"{ANSWER}\n- item\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"))
    answer = visitor.ask(PROMPT)
    for tag, text in {"strong": "two", "p code": "three", "pre code": "print(4)", "li": "item", "th": "a"}.items():
        expect(answer.locator(tag).first).to_contain_text(text)
    assert answer.locator("pre code span").count(), "the code has no colours"
    visitor.assert_no_faults()


def test_thoughts_are_folded_and_tool_calls_are_shown(visitor: Visitor) -> None:
    call = ("get_weather", '{"city": "Paris"}')
    recorded.answer_chats(visitor.context, recorded.stream("Sunny.", thoughts="Let me think.", calls=(call,)))
    answer = visitor.ask(PROMPT)
    thoughts = answer.locator("details", has_text="Thoughts")
    expect(thoughts.get_by_text("Let me think.")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.get_by_text("Let me think.")).to_be_visible()
    expect(answer).to_contain_text("get_weather")
    expect(answer).to_contain_text("Paris")
    expect(answer).to_contain_text("Sunny.")
    visitor.assert_no_faults()


def test_settings_reach_the_request_and_survive_a_reload(visitor: Visitor) -> None:
    bodies = change_requests(visitor, max_tokens=4)
    visitor.open_settings()
    visitor.page.get_by_role("textbox", name="System prompt").fill("Answer in verse.")
    visitor.setting("Temperature").fill("0.5")
    visitor.setting("Top P").fill("0.9")
    visitor.setting("Max tokens").fill("12")
    visitor.ask(PROMPT)
    visitor.page.reload()
    visitor.ask("Go on.")
    for body in bodies:
        assert body["messages"][0] == {"role": "system", "content": "Answer in verse."}
        assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
        assert body.get("max_tokens", body.get("max_completion_tokens")) == 12
        assert body["model"] == server_model(visitor)
    visitor.assert_no_faults()


def server_model(visitor: Visitor) -> str:
    return str(visitor.page.evaluate("fetch('/v1/models').then((answer) => answer.json())")["data"][0]["id"])


def test_an_error_of_the_server_is_shown(visitor: Visitor) -> None:
    change_requests(visitor, max_tokens=-5)
    visitor.send(PROMPT)
    expect(visitor.alert).to_contain_text("max_tokens")
    visitor.assert_no_faults(refusals=True)


def test_a_lost_server_is_an_error_and_not_a_wait(visitor: Visitor) -> None:
    visitor.context.route("**/v1/chat/completions", lambda route: route.abort())
    visitor.send(PROMPT)
    expect(visitor.alert).to_be_visible()
    visitor.wait_for_end()
    visitor.assert_no_faults(refusals=True)
