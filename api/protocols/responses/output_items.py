"""The growing items of a response, and the events that report them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, Literal

import orjson

from api.protocols.custom import InputReader
from api.protocols.responses.items import Item, called, new_id
from api.serving.choice import Delta
from api.text.dialects import CallArguments, CallBegin, Content, Reasoning

Event = dict[str, Any]
"""An event without its sequence number."""
Logprobs = Sequence[dict[str, Any]]
Status = Literal["in_progress", "completed", "incomplete"]


class OutputItems:
    """The items of an answer. Only the last one grows."""

    def __init__(self, names: Mapping[str, dict[str, str]], custom: Set[str]) -> None:
        """`names`: the wire names of functions that the model calls by another name, by that name.

        `custom`: the names with which the model calls custom tools.
        """
        self._names = names
        self._custom = custom
        self._closed: list[Item] = []
        self._open: _OpenItem | None = None
        self._pending_logprobs: list[dict[str, Any]] = []
        """Log probabilities of the tokens since the last event. Some tokens may be part of the next event's text."""

    @property
    def items(self) -> list[Item]:
        """All items. An item that still grows has status "incomplete"."""
        return self._closed + ([self._open.item("incomplete")] if self._open else [])

    @property
    def is_in_call(self) -> bool:
        """Whether the answer is in the middle of a call's arguments."""
        return isinstance(self._open, _Call) and not self._open.is_whole

    def push(self, delta: Delta, logprobs: Logprobs) -> list[Event]:
        """The events for a delta of the answer. If there are log probabilities, the delta has one token."""
        self._pending_logprobs += logprobs
        events: list[Event] = []
        for event in delta.events:
            match event:
                case Content(text):
                    if not isinstance(self._open, _Message):
                        events += self._begin(_Message(self._next_index))
                    events += self._grow(text, self._take_logprobs(text))
                case Reasoning(text):
                    if not isinstance(self._open, _Reasoning):
                        events += self._begin(_Reasoning(self._next_index))
                    events += self._grow(text, ())
                case CallBegin(_, call_id, name):
                    call = _CustomCall if name in self._custom else _Call
                    events += self._begin(call(self._next_index, call_id, self._names.get(name) or called(name)))
                case CallArguments(_, text):
                    events += self._grow(text, ())
        if delta.events:
            self._pending_logprobs = []
        return events

    def finish(self, status: Literal["completed", "incomplete"]) -> list[Event]:
        """The events at the end. An empty answer becomes an empty message."""
        events = [] if self._closed or self._open else self._begin(_Message(0))
        return events + self._close(status)

    @property
    def _next_index(self) -> int:
        return len(self._closed) + (self._open is not None)

    def _begin(self, item: "_OpenItem") -> list[Event]:
        events = self._close("completed")
        self._open = item
        return events + item.begin()

    def _grow(self, text: str, logprobs: Logprobs) -> list[Event]:
        assert self._open is not None, "pieces belong to an item that has begun"
        event = self._open.grow(text, logprobs)
        return [] if event is None else [event]

    def _close(self, status: Literal["completed", "incomplete"]) -> list[Event]:
        if self._open is None:
            return []
        events = self._open.end(status)
        self._closed.append(self._open.item(status))
        self._open = None
        return events

    def _take_logprobs(self, text: str) -> Logprobs:
        """Log probabilities of the text's tokens: the last ones. Tokens before them marked reasoning or a call."""
        first, missing = len(self._pending_logprobs), len(text.encode())
        while first and missing > 0:
            first -= 1
            missing -= len(self._pending_logprobs[first]["bytes"])
        taken, self._pending_logprobs = self._pending_logprobs[first:], []
        return taken


class _OpenItem(ABC):
    prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        self.id = new_id(self.prefix)
        self._index = index
        self._text = ""

    def begin(self) -> list[Event]:
        return [{"type": "response.output_item.added", "output_index": self._index, "item": self._new()}]

    @abstractmethod
    def grow(self, text: str, logprobs: Logprobs) -> Event | None:
        """Add a piece. Returns the event that reports it; None if the client gets nothing of it."""

    def end(self, status: Status) -> list[Event]:
        return [
            *self._text_done(),
            {"type": "response.output_item.done", "output_index": self._index, "item": self.item(status)},
        ]

    @abstractmethod
    def item(self, status: Status) -> Item:
        """The item as it is now."""

    @abstractmethod
    def _new(self) -> Item:
        """The item at its beginning."""

    @abstractmethod
    def _text_done(self) -> list[Event]: ...

    def _event(self, kind: str) -> Event:
        return {"type": f"response.{kind}", "item_id": self.id, "output_index": self._index}


