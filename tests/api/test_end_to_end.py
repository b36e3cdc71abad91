"""The whole path, from the official SDK over HTTP to the real small model and back."""

import asyncio
import json
import os
import signal
import socket
import string
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, AsyncStream, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionPredictionContentParam

from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from tests.api.servers import MODEL, SECONDS, CortexServer, is_gone, paused, wait_until

ALIAS = "llama3.1:8b-gguf-q4-km"
FOREVER = 8000
"""Tokens of an answer that outlasts everything else here, even on a fast machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    """A server as the seed's user would start it, but with a short context, so that every answer ends soon."""
    with CortexServer(tmp_path_factory.mktemp("server"), "--alias", ALIAS, "--ctx-len=256") as server:
        yield server


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    """Eight sequences at once. The pool has room for one answer of FOREVER tokens."""
    flags = ("--max-seqs=8", "--ctx-len=8192", "--kv-layout=pool", "--kv-tokens=8192")
    with CortexServer(tmp_path_factory.mktemp("narrow"), *flags, is_patient=True) as server:
        yield server


def tiny_server(home: Path, model_path: str, *flags: str, is_patient: bool = False) -> CortexServer:
    """Starts soon and writes quickly. Only for tests that need no certain speed: see tiny_model_path."""
    return CortexServer(home, f"--alias={MODEL}", *flags, model=model_path, is_patient=is_patient)


def client_of(server: CortexServer) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="not-needed", max_retries=0, timeout=3 * SECONDS)


def async_client_of(server: CortexServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.url, api_key="not-needed", max_retries=0, timeout=3 * SECONDS)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def long_stream(client: OpenAI, max_tokens: int) -> openai.Stream[ChatCompletionChunk]:
    """A stream of exactly `max_tokens` tokens."""
    return client.chat.completions.create(
        model=MODEL,
        messages=user("Tell me everything."),
        stream=True,
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
    )


def read_first(stream: openai.Stream[ChatCompletionChunk]) -> None:
    """Read up to the first content. How many events follow depends on the machine: fast tokens share one."""
    for chunk in stream:
        if chunk.choices[0].delta.content:
            return
    raise AssertionError("the stream ended early")


async def begin(client: AsyncOpenAI, text: str, max_tokens: int, **fields: Any) -> AsyncStream[ChatCompletionChunk]:
    """A stream whose request was sent to the engine, which may not have read it yet."""
    stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
        model=MODEL,
        messages=user(text),
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
        **fields,
    )
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    return stream


@dataclass
class Answer:
    """The content of a stream."""

    content: str = ""
    ids: set[str] = field(default_factory=set)
    finish_reasons: list[str] = field(default_factory=list)
    usage: CompletionUsage | None = None

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer."""
        assert self.usage is not None
        return self.usage.prompt_tokens, self.usage.completion_tokens


async def rest(stream: AsyncStream[ChatCompletionChunk]) -> Answer:
    answer = Answer()
    async for chunk in stream:
        answer.ids.add(chunk.id)
        for choice in chunk.choices:
            answer.content += choice.delta.content or ""
            answer.finish_reasons += [choice.finish_reason] if choice.finish_reason else []
        answer.usage = chunk.usage
    return answer


def letters(tokenizer: Tokenizer, count: int) -> dict[str, dict[str, int]]:
    """`count` letters, each with the logit bias that makes an answer consist only of this letter."""
    found = {}
    for letter in string.ascii_letters[:count]:
        [token] = tokenizer.encode(letter, parse_special=False)
        found[letter] = {str(token): 100}
    return found


# The seed's snippets, unchanged. The test replaces only the port.

SNIPPETS = [
    """\
from openai import OpenAI

client = OpenAI(
    base_url="http://localhost:39281/v1",
    api_key="not-needed"
)
""",
    """\
response = client.chat.completions.create(
    model="llama3.1:8b-gguf-q4-km",
    messages=[
        {"role": "user", "content": "Tell me a short story about a friendly robot."}
    ]
)
print(response.choices[0].message.content)
""",
    """\
response = client.chat.completions.create(
    model="llama3.1:8b-gguf-q4-km",
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What are the main differences between Python and C++?"}
    ],
    temperature=0.7,
    max_tokens=150,
    top_p=1.0,
    frequency_penalty=0.0,
    presence_penalty=0.0
)
""",
    """\
