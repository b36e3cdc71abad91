"""Answers of many shapes on a real engine, through the official SDKs over HTTP.

The engine writes what a model that was trained with the template would write, where the grammar allows it.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import pytest

from tests.api.answer_shapes import SCHEMAS, SHAPES, TWO, Shape
from tests.api.steered_server import SteeredServer

FUNCTIONS: list[Any] = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
RESPONSE_TOOLS: list[Any] = [{"type": "function", "name": n, "parameters": s} for n, s in SCHEMAS.items()]
MESSAGE_TOOLS: list[Any] = [{"name": n, "input_schema": s} for n, s in SCHEMAS.items()]
ResultT = TypeVar("ResultT")
THINKING = [name for name, shape in SHAPES.items() if shape.thinks]
MAX_TOKENS = 200
"""More than any of these answers has."""


@dataclass
class Answer:
    """What a client gets."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    finish: str = ""
    history: list[Any] = field(default_factory=list, compare=False)
    """The answer as a client sends it back."""
    usage: Any = field(default=None, compare=False)
    script: str = field(default="", compare=False)


class Model:
    """One shape's model. The first text of a script is its answer, unless something else is forced."""

    def __init__(self, server: SteeredServer, name: str) -> None:
        self.name, self.shape, self.server = name, SHAPES[name], server

    def chat(self, *script: str, history: Any = (), stream: bool = False, **fields: Any) -> Answer:
        name = self.server.script(*script)
        create: Any = self.server.openai.chat.completions.create
        fields = {"tools": FUNCTIONS, "max_tokens": MAX_TOKENS if script else 1} | fields
        messages = [{"role": "user", "content": name}, *history]
        whole = create(model=self.name, messages=messages, stream=stream, **fields)
        answer = _streamed(whole) if stream else _whole(whole)
        answer.script = name
        return answer

    def message(self, *script: str, history: Any = (), **fields: Any) -> Answer:
        name = self.server.script(*script)
        messages = [{"role": "user", "content": name}, *history]
        fields = {"tools": MESSAGE_TOOLS, "max_tokens": MAX_TOKENS if script else 1} | fields
        stream: Any = self.server.anthropic.messages.stream
        with stream(model=self.name, messages=messages, **fields) as events:
            return _message(events, name)

    def response(self, *script: str, history: Any = (), **fields: Any) -> Answer:
        name = self.server.script(*script)
        given = [{"role": "user", "content": name}, *history]
        create: Any = self.server.openai.responses.create
        fields = {"tools": RESPONSE_TOOLS, "max_output_tokens": MAX_TOKENS if script else 1} | fields
        return _response(create(model=self.name, input=given, stream=True, **fields), name)


class Asked(Model):
    """A shape's model and all its answers. They are asked for at once, so that they share steps."""

    def __init__(self, server: SteeredServer, name: str) -> None:
        super().__init__(server, name)
        self.answers = at_once(self._answers())
        self.prompts = at_once(self._histories())

    def _answers(self) -> dict[str, Callable[[], Answer]]:
        shape = self.shape
        script = shape.thought + shape.before + shape.two + shape.end
        calls = shape.thought + shape.two.lstrip() + shape.end
        text = shape.thought + shape.text + shape.end
        clock = {"type": "function", "function": {"name": "clock"}}
        return {
            "auto": lambda: self.chat(script, stream=True),
            "required": lambda: self.chat(calls, tool_choice="required"),
            "one at a time": lambda: self.chat(calls, parallel_tool_calls=False, stream=True),
            "named": lambda: self.chat(calls, tool_choice=clock),
            "text": lambda: self.chat(text),
            "text, but required": lambda: self.chat(text, tool_choice="required", parallel_tool_calls=False),
            "messages": lambda: self.message(script),
            "responses": lambda: self.response(script),
        }

    def _histories(self) -> dict[str, Callable[[], str]]:
        """Send an answer back with results, in each protocol. Each returns the prompt."""
        chat, message, response = (self.answers[name] for name in ("required", "messages", "responses"))
        messages = [_tool_message(i) for i in chat.ids]
        results = [{"type": "tool_result", "tool_use_id": i, "content": f"result {i}"} for i in message.ids]
        outputs = [{"type": "function_call_output", "call_id": i, "output": f"result {i}"} for i in response.ids]
        return {
            "chat": lambda: self._prompt(self.chat, chat, messages),
            "messages": lambda: self._prompt(self.message, message, [{"role": "user", "content": results}]),
            "responses": lambda: self._prompt(self.response, response, outputs),
        }

    def _prompt(self, ask: Callable[..., Answer], answer: Answer, results: list[Any]) -> str:
        return self.server.prompt(ask(history=[*answer.history, *results]).script)


def at_once(asks: dict[str, Callable[[], ResultT]]) -> dict[str, ResultT]:
    with ThreadPoolExecutor(len(asks)) as pool:
        return dict(zip(asks, pool.map(lambda ask: ask(), asks.values()), strict=True))


