"""What an answer must match: the many ways to say it, turned into one grammar in llguidance's words."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from api.errors import ApiError
from api.protocols.chat.request import ChatRequest
from api.protocols.fields import GenerationRequest
from api.protocols.formats import JsonObjectFormat, JsonSchemaFormat
from api.text.dialects import json_rule


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar, and the field of the request that it comes from."""

    param: str
    rule: str = ""
    """The right-hand side of a rule in llguidance's Lark, which may stand inside a larger grammar."""
    grammar: str = ""
    """A grammar of its own, which may not."""

    def whole(self) -> str:
        return self.grammar or f"start: {self.rule}"


def constraint(request: GenerationRequest) -> Constraint | None:
    """What the request wants its content to match. Raises ApiError 400 for two such wishes, or a malformed one."""
    wishes = list(_wishes(request))
    if len(wishes) > 1:
        names = " and ".join(repr(wish.param) for wish in wishes)
        raise ApiError(400, f"Only one of {names} can be given.", param=wishes[1].param, code="invalid_value")
    return wishes[0] if wishes else None


def _wishes(request: GenerationRequest) -> Iterator[Constraint]:
    if isinstance(request, ChatRequest):
        yield from _response_format(request)
    if request.json_schema is not None:
        yield _json("json_schema", request.json_schema)
    if request.grammar is not None:
        yield _grammar("grammar", request.grammar)
    if request.guided_json is not None:
        yield _json("guided_json", request.guided_json)
    if request.guided_regex is not None:
        yield _regex("guided_regex", request.guided_regex)
    if request.guided_choice is not None:
        yield _choice("guided_choice", request.guided_choice)
    if request.guided_grammar is not None:
        yield _grammar("guided_grammar", request.guided_grammar)
    if (outputs := request.structured_outputs) is not None:
        if outputs.json_ is not None:
            yield _json("structured_outputs.json", outputs.json_)
        if outputs.json_object:
            yield _json("structured_outputs.json_object", {"type": "object"})
        if outputs.regex is not None:
            yield _regex("structured_outputs.regex", outputs.regex)
        if outputs.choice is not None:
            yield _choice("structured_outputs.choice", outputs.choice)
        if outputs.grammar is not None:
            yield _grammar("structured_outputs.grammar", outputs.grammar)


def _response_format(request: ChatRequest) -> Iterator[Constraint]:
    match request.response_format:
        case JsonObjectFormat(schema_=schema):
            yield _json("response_format", schema or {"type": "object"})
        case JsonSchemaFormat(json_schema=wrapped):
            yield _json("response_format", {} if wrapped.schema_ is None else wrapped.schema_)


def _json(param: str, schema: dict[str, Any] | bool | str) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ApiError(400, f"{param!r} is not JSON: {error}", param=param, code="invalid_value") from error
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise ApiError(400, f"{param!r} is not a JSON schema.", param=param, code="invalid_value")
    return Constraint(param, json_rule(schema))


def _regex(param: str, regex: str) -> Constraint:
    return Constraint(param, f"/{regex_to_lark(regex)}/")


def _choice(param: str, choices: list[str]) -> Constraint:
    return Constraint(param, f"({' | '.join(json.dumps(choice, ensure_ascii=False) for choice in choices)})")


def _grammar(param: str, source: str) -> Constraint:
    """Lark as it is, GBNF translated."""
    try:
        return Constraint(param, grammar=any_to_lark(source))
    except Exception as error:  # its own kinds of errors, and Python's
        message = f"{param!r} is neither Lark nor GBNF: {' '.join(str(error).split())}"
        raise ApiError(400, message, param=param, code="invalid_grammar") from error
