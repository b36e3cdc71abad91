"""Turns the many ways to constrain an answer into one grammar in llguidance's format."""

from collections.abc import Iterator
from typing import Any

import orjson
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from api.errors import ApiError
from api.protocols.fields import GenerationRequest
from api.protocols.formats import JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from api.serving.grammars import invalid_schema
from api.serving.spec import Constraint
from api.text.dialects import one_of
from api.text.schemas import SchemaError, schema_rule


def constraint(request: GenerationRequest, other: Constraint | None = None) -> Constraint | None:
    """The constraint of a request's content: `other`, or one of the extensions that all protocols have, or None.

    Raises ApiError 400 if there is more than one.
    """
    given = [*([other] if other else []), *_extensions(request)]
    if len(given) > 1:
        names = " and ".join(repr(each.param) for each in given)
        raise ApiError(400, f"Only one of {names} can be given.", param=given[1].param, code="invalid_value")
    return given[0] if given else None


def _extensions(request: GenerationRequest) -> Iterator[Constraint]:
    if request.json_schema is not None:
        yield schema_constraint("json_schema", request.json_schema)
    if request.grammar is not None:
        yield _grammar("grammar", request.grammar)
    if request.guided_json is not None:
        yield schema_constraint("guided_json", request.guided_json)
    if request.guided_regex is not None:
        yield _regex("guided_regex", request.guided_regex)
    if request.guided_choice is not None:
        yield _choice("guided_choice", request.guided_choice)
    if request.guided_grammar is not None:
        yield _grammar("guided_grammar", request.guided_grammar)
    if (outputs := request.structured_outputs) is not None:
        if outputs.json_ is not None:
            yield schema_constraint("structured_outputs.json", outputs.json_)
        if outputs.json_object:
            yield schema_constraint("structured_outputs.json_object", {"type": "object"})
        if outputs.regex is not None:
            yield _regex("structured_outputs.regex", outputs.regex)
        if outputs.choice is not None:
            yield _choice("structured_outputs.choice", outputs.choice)
        if outputs.grammar is not None:
            yield _grammar("structured_outputs.grammar", outputs.grammar)


def format_constraint(param: str, wanted: ResponseFormat | None) -> Constraint | None:
    """The constraint of a response format; None for text."""
    match wanted:
        case JsonObjectFormat(schema_=schema):
            return schema_constraint(param, schema or {"type": "object"})
        case JsonSchemaFormat(json_schema=wrapped):
            schema = {} if wrapped.schema_ is None else wrapped.schema_
            return schema_constraint(param, schema, strict=bool(wrapped.strict))
    return None


def schema_constraint(param: str, schema: dict[str, Any] | bool | str, *, strict: bool = False) -> Constraint:
    """The constraint of a JSON schema or of its text. Without `strict` it is a hint, as the schema of a tool is."""
    return Constraint(param, lambda: _rule(param, schema, strict))


def _rule(param: str, schema: dict[str, Any] | bool | str, strict: bool) -> str:
    """Raises ApiError 400 for text that is not a JSON schema, or for a strict schema that cannot be enforced."""
    if isinstance(schema, str):
        try:
            schema = orjson.loads(schema)
        except ValueError as error:
            raise ApiError(400, f"{param!r} is not JSON: {error}", param=param, code="invalid_value") from error
    if not isinstance(schema, dict | bool):
        raise ApiError(400, f"{param!r} is not a JSON schema.", param=param, code="invalid_value")
    try:
        return schema_rule(schema, strict=strict)
    except SchemaError as error:
        raise invalid_schema(error, repr(param), param) from error


def _regex(param: str, regex: str) -> Constraint:
    return Constraint(param, lambda: f"/{regex_to_lark(regex)}/")


def _choice(param: str, choices: list[str]) -> Constraint:
    return Constraint(param, lambda: one_of(choices))


def _grammar(param: str, source: str) -> Constraint:
    return Constraint(param, lambda: _lark(param, source), is_whole=True)


def _lark(param: str, source: str) -> str:
    """Raises ApiError 400 for a grammar that is neither Lark nor GBNF."""
    try:
        return any_to_lark(source)
    except Exception as error:  # llguidance raises its own errors and Python's
        message = f"{param!r} is neither Lark nor GBNF: {' '.join(str(error).split())}"
        raise ApiError(400, message, param=param, code="invalid_grammar") from error
