"""Each generation parameter through OpenAI's SDK, sync and async, streamed and not, on a tiny model."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel

from api.protocols.chat.request import ChatRequest
from api.protocols.completions.request import CompletionRequest
from api.text.tokenizer import Tokenizer
from tests.api.servers import MODEL, SECONDS, CortexServer

EMOJI = "\U0001f375\u265f\U0001f31f"
"""Characters that need several tokens each."""
DIGITS = [str(token) for token in range(32, 42)]
"""SmolLM2's tokens for the digits 0 to 9. It has none for several digits."""


def always(digit: int) -> dict[str, int]:
    """A logit bias that forces an answer of this digit only."""
    return {DIGITS[digit]: 100}


def best(entry: Any) -> str:
    """The most probable token that has text. End tokens have none."""
    return str(next(top.token for top in entry.top_logprobs if top.bytes))


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = (f"--alias={MODEL}", "--ctx-len=2048")
    with CortexServer(tmp_path_factory.mktemp("server"), *flags, model=tiny_model_path) as server:
        yield server


@dataclass
class Choice:
    """One choice, complete or assembled from the chunks of a stream."""

    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None

    def add_call(self, index: int, call: Any) -> None:
        known = self.calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        known["id"] += call.id or ""
        known["name"] += call.function.name or ""
        known["arguments"] += call.function.arguments or ""


@dataclass
class Response:
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Any = None

    def add(self, chunk: Any) -> None:
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            result = self.choices.setdefault(choice.index, Choice())
            message = choice.message if hasattr(choice, "message") else choice.delta
            result.text += message.content or ""
            for position, call in enumerate(message.tool_calls or ()):
                result.add_call(getattr(call, "index", position), call)
            result.logprobs += choice.logprobs.content if choice.logprobs else []
            result.finish_reason = choice.finish_reason or result.finish_reason

    @property
    def only(self) -> Choice:
        [result] = self.choices.values()
        return result


class Way:
    """One of four ways to call the SDK: sync or async, streamed or not."""

    def __init__(self, url: str, *, is_async: bool, stream: bool) -> None:
        self._url = url
        self._is_async = is_async
        self.stream = stream

    def chat(self, text: str | list[Any], **fields: Any) -> Response:
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        fields = {"model": MODEL, "messages": messages, "max_tokens": 24, **fields}
        if self.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return asyncio.run(self._ask(fields)) if self._is_async else self._ask_at_once(fields)

    def complete(self, **fields: Any) -> str:
        """The texts of all choices."""
        return asyncio.run(self._complete(fields)) if self._is_async else self._complete_at_once(fields)

    def _complete_at_once(self, fields: dict[str, Any]) -> str:
        with OpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            answer: Any = client.completions.create(model=MODEL, stream=self.stream, **fields)
            return "".join(choice.text for chunk in (answer if self.stream else [answer]) for choice in chunk.choices)

    async def _complete(self, fields: dict[str, Any]) -> str:
        async with AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            answer: Any = await client.completions.create(model=MODEL, stream=self.stream, **fields)
            if not self.stream:
                return "".join(choice.text for choice in answer.choices)
            return "".join([choice.text async for chunk in answer for choice in chunk.choices])

    def _ask_at_once(self, fields: dict[str, Any]) -> Response:
        with OpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            response = Response()
            answer = client.chat.completions.create(**fields)
            for chunk in answer if self.stream else [answer]:
                response.add(chunk)
            return response

    async def _ask(self, fields: dict[str, Any]) -> Response:
        async with AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            return await ask(client, fields)


async def ask(client: AsyncOpenAI, fields: dict[str, Any]) -> Response:
    response = Response()
    answer: Any = await client.chat.completions.create(**fields)
    if fields.get("stream"):
        async for chunk in answer:
            response.add(chunk)
    else:
        response.add(answer)
    return response


@pytest.fixture(params=["sync", "sync-stream", "async", "async-stream"])
def way(request: pytest.FixtureRequest, server: CortexServer) -> Way:
    return Way(server.url, is_async="async" in request.param, stream="stream" in request.param)


def client_of(server: CortexServer) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)


# Every field


