"""The tools of the Responses API, and which of them to call."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from api.protocols.chat.request import AllowedTools, AllowedToolsChoice, FunctionReference, NamedTool
from api.protocols.conversation import FunctionDefinition, ToolDefinition
from api.protocols.fields import MAX_TOOLS, FunctionName, No, Strict
from api.protocols.kinds import check_type, tag, type_of

MAX_NAME: Final = 128
ACCESS: Final = "external_web_access"


def full_name(namespace: str | None, name: str) -> str:
    """What the model knows a function by. Underscores where the two names meet are one delimiter."""
    return name if namespace is None else f"{namespace.rstrip('_')}__{name.lstrip('_')}"


def check_full_name(namespace: str | None, name: str) -> None:
    """Raises ValueError for one that is too long."""
    if len(full_name(namespace, name)) > MAX_NAME:
        raise ValueError(f"a function's name with that of its namespace has at most {MAX_NAME} characters")


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

    def for_chat(self) -> list[ToolDefinition]:
        return [self.definition(self.name)]

    def definition(self, name: str) -> ToolDefinition:
        function = FunctionDefinition(
            name=name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return ToolDefinition(type="function", function=function)

    def echo(self) -> dict[str, Any]:
        """As a response repeats it."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


def _function(value: object) -> object:
    return check_type(value, "a tool", ("function",))


class Namespace(Strict):
    """Functions with a name in common: tools of both names each. What is said of them all comes before the first."""

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_function)]]

    @model_validator(mode="after")
    def _has_short_names(self) -> "Namespace":
        for tool in self.tools:
            check_full_name(self.name, tool.name)
        return self

    def for_chat(self) -> list[ToolDefinition]:
        told = [tool.definition(full_name(self.name, tool.name)) for tool in self.tools]
        if told and self.description:
            first = told[0].function
            first.description = "\n\n".join(filter(None, [self.description, first.description]))
        return told

    def echo(self) -> dict[str, Any]:
        tools = [tool.echo() for tool in self.tools]
        return {"type": self.type, "name": self.name, "description": self.description or "", "tools": tools}


class WebSearch(Strict):
    """A search that may not leave the machine, where there is nothing to search: no tool for the model."""

    type: Literal["web_search"]
    external_web_access: Literal[False]
    filters: dict[str, Any] | None = None
    user_location: dict[str, Any] | None = None
    search_context_size: Literal["low", "medium", "high"] | None = None
    search_content_types: list[str] | None = None

    def for_chat(self) -> list[ToolDefinition]:
        return []

    def echo(self) -> dict[str, Any]:
        return {"type": self.type, "external_web_access": False}


def _tool(value: object) -> object:
    if isinstance(value, dict) and str(type_of(value)).startswith("web_search") and value.get(ACCESS) is not False:
        raise ValueError(f"web search is not served; leave the tool out, or say {ACCESS!r}: false")
    return check_type(value, "a tool", ("function", "namespace", "web_search"))


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[Namespace, Tag("<namespace>")]
    | Annotated[WebSearch, Tag("<web_search>")],
    Discriminator(tag),
    BeforeValidator(_tool),
]


def _bounded(tools: list[Tool]) -> list[Tool]:
    if sum(len(tool.for_chat()) for tool in tools) > MAX_TOOLS:
        raise ValueError(f"there may be {MAX_TOOLS} functions at most")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_bounded)]


class NamedFunction(Strict):
    """By the name that the model knows it by."""

    type: Literal["function"]
    name: FunctionName

    def for_chat(self) -> NamedTool:
        return NamedTool(type="function", function=FunctionReference(name=self.name))


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Annotated[NamedFunction, BeforeValidator(_function)]], Field(min_length=1)]

    def for_chat(self) -> AllowedToolsChoice:
        allowed = AllowedTools(mode=self.mode, tools=[tool.for_chat() for tool in self.tools])
        return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)


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
