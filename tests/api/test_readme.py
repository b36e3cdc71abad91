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
    """The README's status of each of OpenAI's fields, for each endpoint."""
    statuses: dict[str, dict[str, str]] = {"chat": {}, "completions": {}}
    for row in re.findall(r"^\| (`.*?) \| (\w*) ?\| (\w*) ?\|.*\|$", README.read_text(), re.MULTILINE):
        for field in re.findall(r"`(\w+)`", row[0]):
            for endpoint, status in zip(statuses, row[1:], strict=True):
                if status:
                    assert field not in statuses[endpoint]
                    statuses[endpoint][field] = status
    return statuses


@pytest.mark.parametrize(("endpoint", "params"), [("chat", ChatParams), ("completions", TextParams)])
def test_every_field_of_openais_is_in_the_table(endpoint: str, params: type) -> None:
    assert set(typing.get_type_hints(params)) == set(table()[endpoint])


def test_the_request_types_have_the_documented_fields() -> None:
    documented = table()
    assert {field for field, status in documented["chat"].items() if status == "refused"} == set(UNSERVED)
    for endpoint, model in (("chat", ChatRequest), ("completions", CompletionRequest)):
        fields = {field for field, status in documented[endpoint].items() if status in ("served", "accepted")}
        assert fields <= set(model.model_fields)


def test_extensions_are_documented() -> None:
    text = README.read_text()
    for model in (ChatRequest, CompletionRequest):
        for field in model.model_fields:
            assert f"`{field}`" in text, field


def test_the_generated_tables_are_up_to_date() -> None:
    text = README.read_text()
    assert with_tables(text) == text, "'make docs' writes them"