CALL = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"enum": [1, 2]}}}
COMMON: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": always(8),
    "max_tokens": 3,
    "n": 2,
    "presence_penalty": -0.5,
    "seed": 7,
    "stop": ["x", "y"],
    "temperature": 0.5,
    "top_p": 0.9,
    "user": "me",
}
SAMPLES: dict[str, dict[str, Any]] = {
    "chat": COMMON
    | {
        "logprobs": True,
        "max_completion_tokens": 3,
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
        "metadata": {"team": "blue"},
        "parallel_tool_calls": False,
        "prediction": {"type": "content", "content": "Hello!"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "response_format": CALL,
        "safety_identifier": "s",
        "service_tier": "auto",
        "store": True,
        "tool_choice": "none",
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "top_logprobs": 2,
    },
    "completions": COMMON | {"best_of": 2, "echo": True, "logprobs": 2, "prompt": ["a", "b"]},
}
NEEDS: dict[str, dict[str, Any]] = {
    "max_completion_tokens": {"max_tokens": None},
    "tool_choice": {"tools": SAMPLES["chat"]["tools"]},
    "parallel_tool_calls": {"tools": SAMPLES["chat"]["tools"]},
    "top_logprobs": {"logprobs": True},
}
EXTENSIONS: dict[str, Any] = {
    "cache_salt": "mine",
    "dry_allowed_length": 3,
    "dry_base": 2.0,
    "dry_multiplier": 0.5,
    "dry_penalty_last_n": 10,
    "dry_sequence_breakers": ["x"],
    "grammar": 'root ::= "a"',
    "guided_choice": ["a", "b"],
    "guided_grammar": 'start: "a"',
    "guided_json": {"const": 1},
    "guided_regex": "a|b",
    "ignore_eos": True,
    "json_schema": {"const": 1},
    "min_p": 0.1,
    "min_tokens": 2,
    "mirostat": 2,
    "mirostat_eta": 0.2,
    "mirostat_tau": 3.0,
    "priority": "batch",
    "repeat_last_n": 5,
    "repeat_penalty": 1.1,
    "repetition_penalty": 1.1,
    "stop_token_ids": [0],
    "structured_outputs": {"choice": ["a", "b"]},
    "timings": True,
    "timings_per_token": True,
    "top_k": 5,
    "top_n_sigma": 1.0,
    "typical_p": 0.9,
    "usage": {"include": True},
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
}


CHAT_EXTENSIONS: dict[str, Any] = {
    "add_generation_prompt": True,
    "chat_template_kwargs": {"x": 1},
    "continue_final_message": False,
    "enable_thinking": True,
    "reasoning": {"effort": "low"},
    "reasoning_budget": 0,
    "reasoning_budget_tokens": 7,
    "thinking_budget_tokens": 7,
    "thinking_token_budget": 7,
    "reasoning_format": "none",
    "separate_reasoning": False,
    "include_reasoning": False,
}


def test_every_field_of_chat_completions_is_accepted(way: Way) -> None:
    tested = {"model", "stream", "stream_options"}
    for name, value in SAMPLES["chat"].items():
        fields = {"max_tokens": 3, **NEEDS.get(name, {}), name: value}
        response = way.chat(fields.pop("messages", "Hi."), **fields)
        assert response.usage.completion_tokens >= 1, name
        tested.add(name)
    for name, value in (EXTENSIONS | CHAT_EXTENSIONS).items():
        assert way.chat("Hi.", max_tokens=3, extra_body={name: value}).usage.completion_tokens >= 1, name
        tested.add(name)
    assert tested == set(ChatRequest.model_fields)


def test_every_field_of_completions_is_accepted(way: Way) -> None:
    tested = {"model", "stream", "stream_options", "suffix"}
    with pytest.raises(openai.BadRequestError, match="no tokens for filling in the middle"):
        way.complete(prompt="Once", suffix="the end")
    for name, value in SAMPLES["completions"].items():
        tested.add(name)
        if name == "best_of" and way.stream:
            continue  # best_of cannot be streamed
        assert way.complete(**{"prompt": "Once", "max_tokens": 3, "logit_bias": always(9), name: value}), name
    for name, value in EXTENSIONS.items():
        tested.add(name)
        assert way.complete(prompt="Once", max_tokens=3, logit_bias=always(9), extra_body={name: value}), name
    assert tested == set(CompletionRequest.model_fields)


# Choices and logprobs


def test_n_choices_share_one_computed_prompt(way: Way, server: CortexServer, request: pytest.FixtureRequest) -> None:
    before, _ = server.statistics()
    text = f"Tell me about the apples of {request.node.name}. " * 10  # no other test has this prompt
    response = way.chat(text, n=4, seed=7, temperature=2, extra_body={"ignore_eos": True})
    assert sorted(response.choices) == [0, 1, 2, 3]
    assert len({result.text for result in response.choices.values()}) > 1
    assert {result.finish_reason for result in response.choices.values()} == {"length"}
    assert response.usage.completion_tokens == 4 * 24
    after, _ = server.statistics()
    assert after["prefill_tokens"] - before["prefill_tokens"] <= response.usage.prompt_tokens


def test_choices_of_a_stream_are_generated_at_the_same_time(server: CortexServer) -> None:
    """The choices are so long that none ends before the first pieces are read, even on a busy machine."""
    begun: set[int] = set()
    with (
        client_of(server) as client,
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count."}],
            n=4,
            max_tokens=1000,
            logit_bias=always(9),
            stream=True,
        ) as stream,
    ):
        for chunk in stream:
            [choice] = chunk.choices
            assert choice.finish_reason is None, f"only {begun} have begun"
            if choice.delta.content:
                begun.add(choice.index)
            if len(begun) == 4:
                break
    assert begun == {0, 1, 2, 3}


