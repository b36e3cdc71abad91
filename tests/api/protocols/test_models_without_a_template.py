"""A model without a chat template gets ChatML. A template's end mark ends an answer, even if it is written as text."""

from collections.abc import Iterator

import pytest

from api.models.defaults import ModelDefaults
from api.text.tokenizer import Tokenizer
from tests.api.fakes import Server, chat
from tests.conftest import WriteVocab

MESSAGES_URL = "/v1/messages"
ANSWER = "Four.<|im_end|>\n<|im_start|>user\nAnd 3+3?"
"""The answer of a model that was not trained for chats."""


@pytest.fixture
def server(write_vocab: WriteVocab) -> Iterator[Server]:
    tokenizer = Tokenizer(write_vocab([("\u2581", 1)]))
    assert tokenizer.chat_template is None
    server = Server(tokenizer)
    server.answers(ANSWER, "length")
    yield server
    tokenizer.close()


async def test_an_answer_ends_at_the_end_mark(server: Server) -> None:
    (choice,) = (await (await server.post(chat("2+2?"))).get_json())["choices"]
    assert (choice["message"]["content"].strip(), choice["finish_reason"]) == ("Four.", "stop")


async def test_a_stream_ends_at_the_end_mark(server: Server) -> None:
    async with server.stream(chat("2+2?")) as stream:
        chunks = [chunk for chunk in await stream.rest() if isinstance(chunk, dict)]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text.strip() == "Four."


async def test_a_message_ends_its_turn_at_the_end_mark(server: Server) -> None:
    server.url = MESSAGES_URL
    body = await (await server.post(chat("2+2?", max_tokens=100))).get_json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["content"][0]["text"].strip() == "Four."


async def test_a_stop_sequence_of_the_client_is_reported(server: Server) -> None:
    server.url = MESSAGES_URL
    for stop in (".", "<|im_end|>"):
        body = await (await server.post(chat("2+2?", max_tokens=100, stop_sequences=[stop]))).get_json()
        assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", stop)


async def test_a_grammar_decides_where_the_answer_ends(server: Server) -> None:
    server.answers('{"mark": "<|im_end|>"}')
    body = chat("2+2?", response_format={"type": "json_object"})
    (choice,) = (await (await server.post(body)).get_json())["choices"]
    assert choice["message"]["content"].strip() == '{"mark": "<|im_end|>"}'


async def test_completions_have_no_end_mark(server: Server) -> None:
    server.url = "/v1/completions"
    (choice,) = (await (await server.post({"model": "an-alias", "prompt": "2+2?"})).get_json())["choices"]
    assert "<|im_end|>" in choice["text"]


@pytest.mark.parametrize("mark", ["<end_of_turn>", "<|im_end|>", "</answer>"])
async def test_the_end_mark_of_any_template_ends_an_answer_if_the_vocabulary_lacks_it(
    write_vocab: WriteVocab, mark: str
) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + mark + "\n{% endfor %}"
    tokenizer = Tokenizer(write_vocab([("\u2581", 1)]))
    server = Server(tokenizer, defaults=ModelDefaults(chat_template=template))
    server.answers(f"Four.{mark}\n[user]And 3+3?", "length")
    (choice,) = (await (await server.post(chat("2+2?"))).get_json())["choices"]
    assert (choice["message"]["content"].strip(), choice["finish_reason"]) == ("Four.", "stop")
    (model, _) = (await (await server.client.get("/v1/models")).get_json())["data"]
    assert model["chat_template"] == "model.yaml"
    tokenizer.close()


async def test_the_models_say_which_template_is_used(server: Server, tokenizer: Tokenizer) -> None:
    (model, _) = (await (await server.client.get("/v1/models")).get_json())["data"]
    assert model["chat_template"] == "ChatML (built in)"
    (model, _) = (await (await Server(tokenizer).client.get("/v1/models")).get_json())["data"]
    assert model["chat_template"] == "file"


async def test_a_template_of_the_file_sets_no_end_mark(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    server.answers(ANSWER)
    (choice,) = (await (await server.post(chat("2+2?"))).get_json())["choices"]
    assert "<|im_end|>" in choice["message"]["content"]
