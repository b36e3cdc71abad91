"""The tables of docs/api.md: every field of every request is there, and is what the table calls it."""

import re
import typing

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as TextParams

from api.command.docs import API, TABLES, Table
from api.protocols.chat import request as chat
from api.protocols.chat.request import ChatRequest
from api.protocols.completions.request import CompletionRequest
from api.protocols.embeddings.request import EmbeddingsRequest
from api.protocols.fields import Wire
from api.protocols.management.request import StartRequest, StopRequest
from api.protocols.messages import request as messages
from api.protocols.messages.request import MessagesRequest
from api.protocols.ollama.options import OllamaOptions
from api.protocols.ollama.request import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from api.protocols.rerank.request import RerankRequest
from api.protocols.responses import request as responses
from api.protocols.responses.request import ResponseRequest
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest

REQUESTS = (
    *(ChatRequest, CompletionRequest, ResponseRequest, MessagesRequest, EmbeddingsRequest),
    *(TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest, StartRequest, StopRequest),
    *(OllamaChatRequest, OllamaGenerateRequest, OllamaEmbedRequest, OllamaEmbeddingsRequest, OllamaShowRequest),
    *(OllamaOptions, RerankRequest),
)


def table() -> dict[str, dict[str, str]]:
    """For each endpoint, the word that the table has for each of OpenAI's fields."""
    words: dict[str, dict[str, str]] = {"chat": {}, "completions": {}}
    section = API.read_text().split("### Chat completions and completions\n")[1].split("\n#")[0]
    for row in re.findall(r"^\| (`.*?) \| (\w*) ?\| (\w*) ?\|.*\|$", section, re.MULTILINE):
        for field in re.findall(r"`(\w+)`", row[0]):
            for endpoint, word in zip(words, row[1:], strict=True):
                if word:
                    assert field not in words[endpoint]
                    words[endpoint][field] = word
    return words


@pytest.mark.parametrize(("endpoint", "params"), [("chat", ChatParams), ("completions", TextParams)])
def test_every_field_of_openais_is_in_the_table(endpoint: str, params: type) -> None:
    assert set(typing.get_type_hints(params)) == set(table()[endpoint])


def test_what_is_served_or_accepted_is_read_and_the_rest_is_refused() -> None:
    words = table()
    assert {field for field, word in words["chat"].items() if word == "refused"} == set(chat.UNSERVED)
    for endpoint, model in (("chat", ChatRequest), ("completions", CompletionRequest)):
        fields = {field for field, word in words[endpoint].items() if word in ("served", "accepted")}
        assert fields <= set(model.model_fields)


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda model: model.__name__)
def test_every_field_of_a_request_is_documented(request_type: type[Wire]) -> None:
    text = API.read_text()
    assert [field for field in request_type.model_fields if f"`{field}`" not in text] == []


@pytest.mark.parametrize(
    "refused",
    [chat.UNSERVED, responses.UNSERVED, messages.UNSERVED, OllamaGenerateRequest.unserved, RerankRequest.unserved],
)
def test_every_refused_field_is_documented(refused: dict[str, object]) -> None:
    text = API.read_text()
    assert [field for field in refused if f"`{field}`" not in text] == []


@pytest.mark.parametrize("generated", TABLES, ids=lambda generated: generated.name)
def test_the_generated_tables_are_as_generated(generated: Table) -> None:
    text = generated.page.read_text()
    assert generated.put_into(text) == text, "'make docs' writes it again"