class _OpenPart(_OpenItem):
    """An item with one part, which has its text."""

    def begin(self) -> list[Event]:
        return [*super().begin(), self._part_event("content_part.added") | {"part": self._empty_part()}]

    def _text_done(self) -> list[Event]:
        return [
            self._part_event(f"{self._part()['type']}.done") | self._content(),
            self._part_event("content_part.done") | {"part": self._part()},
        ]

    def _part_event(self, kind: str) -> Event:
        return self._event(kind) | {"content_index": 0}

    @abstractmethod
    def _empty_part(self) -> Item: ...

    @abstractmethod
    def _part(self) -> Item: ...

    def _content(self) -> dict[str, Any]:
        return {"text": self._text}


class _Message(_OpenPart):
    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[dict[str, Any]] = []

    def grow(self, text: str, logprobs: Logprobs) -> Event:
        self._text += text
        self._logprobs += logprobs
        return self._part_event("output_text.delta") | {"delta": text, "logprobs": logprobs}

    def item(self, status: Status) -> Item:
        return self._new() | {"status": status, "content": [self._part()]}

    def _new(self) -> Item:
        return {"id": self.id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}

    def _empty_part(self) -> Item:
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}

    def _part(self) -> Item:
        return self._empty_part() | self._content()

    def _content(self) -> dict[str, Any]:
        return {"text": self._text, "logprobs": self._logprobs}


class _Reasoning(_OpenPart):
    prefix = "rs"

    def grow(self, text: str, logprobs: Logprobs) -> Event:  # noqa: ARG002 - those of reasoning are not returned
        self._text += text
        return self._part_event("reasoning_text.delta") | {"delta": text}

    def item(self, status: Status) -> Item:
        return self._new() | {"status": status, "content": [self._part()]}

    def _new(self) -> Item:
        return {"id": self.id, "type": "reasoning", "status": "in_progress", "summary": [], "content": []}

    def _empty_part(self) -> Item:
        return {"type": "reasoning_text", "text": ""}

    def _part(self) -> Item:
        return self._empty_part() | self._content()


class _Call(_OpenItem):
    prefix = "fc"

    def __init__(self, index: int, call_id: str, names: dict[str, str]) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._names = names

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are complete JSON."""
        try:
            orjson.loads(self._text)
        except orjson.JSONDecodeError:
            return False
        return True

    def grow(self, text: str, logprobs: Logprobs) -> Event | None:  # noqa: ARG002 - those of calls are not returned
        self._text += text
        return self._event("function_call_arguments.delta") | {"delta": text}

    def item(self, status: Status) -> Item:
        return self._new() | {"status": status, "arguments": self._text}

    def _new(self) -> Item:
        return {
            "id": self.id,
            "type": "function_call",
            "status": "in_progress",
            "call_id": self._call_id,
            **self._names,
            "arguments": "",
        }

    def _text_done(self) -> list[Event]:
        return [self._event("function_call_arguments.done") | {"arguments": self._text}]


class _CustomCall(_Call):
    """A call of a custom tool. The model writes its input as the only argument of a function."""

    prefix = "ctc"

    def __init__(self, index: int, call_id: str, names: dict[str, str]) -> None:
        super().__init__(index, call_id, names)
        self._reader = InputReader()
        self._input = ""

    def grow(self, text: str, logprobs: Logprobs) -> Event | None:  # noqa: ARG002
        self._text += text
        piece = self._reader.push(text)
        self._input += piece
        return self._event("custom_tool_call_input.delta") | {"delta": piece} if piece else None

    def item(self, status: Status) -> Item:
        return self._new() | {"status": status, "input": self._input}

    def _new(self) -> Item:
        return {
            "id": self.id,
            "type": "custom_tool_call",
            "status": "in_progress",
            "call_id": self._call_id,
            **self._names,
            "input": "",
        }

    def _text_done(self) -> list[Event]:
        return [self._event("custom_tool_call_input.done") | {"input": self._input}]
