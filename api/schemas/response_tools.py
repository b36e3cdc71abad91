"""The tools of the Responses API, and which of them to call."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from api.schemas.chat import (
    MAX_TOOLS,
    AllowedTools,
    AllowedToolsChoice,
    FunctionDefinition,
    FunctionName,
    FunctionReference,
    NamedTool,
    ToolDefinition,
)
from api.schemas.common import Strict
from api.schemas.kinds import check_type, tag


class FunctionTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    async_: Annotated[Literal[False] | None, Field(alias="async")] = None

    def for_chat(self) -> ToolDefinition:
        function = FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return ToolDefinition(type="function", function=function)

    def echo(self) -> dict[str, Any]:
        """As a response repeats it."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


class NamedFunction(Strict):
    type: Literal["function"]
    name: FunctionName

    def for_chat(self) -> NamedTool:
        return NamedTool(type="function", function=FunctionReference(name=self.name))


def _tool(value: object) -> object:
    return check_type(value, "a tool", ("function",))


Tools = Annotated[list[Annotated[FunctionTool, BeforeValidator(_tool)]], Field(max_length=MAX_TOOLS)]


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Annotated[NamedFunction, BeforeValidator(_tool)]], Field(min_length=1)]

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
