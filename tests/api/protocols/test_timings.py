"""Times of an answer on request, in virtual time."""

from typing import Any, Final

import orjson
import pytest
import trio
from trio.testing import MockClock

from api.protocols.chat.types import ChatCompletion, ChatCompletionChunk
from api.protocols.completions.types import TextCompletion, TextCompletionChunk
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, Step
from tests.api.fakes import MODEL, Server, events

BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Hello there"},
}
NAMES: Final = {
    *("queue_ms", "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second"),
    *("predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"),
}


async def run(server: Server, path: str, **fields: Any) -> Any:
    """The answer, or the events of a stream. It waits for 2 s in the engine, then has a token each second."""
    server.url, data = path, b""

    async def ask() -> None:
        nonlocal data
        response = await server.post({"model": MODEL} | BODIES[path] | fields)
        data = await response.get_data(as_text=False)
        assert response.status_code == 200, data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await server.engine.wait_active()
        await trio.sleep(2.5)
        for number, token in enumerate(server.encode("One two three")):
            for submit in server.engine.submitted[-fields.get("n", 1) :]:
                output = Output(submit.request_id, [token])
                if not number:
                    output.cached_tokens, output.queue_seconds = 1, 2.0
                server.engine.on_message(Step([output]))
            await trio.sleep(1)
        for submit in server.engine.submitted[-fields.get("n", 1) :]:
            server.engine.on_message(Step([Output(submit.request_id, [], "length")]))
    return events(data) if fields.get("stream") else orjson.loads(data)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", ["timings", "timings_per_token"])
async def test_a_whole_answer(tokenizer: Tokenizer, path: str, field: str, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    answer = await run(server, path, **{field: True})
    (ChatCompletion if "chat" in path else TextCompletion).model_validate(answer)
    num_prompt = len(server.engine.submitted[-1].tokens)
    assert answer["timings"] == {
        "queue_ms": 2000,
        "cache_n": 1,
        "prompt_n": num_prompt - 1,
        "prompt_ms": pytest.approx(500),
        "prompt_per_token_ms": pytest.approx(500 / (num_prompt - 1), abs=0.01),
        "prompt_per_second": pytest.approx((num_prompt - 1) / 0.5, abs=0.01),
        "predicted_n": 3,
        "predicted_ms": pytest.approx(2000),
        "predicted_per_token_ms": pytest.approx(2000 / 3, abs=0.01),
        "predicted_per_second": pytest.approx(1.5),
    }


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("usage", [False, True])
async def test_the_last_chunk(tokenizer: Tokenizer, path: str, usage: bool, autojump_clock: MockClock) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    *chunks, done = await run(Server(tokenizer), path, stream=True, timings=True, **options)
    assert done == "[DONE]"
    assert [("timings" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1]["timings"]["predicted_n"], chunks[-1]["timings"]["predicted_ms"]) == (3, pytest.approx(2000))
    assert bool(chunks[-1].get("usage")) == usage


@pytest.mark.parametrize("path", BODIES)
async def test_every_chunk(tokenizer: Tokenizer, path: str, autojump_clock: MockClock) -> None:
    *chunks, _ = await run(Server(tokenizer), path, stream=True, timings_per_token=True)
    kind = ChatCompletionChunk if "chat" in path else TextCompletionChunk
    for chunk in chunks:
        kind.model_validate(chunk)
    timed = [chunk["timings"] for chunk in chunks if "timings" in chunk]
    assert len(timed) >= len(chunks) - 1, "only the first chunk of a chat comes before the first token"
    assert all(set(each) == NAMES for each in timed)
    assert [each["predicted_n"] for each in timed] == [1, 2, 3, 3]
    assert [each["predicted_ms"] for each in timed] == [pytest.approx(each) for each in (0, 1000, 2000, 2000)]
    assert timed[0]["predicted_per_second"] == 0


@pytest.mark.parametrize("path", BODIES)
async def test_several_choices(tokenizer: Tokenizer, path: str, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    answer = await run(server, path, n=3, timings=True)
    found = answer["timings"]
    assert (found["predicted_n"], found["predicted_ms"]) == (9, pytest.approx(2000))
    assert found["prompt_n"] + found["cache_n"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_without_asking_there_are_none(
    tokenizer: Tokenizer, path: str, stream: bool, autojump_clock: MockClock
) -> None:
    found = await run(Server(tokenizer), path, stream=stream, timings=False, timings_per_token=False)
    assert all("timings" not in each for each in (found[:-1] if stream else [found]))
