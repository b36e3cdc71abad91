"""What clients do with a cluster. Each function raises an error if the answer is not as from one server."""

import json
from collections.abc import Callable
from typing import Any, Final

from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam
from openai.types.shared_params import ResponseFormatJSONSchema

MODEL: Final = "smollm2:135m"
HAIKU: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "Write a haiku about programming."}]
CITY: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city", "parameters": CITY},
}
FORMAT: Final[ResponseFormatJSONSchema] = {
    "type": "json_schema",
    "json_schema": {"name": "city", "strict": True, "schema": CITY},
}
RESPONSE_TOOL: Final[FunctionToolParam] = {
    "type": "function",
    "name": "get_weather",
    "parameters": CITY,
    "strict": True,
}
QUESTION: Final[list[MessageParam]] = [{"role": "user", "content": "What is the weather in Paris?"}]
MESSAGE_TOOL: Final[ToolParam] = {"name": "get_weather", "description": "The weather", "input_schema": CITY}


def check_city(text: str) -> None:
    assert set(json.loads(text)) == {"city"}, text


# -- the four calls of the OpenAI SDK in the first documentation -------------------------------------------------------


def basic_completion(client: OpenAI) -> None:
    response = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Tell me a short story about a friendly robot."}]
    )
    assert response.choices[0].message.content


def with_additional_parameters(client: OpenAI) -> None:
    response = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What are the main differences between Python and C++?"},
        ],
        temperature=0.7,
        max_tokens=150,
        top_p=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
    )
    assert response.usage
    assert 0 < response.usage.completion_tokens <= 150


def stream_the_response(client: OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=HAIKU, stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content is not None]
    assert len(pieces) > 1


def multiple_messages(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "You are a knowledgeable science teacher."},
        {"role": "user", "content": "What is photosynthesis?"},
        {"role": "assistant", "content": "Photosynthesis is the process by which plants convert sunlight into energy."},
        {"role": "user", "content": "Can you explain it in more detail?"},
    ]
    assert client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


# -- further calls of the OpenAI SDK -----------------------------------------------------------------------------------


def chat_usage_in_a_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HAIKU, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    usage = list(stream)[-1].usage
    assert usage
    assert usage.completion_tokens == 8


def chat_tools(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HAIKU, tools=[TOOL], tool_choice="required")
    (call, *_) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    check_city(call.function.arguments)


def chat_tools_in_a_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HAIKU, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True
    )
    calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    check_city("".join(call.function.arguments or "" for call in calls if call.function))


def chat_structured_output(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HAIKU, response_format=FORMAT)
    check_city(answer.choices[0].message.content or "")


def text_completion(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]


def text_completion_stream(client: OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


def response(client: OpenAI) -> None:
    assert client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16).output_text


def response_stream(client: OpenAI) -> None:
    stream = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, stream=True)
    types = [event.type for event in stream]
    assert types[0] == "response.created"
    assert "response.output_text.delta" in types
    assert types[-1] in ("response.completed", "response.incomplete")


def response_tools(client: OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input="Weather?", tools=[RESPONSE_TOOL], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = answer.output
    assert call.type == "function_call"
    check_city(call.arguments)


def previous_response(client: OpenAI) -> None:
    """With a routing key, as one of the nodes has the response. Several times: chance would find it now and then."""
    for number in range(4):
        with_key = client.with_options(default_headers={"X-SMG-Routing-Key": f"conversation-{number}"})
        first = with_key.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
        with_key.responses.create(model=MODEL, input="Again.", previous_response_id=first.id, max_output_tokens=16)


def embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=["one", "two"])
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) > 100


def models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


# -- calls of the Anthropic SDK ----------------------------------------------------------------------------------------


def message(client: Anthropic) -> None:
    (block, *_) = client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION).content
    assert block.type == "text"


def message_stream(client: Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=16, messages=QUESTION) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens


def message_tools(client: Anthropic) -> None:
    answer = client.messages.create(
        model=MODEL, max_tokens=64, messages=QUESTION, tools=[MESSAGE_TOOL], tool_choice={"type": "any"}
    )
    (call, *_) = answer.content
    assert call.type == "tool_use"
    assert set(call.input) == {"city"}


def message_tools_in_a_stream(client: Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=64, messages=QUESTION, tools=[MESSAGE_TOOL], tool_choice={"type": "any"}
    ) as stream:
        (call, *_) = stream.get_final_message().content
    assert call.type == "tool_use"
    assert set(call.input) == {"city"}


def message_tokens(client: Anthropic) -> None:
    assert client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > 5


OPENAI_USES: Final[tuple[Callable[[OpenAI], None], ...]] = (
    basic_completion,
    with_additional_parameters,
    stream_the_response,
    multiple_messages,
    chat_usage_in_a_stream,
    chat_tools,
    chat_tools_in_a_stream,
    chat_structured_output,
    text_completion,
    text_completion_stream,
    response,
    response_stream,
    response_tools,
    previous_response,
    embeddings,
    models,
)
ANTHROPIC_USES: Final[tuple[Callable[[Anthropic], None], ...]] = (
    message,
    message_stream,
    message_tools,
    message_tools_in_a_stream,
    message_tokens,
)
