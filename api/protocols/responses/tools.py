"""The wire types of tools and tool choices in the Responses API."""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from api.protocols.fields import MAX_TOOLS, FunctionName, No, Strict
from api.protocols.kinds import check_type, tag, type_of
from api.protocols.tools import ToolChoice as NeutralChoice
from api.text import dialects as spec

MAX_NAME: Final = 128
ACCESS: Final = "external_web_access"


def full_name(namespace: str | None, name: str) -> str:
    """The name with which the model calls a function: namespace and name, with two underscores between them."""
    return name if namespace is None else f"{namespace.rstrip('_')}__{name.lstrip('_')}"


def check_full_name(namespace: str | None, name: str) -> None:
    """Raises ValueError if the full name is too long."""
    if len(full_name(namespace, name)) > MAX_NAME:
        raise ValueError(f"a function's name together with its namespace can have at most {MAX_NAME} characters")


class FunctionTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: No = None
    async_: Annotated[No, Field(alias="async")] = None

    def neutral(self) -> list[spec.Tool]:
        return [self.named(self.name)]

    def named(self, name: str) -> spec.Tool:
        return spec.Tool(name, self.description, self.parameters or {}, bool(self.strict))

    def echo(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


def _function(value: object) -> object:
    return check_type(value, "a tool", ("function",))


class Namespace(Strict):
    """A group of functions. The model sees the namespace in their names, and its description before the first one's."""

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_function)]]

    @model_validator(mode="after")
    def _has_short_names(self) -> "Namespace":
        for tool in self.tools:
            check_full_name(self.name, tool.name)
        return self

    def neutral(self) -> list[spec.Tool]:
        tools = [tool.named(full_name(self.name, tool.name)) for tool in self.tools]
        if tools and self.description:
            description = "\n\n".join(filter(None, [self.description, tools[0].description]))
            tools[0] = replace(tools[0], description=description)
        return tools

    def echo(self) -> dict[str, Any]:
        tools = [tool.echo() for tool in self.tools]
        return {"type": self.type, "name": self.name, "description": self.description or "", "tools": tools}


class WebSearch(Strict):
    """A web search without access to the web. It is accepted, but the model gets no tool for it."""

    type: Literal["web_search"]
    external_web_access: Literal[False]
    filters: dict[str, Any] | None = None
    user_location: dict[str, Any] | None = None
    search_context_size: Literal["low", "medium", "high"] | None = None
    search_content_types: list[str] | None = None

    def neutral(self) -> list[spec.Tool]:
        return []

    def echo(self) -> dict[str, Any]:
        return {"type": self.type, "external_web_access": False}


def _tool(value: object) -> object:
    if isinstance(value, dict) and str(type_of(value)).startswith("web_search") and value.get(ACCESS) is not False:
        raise ValueError(f"web search is not supported; leave the tool out, or set {ACCESS!r} to false")
    return check_type(value, "a tool", ("function", "namespace", "web_search"))


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[Namespace, Tag("<namespace>")]
    | Annotated[WebSearch, Tag("<web_search>")],
    Discriminator(tag),
    BeforeValidator(_tool),
]


def _bounded(tools: list[Tool]) -> list[Tool]:
    if sum(len(tool.neutral()) for tool in tools) > MAX_TOOLS:
        raise ValueError(f"at most {MAX_TOOLS} functions are allowed")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_bounded)]


class NamedFunction(Strict):
    """A function, by the name with which the model calls it."""

    type: Literal["function"]
    name: FunctionName

    def neutral(self, *, parallel: bool) -> NeutralChoice:  # noqa: ARG002 - there is only one function
        return NeutralChoice("required", [self.name], parallel=False)


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Annotated[NamedFunction, BeforeValidator(_function)]], Field(min_length=1)]

    def neutral(self, *, parallel: bool) -> NeutralChoice:
        return NeutralChoice(self.mode, [tool.name for tool in self.tools], parallel)


def _choice(value: object) -> object:
    return value if isinstance(value, str) else check_type(value, "a choice", ("function", "allowed_tools"))


def _choice_tag(value: object) -> str:
    return "<mode>" if isinstance(value, str) else tag(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedFunction, Tag("<function>")]
    | Annotated[AllowedFunctions, Tag("<allowed_tools>")],
    Discriminator(_choice_tag),
    BeforeValidator(_choice),
]
