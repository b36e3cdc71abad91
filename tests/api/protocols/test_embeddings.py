"""POST /v1/embeddings: over a fake engine, and through the official SDK on the real small model."""

import asyncio
import base64
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import openai
import orjson
import pytest
import trio
from numpy.typing import NDArray
from openai import AsyncOpenAI, OpenAI
from quart import Response
from trio.testing import wait_all_tasks_blocked

from api.protocols.embeddings import types as embedding_answers
from api.text.tokenizer import Tokenizer
from scheduler.messages import Cancel, Embed, Embedded
from tests.api.fakes import INFO, MODEL, Server, leave
from tests.api.servers import SECONDS, CortexServer
from tests.closeness import Scale, scale_of
from tests.models import write_bert

URL = "/v1/embeddings"
LIMIT = 16
POOLS = replace(INFO, pooling="mean", embedding_size=4, max_text_tokens=LIMIT)
EMBEDDING = np.array([0.5, -0.5, 0.1, 0.7], "<f4")
ENCODED = base64.b64encode(EMBEDDING.tobytes()).decode()


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer)
    server.engine.info = POOLS
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, [encoded(text) for text in embed.texts])]
    return server


def encoded(text: list[int]) -> str:
    """The embedding of a text in base64, multiplied by the number of its tokens."""
    return base64.b64encode((EMBEDDING * len(text)).tobytes()).decode()


async def post(server: Server, text: Any = "Hello", /, **fields: Any) -> Response:
    body = {"model": MODEL, "input": text} | fields
    return await server.client.post(URL, data=orjson.dumps(body), headers={"Content-Type": "application/json"})


async def respond(server: Server, text: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    response = await post(server, text, **fields)
    body = await response.get_data(as_text=False)
    assert response.status_code == 200, body
    embedding_answers.Embeddings.model_validate_json(body)
    found: dict[str, Any] = orjson.loads(body)
    return found


async def refused(server: Server, text: Any = "Hello", /, **fields: Any) -> tuple[int, str | None, str | None, str]:
    """Posts a request that must fail. Returns the status, param, code and message of the error."""
    response = await post(server, text, **fields)
    error = orjson.loads(await response.get_data(as_text=False))["error"]
    return response.status_code, error["param"], error["code"], error["message"]


def embeds(server: Server) -> list[Embed]:
    return [message for message in server.engine.posted if isinstance(message, Embed)]


async def test_a_text_gets_its_embedding(server: Server) -> None:
    answer = await respond(server, "Hello there")
    [embed] = embeds(server)
    assert embed.texts == [server.encode("Hello there")]
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": pytest.approx([1.0, -1.0, 0.2, 1.4])}],
        "model": MODEL,
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    assert server.engine.num_active == 0


async def test_embeddings_are_in_the_order_of_their_texts(server: Server) -> None:
    answer = await respond(server, ["a b c", "a", "a b"], model="an-alias", user="me", encoding_format=None)
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert [each["embedding"][0] for each in answer["data"]] == [1.5, 0.5, 1.0]
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert answer["model"] == "an-alias"


@pytest.mark.parametrize("tokens", [[5, 6, 7], [[5, 6, 7], [8]]])
async def test_tokens_are_accepted_as_input(server: Server, tokens: list[Any]) -> None:
    await respond(server, tokens)
    assert embeds(server)[0].texts == (tokens if isinstance(tokens[0], list) else [tokens])


async def test_embeddings_of_several_messages_become_one_answer(server: Server) -> None:
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, [encoded(text)]) for text in embed.texts]
    answer = await respond(server, ["a b c", "a"])
    assert [each["embedding"][0] for each in answer["data"]] == [1.5, 0.5]


async def test_base64_contains_the_same_numbers(server: Server) -> None:
    [each] = (await respond(server, encoding_format="base64"))["data"]
    assert each["embedding"] == ENCODED


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_embeddings_are_truncated_to_dimensions_and_renormalised(server: Server, encoding_format: str) -> None:
    [each] = (await respond(server, dimensions=2, encoding_format=encoding_format))["data"]
    embedding = each["embedding"]
    if encoding_format == "base64":
        embedding = np.frombuffer(base64.b64decode(embedding), "<f4").tolist()
    assert embedding == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


