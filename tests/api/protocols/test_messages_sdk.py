"""The Messages API through Anthropic's SDK, sync and async, streamed and not, on a tiny model."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import jsonschema
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message
from pydantic import BaseModel

from tests.api.servers import MODEL, SECONDS, CortexServer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"name": "weather", "description": "The weather of a city.", "input_schema": CITY}
CLOCK: dict[str, Any] = {
    "name": "clock",
    "input_schema": {"type": "object", "properties": {}, "additionalProperties": False},
}
CALL_TOKENS = 200
"""More tokens than a call of one of these tools can have characters."""


def matching(schema: dict[str, Any]) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def saying(text: str) -> dict[str, Any]:
    """Forces the answer to be this text in quotes."""
    return matching({"const": text})


def counting(count: int) -> dict[str, Any]:
    """Forces the answer to be a list of `count` numbers. The model samples each number."""
    return matching({"type": "array", "items": {"enum": [1, 2]}, "minItems": count, "maxItems": count})


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = (f"--alias={MODEL}", "--ctx-len=2048")
    with CortexServer(tmp_path_factory.mktemp("server"), *flags, model=tiny_model_path) as server:
        yield server


def client_of(server: CortexServer) -> Anthropic:
    return Anthropic(base_url=server.url.removesuffix("/v1"), api_key="none", max_retries=0, timeout=SECONDS)


def async_client_of(server: CortexServer) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=server.url.removesuffix("/v1"), api_key="none", max_retries=0, timeout=SECONDS)


class Way:
    """One of four ways to call the SDK: sync or async, streamed or not."""

    def __init__(self, server: CortexServer, *, is_async: bool, stream: bool) -> None:
        self._server = server
        self._is_async = is_async
        self.stream = stream

    def ask(self, text: str | list[Any], **fields: Any) -> Message:
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        fields = {"model": MODEL, "messages": messages, "max_tokens": 24, **fields}
        if "temperature" in fields:  # the SDK has no argument for it any more
            fields["extra_body"] = {"temperature": fields.pop("temperature")}
        return asyncio.run(self._ask(fields)) if self._is_async else self._ask_at_once(fields)

    def _ask_at_once(self, fields: dict[str, Any]) -> Message:
        with client_of(self._server) as client:
            if not self.stream:
                message: Message = client.messages.create(**fields)
                return message
            with client.messages.stream(**fields) as stream:
                return stream.get_final_message()

    async def _ask(self, fields: dict[str, Any]) -> Message:
        async with async_client_of(self._server) as client:
            if not self.stream:
                message: Message = await client.messages.create(**fields)
                return message
            async with client.messages.stream(**fields) as stream:
                return await stream.get_final_message()


@pytest.fixture(params=["sync", "sync-stream", "async", "async-stream"])
def way(request: pytest.FixtureRequest, server: CortexServer) -> Way:
    return Way(server, is_async="async" in request.param, stream="stream" in request.param)


def text_of(message: Message) -> str:
    """The text of a message that has only one text block."""
    [block] = message.content
    assert block.type == "text"
    return block.text


def tokens_read(message: Message) -> int:
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def post(server: CortexServer, path: str, **fields: Any) -> Any:
    base = server.url.removesuffix("/v1")
    return httpx.post(f"{base}/{path}", json={"model": MODEL, **fields}, timeout=SECONDS).json()


def check_same_prompt(answer: dict[str, Any], message: Message) -> None:
    """Asserts that the answer has the message's prompt: all of its tokens but the last are cached."""
    usage = answer["usage"]
    assert usage["prompt_tokens"] == tokens_read(message)
    assert usage["prompt_tokens_details"]["cached_tokens"] == tokens_read(message) - 1


def calls_of(message: Message) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


# Answers


def test_a_message_is_answered(way: Way) -> None:
    message = way.ask("Name a colour.", temperature=0, **saying("blue"))
    assert text_of(message) == '"blue"'
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.stop_reason == "end_turn"
    assert message.stop_sequence is None
    assert 1 <= message.usage.output_tokens <= 24


def test_cached_tokens_are_counted_separately(way: Way, server: CortexServer) -> None:
    question = "All work and no play makes Jack a dull boy. " * 10
    first, second = way.ask(question, max_tokens=1), way.ask(question, max_tokens=1)
    assert second.usage.cache_read_input_tokens
    with client_of(server) as client:
        counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": question}])
    assert [tokens_read(message) for message in (first, second)] == [counted.input_tokens] * 2


