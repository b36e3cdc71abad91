"""The log's line for each request, and the request in all lines of its task."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from api.serving.observer import CURRENT, Observers, RequestRecord
from api.serving.request_log import RequestContext, RequestLog
from api.text.tokenizer import Tokenizer
from scheduler.logs import JsonFormatter
from tests.api.fakes import MODEL, Server, chat

SECRET = "xylophone"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The text of a log in the JSON format."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(RequestContext())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


async def test_a_request_has_one_line_without_prompt_and_answer(tokenizer: Tokenizer, log: io.StringIO) -> None:
    server = Server(tokenizer, observers=Observers(RequestLog()))
    server.answers(f"{SECRET}!", "length")
    response = await server.post(chat(f"Say {SECRET}.", user="ann"), {"x-request-id": "mine"})
    usage = (await response.get_json())["usage"]
    [line] = lines(log)
    assert SECRET not in log.getvalue()
    assert line["seconds"] >= line["first_token_seconds"] >= 0
    assert {name: line[name] for name in ("level", "logger", "request_id", "tenant", "operation", "model")} == {
        "level": "info",
        "logger": "cortex.requests",
        "request_id": "mine",
        "tenant": "user:ann",
        "operation": "chat_completions",
        "model": MODEL,
    }
    assert (line["status"], line["finish"], line["error"], line["queue_seconds"]) == (200, "length", None, 0.0)
    assert (line["prompt_tokens"], line["answer_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["message"].startswith(f"request mine of user:ann: chat_completions with {MODEL}, status 200, length, ")


async def test_a_refused_request_has_its_reason(tokenizer: Tokenizer, log: io.StringIO) -> None:
    server = Server(tokenizer, observers=Observers(RequestLog()))
    await server.post(chat(SECRET, model="unknown"))
    [line] = lines(log)
    assert (line["status"], line["finish"], line["error"]) == (404, "refused", "model_not_found")
    assert (line["model"], line["first_token_seconds"]) == (None, None)
    assert SECRET not in log.getvalue()


async def test_other_lines_of_a_request_name_it(tokenizer: Tokenizer, log: io.StringIO) -> None:
    server = Server(tokenizer)
    server.answers()
    tools = [{"type": "web_search"}]
    server.url = "/v1/responses"
    body = {"model": MODEL, "input": "Hello", "tools": tools, "user": "ann"}
    assert (await server.post(body, {"x-request-id": "mine"})).status_code == 200
    [line] = lines(log)
    assert line["request_id"] == "mine"
    assert "web_search" in line["message"]


def test_lines_outside_of_requests_name_none(log: io.StringIO) -> None:
    logging.getLogger("cortex.api").info("listening")
    token = CURRENT.set(RequestRecord("r", tenant="ann"))
    logging.getLogger("cortex.api").info("in a request")
    CURRENT.reset(token)
    outside, inside = lines(log)
    assert "request_id" not in outside
    assert (inside["request_id"], inside["tenant"]) == ("r", "ann")


def test_a_name_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    RequestLog().ended(RequestRecord("r", "embeddings", "user:x\n2026-01-01 INFO forged", status=200))
    assert "\n" not in caplog.messages[0]
