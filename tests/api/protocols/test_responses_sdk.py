"""The Responses API through OpenAI's SDK, sync and async, streamed and not, on a tiny model."""

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tests.api.servers import MODEL, SECONDS, CortexServer

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
NINES = {"logit_bias": {"41": 100}}
"""Forces an answer of nines: 41 is SmolLM2's token for 9."""
EMOJI = "\U0001f375\u265f\U0001f31f"
"""Characters that need several tokens each."""


def saying(text: str) -> dict[str, Any]:
    """Forces the answer to be this text."""
    return {"guided_choice": [text]}


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = (f"--alias={MODEL}", "--ctx-len=2048")
    with CortexServer(tmp_path_factory.mktemp("server"), *flags, model=tiny_model_path) as server:
        yield server


@pytest.fixture
def client(server: CortexServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


class Way:
    """One of four ways to call the SDK: sync or async, streamed or not."""

    def __init__(self, url: str, *, is_async: bool, stream: bool) -> None:
        self._url = url
        self._is_async = is_async
        self.stream = stream
        self.events: list[Any] = []
        """The events of the last stream."""

    def respond(self, given: Any, **fields: Any) -> Response:
        """The response, validated strictly against the SDK's type. For a stream, it is the one in the last event."""
        fields = {"model": MODEL, "input": given, "max_output_tokens": 24, **fields}
        response = asyncio.run(self._ask(fields)) if self._is_async else self._ask_at_once(fields)
        return Response.model_validate(response.to_dict(), strict=True)

    def _ask_at_once(self, fields: dict[str, Any]) -> Response:
        with OpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            if not self.stream:
                return cast(Response, client.responses.create(**fields))
            return self._last(list(client.responses.create(**fields, stream=True)))

    async def _ask(self, fields: dict[str, Any]) -> Response:
        async with AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            if not self.stream:
                return cast(Response, await client.responses.create(**fields))
            return self._last([event async for event in await client.responses.create(**fields, stream=True)])

    def _last(self, events: list[Any]) -> Response:
        self.events = events
        for number, event in enumerate(events):
            assert event.sequence_number == number
            EVENT.validate_python(event.to_dict(), strict=True)
        assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
        return cast(Response, events[-1].response)


@pytest.fixture(params=["sync", "sync-stream", "async", "async-stream"])
def way(request: pytest.FixtureRequest, server: CortexServer) -> Way:
    return Way(server.url, is_async="async" in request.param, stream="stream" in request.param)


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


class Person(BaseModel):
    """All fields are bounded, so that an answer that matches it ends."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Ada", "Alan", "Grace"]
    age: Literal[20, 30, 40]
    likes: Annotated[list[Literal["tea", "chess"]], Field(max_length=2)]


def test_a_response_has_its_output_text(way: Way) -> None:
    response = way.respond("Hi.", instructions="Be brief.", extra_body=NINES)
    assert response.output_text == "9" * 24
    assert response.status == "incomplete"
    assert response.usage is not None
    assert response.usage.output_tokens == 24
    if way.stream:
        deltas = [event.delta for event in way.events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == response.output_text


def test_the_prompt_is_the_same_as_for_a_chat_completion(way: Way, client: OpenAI) -> None:
    response = way.respond("Name three colours.", instructions="Be brief.", max_output_tokens=1)
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three colours."}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_an_answer_that_reaches_its_limit_is_incomplete(way: Way) -> None:
    response = way.respond("Tell me a long story.", max_output_tokens=3, extra_body={"ignore_eos": True})
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage is not None
    assert response.usage.output_tokens == 3
    if way.stream:
        assert way.events[-1].type == "response.incomplete"


def test_a_required_call_is_made_and_its_result_can_be_sent_back(way: Way) -> None:
    response = way.respond(
        "What is the weather in Rome?",
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=200,
    )
    [call] = response.output
    assert call.type == "function_call"
    assert call.name == "weather"
    jsonschema.validate(json.loads(call.arguments), cast("dict[str, Any]", WEATHER["parameters"]))
    if way.stream:
        deltas = [event.delta for event in way.events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 25 degrees."}
    answer = way.respond([result], previous_response_id=response.id, extra_body=saying("Sunny."))
    assert answer.output_text == "Sunny."


def test_an_answer_matches_its_schema(way: Way) -> None:
    wanted = {"type": "json_schema", "name": "person", "strict": True, "schema": Person.model_json_schema()}
    response = way.respond("Describe a person.", text={"format": wanted}, max_output_tokens=200, temperature=0)
    assert response.status == "completed"
    Person.model_validate_json(response.output_text)


@pytest.mark.parametrize("extra", [{"ignore_eos": True}, saying(EMOJI)], ids=["greedy", "known"])
def test_logprobs_contain_the_bytes_of_their_tokens(way: Way, extra: dict[str, Any]) -> None:
    include = ["message.output_text.logprobs"]
    response = way.respond("Hi.", include=include, top_logprobs=3, temperature=0, extra_body=extra)
    [message] = response.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs
    if "ignore_eos" not in extra:
        assert b"".join(bytes(entry.bytes) for entry in part.logprobs).decode() == part.text == EMOJI
    for entry in part.logprobs:
        assert len(entry.top_logprobs) == 3
        if "ignore_eos" in extra:
            best = next(top for top in entry.top_logprobs if top.bytes)  # an end token has none
            assert best.token == entry.token, "greedy sampling takes the most probable token"
    if way.stream:
        deltas = [event for event in way.events if event.type == "response.output_text.delta"]
        assert [entry.token for event in deltas for entry in event.logprobs] == [entry.token for entry in part.logprobs]


def test_a_chain_of_responses_keeps_the_conversation_and_hits_the_cache(way: Way) -> None:
    first = way.respond("My name is Ada. " * 10)
    second = way.respond("What is my name?", previous_response_id=first.id)
    assert first.usage is not None
    assert second.usage is not None
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1


# Helpers of the SDK


def test_the_sdk_parses_structured_answers(client: OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL, input="Describe a person.", text_format=Person, max_output_tokens=200, temperature=0
    )
    assert isinstance(response.output_parsed, Person)
    with client.responses.stream(
        model=MODEL, input="Describe a person.", text_format=Person, max_output_tokens=200, temperature=0
    ) as stream:
        done = [event for event in stream if event.type == "response.output_text.done"]
        assert [type(event.parsed) for event in done] == [Person]
        assert isinstance(stream.get_final_response().output_parsed, Person)


def test_the_sdk_parses_structured_answers_asynchronously(server: CortexServer) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            response = await client.responses.parse(
                model=MODEL, input="Describe a person.", text_format=Person, max_output_tokens=200, temperature=0
            )
            assert isinstance(response.output_parsed, Person)
            async with client.responses.stream(
                model=MODEL, input="Describe a person.", text_format=Person, max_output_tokens=200, temperature=0
            ) as stream:
                assert isinstance((await stream.get_final_response()).output_parsed, Person)

    asyncio.run(run())


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]


def test_the_sdk_parses_calls_and_sends_them_back(client: OpenAI) -> None:
    function = pydantic_function_tool(Weather)["function"]
    tool: Any = {"type": "function", **function}
    with client.responses.stream(
        model=MODEL, input="Rome?", tools=[tool], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        response = stream.get_final_response()
    [call] = response.output
    assert call.type == "function_call"
    Weather.model_validate(call.parsed_arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    said: Any = [{"role": "user", "content": "Rome?"}, call, result]
    again = client.responses.create(
        model=MODEL, input=said, tools=[tool], tool_choice="none", max_output_tokens=8, extra_body=saying("Sunny.")
    )
    assert again.output_text == "Sunny."


@pytest.mark.parametrize("helper", ["parse", "stream"])
@pytest.mark.parametrize("is_dumped", [False, True])
def test_an_agent_keeps_the_items_of_the_sdks_helpers(client: OpenAI, helper: str, is_dumped: bool) -> None:
    """Three turns: a call, a person that matches a schema, and another one. Each continues the one before."""
    tool: Any = {"type": "function", **pydantic_function_tool(Weather)["function"]}
    given: list[Any] = [{"role": "user", "content": "Rome?"}]

    def turn(**more: Any) -> Any:
        fields: dict[str, Any] = {"model": MODEL, "input": given, "tools": [tool], "max_output_tokens": 200, **more}
        if helper == "parse":
            response = client.responses.parse(**fields)
        else:
            with client.responses.stream(**fields) as stream:
                response = stream.get_final_response()
        given.extend(item.model_dump() if is_dumped else item for item in response.output)
        return response

    [call] = turn(tool_choice="required", parallel_tool_calls=False).output
    Weather.model_validate(call.parsed_arguments)
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."})
    for question in ("Who asked?", "Who else?"):
        given.append({"role": "user", "content": question})
        response = turn(tool_choice="none", text_format=Person, temperature=0)
        assert isinstance(response.output_parsed, Person)
    assert response.usage.input_tokens_details.cached_tokens, "the conversation so far is cached"


def test_a_stored_response_can_be_retrieved_listed_and_deleted(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="Hi.", max_output_tokens=4, metadata={"team": "blue"})
    second = client.responses.create(model=MODEL, input="Continue.", max_output_tokens=4, previous_response_id=first.id)
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    listed = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.type for item in listed] == ["message"] * 3, "over all pages"
    assert listed[1].id == first.output[0].id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match=first.id):
        client.responses.retrieve(first.id)
    third = client.responses.create(model=MODEL, input="Continue.", max_output_tokens=4, previous_response_id=second.id)
    assert len(list(client.responses.input_items.list(third.id))) == 5


def test_counted_input_tokens_are_those_of_the_response(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="Hi.", max_output_tokens=4)
    given: Any = {"model": MODEL, "input": "Continue.", "instructions": "Be brief.", "previous_response_id": first.id}
    counted = client.responses.input_tokens.count(**given)
    response = client.responses.create(**given, max_output_tokens=1)
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens


def test_an_unknown_previous_response_has_openais_error_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="Hi.", previous_response_id="resp_of_nobody")
    assert raised.value.code == "previous_response_not_found"
    assert raised.value.param == "previous_response_id"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsupported_grammar_is_refused(client: OpenAI, stream: bool) -> None:
    broken: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strin"}, "strict": True}}
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="Hi.", text=broken, stream=stream)
    assert (raised.value.param, raised.value.code) == ("text.format", "invalid_grammar")


def test_a_disconnect_frees_what_the_request_held(client: OpenAI, server: CortexServer) -> None:
    with client.responses.create(
        model=MODEL, input="Tell me a story.", stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    server.assert_nothing_is_held()


def test_eight_concurrent_conversations_stay_separate(server: CortexServer) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:

            async def talk(number: int) -> None:
                fields: dict[str, Any] = {"model": MODEL, "max_output_tokens": 8, "temperature": 0}
                first = await client.responses.create(input=f"I am number {number}.", **fields)
                second = await client.responses.create(input="Who?", previous_response_id=first.id, **fields)
                items = await client.responses.input_items.list(second.id, order="asc")
                texts = [cast(Any, item).content[0].text for item in items.data]
                assert texts == [f"I am number {number}.", first.output_text, "Who?"]

            await asyncio.gather(*(talk(number) for number in range(8)))

    asyncio.run(run())