def test_a_message_has_the_prompt_and_the_answer_of_the_equivalent_chat(
    way: Way, server: CortexServer, request: pytest.FixtureRequest
) -> None:
    system = f"Be brief, {request.node.name}."
    message = way.ask("Name a colour.", system=system, **saying("blue"))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Name a colour."}]
    wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": {"const": "blue"}}}
    chat = post(server, "v1/chat/completions", messages=messages, max_tokens=24, response_format=wanted)
    assert text_of(message) == chat["choices"][0]["message"]["content"] == '"blue"'
    check_same_prompt(chat, message)


def test_a_stop_sequence_ends_the_answer_and_is_reported(way: Way) -> None:
    message = way.ask("Count.", stop_sequences=["nowhere", "e"], **saying("one two three"))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "e")
    assert text_of(message) == '"on'


def test_reaching_max_tokens_is_the_stop_reason(way: Way) -> None:
    message = way.ask("Tell me a long story.", max_tokens=3, **saying("Once there was a king who had no crown."))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)
    assert way.ask("Tell me a long story.", max_tokens=0).content == []


def test_a_prefill_is_continued(way: Way, server: CortexServer, request: pytest.FixtureRequest) -> None:
    """The prompt is the rendered question, directly followed by the prefill."""
    question = {"role": "user", "content": f"What is the capital of France? ({request.node.name})"}
    prefill = "The capital of France is"
    message = way.ask([question, {"role": "assistant", "content": prefill}], max_tokens=1)
    assert prefill not in "".join(block.text for block in message.content if block.type == "text")
    prompt = post(server, "apply-template", messages=[question])["prompt"]
    check_same_prompt(post(server, "v1/completions", prompt=prompt + prefill, max_tokens=1), message)


def test_an_answer_matches_its_schema(way: Way) -> None:
    message = way.ask("Describe a trip.", max_tokens=CALL_TOKENS, **matching(CITY))
    assert message.stop_reason == "end_turn"
    jsonschema.validate(json.loads(text_of(message)), CITY)


def test_a_stream_delivers_every_piece(server: CortexServer) -> None:
    with client_of(server) as client:
        fields: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}]}
        with client.messages.stream(**fields, max_tokens=1500, **counting(400)) as stream:
            first = next(iter(stream.text_stream))
        assert len(first) < 400, "a busy server may send several tokens at once, but not all"
        fields |= {"max_tokens": 100, **counting(20)}
        with client.messages.stream(**fields) as stream:
            pieces = list(stream.text_stream)
            message = stream.get_final_message()
        assert "".join(pieces) == text_of(message)
        assert len(json.loads(text_of(message))) == 20
        kinds = [event.type for event in client.messages.create(**fields, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


# Tools


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=str)
def test_a_required_call_is_made(way: Way, choice: dict[str, Any]) -> None:
    choice = choice | {"disable_parallel_tool_use": True}
    message = way.ask("The weather in Rome?", tools=[CLOCK, WEATHER], tool_choice=choice, max_tokens=CALL_TOKENS)
    assert message.stop_reason == "tool_use"
    [call] = message.content
    assert call.type == "tool_use"
    assert call.id.startswith("toolu_")
    assert choice.get("name", call.name) == call.name
    jsonschema.validate(call.input, CITY if call.name == "weather" else CLOCK["input_schema"])


def test_a_call_and_its_result_can_be_sent_back(way: Way) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    fields: dict[str, Any] = {"tools": [WEATHER], "max_tokens": CALL_TOKENS}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    called = way.ask(messages, tool_choice=choice, **fields)
    [call] = calls_of(called)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 25 degrees."}
    messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    message = way.ask(messages, **fields, **saying("Sunny."))
    assert message.content
    assert message.usage.cache_read_input_tokens, "the conversation so far is cached"
    assert message.usage.cache_read_input_tokens >= tokens_read(called) - 1


def test_the_model_decides_whether_to_call(way: Way) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "max_tokens": CALL_TOKENS}
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = way.ask("Say hello.", tool_choice=choice, **fields, **saying("Hello."))
    [block] = message.content
    assert (block.type, message.stop_reason) in (("text", "end_turn"), ("tool_use", "tool_use"))
    message = way.ask("Say hello.", tool_choice={"type": "none"}, **fields, **saying("Hello."))
    assert text_of(message) == '"Hello."'


def test_a_truncated_call_still_has_an_object(way: Way) -> None:
    """The answer has enough tokens for the start of the call, but not for its first argument."""
    far = {"city": {"const": " ".join(["far"] * 80)}, "days": {"enum": [1, 2, 3]}}
    weather = WEATHER | {"input_schema": CITY | {"properties": far}}
    message = way.ask("Rome?", tools=[weather], tool_choice={"type": "any"}, max_tokens=60)
    assert message.stop_reason == "max_tokens"
    [call] = calls_of(message)
    assert call.name == "weather"
    assert isinstance(call.input, dict)
    assert "days" not in call.input