def test_logprobs_contain_the_bytes_of_their_tokens(way: Way) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "temperature": 0}
    greedy = way.chat("Write three emoji.", **fields, extra_body={"ignore_eos": True}).only
    assert [entry.token for entry in greedy.logprobs] == [best(entry) for entry in greedy.logprobs]
    assert len(greedy.logprobs) == 24
    known = way.chat("Write three emoji.", **fields, extra_body={"guided_choice": [EMOJI]}).only
    assert known.text == EMOJI
    for result in (greedy, known):
        assert b"".join(bytes(entry.bytes) for entry in result.logprobs).decode(errors="replace") == result.text
        for entry in result.logprobs:
            assert entry.logprob <= 0
            assert len(entry.top_logprobs) == 3
            values = [top.logprob for top in entry.top_logprobs]
            assert values == sorted(values, reverse=True)


def test_a_logit_bias_forbids_and_forces_tokens(way: Way, tokenizer: Tokenizer) -> None:
    [yes] = tokenizer.encode("yes", parse_special=False)
    assert way.chat("Hello", max_tokens=3, logit_bias={str(yes): 100}).only.text == "yesyesyes"
    for forbidden, expected in ((DIGITS[0], "1"), (DIGITS[1], "0")):  # the model would generate one of them
        fields: dict[str, Any] = {"logit_bias": {forbidden: -100}, "extra_body": {"guided_choice": ["0", "1"]}}
        assert way.chat("Hello", temperature=0, **fields).only.text == expected


@pytest.mark.parametrize(
    "extra",
    [
        {"top_k": 1},
        {"min_p": 1.0},
        {"top_n_sigma": 1e-6},
        {"typical_p": 1.0, "top_k": 1},
        {"mirostat": 2, "mirostat_tau": 0.0, "mirostat_eta": 0.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.9, "top_k": 1},
    ],
    ids=str,
)
def test_samplers_that_leave_one_token_are_greedy(server: CortexServer, extra: dict[str, Any]) -> None:
    way = Way(server.url, is_async=False, stream=False)
    fields: dict[str, Any] = {"max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    result = way.chat("Name a colour.", **fields, extra_body=extra | {"ignore_eos": True}).only
    assert [entry.token for entry in result.logprobs] == [best(entry) for entry in result.logprobs]
    assert len(result.logprobs) == 8


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, "000"),
        ({"repetition_penalty": 10.0}, "010"),
        ({"dry_multiplier": 100.0, "dry_allowed_length": 1}, "001"),
    ],
    ids=str,
)
def test_repetition_penalties_work(server: CortexServer, extra: dict[str, Any], expected: str) -> None:
    """The penalties of a repeated token outweigh its logit bias, which is large."""
    way = Way(server.url, is_async=False, stream=False)
    fields: dict[str, Any] = {"temperature": 0, "logit_bias": {DIGITS[0]: 100, DIGITS[1]: 50}}
    result = way.chat("Heads or tails?", **fields, extra_body={"guided_regex": "[01]{3}"} | extra).only
    assert result.text == expected


