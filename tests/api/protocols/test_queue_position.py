"""While a stream waits for its first token, its comments say the position in the queue."""

from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.protocols.answer import PING_SECONDS
from api.text.tokenizer import Tokenizer
from scheduler.messages import Queue
from tests.api.fakes import MODEL, Server, Stream
from tests.api.sdks import Sdks

USER: Final = {"role": "user", "content": "Hello"}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [USER], "max_tokens": 3},
}


async def comments(stream: Stream) -> list[bytes]:
    """The comments up to the next event."""
    found = []
    while (data := await stream.write()) is not None:
        if not data.startswith(b":"):
            break
        found.append(data)
    return found


@pytest.mark.parametrize("path", BODIES)
async def test_a_comment_has_each_new_position(tokenizer: Tokenizer, path: str, autojump_clock: MockClock) -> None:
    server = Server(tokenizer, url=path)
    async with server.stream({"model": MODEL} | BODIES[path]) as stream:
        await server.engine.wait_active()
        if path != "/v1/completions":
            assert not (await stream.write() or b"").startswith(b":")
        [submit] = server.engine.submitted
        for ids in ([77, submit.request_id], [77, submit.request_id], [99], [submit.request_id, 88]):
            server.engine.on_message(Queue(ids))
            await wait_all_tasks_blocked()
            await trio.sleep(1)
        server.engine.emit(server.encode("One"))
        server.engine.on_message(Queue([66, 67, submit.request_id]))  # it was sent before the token
        assert await comments(stream) == [b": queued 2\n\n", b": queued 1\n\n"]
        server.engine.on_message(Queue([66, submit.request_id]))
        server.engine.emit([], "stop")
        rest = [data async for data in _writes(stream)]
    assert not any(b": queued" in data for data in rest)


async def _writes(stream: Stream) -> Any:
    while (data := await stream.write()) is not None:
        yield data


async def test_pings_go_on_without_a_new_position(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = Server(tokenizer, url="/v1/completions")
    async with server.stream({"model": MODEL, "prompt": "Hello"}) as stream:
        await server.engine.wait_active()
        [submit] = server.engine.submitted
        server.engine.on_message(Queue([submit.request_id]))
        begun = trio.current_time()
        assert await stream.write() == b": queued 1\n\n"
        assert await stream.write() == b": ping\n\n"
        assert trio.current_time() - begun == pytest.approx(PING_SECONDS)
        server.engine.emit(server.encode("One"), "stop")
        await stream.rest()


async def test_the_first_of_several_sequences_counts(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url="/v1/completions")
    async with server.stream({"model": MODEL, "prompt": "Hello", "n": 3}) as stream:
        await server.engine.wait_active()
        await wait_all_tasks_blocked()
        first, second, third = (submit.request_id for submit in server.engine.submitted)
        server.engine.on_message(Queue([77, 78, third, first]))
        assert await stream.write() == b": queued 3\n\n"
        server.engine.emit(server.encode("One"), "stop", request_id=second)
        server.engine.on_message(Queue([third, first]))
        for request_id in (first, third):
            server.engine.emit(server.encode("One"), "stop", request_id=request_id)
        assert all(event is not None for event in await stream.rest())


async def test_a_stream_with_a_grammar_waits_for_its_acceptance(tokenizer: Tokenizer) -> None:
    """An engine reports positions only of requests whose grammars it has accepted."""
    server = Server(tokenizer, url="/v1/completions")
    async with server.stream({"model": MODEL, "prompt": "Hello", "guided_regex": "[a-z]+"}) as stream:
        await server.engine.wait_active()
        await wait_all_tasks_blocked()
        assert stream.status is None
        [submit] = server.engine.submitted
        server.engine.emit([])
        server.engine.on_message(Queue([1000, submit.request_id]))
        assert await stream.write() == b": queued 2\n\n"
        server.engine.emit(server.encode("one"), "stop")
        await stream.rest()


async def test_a_whole_answer_does_not_change(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url="/v1/completions")
    texts: list[str] = []

    async def ask() -> None:
        response = await server.post({"model": MODEL, "prompt": "Hello"})
        texts.append((await response.get_json())["choices"][0]["text"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await server.engine.wait_active()
        [submit] = server.engine.submitted
        for ids in ([5, submit.request_id], [submit.request_id]):
            server.engine.on_message(Queue(ids))
            await wait_all_tasks_blocked()
        server.engine.emit(server.encode("One"), "stop")
    assert texts == ["One"]


@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_sdks_ignore_the_comments(tokenizer: Tokenizer, name: str) -> None:
    server = Server(tokenizer)
    sdks, texts = Sdks(server), []
    fields = {"model": MODEL, "messages": [USER]}

    def ask_openai(create: Any) -> list[str]:
        return [chunk.choices[0].delta.content or "" for chunk in create(**fields, stream=True)]

    def ask_anthropic(stream: Any) -> list[str]:
        with stream(**fields, max_tokens=9) as events:
            return list(events.text_stream)

    async def ask() -> None:
        if name == "openai":
            pieces = await sdks.call(ask_openai, create=sdks.openai.chat.completions.create)
        else:
            pieces = await sdks.call(ask_anthropic, stream=sdks.anthropic.messages.stream)
        texts.append("".join(pieces))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await server.engine.wait_active()
        [submit] = server.engine.submitted
        server.engine.on_message(Queue([7, submit.request_id]))
        await wait_all_tasks_blocked()
        server.engine.emit(server.encode("One"), "stop")
    assert texts == ["One"]
