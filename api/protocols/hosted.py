"""What a text model cannot have, in all protocols: hosted tools, and content that is not text.

Hosted tools are left out. Content other than text becomes a short text, except in the newest user message. The answer
then has a warning.
"""

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from api.errors import ApiError
from api.protocols.kinds import check_type, tag, type_of
from api.protocols.warnings import listing

TOOLS: Final = (
    "advisor",
    "apply_patch",
    "bash",
    "browser_toolset",
    "code_execution",
    "code_interpreter",
    "collections_search",
    "computer",
    "computer_toolset",
    "computer_use",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "mcp_toolset",
    "memory",
    "programmatic_tool_calling",
    "shell",
    "text_editor",
    "tool_search",
    "tool_search_tool_bm25",
    "tool_search_tool_regex",
    "web_fetch",
    "web_search",
    "x_search",
)
"""Types of tools that the API's owner runs, or that only its own models know, without their versions."""
HOSTED_TYPE: Final = (
    rf"^(({'|'.join(TOOLS)})(_preview)?(_[0-9]{{4}}_[0-9]{{2}}_[0-9]{{2}})?|[a-z0-9_]{{1,64}}_[0-9]{{8}})$"
)
"""OpenAI's versions are `_preview` and a date. All types of Anthropic's own tools end with a date."""
_HOSTED: Final = re.compile(HOSTED_TYPE)
MEDIA: Final = {
    "audio": "audio",
    "audio_url": "audio",
    "browser_state": "browser state",
    "computer_screenshot": "image",
    "container_upload": "file",
    "document": "document",
    "file": "file",
    "image": "image",
    "image_url": "image",
    "input_audio": "audio",
    "input_file": "file",
    "input_image": "image",
    "search_result": "search result",
    "tool_reference": "tool reference",
    "video": "video",
    "video_url": "video",
}
"""Types of content that is not text, and what they are called in its place."""
HOSTED_TAG: Final = "<hosted>"


class HostedTool(BaseModel):
    """A tool that a text model cannot have. It is left out, with a warning. Its other fields are not read."""

    model_config = ConfigDict(strict=True, defer_build=True)

    type: Annotated[str, Field(pattern=HOSTED_TYPE)]
    name: str | None = None


MEDIA_TAG: Final = "<media>"


class Media(BaseModel):
    """Content that is not text. A short text takes its place. Its other fields are not read."""

    model_config = ConfigDict(strict=True, defer_build=True)

    type: Annotated[str, Field(pattern=f"^({'|'.join(MEDIA)})$")]

    @property
    def text(self) -> str:
        return omitted(self.type)


def is_hosted(value: object) -> bool:
    """Whether this JSON object is, or names, a hosted tool."""
    kind = type_of(value)
    return isinstance(kind, str) and _HOSTED.fullmatch(kind) is not None


def hosted_tag(value: object) -> str:
    """A tag for pydantic's unions (see `tag`), the same one for all hosted tools."""
    return HOSTED_TAG if is_hosted(value) else tag(value)


def check_tool(*served: str) -> Callable[[object], object]:
    """A validator that accepts hosted tools and tools of the types `served`."""
    return lambda value: value if is_hosted(value) else check_type(value, "a tool", served)


def check_choice(value: object) -> object:
    """Returns the value. Raises ValueError if it chooses a hosted tool."""
    if is_hosted(value):
        raise ValueError(
            f"the tool {type_of(value)!r} does not exist on this server and cannot be chosen; choose a function"
        )
    return value


def names_of(tools: Iterable[object]) -> list[str]:
    """The types and names of the hosted tools among these, by which a choice may refer to them."""
    hosted = [tool for tool in tools if isinstance(tool, HostedTool)]
    return list(dict.fromkeys([tool.type for tool in hosted] + [tool.name for tool in hosted if tool.name]))


def tools_left_out(tools: Iterable[object]) -> list[str]:
    """The warning about hosted tools."""
    return listing("tools left out", (tool.type for tool in tools if isinstance(tool, HostedTool)))


def omitted(kind: str) -> str:
    """The text in the place of content of this type."""
    return f"[{MEDIA[kind]} omitted]"


def content_left_out(kinds: Iterable[str]) -> list[str]:
    """The warning about content of these types."""
    return listing("content left out", (MEDIA[kind] for kind in kinds))


def refusal(param: str, reason: str) -> ApiError:
    """The error for content that cannot be left out, in the form of other invalid values."""
    return ApiError(400, f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value")


def content_tag(value: object) -> str:
    """A tag for pydantic's unions (see `tag`), the same one for all content that is not text."""
    return MEDIA_TAG if media_type(value) else tag(value)


def media_type(value: Any) -> str | None:
    """The type of a content part if it is not text."""
    kind = type_of(value)
    return kind if isinstance(kind, str) and kind in MEDIA else None