def test_an_answer_does_not_end_before_min_tokens(way: Way, tokenizer: Tokenizer) -> None:
    end = {str(tokenizer.special_ids["<|im_end|>"]): 100}
    for min_tokens in (0, 50):
        response = way.chat("Say only: yes", max_tokens=60, logit_bias=end, extra_body={"min_tokens": min_tokens})
        assert response.usage.completion_tokens == min_tokens + 1
        assert response.only.finish_reason == "stop"


def test_a_top_p_of_0_is_greedy(server: CortexServer) -> None:
    way = Way(server.url, is_async=False, stream=False)
    result = way.chat("Name a colour.", top_p=0, temperature=2, max_tokens=8, logprobs=True, top_logprobs=3).only
    assert [entry.token for entry in result.logprobs] == [best(entry) for entry in result.logprobs]


def test_a_stop_token_ends_an_answer(way: Way) -> None:
    """The token's text is not returned, and the engine is free again."""
    fields = {"stop_token_ids": [int(DIGITS[3])], "min_tokens": 4, "guided_regex": "3{4}[0-9]*"}
    response = way.chat("Count.", logit_bias=always(3), extra_body=fields)
    assert (response.only.text, response.only.finish_reason) == ("3333", "stop")
    assert response.usage.completion_tokens == 5


def test_a_final_message_is_continued(way: Way) -> None:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, "}]
    fields = {"continue_final_message": True, "add_generation_prompt": False, "guided_regex": "3, 4"}
    response = way.chat(messages, extra_body=fields)
    assert (response.only.text, response.only.finish_reason) == ("3, 4", "stop")


# Structured output

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


PERSON_TOKENS = 150
"""More tokens than the JSON of a person can have characters, with as many escapes as possible."""


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def test_an_answer_matches_its_schema(way: Way) -> None:
    result = way.chat("Describe a person.", max_tokens=PERSON_TOKENS, response_format=json_schema(PERSON)).only
    assert result.finish_reason == "stop"
    jsonschema.validate(json.loads(result.text), PERSON)


def test_a_truncated_answer_finishes_with_length(way: Way) -> None:
    result = way.chat("Describe a person.", max_tokens=4, response_format=json_schema(PERSON)).only
    assert result.finish_reason == "length"


def test_json_object_mode_returns_an_object(way: Way, tokenizer: Tokenizer) -> None:
    fields: dict[str, Any] = {"response_format": {"type": "json_object"}, "temperature": 0}
    result = way.chat("Any JSON.", max_tokens=300, **fields).only
    if result.finish_reason == "stop":
        assert isinstance(json.loads(result.text), dict)
    else:
        assert result.text.startswith("{")
    brackets = {str(token): 100 for bracket in "{}" for token in tokenizer.encode(bracket, parse_special=False)}
    ended = way.chat("Any JSON.", **fields, logit_bias=brackets).only
    assert (ended.text, ended.finish_reason) == ("{}", "stop")


HINT = {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 1, "uniqueItems": True, "not": {}}
"""A schema with two parts that cannot be enforced."""


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"guided_regex": "[0-9]{3}-[0-9]{2}"}, r"\d{3}-\d{2}"),
        ({"structured_outputs": {"regex": "(north|south) [a-c]"}}, "(north|south) [a-c]"),
        ({"guided_choice": ["red", 'a "quoted" one']}, 'red|a "quoted" one'),
        ({"structured_outputs": {"choice": ["x", "y"]}}, "x|y"),
        ({"grammar": 'root ::= "<" [a-z] ">"'}, "<[a-z]>"),
        ({"guided_grammar": 'start: "ab" | "cd"'}, "ab|cd"),
        ({"json_schema": {"const": 5}}, "5"),
        ({"guided_json": '{"enum": [true, false]}'}, "true|false"),
        ({"structured_outputs": {"json": {"const": "x"}}}, '"x"'),
        ({"guided_choice": [f"{number:04}" for number in range(5000)]}, "[0-4][0-9]{3}"),
        ({"guided_json": HINT}, r'\["[xy]"\]'),
        ({"json_schema": HINT}, r'\["[xy]"\]'),
        ({"structured_outputs": {"json": HINT}}, r'\["[xy]"\]'),
        ({"response_format": {"type": "json_object", "schema": HINT}}, r'\["[xy]"\]'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": HINT}}}, r'\["[xy]"\]'),
    ],
    ids=str,
)
def test_every_parameter_for_structured_output_works(
    server: CortexServer, extra: dict[str, Any], expected: str
) -> None:
    result = Way(server.url, is_async=False, stream=True).chat("Hello", extra_body=extra).only
    assert re.fullmatch(expected, result.text), result.text
    assert result.finish_reason == "stop"


