"""The wire type of the input in the Responses API: a text, or items of every kind."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from api.protocols import hosted
from api.protocols.hosted import Media
from api.protocols.kinds import check_type, not_supported, tag, type_of
from api.protocols.responses import hosted_items
from api.protocols.responses.items import (
    PARTS,
    CallOutput,
    CustomCall,
    FunctionCall,
    InputMessage,
    Item,
    ItemReference,
    ReasoningItem,
    new_item_id,
)


class HostedItem(BaseModel):
    """An item of a hosted tool."""

    model_config = ConfigDict(strict=True, extra="allow", defer_build=True)

    type: Annotated[str, Field(pattern=f"^({'|'.join(hosted_items.ITEM_TYPES)})$")]
    id: str | None = None

    def listed(self) -> Item | None:
        """The item as a call of a function, its output or a message; None if it is left out."""
        item = hosted_items.as_function_item(self.model_dump())
        return None if item is None else {"id": self.id or new_item_id(item["type"])} | item


TYPES: Final = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
    "item_reference",
)


def _with_type(value: object) -> object:
    """Adds the type to messages and references, which may omit it."""
    if isinstance(value, dict) and value.get("type") is None:
        value = value | {"type": "message" if "role" in value else "item_reference" if "id" in value else None}
    return value if _is_hosted(value) else check_type(value, "an item", TYPES)


def _is_hosted(value: object) -> bool:
    return type_of(value) in hosted_items.ITEM_TYPES


def _item_tag(value: object) -> str:
    kind = tag(value)
    return hosted.HOSTED_TAG if _is_hosted(value) else "<output>" if kind.endswith("_output>") else kind


def _as_items(value: object) -> object:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[CustomCall, Tag("<custom_tool_call>")]
    | Annotated[CallOutput, Tag("<output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")]
    | Annotated[HostedItem, Tag(hosted.HOSTED_TAG)],
    Discriminator(_item_tag),
    BeforeValidator(_with_type),
]


def _only_text_in_the_newest_question(items: list[InputItem]) -> list[InputItem]:
    """Raises ApiError 400 if the newest user message has a part that is not text."""
    for index in reversed(range(len(items))):
        item = items[index]
        if isinstance(item, InputMessage) and item.role == "user":
            for number, part in enumerate(item.content or ()):
                if isinstance(part, Media):
                    reason = not_supported("a content part", part.type, PARTS)
                    raise hosted.refusal(f"input[{index}].content[{number}]", reason)
            break
    return items


MAX_ITEMS: Final = 16384
"""Items of a request. They take half a second to validate, and nothing else is answered meanwhile."""
Input = Annotated[
    list[InputItem],
    Field(max_length=MAX_ITEMS),
    BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    AfterValidator(_only_text_in_the_newest_question),
]


def media_of(item: InputItem) -> list[str]:
    """The types of the item's content that is not text."""
    match item:
        case InputMessage(content=parts) | CallOutput(output=list(parts)):
            return [part.type for part in parts or () if isinstance(part, Media)]
        case HostedItem():
            return hosted_items.media_in(item.model_dump())
    return []


def left_out_type(item: InputItem) -> str | None:
    """The type of an item that becomes nothing; None for other items."""
    return item.type if isinstance(item, HostedItem) and item.type in hosted_items.LEFT_OUT else None
