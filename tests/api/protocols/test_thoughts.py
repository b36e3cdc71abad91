"""Reasoning in all protocols: its budget, where it is returned, and the switches of the template."""

from typing import Any, Final

import orjson
import pytest

from api.protocols.chat.request import ChatRequest
from api.protocols.fields import parse
from api.protocols.responses.conversation import as_spec
from api.protocols.responses.request import ResponseRequest
from api.serving.prompts import with_switches
from api.text.dialects import Dialect, families
from api.text.dialects.common import THINK
from api.text.dialects.syntax import AnswerSyntax, Learned
from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from scheduler.messages import Submit, ThoughtLimit
from tests import dialects
from tests.api.fakes import MODEL, Server

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COUNT: Final = "/v1/responses/input_tokens"
USER: Final = {"role": "user", "content": "Hello"}
BODIES: Final[dict[str, dict[str, Any]]] = {
    CHAT: {"model": MODEL, "messages": [USER]},
    RESPONSES: {"model": MODEL, "input": "Hello"},
    COUNT: {"model": MODEL, "input": "Hello"},
    MESSAGES: {"model": MODEL, "messages": [USER], "max_tokens": 100},
}
NAMES: Final = ("reasoning_budget", "reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
ANSWER: Final = "<think>\nHm.\n</think>\n\nFine."
BEGUN: Final = "Hm.\n</think>\n\nFine."
"""The same answer, if the prompt has begun the reasoning."""
OPENS: Final = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "assistant: {% if enable_thinking is not false %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)
CALL: Final = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
CLOCK: Final = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    """A server whose model may reason before it answers."""
    server = Server(tokenizer)
    server.service.prompts.dialect = dialects.hermes(thinks=True)
    server.answers(ANSWER)
    return server


@pytest.fixture
def opened(server: Server) -> Server:
    """A server whose prompts begin the reasoning, unless that is switched off."""
    server.service.prompts._template = ChatTemplate(OPENS, server.tokenizer)
    server.answers(BEGUN)
    return server


async def post(server: Server, path: str, fields: dict[str, Any]) -> tuple[int, Any]:
    response = await server.client.post(
        path, data=orjson.dumps(BODIES[path] | fields), headers={"Content-Type": "application/json"}
    )
    return response.status_code, orjson.loads(await response.get_data(as_text=False))


async def submitted(server: Server, path: str, **fields: Any) -> Submit:
    status, body = await post(server, path, fields)
    assert status == 200, body
    return server.engine.submitted[-1]


def prompt_of(server: Server, submit: Submit) -> str:
    return server.tokenizer.text(submit.tokens)


# The budget


def limit(server: Server, budget: int, *, is_open: bool = False) -> ThoughtLimit:
    end = server.tokenizer.encode("</think>", parse_special=True)
    return ThoughtLimit(budget, end, ["<think>"], ["</think>"], is_open)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *[(path, {name: 7}) for path in (CHAT, RESPONSES) for name in NAMES],
        *[(path, {"reasoning": {"max_tokens": 7}}) for path in (CHAT, RESPONSES)],
        *[(path, {"reasoning": {"max_tokens": 7}, "reasoning_budget": 7}) for path in (CHAT, RESPONSES)],
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 7}}),
        (MESSAGES, {"thinking": {"type": "adaptive", "budget_tokens": 7}}),
    ],
    ids=str,
)
async def test_a_budget_has_many_names(server: Server, path: str, fields: dict[str, Any]) -> None:
    assert (await submitted(server, path, **fields)).thoughts == limit(server, 7)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *[(path, {name: value}) for path in (CHAT, RESPONSES) for name in NAMES for value in (-1, None)],
        *[(path, {"reasoning": {"max_tokens": value}}) for path in (CHAT, RESPONSES) for value in (-1, None)],
        (MESSAGES, {"thinking": {"type": "enabled"}}),
        (MESSAGES, {"thinking": {"type": "disabled"}}),
        (MESSAGES, {}),
    ],
    ids=str,
)
async def test_without_a_budget_reasoning_has_no_limit(server: Server, path: str, fields: dict[str, Any]) -> None:
    assert (await submitted(server, path, **fields)).thoughts is None


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        *[(path, {name: -2}, name, "greater than or equal to -1") for path in (CHAT, RESPONSES) for name in NAMES],
        *[(path, {name: "7"}, name, "integer") for path in (CHAT, RESPONSES) for name in NAMES],
        (CHAT, {"reasoning": {"max_tokens": 1.5}}, "reasoning.max_tokens", "integer"),
        (CHAT, {"reasoning_budget": 7, "thinking_budget_tokens": 8}, "thinking_budget_tokens", "'reasoning_budget'"),
        (RESPONSES, {"reasoning_budget": 0, "reasoning": {"max_tokens": 8}}, "reasoning.max_tokens", "contradict"),
        *[
            (path, {"reasoning_format": kind, "separate_reasoning": apart}, "separate_reasoning", "contradict")
            for path in (CHAT, RESPONSES)
            for kind, apart in (("deepseek", False), ("none", True))
        ],
        *[
            (CHAT, {"include_reasoning": x, "reasoning": {"exclude": x}}, "reasoning.exclude", "contradict")
            for x in (True, False)
        ],
        (CHAT, {"include_reasoning": False, "logprobs": True}, "logprobs", "Leave out 'logprobs'"),
        (CHAT, {"reasoning": {"exclude": True}, "logprobs": True}, "logprobs", "Leave out 'logprobs'"),
        (COUNT, {"reasoning_budget": 0, "reasoning": {"max_tokens": 8}}, "reasoning.max_tokens", "contradict"),
        (CHAT, {"reasoning_format": "deepseek-legacy"}, "reasoning_format", "'none'"),
        (CHAT, {"reasoning_format": "none", "include_reasoning": False}, "reasoning_format", "keeps"),
        (RESPONSES, {"separate_reasoning": False, "include_reasoning": False}, "separate_reasoning", "keeps"),
        (CHAT, {"separate_reasoning": False, "reasoning": {"exclude": True}}, "separate_reasoning", "keeps"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_refused_by_name(
    server: Server, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    status, body = await post(server, path, fields)
    assert (status, body["error"]["param"]) == (400, param), body
    assert words in body["error"]["message"]


async def test_a_budget_for_no_thinking_is_refused(server: Server) -> None:
    status, body = await post(server, MESSAGES, {"thinking": {"type": "disabled", "budget_tokens": 2000}})
    assert (status, "'budget_tokens' is not allowed" in body["error"]["message"]) == (400, True), body


async def test_the_limit_knows_whether_the_prompt_has_begun_the_reasoning(opened: Server) -> None:
    assert (await submitted(opened, CHAT, reasoning_budget=9)).thoughts == limit(opened, 9, is_open=True)
    closed = await submitted(opened, CHAT, reasoning_budget=9, enable_thinking=False)
    assert closed.thoughts == limit(opened, 9)


async def test_the_limit_has_the_mark_of_the_text_if_thoughts_may_begin_anywhere(server: Server) -> None:
    def texts(syntax: AnswerSyntax) -> str:
        server.service.prompts.dialect = Dialect(Learned(syntax))
        thoughts = server.service.prompts.thought_limit(3, "")
        assert thoughts is not None
        return server.tokenizer.text(thoughts.then)

    assert texts(families.HARMONY) == "<|channel|>final<|message|>"
    assert texts(families.MUSE) == " to=user<|message|>"
    assert texts(families.GEMMA4) == texts(AnswerSyntax(THINK)) == ""


async def test_a_model_without_reasoning_needs_no_limit(server: Server) -> None:
    server.service.prompts.dialect = dialects.hermes()
    for path, fields in (
        (CHAT, {"reasoning_budget": 3}),
        (RESPONSES, {"reasoning_budget": 3}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 3}}),
    ):
        assert (await submitted(server, path, **fields)).thoughts is None