ANY_OF_EIGHT = {"anyOf": [{"properties": {f"a{i}": {"type": "integer"}}} for i in range(8)]}
TOO_LARGE = {"allOf": [ANY_OF_EIGHT] * 8}
TOO_DEEP: dict[str, Any] = {"type": "object"}
for _ in range(400):
    TOO_DEEP = {"type": "object", "properties": {"a": TOO_DEEP}, "required": ["a"]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("extra", "param", "part"),
    [
        ({"response_format": json_schema({"type": "strin"})}, "response_format", "'type' must be one of"),
        (
            {"response_format": json_schema(HINT)},
            "response_format",
            "'uniqueItems' cannot be enforced (at #/uniqueItems)",
        ),
        ({"response_format": json_schema({"$ref": "#/nowhere"})}, "response_format", "'#/nowhere'"),
        ({"guided_regex": "("}, "guided_regex", "regex"),
        ({"guided_grammar": "start: undefined_rule"}, "guided_grammar", "undefined_rule"),
        ({"response_format": json_schema(TOO_LARGE)}, "response_format", "too large"),
        ({"response_format": json_schema(TOO_DEEP)}, "response_format", "nested more than"),
    ],
    ids=str,
)
def test_an_unsupported_grammar_is_refused(
    server: CortexServer, stream: bool, extra: dict[str, Any], param: str, part: str
) -> None:
    with client_of(server) as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=stream, extra_body=extra
        )
    assert raised.value.param == param
    assert raised.value.code == "invalid_grammar"
    assert part in raised.value.message


def test_a_hundred_bounded_answers_all_end_and_validate(server: CortexServer) -> None:
    schemas = [
        PERSON,
        {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 4},
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": ["integer", "null"], "maximum": 9, "minimum": 0}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        {"enum": ["red", "green", {"blue": 1}]},
    ]

    async def run() -> list[tuple[dict[str, Any], Choice]]:
        limit = asyncio.Semaphore(16)

        async def one(client: AsyncOpenAI, number: int) -> tuple[dict[str, Any], Choice]:
            schema: dict[str, Any] = schemas[number % len(schemas)]  # type: ignore[assignment]
            fields = {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Make something up. {number}"}],
                "response_format": json_schema(schema),
                "temperature": 1,
                "seed": number,
                "max_tokens": 250,
            }
            async with limit:
                return schema, (await ask(client, fields)).only

        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            return await asyncio.gather(*(one(client, number) for number in range(100)))

    for schema, answer in asyncio.run(run()):
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), schema)


# Tools

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL_TOKENS = 200
"""More tokens than a call of one of these tools can have characters."""


def check_call(call: dict[str, str]) -> None:
    assert call["id"].startswith("call_")
    if call["name"] == "clock":
        assert json.loads(call["arguments"]) == {}
    else:
        assert call["name"] == "weather"
        jsonschema.validate(json.loads(call["arguments"]), WEATHER["function"]["parameters"])  # type: ignore[index]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