async def test_a_large_answer_is_written_like_a_small_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    few = await respond(server, ["a b", "a"])
    monkeypatch.setattr("api.protocols.texts.INLINE_NUMBERS", 1)
    monkeypatch.setattr("api.protocols.texts.INLINE_CHARACTERS", 1)
    assert await respond(server, ["a b", "a"]) == few


@pytest.mark.parametrize(
    ("fields", "param", "code", "part"),
    [
        ({"input": ""}, "input", "invalid_value", "at least 1"),
        ({"input": []}, "input", "invalid_value", "at least 1"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value", "at least 1"),
        ({"input": [[]]}, "input[0]", "invalid_value", "at least 1"),
        ({"input": ["a"] * 2049}, "input", "invalid_value", "2048"),
        ({"input": None}, "input", "invalid_value", "a text, tokens, or a list of either"),
        ({"input": [-1]}, "input[0]", "invalid_value", "greater than or equal to 0"),
        ({"input": ["a", 1]}, "input[1]", "invalid_value", "valid string"),
        ({"input": [1, "a"]}, "input[1]", "invalid_value", "valid integer"),
        ({"input": [[1], [2, -1]]}, "input[1][1]", "invalid_value", "greater than or equal to 0"),
        ({"input": [1, 49_152]}, "input", "invalid_value", "49152"),
        ({"input": [[1], [2, 99_999]]}, "input[1]", "invalid_value", "99999"),
        ({"input": "a " * LIMIT}, "input", "context_length_exceeded", f"{LIMIT} tokens"),
        ({"input": ["a", [1] * (LIMIT + 1)][1:]}, "input[0]", "context_length_exceeded", f"{LIMIT + 1} tokens"),
        ({"dimensions": 0}, "dimensions", "invalid_value", "greater than or equal to 1"),
        ({"dimensions": 5}, "dimensions", "invalid_value", "4 dimensions"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value", "base64"),
        ({"truncate": True}, "truncate", "unsupported_parameter", "texts are not cut"),
        ({"shorten": True}, "shorten", "unknown_parameter", "shorten"),
    ],
)
async def test_an_invalid_field_is_refused_by_name(
    server: Server, fields: dict[str, Any], param: str, code: str, part: str
) -> None:
    status, error_param, error_code, message = await refused(server, **{"input": "Hello"} | fields)
    assert (status, error_param, error_code) == (400, param, code)
    assert part in message
    assert embeds(server) == []


async def test_a_model_without_pooling_refuses_embeddings(server: Server) -> None:
    server.engine.info = INFO
    status, param, code, message = await refused(server)
    assert (status, param, code) == (400, "model", "unsupported_model")
    assert "--pooling" in message


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
    ],
)
async def test_a_model_that_cannot_generate_refuses_completions(
    server: Server, url: str, fields: dict[str, Any]
) -> None:
    server.engine.info = replace(POOLS, generates=False)
    response = await server.client.post(url, data=orjson.dumps({"model": MODEL} | fields))
    error = orjson.loads(await response.get_data(as_text=False))["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "model", "unsupported_model")
    assert URL in error["message"]
    await respond(server)


async def test_embeddings_are_refused_while_loading_or_shutting_down(server: Server) -> None:
    assert (await refused(server, model="gpt-9"))[:3] == (404, "model", "model_not_found")
    server.engine.info = None
    assert (await refused(server))[::2] == (503, "model_loading")
    server.engine.info = POOLS
    server.fleet.drain()
    assert (await refused(server))[::2] == (503, "shutting_down")


async def test_embeddings_that_arrive_together_do_not_exceed_the_bound(tokenizer: Tokenizer) -> None:
    """A request counts once, whatever the number of its texts: they wait together."""
    server = Server(tokenizer, max_waiting=1)
    server.engine.info = POOLS
    places = [server.service.admission.enter() for _ in range(INFO.max_seqs)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(post, server, ["a"] * 100)
        await wait_all_tasks_blocked()
        assert server.engine.num_active == 1
        assert (await refused(server))[::2] == (429, "rate_limit_exceeded")
        server.engine.on_message(Embedded(embeds(server)[0].request_id, [ENCODED] * 100))
    places.pop().release()
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, [ENCODED])]
    assert (await post(server)).status_code == 200


