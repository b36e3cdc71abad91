"""The API's description of itself: an OpenAPI document from the wire types, and a page that shows it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import Environment
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import package_version
from api.protocols.chat import types as answers
from api.protocols.chat.request import ChatRequest
from api.protocols.completions.request import CompletionRequest
from api.protocols.embeddings.request import EmbeddingsRequest
from api.protocols.management.request import StartRequest, StopRequest
from api.protocols.messages import types as message_answers
from api.protocols.messages.request import CountTokensRequest, MessagesRequest
from api.protocols.responses import types as response_answers
from api.protocols.responses.request import InputTokensRequest, ListQuery, ResponseRequest, RetrieveQuery
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest

REF: Final = "#/components/schemas/{model}"
STATUSES: Final = {
    400: "The request cannot be served as it is; the error names the field.",
    403: "Not from another machine.",
    404: "There is no such model, response or place.",
    405: "Not with this method.",
    409: "The model cannot be loaded.",
    413: "The request body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests wait. Try again shortly.",
    500: "The model failed.",
    503: "The model is being loaded, or the server shuts down.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One way to call the API."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel]
    request: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None
    """What the events of a stream hold."""
    errors: tuple[int, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    """In the path, with what they are."""
    query: type[BaseModel] | None = None
    """In the URL, behind the path."""
    names_events: bool = False
    """Whether each event has its type as its name, and the last one says that it is the last; else `[DONE]` does."""
    unhealthy: int | None = None
    """A status with the same answer as 200."""
    error: type[BaseModel] = answers.Error


GENERATES: Final = (400, 404, 413, 429, 500, 503)
RESPONSE_ID: Final = {"response_id": "The response's id."}
OPERATIONS: Final = (
    Operation(
        "post",
        "/v1/chat/completions",
        "The model's answer to a conversation",
        answers.ChatCompletion,
        ChatRequest,
        answers.ChatCompletionChunk,
        GENERATES,
    ),
    Operation(
        "post",
        "/v1/completions",
        "The text that follows each prompt",
        answers.TextCompletion,
        CompletionRequest,
        answers.TextCompletionChunk,
        GENERATES,
    ),
    Operation(
        "post",
        "/v1/messages",
        "The model's answer to a conversation, as Anthropic's API has it",
        message_answers.MessageAnswer,
        MessagesRequest,
        message_answers.MessageEvent,
        GENERATES,
        error=message_answers.MessageError,
        names_events=True,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "How many tokens the prompt of a message would be",
        message_answers.TokenCount,
        CountTokensRequest,
        errors=(400, 404, 413, 503),
        error=message_answers.MessageError,
    ),
    Operation(
        "post",
        "/v1/responses",
        "The model's response to a conversation of items",
        response_answers.Response,
        ResponseRequest,
        response_answers.ResponseEvent,
        names_events=True,
        errors=GENERATES,
    ),
    Operation(
        "post",
        "/v1/responses/input_tokens",
        "How many tokens the input of a response would be",
        response_answers.InputTokens,
        InputTokensRequest,
        errors=(400, 404, 413, 503),
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}",
        "A response that is kept",
        response_answers.Response,
        errors=(400, 404, 405),
        parameters=RESPONSE_ID,
        query=RetrieveQuery,
    ),
    Operation(
        "delete",
        "/v1/responses/{response_id}",
        "Keep it no longer",
        response_answers.DeletedResponse,
        errors=(404, 405),
        parameters=RESPONSE_ID,
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "What it responded to",
        response_answers.ResponseItems,
        errors=(400, 404),
        parameters=RESPONSE_ID,
        query=ListQuery,
    ),
    Operation(
        "post",
        "/v1/embeddings",
        "A vector for each text",
        answers.Embeddings,
        EmbeddingsRequest,
        errors=GENERATES,
    ),
    Operation("get", "/v1/models", "The models that are served", answers.ModelList),
    Operation(
        "get",
        "/v1/models/{name}",
        "One of them",
        answers.Model,
        errors=(404, 405),
        parameters={"name": "The model's name."},
    ),
    Operation(
        "post",
        "/v1/models/start",
        "Serve one more model; from this machine only",
        answers.Model,
        StartRequest,
        errors=(400, 403, 404, 409, 413, 415),
    ),
    Operation(
        "post",
        "/v1/models/stop",
        "Stop serving one; from this machine only",
        answers.Model,
        StopRequest,
        errors=(400, 403, 404, 413, 415),
    ),
    Operation(
        "post",
        "/tokenize",
        "Text or a conversation to tokens",
        answers.Tokens,
        TokenizeRequest,
        errors=(400, 404, 413, 503),
    ),
    Operation("post", "/detokenize", "Tokens to text", answers.Text, DetokenizeRequest, errors=(400, 404, 413)),
    Operation(
        "post",
        "/apply-template",
        "A conversation as the model reads it",
        answers.RenderedPrompt,
        ApplyTemplateRequest,
        errors=(400, 404, 413, 503),
    ),
    Operation("get", "/healthz", "How the server is", answers.Health, unhealthy=503),
)


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    requests = [(operation.request, "validation") for operation in OPERATIONS if operation.request]
    given = {model for each in OPERATIONS for model in (each.answer, each.chunk, each.error) if model}
    ordered = sorted(given, key=lambda model: model.__name__)
    refs, definitions = models_json_schema(
        [*requests, *((model, "serialization") for model in ordered)],  # type: ignore[list-item]  # the modes are literals
        ref_template=REF,
    )
    named: dict[Any, Any] = {model: schema for (model, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cortex",
            "version": package_version(),
            "description": "Text generation for a whole team, by OpenAI's API and by Anthropic's.",
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _operation(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[operation.answer]}}
    if operation.chunk:
        event = _event(schemas[operation.chunk], schemas[operation.error], names_events=operation.names_events)
        content["text/event-stream"] = {"schema": event}
    description = "The answer."
    if operation.chunk:
        description += f" With `stream`, events whose data is a {operation.chunk.__name__} each"
        description += ", by whose type they are named." if operation.names_events else ", then `[DONE]`."
    responses: dict[str, Any] = {"200": {"description": description, "content": content}}
    if operation.unhealthy:
        responses[str(operation.unhealthy)] = {"description": "Not ready.", "content": content}
    for status in operation.errors:
        error = {"application/json": {"schema": schemas[operation.error]}}
        responses[str(status)] = {"description": STATUSES[status], "content": error}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.request:
        body = {"application/json": {"schema": schemas[operation.request]}}
        described["requestBody"] = {"required": True, "content": body}
    if parameters := [*_path_parameters(operation), *_query_parameters(operation)]:
        described["parameters"] = parameters
    return described


def _path_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name, what in operation.parameters.items():
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "description": what, "schema": schema}


def _query_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    fields = operation.query.model_json_schema()["properties"] if operation.query else {}
    for name, schema in fields.items():
        yield {"name": name, "in": "query", "schema": schema}


def _event(chunk: dict[str, Any], error: dict[str, Any], *, names_events: bool) -> dict[str, Any]:
    """A server-sent event of a stream; OpenAPI 3.1 describes each of them, not the stream."""
    json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [chunk, error]}}
    if names_events:
        properties = {"event": {"type": "string"}, "data": {"type": "string", **json}}
        return {"type": "object", "required": ["event", "data"], "properties": properties}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, json]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def page() -> str:
    """The document for readers, in one piece: no scripts, nothing from elsewhere."""
    described = document()
    return _PAGE.render(document=described, fields=_fields, name_of=_name_of)


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
    """A type in words."""
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


_PAGE: Final = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.info.title }} API</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
code { font-family: ui-monospace, monospace; font-size: 0.9em; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid #eee; }
.method { text-transform: uppercase; color: #06c; }
</style>
</head>
<body>
<h1>{{ document.info.title }} {{ document.info.version }}</h1>
<p>{{ document.info.description }} The same for machines: <a href="openapi.json">openapi.json</a>.</p>
{% for path, methods in document.paths.items() %}
{% for method, operation in methods.items() %}
<h2><code><span class="method">{{ method }}</span> {{ path }}</code></h2>
<p>{{ operation.summary }}.
{% if operation.requestBody %}
{% set request = name_of(operation.requestBody.content["application/json"].schema) %}
Takes <a href="#{{ request }}"><code>{{ request }}</code></a>.
{% endif %}
</p>
<table>
{% for status, response in operation.responses.items() %}
{% set answer = name_of(response.content["application/json"].schema) %}
<tr><td>{{ status }}</td><td><a href="#{{ answer }}"><code>{{ answer }}</code></a></td>
<td>{{ response.description }}</td></tr>
{% endfor %}
</table>
{% endfor %}
{% endfor %}
{% for name, schema in document.components.schemas.items() %}
<h2 id="{{ name }}"><code>{{ name }}</code></h2>
{% if schema.description %}<p>{{ schema.description }}</p>{% endif %}
<table>
{% for field in fields(schema) %}
<tr><td><code>{{ field.name }}</code>{% if field.required %} *{% endif %}</td><td><code>{{ field.type }}</code></td>
<td>{{ field.description }}</td></tr>
{% endfor %}
</table>
{% endfor %}
</body>
</html>
""")