def test_a_required_call_is_made(way: Way, choice: Any) -> None:
    result = way.chat(
        "What is the weather in Rome?",
        tools=[CLOCK, WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=CALL_TOKENS,
    ).only
    assert result.finish_reason == "tool_calls"
    assert result.text == ""
    assert len(result.calls) == 1
    check_call(result.calls[0])
    if choice != "required":
        assert result.calls[0]["name"] == "weather"


def test_several_calls_are_returned_in_order(way: Way, tokenizer: Tokenizer) -> None:
    """The answer ends after a call, but not before min_tokens, so it has several calls."""
    result = way.chat(
        "Rome and Paris?",
        tools=[CLOCK, WEATHER],
        tool_choice="required",
        max_tokens=2 * CALL_TOKENS,
        logit_bias={str(tokenizer.special_ids["<|im_end|>"]): 100},
        extra_body={"min_tokens": CALL_TOKENS},
    ).only
    assert result.finish_reason == "tool_calls"
    assert len(result.calls) > 1
    assert sorted(result.calls) == list(range(len(result.calls)))
    for call in result.calls.values():
        check_call(call)


def test_the_model_decides_whether_to_call(way: Way, tokenizer: Tokenizer) -> None:
    assert way.chat("Say hello.", tools=[WEATHER], logit_bias=always(9)).only.text == "9" * 24
    [begin] = tokenizer.encode("<", parse_special=False)
    called, answered = (
        way.chat(
            "Say hello.",
            tools=[WEATHER],
            parallel_tool_calls=False,
            max_tokens=CALL_TOKENS,
            logit_bias=bias,
            extra_body={"guided_choice": ["9"]},
        ).only
        for bias in ({str(begin): 100}, always(9))
    )
    assert (called.text, called.finish_reason, len(called.calls)) == ("", "tool_calls", 1)
    check_call(called.calls[0])
    assert (answered.text, answered.finish_reason, answered.calls) == ("9", "stop", {})
    call = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "none", "extra_body": {"guided_choice": [call]}}
    result = way.chat("Say hello.", max_tokens=CALL_TOKENS, **fields).only
    assert (result.text, result.calls) == (call, {})


def test_a_call_and_its_result_can_be_sent_back(way: Way) -> None:
    messages = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 25 degrees."},
    ]
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "none", "extra_body": {"guided_choice": ["Sunny."]}}
    response = way.chat(messages, **fields)
    assert response.only.text == "Sunny."
    assert response.usage.prompt_tokens > way.chat(messages[:1], **fields).usage.prompt_tokens


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]


class Report(BaseModel):
    city: Literal["Rome", "Oslo"]
    degrees: Literal[10, 20]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's own, about `parsed`
@pytest.mark.parametrize("helper", ["parse", "stream"])
def test_an_agent_keeps_the_messages_of_the_sdks_helpers(server: CortexServer, helper: str) -> None:
    """Three turns: a call, a report that matches a schema, and a report about it. Each continues the one before."""
    messages: list[Any] = [{"role": "user", "content": "The weather in Rome?"}]
    fields: dict[str, Any] = {"model": MODEL, "tools": [pydantic_function_tool(Weather)], "max_tokens": CALL_TOKENS}
    with client_of(server) as client:

        def turn(**more: Any) -> Any:
            if helper == "parse":
                answer = client.chat.completions.parse(messages=messages, **fields, **more)
            else:
                with client.chat.completions.stream(messages=messages, **fields, **more) as stream:
                    answer = stream.get_final_completion()
            messages.append(answer.choices[0].message)
            return messages[-1]

        [call] = turn(tool_choice="required", parallel_tool_calls=False).tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "20 degrees."})
        for question in ("Report it.", "And tomorrow?"):
            messages.append({"role": "user", "content": question})
            assert isinstance(turn(tool_choice="none", response_format=Report).parsed, Report)
        kept: list[list[Any]] = [messages]
        for how in ({}, {"exclude_none": True}, {"mode": "json", "exclude_unset": True}):
            dumped = [each if isinstance(each, dict) else each.model_dump(**how) for each in messages]
            kept.append(dumped)
        answers = [client.chat.completions.create(messages=each, model=MODEL, max_tokens=1) for each in kept]
        counts = {answer.usage.prompt_tokens for answer in answers if answer.usage is not None}
    assert len(counts) == 1


def test_an_unsupported_schema_of_a_strict_tool_is_refused(server: CortexServer) -> None:
    broken: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}, "strict": True}}
    with client_of(server) as client, pytest.raises(openai.BadRequestError, match=r"'f' .*'type' must be") as raised:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            tools=[broken],
            tool_choice="required",
        )
    assert raised.value.param == "tools"