async def test_a_whole_grammar_has_no_place_for_the_mark(opened: Server) -> None:
    """The mark would end up inside of a string of the answer."""
    grammar = 'start: /"[^"]*"/'
    assert (await submitted(opened, CHAT, reasoning_budget=0, grammar=grammar)).thoughts is None
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": "Rome"}}}
    bound = await submitted(opened, CHAT, reasoning_budget=0, enable_thinking=True, response_format=schema)
    assert bound.thoughts == limit(opened, 0, is_open=True)


async def test_every_choice_has_the_whole_budget(server: Server) -> None:
    await submitted(server, CHAT, reasoning_budget=3, n=2)
    assert [submit.thoughts for submit in server.engine.submitted[-2:]] == [limit(server, 3)] * 2


# Where the reasoning is returned


async def chat_message(server: Server, **fields: Any) -> dict[str, Any]:
    """The message of a chat, which streamed deltas add up to as well."""
    status, body = await post(server, CHAT, fields)
    assert status == 200, body
    message: dict[str, Any] = body["choices"][0]["message"]
    async with server.stream({**BODIES[CHAT], **fields, "stream": True}) as stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in await stream.rest() if isinstance(chunk, dict)]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == (message.get(name) or "")
    return message


async def response_output(server: Server, **fields: Any) -> list[tuple[str, str]]:
    """The type and the text of each item of a response."""
    status, body = await post(server, RESPONSES, fields)
    assert status == 200, body
    return [(item["type"], item["content"][0]["text"]) for item in body["output"]]


APART: Final = [{}, {"reasoning_format": "auto"}, {"reasoning_format": "deepseek"}, {"separate_reasoning": True}]


@pytest.mark.parametrize("fields", [*APART, {"include_reasoning": True}], ids=str)
async def test_reasoning_is_apart_from_the_text(server: Server, fields: dict[str, Any]) -> None:
    message = await chat_message(server, **fields)
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Fine.")
    assert await response_output(server, **fields) == [("reasoning", "Hm."), ("message", "Fine.")]


@pytest.mark.parametrize("fields", [{"reasoning_format": "none"}, {"separate_reasoning": False}], ids=str)
async def test_reasoning_stays_in_the_text_for_clients_that_want_that(server: Server, fields: dict[str, Any]) -> None:
    message = await chat_message(server, **fields)
    assert message == {"role": "assistant", "content": ANSWER, "refusal": None, "annotations": []}
    assert await response_output(server, **fields) == [("message", ANSWER)]