stream = client.chat.completions.create(
    model="llama3.1:8b-gguf-q4-km",
    messages=[
        {"role": "user", "content": "Write a haiku about programming."}
    ],
    stream=True
)

for chunk in stream:
    if chunk.choices[0].delta.content is not None:
        print(chunk.choices[0].delta.content, end="")
""",
    """\
messages = [
    {"role": "system", "content": "You are a knowledgeable science teacher."},
    {"role": "user", "content": "What is photosynthesis?"},
    {"role": "assistant", "content": "Photosynthesis is the process by which plants convert sunlight into energy."},
    {"role": "user", "content": "Can you explain it in more detail?"}
]

response = client.chat.completions.create(
    model="llama3.1:8b-gguf-q4-km",
    messages=messages
)
print(response.choices[0].message.content)
""",
]


def test_the_seeds_snippets_run_as_they_are(
    server: CortexServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content of the answers is not checked. It may be empty."""
    names: dict[str, Any] = {}
    printed, responses = [], []
    chunks: list[ChatCompletionChunk] = []
    iterate = openai.Stream.__iter__

    def recorded(stream: openai.Stream[ChatCompletionChunk]) -> Iterator[ChatCompletionChunk]:
        for chunk in iterate(stream):
            chunks.append(chunk)
            yield chunk

    monkeypatch.setattr(openai.Stream, "__iter__", recorded)
    try:
        for snippet in SNIPPETS:
            exec(snippet.replace(":39281/", f":{server.port}/"), names)
            printed.append(capsys.readouterr().out)
            responses.append(names.pop("response", None))
    finally:
        names["client"].close()
    assert [type(response) for response in responses] == [
        *(type(None), ChatCompletion, ChatCompletion, type(None), ChatCompletion)
    ]
    _, story, with_parameters, _, lesson = responses
    streamed = [chunk.choices[0].delta.content for chunk in chunks]
    assert printed == [
        *("", f"{story.choices[0].message.content}\n", "", "".join(filter(None, streamed))),
        f"{lesson.choices[0].message.content}\n",
    ]
    assert [response.choices[0].message.role for response in (story, with_parameters, lesson)] == ["assistant"] * 3
    assert all(isinstance(response.choices[0].message.content, str) for response in (story, with_parameters, lesson))
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[:-1] == [None] * (len(chunks) - 1)
    assert reasons[-1] in ("stop", "length")
    assert with_parameters.usage is not None
    assert 0 < with_parameters.usage.completion_tokens <= 150
    assert with_parameters.model == ALIAS


def test_localhost_answers_over_ipv4_and_ipv6(server: CortexServer) -> None:
    for host in ("127.0.0.1", "[::1]") if has_ipv6() else ("127.0.0.1",):
        response = httpx.get(f"http://{host}:{server.port}/v1/models", timeout=SECONDS)
        assert [model["id"] for model in response.json()["data"]] == [MODEL, ALIAS]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_answer_that_may_exceed_the_context_ends_with_it(server: CortexServer) -> None:
    with client_of(server) as client:
        answer = client.completions.create(
            model=MODEL, prompt="word " * 240, max_tokens=32_000, extra_body={"ignore_eos": True}
        )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256


def test_errors_raise_the_sdks_exceptions(server: CortexServer) -> None:
    with client_of(server) as client:
        with pytest.raises(openai.NotFoundError) as not_found:
            client.chat.completions.create(model="gpt-9", messages=user("Hi"))
        assert not_found.value.code == "model_not_found"
        assert not_found.value.request_id is not None
        with pytest.raises(openai.BadRequestError) as too_long:
            client.chat.completions.create(model=MODEL, messages=user("Hi " * 5000))
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as unserved:
            client.chat.completions.create(model=MODEL, messages=user("Hi"), modalities=["text", "audio"])
        assert (unserved.value.param, unserved.value.code) == ("modalities", "unsupported_parameter")


def test_an_answer_without_a_limit_runs_to_the_contexts_end(server: CortexServer) -> None:
    with client_of(server) as client:
        text = "word " * 200
        response = client.chat.completions.create(model=MODEL, messages=user(text), extra_body={"ignore_eos": True})
    assert response.choices[0].finish_reason == "length"
    assert response.usage is not None
    assert response.usage.total_tokens == 256


