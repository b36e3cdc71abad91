"""The README's table of parameters is complete and true."""

import re
import typing
from pathlib import Path

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as TextParams

from api.command.docs import with_tables
from api.protocols.chat.request import UNSERVED, ChatRequest
from api.protocols.completions.request import CompletionRequest

README = Path(__file__).parents[2] / "README.md"
EXTENSIONS = {"chat_template_kwargs"}


def table() -> dict[str, dict[str, str]]:
    """What the README says about each of OpenAI's fields, for each endpoint."""
    said: dict[str, dict[str, str]] = {"chat": {}, "completions": {}}
    for row in re.findall(r"^\| (`.*?) \| (\w*) ?\| (\w*) ?\|.*\|$", README.read_text(), re.MULTILINE):
        for field in re.findall(r"`(\w+)`", row[0]):
            for endpoint, word in zip(said, row[1:], strict=True):
                if word:
                    assert field not in said[endpoint]
                    said[endpoint][field] = word
    return said


@pytest.mark.parametrize(("endpoint", "params"), [("chat", ChatParams), ("completions", TextParams)])
def test_every_field_of_openais_is_in_the_table(endpoint: str, params: type) -> None:
    assert set(typing.get_type_hints(params)) == set(table()[endpoint])


def test_what_is_served_or_accepted_is_read_and_the_rest_is_refused() -> None:
    told = table()
    assert {field for field, word in told["chat"].items() if word == "refused"} == set(UNSERVED)
    for endpoint, model in (("chat", ChatRequest), ("completions", CompletionRequest)):
        fields = {field for field, word in told[endpoint].items() if word in ("served", "accepted")}
        assert fields <= set(model.model_fields)


def test_extensions_are_told() -> None:
    text = README.read_text()
    for model in (ChatRequest, CompletionRequest):
        for field in model.model_fields:
            assert f"`{field}`" in text, field


def test_the_generated_tables_are_as_generated() -> None:
    text = README.read_text()
    assert with_tables(text) == text, "'make docs' writes them anew"