def test_a_schema_of_a_tool_that_is_not_strict_is_enforced_where_possible(server: CortexServer) -> None:
    city = {"enum": ["Rome", "Oslo"]}
    known = {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    for schema in (known | {"propertyNames": {"pattern": "c"}}, {"type": "strin"}):
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
        result = Way(server.url, is_async=False, stream=False).chat(
            "Rome?", tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200, temperature=0
        )
        assert result.only.calls[0]["name"] == "f"
        if "properties" in schema:
            assert json.loads(result.only.calls[0]["arguments"])["city"] in city["enum"]


# All kinds at once


def test_24_concurrent_requests_of_all_kinds_get_correct_answers(server: CortexServer) -> None:
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 20},
        {"max_tokens": PERSON_TOKENS, "response_format": json_schema(PERSON)},
        {"max_tokens": CALL_TOKENS, "tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": False},
        {"max_tokens": 20, "n": 4},
        {"max_tokens": 20, "logprobs": True, "top_logprobs": 2},
        {"max_tokens": 20, "stream": True, "temperature": 0},
    ]

    async def run() -> list[Response]:
        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            return await asyncio.gather(
                *(
                    ask(
                        client,
                        {
                            "model": MODEL,
                            "messages": [{"role": "user", "content": f"Hello {i}!"}],
                            "logit_bias": always(i % 10),  # neighbouring requests get different answers
                        }
                        | kinds[i % 6],
                    )
                    for i in range(24)
                )
            )

    for number, response in enumerate(asyncio.run(run())):
        kind = kinds[number % 6]
        assert len(response.choices) == kind.get("n", 1)
        result = response.choices[0]
        if "response_format" in kind:
            assert result.finish_reason == "stop"
            jsonschema.validate(json.loads(result.text), PERSON)
        elif "tools" in kind:
            assert result.finish_reason == "tool_calls"
            check_call(result.calls[0])
        else:
            answers = {(each.text, each.finish_reason) for each in response.choices.values()}
            assert answers == {(str(number % 10) * 20, "length")}
        if "logprobs" in kind:
            assert b"".join(bytes(entry.bytes) for entry in result.logprobs).decode() == result.text
    _, cache = server.statistics()
    assert cache["held_pages"] == 0


# Text completions


def test_prompts_of_every_form_are_accepted(server: CortexServer, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("One two three", parse_special=False)
    with client_of(server) as client:

        def complete(prompt: Any, **fields: Any) -> Any:
            fields |= {"model": MODEL, "prompt": prompt, "max_tokens": 4, "logit_bias": always(9)}
            return client.completions.create(**fields)

        by_text, by_tokens = (complete(prompt, echo=True, logprobs=0) for prompt in ("One two three", tokens))
        assert by_text.usage.prompt_tokens == by_tokens.usage.prompt_tokens == len(tokens)
        assert by_text.choices[0].text == by_tokens.choices[0].text == "One two three9999"
        assert by_text.choices[0].logprobs.tokens == by_tokens.choices[0].logprobs.tokens
        several = complete(["One two three", "Four five"], n=2)
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
        assert several.usage.completion_tokens == 16
        assert len(complete([tokens, tokens[:1]]).choices) == 2
        assert complete("", echo=True).choices[0].text == "9999"
        with pytest.raises(openai.BadRequestError, match="vocabulary") as raised:
            complete([10**9])
        assert raised.value.param == "prompt"
        with pytest.raises(openai.BadRequestError, match="filling in the middle"):
            complete("def f(", suffix="return 1")
        with pytest.raises(openai.BadRequestError, match="context length"):
            complete("word " * 3000)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_contains_the_logprobs_of_the_prompt(server: CortexServer, stream: bool) -> None:
    prompt = "The capital of France is"
    with client_of(server) as client:
        answer: Any = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=3, echo=True, logprobs=2, logit_bias=always(9), stream=stream
        )
        pieces = [chunk.choices[0] for chunk in (answer if stream else [answer])]
    text = "".join(piece.text for piece in pieces)
    assert text == prompt + "999"
    tokens: list[str] = []
    values: list[Any] = []
    tops: list[Any] = []
    offsets: list[int] = []
    for piece in pieces:
        if piece.logprobs is not None:
            tokens += piece.logprobs.tokens or []
            values += piece.logprobs.token_logprobs or []
            tops += piece.logprobs.top_logprobs or []
            offsets += piece.logprobs.text_offset or []
    assert "".join(tokens) == text
    assert values[0] is None
    assert tops[0] is None
    assert all(value <= 0 for value in values[1:])
    assert [text[offset:].startswith(token) for token, offset in zip(tokens, offsets, strict=True)] == [True] * len(
        tokens
    )