def test_a_stop_string_ends_a_real_answer(server: CortexServer) -> None:
    with client_of(server) as client:
        response = client.chat.completions.create(
            model=MODEL,
            messages=user("Count from one to ten in digits."),
            stop=["5"],
            max_tokens=60,
            temperature=0,
            extra_body={"guided_regex": "1 2 3 4 5 6 7 8 9 10"},
        )
        choice = response.choices[0]
        assert choice.finish_reason == "stop"
        assert choice.message.content == "1 2 3 4 "
    server.assert_nothing_is_held()


def test_a_prediction_is_served_and_its_tokens_are_counted(server: CortexServer) -> None:
    client = client_of(server)
    fields: dict[str, Any] = {"model": MODEL, "messages": user("Count to nine."), "max_tokens": 24, "temperature": 0}
    text = client.chat.completions.create(**fields).choices[0].message.content
    assert text
    predictions: tuple[ChatCompletionPredictionContentParam, ...] = (
        {"type": "content", "content": text},
        {"type": "content", "content": [{"type": "text", "text": text}]},
        {"type": "content", "content": "something else entirely"},
    )
    for prediction in predictions:
        answer: ChatCompletion = client.chat.completions.create(**fields, prediction=prediction)
        usage = answer.usage
        assert usage is not None
        assert usage.completion_tokens_details is not None
        accepted = usage.completion_tokens_details.accepted_prediction_tokens
        rejected = usage.completion_tokens_details.rejected_prediction_tokens
        assert accepted is not None
        assert rejected is not None
        assert 0 <= accepted < usage.completion_tokens <= 24
        assert rejected >= 0
        assert answer.choices[0].message.content


def test_the_logprobs_of_an_echo_are_those_of_its_tokens(server: CortexServer) -> None:
    with client_of(server) as client:
        answer = client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=0, echo=True, logprobs=0
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    values = logprobs.token_logprobs or []
    assert logprobs.tokens == ["The", " capital", " of", " France", " is"]
    assert values[3] > values[1], "France is likely after 'The capital of'"


def test_a_repeated_prefix_is_not_computed_again(server: CortexServer) -> None:
    text = "Remember these words: " + ", ".join("abcdefghijklmnopqrstuvwxyz")
    with client_of(server) as client:
        for question in ("First?", "Second?"):
            response = client.chat.completions.create(
                model=MODEL, messages=user(f"{text}. {question}"), max_tokens=2, stream=False
            )
            assert response.usage is not None
            assert response.usage.prompt_tokens_details is not None
            num_prompt, num_cached = response.usage.prompt_tokens, response.usage.prompt_tokens_details.cached_tokens
            if question == "First?":
                assert num_cached is not None
                assert num_cached < 40  # the template's text before every prompt
    assert num_cached is not None
    assert num_prompt - 20 < num_cached < num_prompt


def test_32_clients_streaming_at_once_each_get_their_own_answer(server: CortexServer, tokenizer: Tokenizer) -> None:
    texts = [f"Say {'very ' * number}well." for number in range(32)]
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    lengths = [len(template.render_tokens([{"role": "user", "content": text}])) for text in texts]
    assert len(set(lengths)) == 32

    own = letters(tokenizer, 32)

    async def ask(client: AsyncOpenAI, text: str, bias: dict[str, int]) -> Answer:
        return await rest(await begin(client, text, 12, logit_bias=bias))

    async def ask_all() -> list[Answer]:
        async with async_client_of(server) as client:
            return await asyncio.gather(*(ask(client, *each) for each in zip(texts, own.values(), strict=True)))

    answers = asyncio.run(ask_all())
    assert [len(answer.ids) for answer in answers] == [1] * 32
    assert len(set().union(*(answer.ids for answer in answers))) == 32
    assert [answer.content for answer in answers] == [letter * 12 for letter in own]
    assert [answer.finish_reasons for answer in answers] == [["length"]] * 32
    assert [answer.num_tokens for answer in answers] == [(length, 12) for length in lengths]
    server.assert_nothing_is_held()