async def test_a_full_queue_is_a_429(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, max_waiting=0)
    server.engine.info = POOLS
    waiting = [server.engine.embed([[1]]) for _ in range(INFO.max_seqs)]
    for each in waiting:
        each.__enter__()
    assert (await refused(server))[::2] == (429, "rate_limit_exceeded")
    for each in waiting:
        each.__exit__(None, None, None)
    assert server.engine.num_active == 0


async def test_an_engine_that_fails_or_dies_is_a_500(server: Server) -> None:
    server.engine.embedded = lambda embed: [
        Embedded(embed.request_id, [ENCODED]),
        Embedded(embed.request_id, error="the model failed"),
    ]
    status, _, code, message = await refused(server, ["a", "b"])
    assert (status, code, message) == (500, "internal_error", "the model failed")

    def die(_: Embed) -> list[Embedded]:
        server.engine.die()
        return []

    server.engine.embedded = die
    assert (await refused(server))[0] == 500
    assert server.engine.num_active == 0


async def test_a_disconnect_cancels_the_request(server: Server) -> None:
    server.engine.embedded = None
    connection = server.client.request(URL, method="POST")
    async with connection:
        await connection.send(orjson.dumps({"model": MODEL, "input": "Hi"}))
        await connection.send_complete()
        await wait_all_tasks_blocked()
        assert server.engine.num_active == 1
        await leave(connection)  # type: ignore[arg-type]
    assert server.engine.cancelled == [embeds(server)[0].request_id]
    assert server.engine.num_active == 0


async def test_embeddings_after_the_end_of_a_request_are_ignored(server: Server) -> None:
    server.engine.embedded = lambda embed: [
        Embedded(embed.request_id, [ENCODED]),
        Embedded(embed.request_id, [ENCODED]),
        Embedded(999, [ENCODED]),
    ]
    assert len((await respond(server))["data"]) == 1
    assert [message for message in server.engine.posted if isinstance(message, Cancel)] == []


# The real small model, over HTTP


TEXTS = [
    "The cat sat on the mat.",
    "A kitten is resting on a rug.",
    "Interest rates were raised by a quarter of a percent on Thursday. " * 4,
    "x",
    "def add(a, b):\n    return a + b",
    "SmolLM2 " * 50,
]