def test_max_tokens_0_with_echo_only_scores_the_prompt(server: CortexServer) -> None:
    long = "All work and no play makes Jack a dull boy. " * 20
    with client_of(server) as client:
        for _ in range(2):  # the second time it is cached, but must be computed again
            answer = client.completions.create(model=MODEL, prompt=long, max_tokens=0, echo=True, logprobs=0)
            [choice] = answer.choices
            assert choice.text == long
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 0
            assert choice.logprobs is not None
            assert len(choice.logprobs.token_logprobs or []) == answer.usage.prompt_tokens
            assert choice.finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            client.completions.create(model=MODEL, prompt=long, max_tokens=0)


def test_best_of_returns_the_best_choices(server: CortexServer) -> None:
    with client_of(server) as client:
        answer = client.completions.create(
            model=MODEL,
            prompt="Once upon",
            max_tokens=6,
            n=2,
            best_of=5,
            logprobs=0,
            seed=1,
            temperature=1.5,
            extra_body={"ignore_eos": True},
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 30, "all were generated"
        means = []
        for choice in answer.choices:
            assert choice.logprobs is not None
            values = choice.logprobs.token_logprobs or []
            means.append(sum(values) / len(values))
        assert means == pytest.approx(sorted(means, reverse=True))  # sums of pieces may be rounded differently
        with pytest.raises(openai.BadRequestError, match="best_of"):
            client.completions.create(model=MODEL, prompt="x", n=3, best_of=2)


def test_a_completion_stops_and_streams(server: CortexServer) -> None:
    with client_of(server) as client:
        stream = client.completions.create(
            model=MODEL,
            prompt=["1 2 3 4", "a b c d"],
            n=2,
            max_tokens=12,
            stream=True,
            stop=["8"],
            stream_options={"include_usage": True},
            logprobs=0,  # so that tokens come one by one
            extra_body={"guided_choice": ["5 6 7 8 9"]},
        )
        chunks = list(stream)
    choices: list[Any] = [choice for chunk in chunks for choice in chunk.choices]
    assert sorted(choice.index for choice in choices if choice.finish_reason == "stop") == [0, 1, 2, 3]
    for index in range(4):
        assert "".join(choice.text for choice in choices if choice.index == index) == "5 6 7 "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 48


# Tokens and templates


def test_texts_and_conversations_are_converted_to_tokens_and_back(server: CortexServer, tokenizer: Tokenizer) -> None:
    base = server.url.removesuffix("/v1")

    def post(path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{base}/{path}", json=body, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return answer.json()

    tokens = tokenizer.encode("Hello <|im_end|>", parse_special=True)
    assert post("tokenize", {"content": "Hello <|im_end|>"})["tokens"] == tokens
    pieces = post("tokenize", {"content": "Hello", "with_pieces": True})["tokens"]
    assert [piece["piece"] for piece in pieces] == ["Hello"]
    assert post("tokenize", {"prompt": "Hello", "return_token_strs": True})["token_strs"][-1] == "Hello"
    assert post("detokenize", {"tokens": tokens}) == {"content": "Hello <|im_end|>", "prompt": "Hello <|im_end|>"}
    messages = [{"role": "user", "content": "Hi"}]
    prompt = post("apply-template", {"messages": messages})["prompt"]
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    counted = post("tokenize", {"model": MODEL, "messages": messages})
    assert counted["count"] == len(counted["tokens"]) == len(tokenizer.encode(prompt, parse_special=True))
    assert "weather" in post("apply-template", {"messages": messages, "tools": [WEATHER]})["prompt"]
    for path, body in (
        ("tokenize", {}),
        ("tokenize", {"content": "a", "prompt": "b"}),
        ("detokenize", {"tokens": [10**9]}),
        ("apply-template", {"messages": []}),
        ("tokenize", {"content": "a", "model": "other"}),
    ):
        assert httpx.post(f"{base}/{path}", json=body, timeout=SECONDS).status_code in (400, 404)


def test_text_without_tokens_is_refused_when_it_would_be_generated(server: CortexServer) -> None:
    """SmolLM2 has no tokens for some bytes."""
    with client_of(server) as client:
        fields: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hi."}],
            "extra_body": {"guided_choice": ["\u00f2\U000aab00"]},
        }
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**fields)
        assert (refused.value.param, refused.value.code) == ("guided_choice", "invalid_grammar")
        with pytest.raises(openai.APIError) as broken:
            list(client.chat.completions.create(**fields, stream=True))
        assert broken.value.code == "invalid_grammar"
