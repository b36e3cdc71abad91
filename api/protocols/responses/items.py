"""The items that a conversation of the Responses API is made of."""

import uuid
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from api.protocols.conversation import RefusalPart
from api.protocols.fields import FunctionName, No, Strict, Unserved
from api.protocols.kinds import check_type, tag
from api.protocols.responses.tools import check_full_name

Item = dict[str, Any]
"""An item of a conversation as it is listed: of type message, reasoning, function_call or function_call_output."""

_PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def new_item_id(kind: str) -> str:
    """For an item of this type."""
    return new_id(_PREFIXES[kind])


def called(name: str | None, namespace: str | None = None) -> dict[str, str]:
    """How an item names a function."""
    names = {"name": name, "namespace": namespace}
    return {key: value for key, value in names.items() if value is not None}


# -- what items are made of


def _part(value: object) -> object:
    return check_type(value, "a content part", ("input_text", "output_text", "refusal"))


def _text_part(value: object) -> object:
    return check_type(value, "a content part", ("input_text",))


def _as_parts(content: object) -> object:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


class InputTextPart(Strict):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class OutputTextPart(Strict):
    """What a model said earlier."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


Part = Annotated[
    Annotated[InputTextPart, Tag("<input_text>")]
    | Annotated[OutputTextPart, Tag("<output_text>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(tag),
    BeforeValidator(_part),
]
Parts = Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]
TextParts = list[Annotated[InputTextPart, BeforeValidator(_text_part)]]
ItemId = Annotated[str, Field(min_length=1)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class SummaryPart(Strict):
    type: Literal["summary_text"]
    text: str


class ReasoningPart(Strict):
    type: Literal["reasoning_text"]
    text: str


class DirectCaller(Strict):
    """Not a program that the model wrote."""

    type: Literal["direct"]


# -- items


class InputMessage(Strict):
    type: Literal["message"] | None = None
    id: ItemId | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    # for the caller's own books
    metadata: dict[str, Any] | None = None
    end_turn: bool | None = None

    @model_validator(mode="after")
    def _says_what_its_role_may(self) -> "InputMessage":
        if self.role != "assistant" and not all(isinstance(part, InputTextPart) for part in self.content):
            raise ValueError(f"a message of role {self.role!r} has parts of type 'input_text' only")
        return self

    def listed(self) -> Item:
        said = self.role == "assistant"
        item = {
            "id": self.id or new_item_id("message"),
            "type": "message",
            "status": self.status or "completed",
            "role": self.role,
            "content": [_said(part) if said else {"type": "input_text", "text": _text(part)} for part in self.content],
        }
        return item | {"phase": self.phase} if self.phase else item


class FunctionCall(Strict):
    """A call that the model made earlier in the conversation."""

    type: Literal["function_call"]
    id: ItemId | None = None
    call_id: str
    name: FunctionName
    arguments: str
    status: ItemStatus | None = None
    caller: DirectCaller | None = None
    namespace: FunctionName | None = None
    async_: Annotated[No, Field(alias="async")] = None

    @model_validator(mode="after")
    def _has_a_short_name(self) -> "FunctionCall":
        check_full_name(self.namespace, self.name)
        return self

    def listed(self) -> Item:
        return {
            "id": self.id or new_item_id(self.type),
            "type": "function_call",
            "status": self.status or "completed",
            "call_id": self.call_id,
            **called(self.name, self.namespace),
            "arguments": self.arguments,
        }


def _output_tag(value: object) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


class FunctionCallOutput(Strict):
    """What a call came to."""

    type: Literal["function_call_output"]
    id: ItemId | None = None
    call_id: str
    output: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[TextParts, Tag("<parts>")],
        Discriminator(_output_tag),
    ]
    name: str | None = None
    status: ItemStatus | None = None
    caller: DirectCaller | None = None
    namespace: str | None = None

    def listed(self) -> Item:
        output = self.output
        item = {
            "id": self.id or new_item_id(self.type),
            "type": "function_call_output",
            "status": self.status or "completed",
            "call_id": self.call_id,
            "output": output
            if isinstance(output, str)
            else [{"type": "input_text", "text": part.text} for part in output],
        }
        return item | called(self.name, self.namespace)


class ReasoningItem(Strict):
    """What the model thought earlier in the conversation."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: list[SummaryPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: Unserved = None
    status: ItemStatus | None = None

    def listed(self) -> Item:
        return {
            "id": self.id or new_item_id(self.type),
            "type": "reasoning",
            "status": self.status or "completed",
            "summary": [part.model_dump() for part in self.summary or ()],
            "content": [part.model_dump() for part in self.content or ()],
        }


class ItemReference(Strict):
    """An item of a response that is kept."""

    type: Literal["item_reference"] | None = None
    id: ItemId


ITEM_TYPES: Final = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _with_type(value: object) -> object:
    """Messages and references need not say that they are one."""
    if isinstance(value, dict) and value.get("type") is None:
        value = value | {"type": "message" if "role" in value else "item_reference" if "id" in value else None}
    return check_type(value, "an item", ITEM_TYPES)


def _as_items(value: object) -> object:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(tag),
    BeforeValidator(_with_type),
]
MAX_ITEMS: Final = 16384
"""Of a request: half a second's work, in which nothing else is answered."""
Input = Annotated[
    list[InputItem],
    Field(max_length=MAX_ITEMS),
    BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
]


def _text(part: InputTextPart | OutputTextPart | RefusalPart) -> str:
    return part.refusal if isinstance(part, RefusalPart) else part.text


def _said(part: InputTextPart | OutputTextPart | RefusalPart) -> Item:
    """As a part of what an assistant said."""
    if isinstance(part, RefusalPart):
        return part.model_dump()
    annotations = part.annotations if isinstance(part, OutputTextPart) else None
    return {"type": "output_text", "text": part.text, "annotations": annotations or [], "logprobs": []}
