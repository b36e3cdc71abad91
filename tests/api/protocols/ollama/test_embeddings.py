"""POST /api/embed and /api/embeddings over a fake engine."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from api.protocols.ollama.types import OllamaEmbedding, OllamaEmbeddings, OllamaError
from api.text.tokenizer import Tokenizer
from scheduler.messages import Embed, Embedded
from tests.api.fakes import INFO, MODEL, Server

LIMIT = 8


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer, url="/api/embed")
    server.engine.info = replace(INFO, pooling="mean", embedding_size=2, max_text_tokens=LIMIT)
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, [encoded(text) for text in embed.texts])]
    return server


def encoded(text: list[int]) -> str:
    """The embedding [0.6, 0.8] in base64, multiplied by the number of the text's tokens."""
    return base64.b64encode((np.array([0.6, 0.8], "<f4") * len(text)).tobytes()).decode()


async def respond(server: Server, **fields: Any) -> dict[str, Any]:
    response = await server.post({"model": MODEL} | fields)
    data = await response.get_data(as_text=False)
    assert response.status_code == 200, data
    (OllamaEmbeddings if server.url == "/api/embed" else OllamaEmbedding).model_validate_json(data)
    found: dict[str, Any] = orjson.loads(data)
    return found


async def refused(server: Server, **fields: Any) -> str:
    response = await server.post({"model": MODEL} | fields)
    assert response.status_code == 400
    return OllamaError.model_validate_json(await response.get_data(as_text=False)).error


async def test_each_text_gets_its_embedding(server: Server) -> None:
    answer = await respond(server, input=["a b", "a"], keep_alive="5m", options={"num_ctx": 8})
    assert answer["embeddings"] == [pytest.approx([1.2, 1.6]), pytest.approx([0.6, 0.8])]
    assert (answer["model"], answer["prompt_eval_count"]) == (MODEL, 3)
    assert (await respond(server, input="a"))["embeddings"] == [pytest.approx([0.6, 0.8])]
    assert (await respond(server, input="a", dimensions=1))["embeddings"] == [[1.0]]


async def test_long_texts_are_cut_unless_the_client_objects(server: Server) -> None:
    assert (await respond(server, input="a " * 50))["prompt_eval_count"] == LIMIT
    [embed] = [message for message in server.engine.posted if isinstance(message, Embed)]
    assert embed.texts == [server.encode("a " * 50)[:LIMIT]]
    assert "maximum length" in await refused(server, input=["a", "a " * 50], truncate=False)


async def test_no_text_loads_the_model(server: Server) -> None:
    nothings: list[Any] = ["", []]
    for nothing in nothings:
        answer = await respond(server, input=nothing)
        assert (answer["embeddings"], answer["prompt_eval_count"]) == ([], 0)
    assert not server.engine.posted


async def test_the_older_form_has_one_text(server: Server) -> None:
    server.url = "/api/embeddings"
    assert (await respond(server, prompt="a"))["embedding"] == pytest.approx([0.6, 0.8])
    assert (await respond(server))["embedding"] == []


async def test_what_does_not_fit_the_model_is_refused(server: Server) -> None:
    assert "2 dimensions" in await refused(server, input="a", dimensions=3)
    assert "input[1]" in await refused(server, input=["a", ""])
    server.engine.info = INFO
    assert "does not support embeddings" in await refused(server, input="a")