def test_200_clients_share_eight_sequences(narrow: CortexServer) -> None:
    """Eight other requests start first, so that the test knows when all sequences are taken."""
    before, _ = narrow.statistics()

    async def ask(client: AsyncOpenAI, number: int) -> str | None:
        response = await client.chat.completions.create(
            model=MODEL, messages=user(f"{number}?"), max_tokens=3, extra_body={"ignore_eos": True}
        )
        assert response.usage is not None
        assert response.usage.completion_tokens == 3
        return response.choices[0].finish_reason

    def numbers() -> tuple[int, int]:
        health = narrow.health()
        return health["running"], health["waiting"]

    async def ask_all() -> list[str | None]:
        async with async_client_of(narrow) as client:
            others = [await begin(client, f"Story {number}.", 900) for number in range(8)]
            await asyncio.to_thread(wait_until, lambda: numbers() == (8, 0), "all sequences are taken")
            asking = [asyncio.create_task(ask(client, number)) for number in range(200)]
            await asyncio.to_thread(wait_until, lambda: numbers()[1] > 0, "some wait")
            assert (await asyncio.to_thread(numbers))[0] == 8
            for stream in others:
                await stream.close()
            return await asyncio.gather(*asking)

    assert asyncio.run(ask_all()) == ["length"] * 200
    narrow.assert_nothing_is_held()
    after, _ = narrow.statistics()
    assert after["finished"] - before["finished"] == 200
    assert after["cancelled"] - before["cancelled"] == 8


def test_a_client_that_leaves_frees_its_memory_soon(narrow: CortexServer) -> None:
    before, _ = narrow.statistics()
    with client_of(narrow) as client:
        stream = long_stream(client, FOREVER)
        read_first(stream)
        wait_until(lambda: narrow.health()["kv"]["held_tokens"] > 0, "memory is held")
        stream.close()
        after, _ = narrow.statistics()
    assert after["cancelled"] - before["cancelled"] == 1
    assert after["finished"] == before["finished"]
    assert after["decode_tokens"] - before["decode_tokens"] < FOREVER / 2, "most of it was never generated"
    narrow.assert_nothing_is_held()


def events_of(response: httpx.Response, limit: int) -> Iterator[tuple[int, str]]:
    """The first events, each with its id and its data."""
    number = 0
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "data":
            yield number, value
            limit -= 1
        if not limit:
            return


def resumable_stream(server: CortexServer, max_tokens: int, limit: int) -> tuple[str, list[tuple[int, str]]]:
    """The URL of a stream of exactly `max_tokens` tokens, and its first events. The connection breaks after them."""
    body = {
        "model": MODEL,
        "messages": user("Tell me everything."),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "logprobs": True,
    }
    url, headers = f"{server.url}/chat/completions", {"X-Stream-Resume": "1"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=SECONDS) as response:
        place = f"{server.url}/streams/{response.headers['x-stream-id']}"
        return place, list(events_of(response, limit))


def rest_of(place: str, last: int, limit: int) -> list[tuple[int, str]]:
    """The next events of a stream, after the one with the id `last`."""
    with httpx.stream("GET", place, headers={"Last-Event-ID": str(last)}, timeout=SECONDS) as response:
        assert response.status_code == 200
        return list(events_of(response, limit))


def test_a_direct_client_loses_nothing_when_its_connection_breaks(narrow: CortexServer) -> None:
    before, _ = narrow.statistics()
    num_tokens, every = 60, 2
    place, events = resumable_stream(narrow, num_tokens, every)
    num_connections = 1
    while events[-1][1] != "[DONE]":
        events += rest_of(place, events[-1][0], every)
        num_connections += 1
    assert [number for number, _ in events] == list(range(1, len(events) + 1))
    assert num_connections > 2  # there are at least five events: the role, tokens, the reason of the end, usage, [DONE]
    chunks = [json.loads(data) for _, data in events[:-1]]
    scored = [piece["logprobs"]["content"] for chunk in chunks for piece in chunk["choices"] if piece["logprobs"]]
    assert sum(map(len, scored)) == chunks[-1]["usage"]["completion_tokens"] == num_tokens
    assert rest_of(place, events[-3][0], every) == events[-2:], "the end can be read again"
    after, _ = narrow.statistics()
    assert (after["finished"] - before["finished"], after["cancelled"] - before["cancelled"]) == (1, 0)
    narrow.assert_nothing_is_held()