async def test_reasoning_in_the_text_has_the_mark_of_the_prompt(opened: Server) -> None:
    assert (await chat_message(opened, reasoning_format="none"))["content"] == f"<think>\n{BEGUN}"
    opened.answers("Fine.")
    assert (await chat_message(opened, reasoning_format="none", enable_thinking=False))["content"] == "Fine."


async def test_calls_are_found_beside_reasoning_in_the_text(server: Server) -> None:
    server.answers(f"<think>Hm.</think>{CALL}")
    status, body = await post(server, CHAT, {"reasoning_format": "none", "tools": [CLOCK]})
    assert status == 200, body
    message = body["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["name"]) == ("<think>Hm.</think>", "clock")


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}], ids=str)
async def test_reasoning_can_be_left_out(server: Server, fields: dict[str, Any]) -> None:
    message = await chat_message(server, **fields)
    assert message == {"role": "assistant", "content": "Fine.", "refusal": None, "annotations": []}
    _, body = await post(server, CHAT, fields)
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    if "reasoning" not in fields:
        assert await response_output(server, **fields) == [("message", "Fine.")]


# Switches


@pytest.mark.parametrize(
    ("path", "fields", "thinks"),
    [
        (CHAT, {}, True),
        (CHAT, {"reasoning_budget": 0}, False),
        (CHAT, {"reasoning_budget": 5}, True),
        (CHAT, {"reasoning": {"max_tokens": 0}}, False),
        (CHAT, {"reasoning_budget": 0, "enable_thinking": True}, True),
        (CHAT, {"reasoning_budget": 0, "reasoning_effort": "low"}, True),
        (CHAT, {"reasoning_budget": 0, "chat_template_kwargs": {"enable_thinking": True}}, True),
        (RESPONSES, {"reasoning_budget": 0}, False),
        (RESPONSES, {"reasoning": {"max_tokens": 0}}, False),
        (RESPONSES, {"reasoning": {"max_tokens": 0, "effort": "high"}}, True),
        (MESSAGES, {"thinking": {"type": "disabled"}}, False),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1}}, True),
    ],
    ids=str,
)
async def test_no_budget_turns_reasoning_off(opened: Server, path: str, fields: dict[str, Any], thinks: bool) -> None:
    prompt = prompt_of(opened, await submitted(opened, path, **fields))
    assert prompt.endswith("<think>\n" if thinks else "</think>\n\n")


@pytest.mark.parametrize("name", NAMES)
async def test_a_count_has_the_budget_of_its_response(opened: Server, name: str) -> None:
    for budget in (0, 5):
        submit = await submitted(opened, RESPONSES, **{name: budget})
        status, body = await post(opened, COUNT, {name: budget})
        assert (status, body.get("input_tokens")) == (200, len(submit.tokens)), body


def variables_of(**fields: Any) -> dict[str, Any]:
    return parse(ChatRequest, BODIES[CHAT] | fields).template_variables()


def test_a_budget_reaches_templates_that_name_it() -> None:
    assert variables_of(reasoning_budget=512) == {"thinking_budget": 512}
    assert variables_of(reasoning_budget=0) == {"thinking_budget": 0, "enable_thinking": False}
    assert variables_of(reasoning_budget=5, chat_template_kwargs={"thinking_budget": 9}) == {"thinking_budget": 9}
    assert variables_of(reasoning_budget=-1) == variables_of() == {}


def test_openrouters_budget_asks_for_reasoning() -> None:
    assert variables_of(reasoning={"max_tokens": 9}) == {"thinking_budget": 9, "enable_thinking": True}
    assert variables_of(reasoning={"max_tokens": 9, "enabled": False})["enable_thinking"] is False
    assert variables_of(reasoning={"max_tokens": 9, "effort": "none"})["enable_thinking"] is False
    assert variables_of(reasoning={"max_tokens": 9}, enable_thinking=False)["enable_thinking"] is False
    request = parse(ResponseRequest, BODIES[RESPONSES] | {"reasoning": {"max_tokens": 9}})
    text = {"type": "input_text", "text": "Hello"}
    prompt = as_spec(request, [{"type": "message", "role": "user", "content": [text]}]).prompt
    assert prompt.variables == {"thinking_budget": 9, "enable_thinking": True}  # type: ignore[union-attr]


def test_the_templates_own_switches_follow() -> None:
    switches = ("enable_thinking", "thinking", "think")
    assert with_switches({}, switches) == {}
    assert with_switches({"reasoning_effort": "low"}, switches) == {"reasoning_effort": "low"}
    assert with_switches({"thinking": True}, switches) == {"thinking": True}
    for value in (True, False):
        assert with_switches({"enable_thinking": value}, ()) == {"enable_thinking": value}
        assert with_switches({"enable_thinking": value}, switches) == dict.fromkeys(switches, value)
    given = {"enable_thinking": False, "thinking": True, "other": 1}
    assert with_switches(given, switches) == given | {"think": False}
    assert with_switches(given, switches) is not given
