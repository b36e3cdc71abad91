"""Blocks of Anthropic's messages that are not text: images, documents, search results and what hosted tools left."""

from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from api.protocols.hosted import Media
from api.protocols.kinds import type_of

HISTORY: Final = (
    "advisor_tool_result",
    "bash_code_execution_tool_result",
    "code_execution_tool_result",
    "compaction",
    "fallback",
    "mcp_tool_listing",
    "mcp_tool_result",
    "mcp_tool_use",
    "server_tool_use",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "web_fetch_tool_result",
    "web_search_tool_result",
)
"""Blocks that other servers put into their answers. They become nothing, except the text of a compaction."""
HISTORY_TAG: Final = "<history>"


class HistoryBlock(BaseModel):
    """A part of an answer of another server, mostly of a hosted tool."""

    model_config = ConfigDict(strict=True, defer_build=True)

    type: Annotated[str, Field(pattern=f"^({'|'.join(HISTORY)})$")]
    content: Any = None

    @property
    def text(self) -> str | None:
        """The summary in a compaction; None for other blocks."""
        return self.content if self.type == "compaction" and isinstance(self.content, str) else None


class MediaBlock(Media):
    """Content that is not text, except the text in a document or in a search result."""

    title: Any = None
    context: Any = None
    source: Any = None
    content: Any = None

    @property
    def is_text(self) -> bool:
        """Whether it has only text."""
        return self._texts is not None

    @property
    def text(self) -> str:
        texts = self._texts
        if texts is None:
            return super().text
        source = self.source if isinstance(self.source, str) else None
        return "\n".join([each for each in (self.title, self.context, source) if isinstance(each, str)] + texts)

    @property
    def _texts(self) -> list[str] | None:
        match self.type, self.source, self.content:
            case "document", {"type": "text", "data": str(text)}, _:
                return [text]
            case "document", {"type": "content", "content": content}, _:
                return _only_texts(content)
            case "search_result", str(), content:
                return _only_texts(content)
        return None


def _only_texts(content: Any) -> list[str] | None:
    """The texts of these blocks; None if there are other blocks."""
    if isinstance(content, str):
        return [content]
    blocks = content if isinstance(content, list) else []
    texts = list(_text_of(blocks))
    return texts if texts and len(texts) == len(blocks) else None


def _text_of(blocks: list[Any]) -> Iterator[str]:
    for block in blocks:
        if type_of(block) == "text" and isinstance(text := block.get("text"), str):
            yield text


def history_type(value: object) -> str | None:
    """The type of a block of another server's answer; None for other blocks."""
    kind = type_of(value)
    return kind if isinstance(kind, str) and kind in HISTORY else None