def test_a_client_that_never_reads_does_not_stop_others(narrow: CortexServer) -> None:
    body = (
        b'{"model":"smollm2:135m","messages":[{"role":"user","content":"Go on."}],"stream":true,"max_tokens":%d,'
        b'"ignore_eos":true}' % FOREVER
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    before, _ = narrow.statistics()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect(("127.0.0.1", narrow.port))
        deaf.sendall(head + body)
        wait_until(lambda: narrow.health()["running"] == 1, "the request runs")
        with client_of(narrow) as client:
            for _ in range(3):
                for _ in long_stream(client, 20):
                    pass
        assert narrow.health()["running"] == 1  # its tokens are still generated, read or not
    after, _ = narrow.statistics()
    assert after["finished"] - before["finished"] == 3
    assert after["cancelled"] - before["cancelled"] == 1
    narrow.assert_nothing_is_held()


def test_growing_requests_that_cannot_fit_together_all_finish(
    tmp_path: Path, tiny_model_path: str, tokenizer: Tokenizer
) -> None:
    own = letters(tokenizer, 16)

    async def ask_all(server: CortexServer) -> list[Answer]:
        async with async_client_of(server) as client:
            with paused(server.health()["engine_pid"]):  # all start at once; else they might run one after the other
                streams = await asyncio.gather(
                    *(begin(client, f"Story number {letter}.", 80, logit_bias=bias) for letter, bias in own.items())
                )
            return await asyncio.gather(*map(rest, streams))

    with tiny_server(tmp_path, tiny_model_path, "--kv-tokens=1024", "--ctx-len=512", "--max-seqs=16") as cramped:
        answers = asyncio.run(ask_all(cramped))
        assert [answer.content for answer in answers] == [letter * 80 for letter in own]
        assert [answer.num_tokens[1] for answer in answers] == [80] * 16
        scheduler, cache = cramped.statistics()
        assert scheduler["preemptions"] > 0
        assert scheduler["finished"] == 16
        assert cache["pages"] == 1024 // 32
        cramped.assert_nothing_is_held()


# Shutdown and crashes


def test_a_killed_server_leaves_no_engine(tmp_path: Path) -> None:
    with CortexServer(tmp_path, "--ctx-len=1024") as server, client_of(server) as client:
        engine = server.health()["engine_pid"]
        stream = long_stream(client, 900)
        read_first(stream)
        assert not is_gone(engine)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(engine), "the engine has ended")
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in stream:
                pass


def test_streams_outlive_a_killed_engine_and_miss_nothing(tmp_path: Path) -> None:
    """Grammars fix the text of two streams; logprobs make them stream token by token. The third stream is free."""
    texts = [" ".join(str(number) for number in range(start, start + 25)) for start in (100, 500)]

    async def ask(client: AsyncOpenAI, killed: asyncio.Event, **fields: Any) -> tuple[str, str | None, int]:
        content, reason, num_tokens = "", None, 0
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=user("Count."), stream=True, stream_options={"include_usage": True}, **fields
        ):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reason = choice.finish_reason or reason
            if len(content) > 20 and not killed.is_set():
                killed.set()
                os.kill(engine, signal.SIGKILL)
                wait_until(lambda: server.health()["status"] == "loading", "the engine is gone")
                with pytest.raises(openai.InternalServerError) as refused:
                    await client.chat.completions.create(model=MODEL, messages=user("Hi"), max_tokens=2)
                assert refused.value.status_code == 503, "new requests should be retried"
            num_tokens = chunk.usage.completion_tokens if chunk.usage else 0
        return content, reason, num_tokens

    async def ask_all() -> list[tuple[str, str | None, int]]:
        async with async_client_of(server) as client:
            killed = asyncio.Event()
            bound = [
                ask(client, killed, logprobs=True, extra_body={"guided_regex": text}, max_tokens=500) for text in texts
            ]
            free = ask(client, killed, max_tokens=100, extra_body={"ignore_eos": True})
            return await asyncio.gather(*bound, free)

    with CortexServer(tmp_path, "--ctx-len=1024") as server:
        engine = server.health()["engine_pid"]
        *bound, free = asyncio.run(ask_all())
        wait_until(lambda: server.health()["engine_pid"] not in (None, engine), "there is another engine")
        assert [text for text, _, _ in bound] == texts
        assert [reason for _, reason, _ in bound] == ["stop", "stop"]
        assert free[1:] == ("length", 100)
        server.assert_nothing_is_held()
        assert server.stop() == 0


