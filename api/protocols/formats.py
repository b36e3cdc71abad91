"""OpenAI's wire types for the format of an answer."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.fields import Strict


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    """`schema` is an extension from llama-server."""

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class JsonSchema(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