def _tool_message(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": f"result {call_id}"}


def _whole(completion: Any) -> Answer:
    [choice] = completion.choices
    message = choice.message
    calls = message.tool_calls or []
    return Answer(
        getattr(message, "reasoning_content", None) or "",
        message.content or "",
        [(call.function.name, json.loads(call.function.arguments)) for call in calls],
        [call.id for call in calls],
        choice.finish_reason,
        [message.model_dump(exclude_none=True)],
        completion.usage,
    )


def _streamed(chunks: Any) -> Answer:
    """The deltas, joined. The first one of a call has its id and its name, which no other one has."""
    answer, arguments = Answer(), list[str]()
    for chunk in chunks:
        [choice] = chunk.choices
        assert not answer.finish, "a delta after the last one"
        answer.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        answer.content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            if call.index == len(arguments):
                answer.calls.append((call.function.name, None))
                answer.ids.append(call.id)
                arguments.append("")
            else:
                assert (call.index, call.id, call.function.name) == (len(arguments) - 1, None, None)
            arguments[call.index] += call.function.arguments or ""
        answer.finish = choice.finish_reason or ""
    pairs = zip(answer.calls, arguments, strict=True)
    answer.calls = [(name, json.loads(text)) for (name, _), text in pairs]
    return answer


def _message(events: Any, script: str) -> Answer:
    """The blocks of a message. Their deltas, joined, are the blocks that the SDK makes of them."""
    joined: list[str] = []
    for event in events:
        if event.type == "content_block_start":
            joined.append("")
        elif event.type == "content_block_delta":
            delta = event.delta
            part = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
            joined[event.index] += getattr(delta, part[delta.type]) if delta.type in part else ""
    message = events.get_final_message()
    answer = Answer(finish=message.stop_reason, usage=message.usage, script=script)
    for block, text in zip(message.content, joined, strict=True):
        match block.type:
            case "thinking":
                answer.reasoning += block.thinking
                assert text == block.thinking
            case "text":
                answer.content += block.text
                assert text == block.text
            case "tool_use":
                answer.calls.append((block.name, block.input))
                answer.ids.append(block.id)
                assert json.loads(text) == block.input
    answer.history = [{"role": "assistant", "content": message.content}]
    return answer


def _response(events: Any, script: str) -> Answer:
    """The items of a response. Their deltas, joined, are the items of the last event."""
    deltas: dict[int, str] = {}
    last: Any = None
    for event in events:
        if event.type.endswith(".delta"):
            deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
        last = event
    answer = Answer(finish=last.response.status, usage=last.response.usage, script=script)
    for index, item in enumerate(last.response.output):
        text = deltas.get(index, "")
        match item.type:
            case "reasoning":
                answer.reasoning += item.content[0].text
                assert text == item.content[0].text
            case "message":
                answer.content += item.content[0].text
                assert text == item.content[0].text
            case "function_call":
                answer.calls.append((item.name, json.loads(item.arguments)))
                answer.ids.append(item.call_id)
                assert text == item.arguments
    answer.history = [item.model_dump(exclude_none=True) for item in last.response.output]
    return answer


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredServer]:
    folder = tmp_path_factory.mktemp("server")
    templates = {name: shape.source for name, shape in SHAPES.items()}
    with SteeredServer(folder, tiny_model_path, templates) as server:
        yield server


@pytest.fixture(scope="module", params=SHAPES)
def asked(request: pytest.FixtureRequest, server: SteeredServer) -> Asked:
    return Asked(server, request.param)


def check_calls(asked: Asked, answer: Answer, *, text: str = "", finish: str = "tool_calls") -> None:
    """Asserts that it has the two calls and nothing else."""
    thought = "Hm." if asked.shape.thinks else ""
    answer.content = answer.content.rstrip()
    assert answer == Answer(thought, text, TWO, answer.ids, finish)
    assert len(set(answer.ids)) == len(answer.ids) == 2
    assert all(answer.ids)


def preface(shape: Shape) -> str:
    return "Let me look." if shape.before else ""


def test_the_model_calls_if_it_wants_to(asked: Asked) -> None:
    """In deltas, beside a thought and a text."""
    check_calls(asked, asked.answers["auto"], text=preface(asked.shape))


def test_required_calls_are_the_same(asked: Asked) -> None:
    answer = asked.answers["required"]
    check_calls(asked, answer)
    details = answer.usage.completion_tokens_details
    assert bool(details.reasoning_tokens) == asked.shape.thinks
    assert details.reasoning_tokens < answer.usage.completion_tokens


def test_all_protocols_count_the_thought(asked: Asked) -> None:
    """Its tokens are the same in each of them."""
    message, response, chat = (asked.answers[name].usage for name in ("messages", "responses", "required"))
    counts = {
        message.output_tokens_details.thinking_tokens,
        response.output_tokens_details.reasoning_tokens,
        chat.completion_tokens_details.reasoning_tokens,
    }
    assert len(counts) == 1