def test_the_tool_runner_of_the_sdk_works(server: CortexServer) -> None:
    """In several turns. Each continues the one before."""
    cities: list[str] = []

    @anthropic.beta_tool
    def weather(city: Literal["Rome", "Paris"]) -> str:
        """The weather of a city."""
        cities.append(city)
        return "Sunny."

    with client_of(server) as client:
        runner = client.beta.messages.tool_runner(
            model=MODEL,
            max_tokens=CALL_TOKENS,
            messages=[{"role": "user", "content": "The weather in Rome?"}],
            tools=[weather],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            max_iterations=2,
        )
        messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use", "tool_use"]
    assert cities
    assert set(cities) <= {"Rome", "Paris"}


class Trip(BaseModel):
    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2, 3]


@pytest.mark.parametrize("is_dumped", [False, True])
def test_an_agent_keeps_the_content_of_the_sdks_helpers(server: CortexServer, is_dumped: bool) -> None:
    """Three turns: a call, a trip that matches a schema, and another one. Each continues the one before."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    fields: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": CALL_TOKENS, "tools": [WEATHER]}

    def keep(message: Any) -> Any:
        content = [block.model_dump() for block in message.content] if is_dumped else message.content
        messages.append({"role": "assistant", "content": content})
        return message

    with client_of(server) as client:
        choice: Any = {"type": "any", "disable_parallel_tool_use": True}
        with client.messages.stream(**fields, tool_choice=choice) as stream:
            [call] = keep(stream.get_final_message()).content
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 25 degrees."}
        for content in ([result, {"type": "text", "text": "Plan a trip."}], "And another one."):
            messages.append({"role": "user", "content": content})
            message = keep(client.messages.parse(**fields, output_format=Trip, tool_choice={"type": "none"}))
            assert isinstance(message.parsed_output, Trip)
    assert message.usage.cache_read_input_tokens, "the conversation so far is cached"


# Counting


def test_counted_tokens_are_the_tokens_of_the_prompt(server: CortexServer) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "Sunny."}]},
    ]
    fields: dict[str, Any] = {"model": MODEL, "messages": messages, "system": "Be brief.", "tools": [WEATHER]}

    async def count() -> int:
        async with async_client_of(server) as client:
            return (await client.messages.count_tokens(**fields)).input_tokens

    with client_of(server) as client:
        counted = client.messages.count_tokens(**fields).input_tokens
        usage = client.messages.create(**fields, max_tokens=1).usage
    assert counted == asyncio.run(count()) == usage.input_tokens + (usage.cache_read_input_tokens or 0)


# Errors


def test_the_sdk_raises_its_own_errors(server: CortexServer) -> None:
    hello: list[Any] = [{"role": "user", "content": "Hello"}]
    with client_of(server) as client:
        with pytest.raises(anthropic.NotFoundError, match="'nobody' does not exist") as unknown:
            client.messages.create(model="nobody", max_tokens=5, messages=hello)
        assert unknown.value.request_id is not None
        assert unknown.value.request_id.startswith("req_")
        with pytest.raises(anthropic.NotFoundError, match="'nobody' does not exist"):
            client.messages.count_tokens(model="nobody", messages=hello)
        with pytest.raises(anthropic.BadRequestError, match="'temperature'"):
            client.messages.create(model=MODEL, max_tokens=5, messages=hello, extra_body={"temperature": 2})
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "x " * 3000}])
        source: Any = {"type": "url", "url": "http://x"}
        image: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\].*'image'"):
            client.messages.create(model=MODEL, max_tokens=5, messages=image)
        with pytest.raises(anthropic.NotFoundError, match="/v1/messages/batches"):
            client.messages.batches.list()


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsupported_schema_is_refused(server: CortexServer, stream: bool) -> None:
    broken: Any = {"name": "f", "input_schema": {"type": "strin"}, "strict": True}
    with client_of(server) as client, pytest.raises(anthropic.BadRequestError, match=r"'f' .*'type' must be"):
        client.messages.create(
            model=MODEL,
            max_tokens=5,
            messages=[{"role": "user", "content": "Hello"}],
            tools=[broken],
            tool_choice={"type": "any"},
            stream=stream,
        )


def test_nothing_is_held_after_all_tests(server: CortexServer) -> None:
    server.assert_nothing_is_held()
