"""The OpenAPI document, built from the wire types, and a page that shows it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, PackageLoader
from pydantic.json_schema import models_json_schema

from api import package_version
from api.http.operation import Operation, Scope, taken
from api.protocols.warnings import HEADER

Operations = tuple[Operation, ...]

_PAGES: Final = Environment(loader=PackageLoader("api.http", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
REF: Final = "#/components/schemas/{model}"
WARNING: Final = "What the request asked for and did not get. Left out if there is nothing."
SECURITY_SCHEMES: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as OpenAI's SDK sends it."},
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "An API key, as Anthropic's SDK sends it.",
    },
}
STATUSES: Final = {
    400: "The request is invalid or not supported. The error names the field.",
    401: "The server demands API keys, and the request has no valid one.",
    403: "The API key may not do this, or may not use this model.",
    404: "The model, the response, the stream, the file, the batch or the URL does not exist.",
    405: "This method is not allowed.",
    408: "The request body did not arrive in time.",
    409: "The model cannot be loaded, the batch has ended, or the file is in use.",
    410: "The events are not kept any more.",
    413: "The request body is too large.",
    415: "The body has another media type.",
    429: "Too many requests wait. Try again shortly.",
    500: "The engine or the server failed.",
    503: "The model is not ready, the server is shutting down, or too many live feeds are open.",
    504: "The request has not ended within its time limit.",
    507: "There is no room for the file.",
}


def document(table: Operations) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these operations."""
    operations = [each for each in table if each.answer is not None or each.chunk is not None or each.is_download]
    requests = [(model, "validation") for each in operations if (model := each.request or each.form)]
    given = {model for each in operations for model in (each.answer, each.chunk, each.error) if model}
    ordered = sorted(given, key=lambda model: model.__name__)
    refs, definitions = models_json_schema(
        [*requests, *((model, "serialization") for model in ordered)],  # type: ignore[list-item]  # the modes are literals
        ref_template=REF,
    )
    named: dict[Any, Any] = {model: schema for (model, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        statuses = [*operation.errors, *([405] if taken(operation, table) else [])]
        statuses += [401] if operation.scope is not Scope.PUBLIC else []
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, sorted(statuses), named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cortex",
            "version": package_version(),
            "description": "Text generation for a whole team, with OpenAI's API and Anthropic's.",
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"], "securitySchemes": SECURITY_SCHEMES},
    }


def _operation(operation: Operation, statuses: list[int], schemas: dict[Any, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[operation.answer]}} if operation.answer else {}
    description = "The answer." if operation.answer else "Events, each with its number as `id`."
    if operation.is_endless:
        description = "Events until the client leaves."
    if operation.chunk and operation.streams_lines:
        content["application/x-ndjson"] = {"schema": {"anyOf": [schemas[operation.chunk], schemas[operation.error]]}}
        description += f" With `stream`, lines that each are one {operation.chunk.__name__}."
    elif operation.chunk:
        event = _event(operation, schemas)
        content["text/event-stream"] = {"schema": event}
    if operation.chunk and operation.answer and not operation.streams_lines:
        description += f" With `stream`, events that each have one {operation.chunk.__name__} as data"
        description += " and its type as name." if operation.names_events else ", then `[DONE]`."
    if operation.is_download:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        description = "The bytes of the file."
    responses: dict[str, Any] = {"200": {"description": description, "content": content}}
    if operation.request:
        responses["200"]["headers"] = {HEADER: {"description": WARNING, "schema": {"type": "string"}}}
    if operation.unhealthy:
        responses[str(operation.unhealthy)] = {"description": "Not ready.", "content": content}
    for status in statuses:
        error = {"application/json": {"schema": schemas[operation.error]}}
        responses[str(status)] = {"description": STATUSES[status], "content": error}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.scope is not Scope.PUBLIC:  # without a scheme for servers that demand no keys
        nothing: list[dict[str, list[str]]] = [{}] if operation.scope is not Scope.OWNER else []
        described["security"] = [*nothing, *({name: []} for name in SECURITY_SCHEMES)]
    if operation.request:
        body = {"application/json": {"schema": schemas[operation.request]}}
        described["requestBody"] = {"required": True, "content": body}
    if operation.form:
        body = {"multipart/form-data": {"schema": schemas[operation.form]}}
        described["requestBody"] = {"required": True, "content": body}
    if parameters := [*_path_parameters(operation), *_query_parameters(operation)]:
        described["parameters"] = parameters
    return described


def _path_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name, parameter in operation.parameters.items():
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "description": parameter.description, "schema": schema}


def _query_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    fields = operation.query.model_json_schema()["properties"] if operation.query else {}
    for name, schema in fields.items():
        is_header = operation.query is not None and name in operation.query.headers
        yield {"name": name, "in": "header" if is_header else "query", "schema": schema}


def _event(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    """The schema of one server-sent event. OpenAPI 3.1 describes the events, not the stream."""
    kinds = [schemas[operation.chunk], schemas[operation.error]]
    json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
    if operation.names_events:
        properties = {"event": {"type": "string"}, "data": {"type": "string", **json}}
        return {"type": "object", "required": ["event", "data"], "properties": properties}
    ends = [] if operation.is_endless else [{"const": "[DONE]"}]
    data = {"type": "string", "anyOf": [*ends, json]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def page(table: Operations) -> str:
    """The document as one HTML page, without scripts or external resources."""
    described = document(table)
    return _PAGES.get_template("docs.html.jinja").render(document=described, fields=_fields, name_of=_name_of)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    type: str
    required: bool
    description: str


def _fields(schema: dict[str, Any]) -> Iterator[_Field]:
    required = schema.get("required", ())
    for name, value in schema.get("properties", {}).items():
        yield _Field(name, _name_of(value), name in required, value.get("description", ""))


def _name_of(schema: dict[str, Any]) -> str:
    """A readable name of a JSON schema's type."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(repr(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(_name_of(each) for each in schema[key])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_name_of(schema.get('items', {}))}"
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", ">="),
            ("maximum", "<="),
            ("exclusiveMinimum", ">"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([str(kind), *limits])


def endpoints(table: Operations) -> str:
    """The operations as a table in Markdown."""
    rows = [
        f"| `{each.method} {each.path}` | {each.summary} | {'yes' if each.streams else ''} | {each.scope.value} |"
        for each in table
    ]
    return "\n".join(["| endpoint | description | streams | who may call it |", "|---|---|---|---|", *rows]) + "\n"
