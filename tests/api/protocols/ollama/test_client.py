"""Ollama's API through its official client, on the real small model over HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.api.servers import MODEL, SECONDS, CortexServer

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Lisbon", "Oporto"]}, "days": {"enum": [1, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "Say hello."}]


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: The name of the city.
    """
    return f"Sunny in {city}."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    with CortexServer(tmp_path_factory.mktemp("server"), "--ctx-len=1024", "--pooling=mean") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: CortexServer) -> Iterator[ollama.Client]:
    with ollama.Client(f"http://127.0.0.1:{server.port}", timeout=SECONDS) as client:
        yield client


def test_it_lists_and_shows_models(client: ollama.Client) -> None:
    [model] = client.list().models
    assert model.model == MODEL
    assert model.size
    assert model.size > 50_000_000
    shown = client.show(MODEL)
    assert shown.capabilities == ["completion", "tools", "embedding"]
    assert shown.details is not None
    assert shown.details.family == "llama"
    assert shown.modelinfo
    [loaded] = client.ps().models
    assert (loaded.name, loaded.context_length) == (MODEL, 1024)


def test_it_chats_whole_and_streamed(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 12, "num_ctx": 1024}
    whole = client.chat(MODEL, QUESTION, options=options)
    *news, last = client.chat(MODEL, QUESTION, options=options, stream=True)
    assert len(news) > 1  # drafted tokens come together
    assert whole.message.content
    assert "".join(each.message.content or "" for each in news)
    for answer in (whole, last):
        assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 12)
        assert answer.prompt_eval_count
        assert answer.total_duration is not None
        assert answer.eval_duration is not None
        assert answer.total_duration > answer.eval_duration > 0


@pytest.mark.parametrize("streams", [True, False])
def test_it_matches_a_schema(client: ollama.Client, streams: bool) -> None:
    chat: Any = client.chat
    answer = chat(MODEL, QUESTION, format=CITY, options={"num_predict": 100}, stream=streams)
    parts = answer if streams else [answer]
    found = json.loads("".join(part.message.content or "" for part in parts))
    assert found["city"] in ("Lisbon", "Oporto")
    assert found["days"] in (1, 3)


def test_it_sends_tools_and_their_results(client: ollama.Client) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Lisbon?"}]
    call = ollama.Message.ToolCall(
        function=ollama.Message.ToolCall.Function(name="weather", arguments={"city": "Lisbon"})
    )
    messages.append(ollama.Message(role="assistant", content="", tool_calls=[call]))
    messages.append({"role": "tool", "tool_name": "weather", "content": weather("Lisbon")})
    answer = client.chat(MODEL, messages, tools=[weather], options={"num_predict": 8, "temperature": 0})
    without = client.chat(MODEL, messages[:1], tools=[weather], options={"num_predict": 8, "temperature": 0})
    assert answer.message.content or answer.message.tool_calls
    assert answer.prompt_eval_count is not None
    assert without.prompt_eval_count is not None
    assert answer.prompt_eval_count > without.prompt_eval_count > 100, "the prompt lists the tool"


def test_it_generates(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 8}
    raw = client.generate(MODEL, "Once upon a time", raw=True, options=options)
    assert raw.prompt_eval_count == 4
    assert raw.response
    streamed = client.generate(MODEL, "Once upon a time", raw=True, options=options, stream=True)
    assert "".join(part.response or "" for part in streamed) == raw.response
    ruled = client.generate(MODEL, "Hello", system="Answer in JSON.", format="json", options={"num_predict": 200})
    assert (ruled.response or "").startswith("{")


def test_it_embeds(client: ollama.Client) -> None:
    texts = ["The cat sat.", "A dog ran."]
    several = client.embed(MODEL, texts)
    assert [len(each) for each in several.embeddings] == [576, 576]
    assert client.embed(MODEL, texts[1]).embeddings[0] == pytest.approx(several.embeddings[1], abs=1e-3)
    assert client.embeddings(MODEL, texts[0]).embedding == pytest.approx(several.embeddings[0], abs=1e-3)


def test_it_gets_errors_it_understands(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as missing:
        client.chat("nobody", QUESTION)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as refused:
        list(client.chat(MODEL, QUESTION, think=True, stream=True))
    assert refused.value.status_code == 400
