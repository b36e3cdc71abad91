"""The wire types of tools and tool choices in the Responses API."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from api.protocols import hosted
from api.protocols.custom import InputGrammar, as_function, bound_grammars
from api.protocols.fields import MAX_TOOLS, FunctionName, No, Strict
from api.protocols.formats import TextFormat
from api.protocols.hosted import HostedTool
from api.protocols.kinds import check_type, tag, type_of
from api.protocols.tools import ToolChoice as NeutralChoice
from api.text import dialects as spec

MAX_NAME: Final = 128


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
    defer_loading: bool | None = None
    """Accepted without effect: every tool is listed from the beginning."""
    async_: Annotated[No, Field(alias="async")] = None

    def neutral(self) -> list[spec.Tool]:
        return [self.named(self.name)]

    def named(self, name: str) -> spec.Tool:
        return spec.Tool(name, self.description, self.parameters or {}, bool(self.strict))

    def echo(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


class FlatGrammar(InputGrammar):
    type: Literal["grammar"]


class FlatCustomTool(Strict):
    """A function whose only argument is a text."""

    type: Literal["custom"]
    name: FunctionName
    description: str | None = None
    format: Annotated[TextFormat | FlatGrammar, Field(discriminator="type")] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: bool | None = None
    """Accepted without effect: every tool is listed from the beginning."""
    async_: Annotated[No, Field(alias="async")] = None

    @property
    def grammar(self) -> InputGrammar | None:
        return self.format if isinstance(self.format, FlatGrammar) else None

    def neutral(self) -> list[spec.Tool]:
        return [self.named(self.name)]

    def named(self, name: str) -> spec.Tool:
        return as_function(name, self.description, self.grammar)

    def echo(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return self.model_dump(include={"type", "name", "description", "format"}, exclude_none=True)


MemberTool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[FlatCustomTool, Tag("<custom>")],
    Discriminator(tag),
    BeforeValidator(lambda value: check_type(value, "a tool", ("function", "custom"))),
]


class Namespace(Strict):
    """A group of tools. The model sees the namespace in their names, and its description before the first one's."""

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[MemberTool]

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


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[FlatCustomTool, Tag("<custom>")]
    | Annotated[Namespace, Tag("<namespace>")]
    | Annotated[HostedTool, Tag(hosted.HOSTED_TAG)],
    Discriminator(hosted.hosted_tag),
    BeforeValidator(hosted.check_tool("function", "custom", "namespace")),
]


def functions_of(tools: Iterable[Tool] | None) -> list[spec.Tool]:
    """The functions that the model gets."""
    return [each for tool in tools or () if not isinstance(tool, HostedTool) for each in tool.neutral()]


def custom_tools(tools: Iterable[Tool] | None) -> Iterator[tuple[str, FlatCustomTool]]:
    """The custom tools, with the names with which the model calls them."""
    for tool in tools or ():
        if isinstance(tool, FlatCustomTool):
            yield tool.name, tool
        elif isinstance(tool, Namespace):
            yield from (
                (full_name(tool.name, each.name), each) for each in tool.tools if isinstance(each, FlatCustomTool)
            )


def _bounded(tools: list[Tool]) -> list[Tool]:
    if sum(len(tool.tools) if isinstance(tool, Namespace) else 1 for tool in tools) > MAX_TOOLS:
        raise ValueError(f"at most {MAX_TOOLS} functions are allowed")
    bound_grammars(tool.grammar for _, tool in custom_tools(tools))
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_bounded)]


class NamedFunction(Strict):
    """A function or custom tool, by the name with which the model calls it."""

    type: Literal["function", "custom"]
    name: FunctionName

    def neutral(self, *, parallel: bool) -> NeutralChoice:  # noqa: ARG002 - there is only one function
        return NeutralChoice("required", [self.name], parallel=False)


AllowedTool = Annotated[
    Annotated[NamedFunction, Tag("<named>")] | Annotated[HostedTool, Tag(hosted.HOSTED_TAG)],
    Discriminator(lambda value: hosted.HOSTED_TAG if hosted.is_hosted(value) else "<named>"),
    BeforeValidator(hosted.check_tool("function", "custom")),
]


class AllowedFunctions(Strict):
    """Hosted tools in the list have no effect."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1)]

    def neutral(self, *, parallel: bool) -> NeutralChoice:
        return NeutralChoice(self.mode, [tool.name for tool in self.tools if isinstance(tool, NamedFunction)], parallel)


def _choice(value: object) -> object:
    if isinstance(value, str):
        return value
    return check_type(hosted.check_choice(value), "a choice", ("function", "custom", "allowed_tools"))


def _choice_tag(value: object) -> str:
    return "<mode>" if isinstance(value, str) else "<allowed_tools>" if type_of(value) == "allowed_tools" else "<named>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedFunction, Tag("<named>")]
    | Annotated[AllowedFunctions, Tag("<allowed_tools>")],
    Discriminator(_choice_tag),
    BeforeValidator(_choice),
]
