"""The wire types of the items of conversations in the Responses API."""

import uuid
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from api.protocols import hosted
from api.protocols.conversation import Arguments, RefusalPart
from api.protocols.fields import FunctionName, Lenient
from api.protocols.hosted import Media
from api.protocols.kinds import check_type, type_of
from api.protocols.responses.tools import check_full_name

Item = dict[str, Any]
"""An item in the form in which it is listed: a message, reasoning, a call or the output of a call."""

_PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def new_item_id(kind: str) -> str:
    """A new id for an item of this type."""
    return new_id(_PREFIXES[kind])


def called(name: str | None, namespace: str | None = None) -> dict[str, str]:
    """The fields in which an item names a function."""
    names = {"name": name, "namespace": namespace}
    return {key: value for key, value in names.items() if value is not None}


# -- parts of items


PARTS: Final = ("input_text", "output_text", "refusal")


def _part(value: object) -> object:
    if hosted.media_type(value):
        return value
    return check_type(_renamed(value, "text"), "a content part", PARTS)


def _result_part(value: object) -> object:
    if hosted.media_type(value):
        return value
    return check_type(_renamed(value, "text", "output_text"), "a content part", ("input_text",))


def _renamed(value: object, *names: str) -> object:
    """Clients also send parts of chats, and answers of other models as results of functions."""
    return value | {"type": "input_text"} if isinstance(value, dict) and type_of(value) in names else value


def _as_parts(content: object) -> object:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


class InputTextPart(Lenient):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class OutputTextPart(Lenient):
    """Text that the model generated earlier."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


Part = Annotated[
    Annotated[InputTextPart, Tag("<input_text>")]
    | Annotated[OutputTextPart, Tag("<output_text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[Media, Tag(hosted.MEDIA_TAG)],
    Discriminator(hosted.content_tag),
    BeforeValidator(_part),
]
Parts = Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]
ResultPart = Annotated[
    Annotated[InputTextPart, Tag("<input_text>")] | Annotated[Media, Tag(hosted.MEDIA_TAG)],
    Discriminator(hosted.content_tag),
    BeforeValidator(_result_part),
]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class SummaryPart(Lenient):
    type: Literal["summary_text"]
    text: str


class ReasoningPart(Lenient):
    type: Annotated[
        Literal["reasoning_text"],
        BeforeValidator(lambda kind: "reasoning_text" if kind == "text" else kind),  # Codex has both
    ]
    text: str


# -- items


class InputMessage(Lenient):
    """`content` may only be missing in an answer, which may have had calls instead."""

    type: Literal["message"] | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    # accepted without effect
    metadata: dict[str, Any] | None = None
    end_turn: bool | None = None

    @model_validator(mode="after")
    def _has_parts_of_its_role(self) -> "InputMessage":
        if self.role == "assistant":
            return self
        if self.content is None:
            raise ValueError(f"a message of role {self.role!r} needs content")
        if not all(isinstance(part, InputTextPart | Media) for part in self.content):
            raise ValueError(f"a message of role {self.role!r} can only have parts of type 'input_text'")
        return self

    def listed(self) -> Item:
        is_output = self.role == "assistant"
        item = {
            "id": self.id or new_item_id("message"),
            "type": "message",
            "status": self.status or "completed",
            "role": self.role,
            "content": [
                _output_part(part) if is_output else {"type": "input_text", "text": _text(part)}
                for part in self.content or ()
            ],
        }
        return item | {"phase": self.phase} if self.phase else item


class FunctionCall(Lenient):
    """A call that the model made earlier in the conversation."""

    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    """It may be one that a tool cannot have: models make mistakes."""
    arguments: Arguments
    status: ItemStatus | None = None
    namespace: FunctionName | None = None

    @model_validator(mode="after")
    def _has_a_short_name(self) -> "FunctionCall":
        if self.namespace is not None:
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


class CustomCall(Lenient):
    """A call of a custom tool that the model made earlier in the conversation."""

    type: Literal["custom_tool_call"]
    id: str | None = None
    call_id: str
    name: str
    input: str
    status: ItemStatus | None = None
    namespace: FunctionName | None = None

    @model_validator(mode="after")
    def _has_a_short_name(self) -> "CustomCall":
        if self.namespace is not None:
            check_full_name(self.namespace, self.name)
        return self

    def listed(self) -> Item:
        return {
            "id": self.id or new_item_id(self.type),
            "type": "custom_tool_call",
            "status": self.status or "completed",
            "call_id": self.call_id,
            **called(self.name, self.namespace),
            "input": self.input,
        }


class CallOutput(Lenient):
    """The result of a call of a function or of a custom tool."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    id: str | None = None
    call_id: str
    output: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[ResultPart], Tag("<parts>")],
        Discriminator(_output_tag),
    ]
    name: str | None = None
    status: ItemStatus | None = None
    namespace: str | None = None

    def listed(self) -> Item:
        output = self.output
        item = {
            "id": self.id or new_item_id(self.type),
            "type": self.type,
            "status": self.status or "completed",
            "call_id": self.call_id,
            "output": output
            if isinstance(output, str)
            else [{"type": "input_text", "text": part.text} for part in output],
        }
        return item | called(self.name, self.namespace)


class ReasoningItem(Lenient):
    """Reasoning of the model earlier in the conversation."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    """Accepted and ignored: only the server that encrypted it can read it."""
    status: ItemStatus | None = None

    def listed(self) -> Item:
        return {
            "id": self.id or new_item_id(self.type),
            "type": "reasoning",
            "status": self.status or "completed",
            "summary": [part.model_dump() for part in self.summary or ()],
            "content": [part.model_dump() for part in self.content or ()],
        }


class ItemReference(Lenient):
    """A reference to an item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: Annotated[str, Field(min_length=1)]


def _text(part: Part) -> str:
    return part.refusal if isinstance(part, RefusalPart) else part.text


def _output_part(part: Part) -> Item:
    """The part as a part of an assistant's message."""
    if isinstance(part, RefusalPart):
        return part.model_dump()
    annotations = part.annotations if isinstance(part, OutputTextPart) else None
    return {"type": "output_text", "text": part.text, "annotations": annotations or [], "logprobs": []}