@pytest.fixture(scope="module")
def cortex(exact_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = ("--pooling=mean", "--ctx-len=256", "--max-seqs=8", "--alias", MODEL)
    with CortexServer(tmp_path_factory.mktemp("server"), *flags, model=exact_model_path) as server:
        yield server


@pytest.fixture
def client(cortex: CortexServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=cortex.url, api_key="not-needed", max_retries=0, timeout=SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def scales(cortex: CortexServer) -> list[Scale]:
    """One for each text: its noise is from a batch with a copy of the text, its fault is an additional first word."""
    with OpenAI(base_url=cortex.url, api_key="not-needed", max_retries=0, timeout=SECONDS) as client:
        return [
            scale_of(embedding, [beside_itself], wrong)
            for embedding, beside_itself, wrong in zip(
                (embed(client, text)[0] for text in TEXTS),
                (embed(client, text, text)[1] for text in TEXTS),
                (embed(client, f"No {text}")[0] for text in TEXTS),
                strict=True,
            )
        ]


def embed(client: OpenAI, *texts: str) -> list[NDArray[np.float32]]:
    return [np.array(each.embedding, np.float32) for each in client.embeddings.create(model=MODEL, input=texts).data]


def test_the_sdk_gets_the_same_embeddings_as_floats_and_as_base64(client: OpenAI, scales: list[Scale]) -> None:
    as_base64 = client.embeddings.create(model=MODEL, input=TEXTS)  # the SDK requests base64 and decodes it
    as_floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [each.index for each in as_base64.data] == list(range(len(TEXTS)))
    assert as_base64.usage == as_floats.usage
    for scale, one, other in zip(scales, as_base64.data, as_floats.data, strict=True):
        assert len(one.embedding) == 576
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
        scale.assert_same(np.array(one.embedding), np.array(other.embedding))


def test_a_text_has_the_same_embedding_in_a_batch_and_alone(client: OpenAI, scales: list[Scale]) -> None:
    for scale, text, embedding in zip(scales, TEXTS, embed(client, *TEXTS), strict=True):
        scale.assert_same(embedding, embed(client, text)[0])


def test_texts_and_their_tokens_have_the_same_embeddings(
    cortex: CortexServer, client: OpenAI, scales: list[Scale]
) -> None:
    url = f"http://127.0.0.1:{cortex.port}/tokenize"
    tokens = [httpx.post(url, json={"content": text}, timeout=SECONDS).json()["tokens"] for text in TEXTS]
    as_tokens = client.embeddings.create(model=MODEL, input=tokens)
    assert as_tokens.usage.prompt_tokens == sum(map(len, tokens))
    for scale, one, other in zip(scales, as_tokens.data, embed(client, *TEXTS), strict=True):
        scale.assert_same(np.array(one.embedding), other)


def test_embeddings_of_the_real_model_are_truncated_and_renormalised(client: OpenAI) -> None:
    def first(text: str) -> NDArray[np.float32]:
        whole = embed(client, text)[0][:64]
        return whole / np.linalg.norm(whole)

    scale = scale_of(first(TEXTS[0]), [first(TEXTS[0])], first(f"No {TEXTS[0]}"))
    [short] = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=64).data
    scale.assert_same(np.array(short.embedding), first(TEXTS[0]))


def test_the_sdk_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        client.embeddings.create(model=MODEL, input=["short", "word " * 300])
    assert (too_long.value.param, too_long.value.code) == ("input[1]", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as too_many:
        client.embeddings.create(model=MODEL, input="x", dimensions=577)
    assert too_many.value.param == "dimensions"


async def together(url: str) -> tuple[list[int], list[int]]:
    """Runs four streams and four embedding requests at once. Returns their numbers of tokens and of embeddings."""
    async with AsyncOpenAI(base_url=url, api_key="not-needed", max_retries=0, timeout=SECONDS) as client:

        async def stream(number: int) -> int:
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Tell me story {number}."}],
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=30,
                extra_body={"ignore_eos": True},
            )
            usages = [chunk.usage async for chunk in answer]
            assert usages[-1] is not None
            return usages[-1].completion_tokens

        async def embed() -> int:
            return len((await client.embeddings.create(model=MODEL, input=TEXTS)).data)

        found = await asyncio.gather(*map(stream, range(4)), *(embed() for _ in range(4)))
    return list(found[:4]), list(found[4:])


def test_embeddings_and_streams_run_side_by_side(cortex: CortexServer) -> None:
    streams, embeddings = asyncio.run(together(cortex.url))
    assert streams == [30] * 4
    assert embeddings == [len(TEXTS)] * 4
    cortex.assert_nothing_is_held()
    embedder = cortex.health()["statistics"]["embedder"]
    assert (embedder["requests"], embedder["failed"], embedder["failed_batches"]) == (0, 0, 0)


def test_an_encoder_is_served_beside_a_generating_model(cortex: CortexServer, client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, gguf.PoolingType.CLS)
    base = f"http://127.0.0.1:{cortex.port}"
    started = httpx.post(f"{base}/v1/models/start", json={"model": str(path)}, headers=cortex.owner, timeout=SECONDS)
    assert started.status_code == 200, started.text
    answer = client.embeddings.create(model=str(path), input=["the cat", "the dog sat"])
    assert [len(each.embedding) for each in answer.data] == [64, 64]
    assert answer.usage.prompt_tokens == 4 + 5
    with pytest.raises(openai.BadRequestError, match="does not generate text"):
        client.chat.completions.create(model=str(path), messages=[{"role": "user", "content": "Hi"}])
    health = cortex.health(str(path))
    assert (health["status"], health["context_length"]) == ("ok", 128)
    stopped = httpx.post(f"{base}/v1/models/stop", json={"model": str(path)}, headers=cortex.owner, timeout=SECONDS)
    assert stopped.status_code == 200
