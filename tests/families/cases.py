"""The test cases of the peer, in the terms of an OpenAI client: a request, a model's output, the expected answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from tests.families.objects import Builder, as_text


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class Answer:
    content: str
    reasoning: str
    calls: tuple[Call, ...]


_THOUGHT_ENDS: Final = (
    *("</think>", "[/THINK]", "<|END_THINKING|>", "<channel|>", "</seed:think>", "</mm:think>", "</thinking>"),
    *("<|end|>", "[BEGIN FINAL RESPONSE]"),
)
"""Marks that end thoughts, in all families of the peer."""

LEFT_IN_CONTENT: Final = "thoughts left in the content (Cortex always separates them)"


@dataclass
class Case:
    """A request, the model's output and the answer that the peer expects."""

    template: str
    """File name."""
    line: int
    """In the peer's test file."""
    raw: str
    """The model's output."""
    expected: Answer
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    tool_choice: str
    parallel: bool
    thinking: bool
    format: str
    schema: dict[str, Any] | None
    continues: str
    prefill: str = ""
    skip: str = ""
    """Why the case is not measured. Empty for most."""

    @classmethod
    def of(cls, built: Builder, line: int) -> "Case":
        given = built.given
        schema = json.loads(given["json_schema"]) if given.get("json_schema") else None
        messages = [_as_openai(message) for message in given.get("messages", [])]
        case = cls(
            template=Path(built.template).name,
            line=line,
            raw=built.raw,
            expected=Answer(
                as_text(built.expected.content),
                as_text(built.expected.reasoning_content),
                tuple(Call(as_text(c[0]), as_text(c[1] if len(c) > 1 else "")) for c in built.expected.tool_calls),
            ),
            messages=messages or [{"role": "user", "content": "Hey there!"}],
            tools=[_tool(tool) for tool in given.get("tools", [])],
            tool_choice=given.get("tool_choice", "AUTO").rpartition("_")[2].lower(),
            parallel=bool(given.get("parallel_tool_calls", False)),
            thinking=bool(given.get("enable_thinking", True)),
            format=given.get("reasoning_format", "NONE").rpartition("_")[2].lower(),
            schema=schema,
            continues=given.get("continue_final_message", "NONE").rpartition("_")[2].lower(),
        )
        case._judge(bool(given.get("is_partial")))
        return case

    def _judge(self, is_partial: bool) -> None:
        """Decides whether Cortex's API can make this request. Continued content becomes a prefill."""
        expected = self.expected
        if is_partial:
            self.skip = "a partial parse"
        elif self.continues == "reasoning":
            self.skip = "goes on with thoughts that were begun (nothing in the API begins them)"
        elif self.continues == "content":
            last = self.messages.pop()
            if expected.reasoning:
                self.skip = "goes on with an answer that has thoughts (nothing in the API takes them)"
            else:
                self.prefill = last["content"]
                self.expected = Answer(expected.content.removeprefix(self.prefill), "", expected.calls)
        elif self.format == "none" and any(end in expected.content for end in _THOUGHT_ENDS):
            self.skip = LEFT_IN_CONTENT
        elif self.schema is not None and "```" in self.raw:
            self.skip = "strips a fence around JSON (Cortex's grammar lets none be written)"

    def body(self) -> dict[str, Any]:
        """The body of a chat completion. As in the peer's tests, `enable_thinking` is always given."""
        body: dict[str, Any] = {
            "model": "m",
            "messages": self.messages,
            "chat_template_kwargs": {"enable_thinking": self.thinking},
        }
        if self.tools:
            body |= {"tools": self.tools, "parallel_tool_calls": self.parallel, "tool_choice": self.tool_choice}
        if self.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema}}
        return body


def _as_openai(message: SimpleNamespace) -> dict[str, Any]:
    content = message.content or "\n".join(as_text(part[1]) for part in message.content_parts)
    said: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning_content:
        said["reasoning_content"] = message.reasoning_content
    if message.role == "tool":
        said["tool_call_id"] = message.tool_call_id or "call_0"
    if message.tool_calls:
        said["tool_calls"] = [
            call(as_text(c[0]), as_text(c[1]), as_text(c[2]) if len(c) > 2 and c[2] else "call_0")
            for c in message.tool_calls
        ]
    return said


def call(name: str, arguments: Any, call_id: str = "call_0") -> dict[str, Any]:
    """A call of an assistant message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(tool: list[Any]) -> dict[str, Any]:
    name, description, parameters = tool
    function = {"name": name, "description": description, "parameters": json.loads(parameters)}
    return {"type": "function", "function": function}