def test_without_parallel_calls_only_one_is_made(asked: Asked) -> None:
    answer = asked.answers["one at a time"]
    assert (answer.calls, answer.content, answer.finish) == (TWO[:1], "", "tool_calls")


def test_a_named_function_is_called(asked: Asked) -> None:
    """The model would call another one."""
    answer = asked.answers["named"]
    assert (answer.calls, answer.finish) == ([("clock", {"zone": "UTC"})], "tool_calls")


def test_text_is_no_call(asked: Asked) -> None:
    assert asked.answers["text"] == Answer("Hm." if asked.shape.thinks else "", "Sunny.", finish="stop")


def test_a_required_call_is_valid(asked: Asked) -> None:
    """The model would write text."""
    answer = asked.answers["text, but required"]
    [(name, arguments)] = answer.calls
    jsonschema.validate(arguments, SCHEMAS[name])
    assert (answer.content, answer.finish) == ("", "tool_calls")


def test_messages_have_blocks(asked: Asked) -> None:
    check_calls(asked, asked.answers["messages"], text=preface(asked.shape), finish="tool_use")


def test_responses_have_items(asked: Asked) -> None:
    check_calls(asked, asked.answers["responses"], text=preface(asked.shape), finish="completed")


@pytest.mark.parametrize("protocol", ["chat", "messages", "responses"])
def test_calls_and_results_go_back_in_the_templates_own_form(asked: Asked, protocol: str) -> None:
    prompt = asked.prompts[protocol]
    answer = asked.answers["required" if protocol == "chat" else protocol]
    assert (asked.shape.history or asked.shape.two).strip() in prompt
    assert ("Hm." in prompt) == asked.shape.thinks
    places = [prompt.index(f"result {each}") for each in answer.ids]
    assert places == sorted(places)


BUDGET = 3


@pytest.mark.parametrize("name", THINKING)
def test_a_budget_ends_the_thought_before_calls(server: SteeredServer, name: str) -> None:
    """Of a model that would think on. It has a grammar, too: tools are offered."""
    model = Model(server, name)
    begin, _, after = model.shape.thought.partition("Hm.")
    script = begin + "yes" * 100, begin + "yes" * BUDGET + after.lstrip() + model.shape.two + model.shape.end
    thinking = {"type": "enabled", "budget_tokens": BUDGET}
    answers = at_once(
        {
            "tool_calls": lambda: model.chat(*script, extra_body={"reasoning_budget": BUDGET}, stream=True),
            "tool_use": lambda: model.message(*script, thinking=thinking),
            "completed": lambda: model.response(*script, extra_body={"reasoning": {"max_tokens": BUDGET}}),
        }
    )
    for finish, answer in answers.items():
        assert answer == Answer("yes" * BUDGET, answer.content, TWO, answer.ids, finish)
        assert not answer.content.strip()
    counted = answers["tool_use"].usage.output_tokens_details.thinking_tokens
    marks = begin + after
    assert BUDGET <= counted <= BUDGET + len(marks)
    assert counted == answers["completed"].usage.output_tokens_details.reasoning_tokens


@pytest.mark.parametrize("name", THINKING)
def test_thoughts_stay_in_the_text_for_clients_that_want_that(server: SteeredServer, name: str) -> None:
    model = Model(server, name)
    shape = model.shape
    script, wanted = shape.thought + shape.text + shape.end, {"reasoning_format": "none"}
    answers = at_once(
        {"whole": lambda: model.chat(script, extra_body=wanted)}
        | {"streamed": lambda: model.chat(script, extra_body=wanted, stream=True)}
    )
    for answer in answers.values():
        assert answer == Answer("", shape.opened + shape.thought + "Sunny.", finish="stop")


def test_a_thought_that_is_switched_off_is_not_opened(server: SteeredServer) -> None:
    model = Model(server, "json-in-tags")
    answer = model.chat("Sunny.<|close|>", extra_body={"enable_thinking": False})
    assert answer == Answer("", "Sunny.", finish="stop")
    assert server.prompt(answer.script).endswith("<reflect>\n\n</reflect>\n\n")
    message = model.message("Sunny.<|close|>", thinking={"type": "disabled"})
    assert message == Answer("", "Sunny.", finish="end_turn")


def test_calls_of_the_embedded_model(model_path: str, tmp_path: Path) -> None:
    """The other tests have a tiny model, which has the same vocabulary."""
    name = "section"
    with SteeredServer(tmp_path, model_path, {name: SHAPES[name].source}) as server:
        model = Model(server, name)
        calls = model.shape.two
        answers = at_once(
            {
                "tool_calls": lambda: model.chat(calls, stream=True),
                "tool_use": lambda: model.message(calls, tool_choice={"type": "any"}),
                "completed": lambda: model.response(calls),
            }
        )
    for finish, answer in answers.items():
        assert answer == Answer("", "", TWO, answer.ids, finish)
