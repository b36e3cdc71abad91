"""Streams outlive the engines of the real small model: nothing is lost, doubled or counted wrong."""

import asyncio
import os
import signal
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from api.text.tokenizer import Tokenizer
from tests.api.servers import MODEL, SECONDS, CortexServer, wait_until
from tests.poisoned_engine import Fault

ENGINE = Path(__file__).parents[1] / "poisoned_engine.py"
COMMAND = f"""
import sys
from api.engine import spawn, supervisor
spawn.ENGINE_COMMAND = (sys.executable, "-P", {str(ENGINE)!r})
supervisor.RESTART_PAUSE = 0.05
from api.command.cli import main
sys.argv[0] = "cortex"
main()
"""
NUM_TOKENS = 40
NUM_KILLS = 5
LONG = "Once upon a time there was a robot. " * 30
ECHOED = "The quick brown fox jumps over the lazy dog, and the dog does not mind."
NUMBERS = [" ".join(map(str, range(start, start + 10))) for start in (100, 500)]
"""Texts that a grammar forces. Each has NUM_TOKENS characters less one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    server = CortexServer(tmp_path_factory.mktemp("server"), "--ctx-len=1024", "--max-seqs=18", "--kv-layout=pool")
    server._command = [sys.executable, "-P", "-c", COMMAND]
    with server:
        yield server


class Stream:
    """One streamed request and what has arrived of it."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.body = body | {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}}
        self.texts: dict[int, str] = {}
        """By the index of the choice."""
        self.logprobs: list[str] = []
        """The tokens that have log probabilities."""
        self.reasons: dict[int, str] = {}
        self.usage: dict[str, Any] = {}
        self.error = ""

    async def read(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", self.path, json=self.body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    self._take(orjson.loads(line.removeprefix("data: ")))

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = chunk["error"]["message"]
            return
        for choice in chunk["choices"]:
            index = choice["index"]
            text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            self.texts[index] = self.texts.get(index, "") + text
            if choice["finish_reason"]:
                assert index not in self.reasons
                self.reasons[index] = choice["finish_reason"]
            logprobs = choice.get("logprobs") or {}
            self.logprobs += logprobs.get("tokens") or [each["token"] for each in logprobs.get("content") or []]
        self.usage = chunk["usage"] or self.usage

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.texts.values()))


def chat(text: str = "Say it.", **fields: Any) -> Stream:
    return Stream("chat/completions", {"messages": [{"role": "user", "content": text}]} | fields)


def bound(token: int, **fields: Any) -> dict[str, Any]:
    """The fields of an answer that repeats one token, whatever the model computes."""
    return {"logit_bias": {str(token): 100}, "ignore_eos": True, "max_tokens": NUM_TOKENS} | fields


async def read_all(server: CortexServer, streams: list[Stream], num_kills: int) -> int:
    """Reads the streams, and kills the engine while they run. Returns how often it was killed."""
    pids: list[int] = []
    total = len(streams) * NUM_TOKENS

    async def kill() -> None:
        while len(pids) < num_kills:
            await asyncio.sleep(0.02)
            arrived = sum(stream.num_characters for stream in streams)
            pid = server.health()["engine_pid"]
            if arrived > total * len(pids) / (num_kills + 2) and pid not in (None, *pids):
                pids.append(pid)
                os.kill(pid, signal.SIGKILL)

    async with httpx.AsyncClient(base_url=server.url, timeout=3 * SECONDS, trust_env=False) as client:
        killing = asyncio.create_task(kill())
        await asyncio.gather(*(stream.read(client) for stream in streams))
        killing.cancel()
    return len(pids)


def test_16_streams_outlive_five_killed_engines_and_miss_nothing(server: CortexServer, tokenizer: Tokenizer) -> None:
    """Logit biases and grammars bind the texts, because those of the model depend on the shapes of batches."""
    letters = {letter: tokenizer.encode(letter, parse_special=False)[0] for letter in string.ascii_letters[:14]}
    *plain, twice, long, mirostat, echo = letters.items()
    streams = [chat(**bound(token)) for _, token in plain]
    streams += [chat(**bound(twice[1], n=2)), chat(LONG, **bound(long[1])), chat(**bound(mirostat[1], mirostat=2))]
    streams += [chat(guided_regex=text, logprobs=True, max_tokens=500) for text in NUMBERS]
    echoing = Stream("completions", {"prompt": ECHOED, "echo": True, "logprobs": 1} | bound(echo[1]))
    streams.append(echoing)
    assert len(streams) == 16

    assert asyncio.run(read_all(server, streams, NUM_KILLS)) == NUM_KILLS
    assert {stream.error for stream in streams} == {""}

    for stream, (letter, _) in zip(streams, [*plain, twice, long, mirostat], strict=False):
        answers = 2 if letter == twice[0] else 1
        assert stream.texts == dict.fromkeys(range(answers), letter * NUM_TOKENS)
        assert stream.reasons == dict.fromkeys(range(answers), "length")
        assert stream.usage["completion_tokens"] == answers * NUM_TOKENS
    for stream, text in zip(streams[-3:], NUMBERS, strict=False):
        assert (stream.texts, stream.reasons) == ({0: text}, {0: "stop"})
        assert "".join(stream.logprobs) == text
        assert stream.usage["completion_tokens"] - len(stream.logprobs) in (0, 1), "the end may be a token"
    prompt = tokenizer.encode(ECHOED, parse_special=False)
    assert echoing.texts == {0: ECHOED + echo[0] * NUM_TOKENS}
    assert echoing.logprobs[:-NUM_TOKENS] == [tokenizer.piece(token).decode() for token in prompt]
    assert echoing.logprobs[-NUM_TOKENS:] == [echo[0]] * NUM_TOKENS
    assert (echoing.usage["prompt_tokens"], echoing.usage["completion_tokens"]) == (len(prompt), NUM_TOKENS)
    server.assert_nothing_is_held()


def test_a_request_that_aborts_the_engine_fails_and_ten_others_beside_it_complete(
    server: CortexServer, tokenizer: Tokenizer
) -> None:
    letters = {letter: tokenizer.encode(letter, parse_special=False)[0] for letter in string.ascii_letters[:10]}
    streams = [chat(**bound(token)) for token in letters.values()]
    guilty = chat("Say anything.", seed=int(Fault.ABORT), ignore_eos=True, max_tokens=NUM_TOKENS)

    wait_until(lambda: server.health()["status"] == "ok", "the engine is ready")
    asyncio.run(read_all(server, [*streams, guilty], 0))

    for stream, letter in zip(streams, letters, strict=True):
        assert (stream.texts, stream.reasons) == ({0: letter * NUM_TOKENS}, {0: "length"})
        assert (stream.error, stream.usage["completion_tokens"]) == ("", NUM_TOKENS)
    reason = "the engine crashed twice while it computed only this request: crashed (SIGABRT)"
    assert (guilty.error, guilty.reasons) == (reason, {})
    wait_until(lambda: server.health()["status"] == "ok", "there is another engine")
    server.assert_nothing_is_held()