def test_sigterm_lets_streams_finish_and_refuses_new_work(tmp_path: Path, tiny_model_path: str) -> None:
    flags = ("--ctx-len=1024", f"--grace={10 * SECONDS}")
    with (
        tiny_server(tmp_path, tiny_model_path, *flags, is_patient=True) as server,
        client_of(server) as client,
    ):
        engine = server.health()["engine_pid"]
        with paused(engine):  # the streams cannot end before these checks
            place, lost = resumable_stream(server, 10, 1)
            stream = long_stream(client, 50)
            assert next(stream).choices[0].delta.role == "assistant"
            server.process.terminate()
            wait_until(lambda: server.health()["status"] == "draining", "the server drains")
            with pytest.raises(openai.InternalServerError) as refused:
                client.chat.completions.create(model=MODEL, messages=user("Hi"), max_tokens=2)
        assert refused.value.status_code == 503
        assert refused.value.code == "shutting_down"
        assert refused.value.response.headers["retry-after"]
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        wait_until(lambda: server.health()["running"] == 0, "all answers are complete")
        assert rest_of(place, lost[-1][0], 100)[-1][1] == "[DONE]", "the server waits for a client that comes back"
        assert server.process.wait(SECONDS) == 0
        assert is_gone(engine)
        assert "Traceback" not in server.log


def test_sigterm_ends_streams_that_outlast_the_grace_period(tmp_path: Path) -> None:
    with CortexServer(tmp_path, "--ctx-len=4096", "--grace=0.5") as server, client_of(server) as client:
        engine = server.health()["engine_pid"]
        stream = long_stream(client, 4000)
        read_first(stream)
        server.process.terminate()
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass
        assert server.process.wait(SECONDS) == 0
        assert is_gone(engine)
        assert "Traceback" not in server.log


def test_a_conversation_is_cached_across_a_restart(tmp_path: Path, tiny_model_path: str) -> None:
    question = user("Tell me about these words: " + "tree house river stone " * 30)
    for known in (0, 128):
        with (
            tiny_server(tmp_path, tiny_model_path, "--ctx-len=512", is_patient=True) as server,
            client_of(server) as client,
        ):
            response = client.chat.completions.create(model=MODEL, messages=question, max_tokens=4)
            assert response.usage is not None
            assert response.usage.prompt_tokens_details is not None
            cached = response.usage.prompt_tokens_details.cached_tokens
            assert cached is not None
            assert cached >= known
            assert cached <= known * 2
            assert server.stop() == 0


def test_idle_connections_do_not_delay_the_shutdown(tmp_path: Path, tiny_model_path: str) -> None:
    with (
        tiny_server(tmp_path, tiny_model_path, "--ctx-len=256", is_patient=True) as server,
        client_of(server) as client,
        httpx.Client(timeout=SECONDS) as other,
    ):
        client.chat.completions.create(model=MODEL, messages=user("Hi"), max_tokens=2)
        for _ in long_stream(client, 4):
            pass
        assert other.get(f"{server.url}/nowhere").status_code == 404
        assert server.stop() == 0, "waiting for one of them would exceed the time limit of stop()"


def test_repeated_signals_do_not_change_the_shutdown(tmp_path: Path, tiny_model_path: str) -> None:
    with tiny_server(tmp_path, tiny_model_path, "--ctx-len=256") as server:
        engine = server.health()["engine_pid"]
        while server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert server.process.returncode == 0
        assert "Traceback" not in server.log
        assert not (tmp_path / "server.json").exists()
        wait_until(lambda: is_gone(engine), "the engine has ended")


def test_sigterm_while_the_model_loads_ends_the_server(tmp_path: Path) -> None:
    server = CortexServer(tmp_path)
    with server:
        engine = server.health()["engine_pid"]
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: server.health()["status"] == "loading", "the engine is gone")
        assert server.stop() == 0
        assert "Traceback" not in server.log
