"""Requests as Codex and Claude Code send them: several turns, with the answers sent back as they came."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from api.protocols.messages.types import MessageEvent
from api.protocols.responses.types import ResponseEvent
from api.text.tokenizer import Tokenizer
from tests.api.fakes import INFO, MODEL, Server

Body = dict[str, Any]
OPENAI: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ANTHROPIC: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def agent_server(tokenizer: Tokenizer, url: str) -> Server:
    server = Server(tokenizer, url=url)
    server.engine.info = replace(INFO, ctx_len=8192)
    return server


def call(name: str, arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {orjson.dumps(arguments).decode()}}}\n</tool_call>'


# Codex

LARK = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
PATCH = "*** Begin Patch\n*** Add File: a.py\n+print('hi')\n*** End Patch\n"


def function(name: str, required: list[str], **properties: Body) -> Body:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "name": name, "description": name, "strict": False, "parameters": schema}


STRING, NUMBER = {"type": "string", "description": "A text."}, {"type": "number", "description": "A number."}
STEP = {
    "type": "object",
    "properties": {"step": {"type": "string"}, "status": {"type": "string"}},
    "required": ["step", "status"],
    "additionalProperties": False,
}
CODEX: Body = {
    "model": MODEL,
    "instructions": "You are a coding agent running in the Codex CLI.",
    "tools": [
        function("exec_command", ["cmd"], cmd=STRING, workdir=STRING, yield_time_ms=NUMBER, max_output_tokens=NUMBER),
        function("write_stdin", ["session_id"], session_id=NUMBER, chars=STRING),
        function("update_plan", ["plan"], explanation=STRING, plan={"type": "array", "items": STEP}),
        function("view_image", ["path"], path=STRING),
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Use the `apply_patch` tool to edit files. This is a FREEFORM tool.",
            "format": {"type": "grammar", "syntax": "lark", "definition": LARK},
        },
        {"type": "web_search", "external_web_access": True, "search_content_types": ["text", "image"]},
        {"type": "local_shell"},
        {"type": "image_generation", "output_format": "png"},
        {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": {"type": "object"}},
        {
            "type": "namespace",
            "name": "mcp__docs",
            "description": "Docs.",
            "tools": [function("find", ["q"], q=STRING)],
        },
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "019a1b2c-3d4e-7f60-8a9b-0c1d2e3f4a5b",
    "text": {"verbosity": "low"},
    "client_metadata": {"x-codex-installation-id": "6f1e2d3c"},
}
CODEX_WARNING = (
    "tools left out: web_search, local_shell, image_generation, tool_search; grammars not enforced: apply_patch; "
)


def spoken(role: str, text: str) -> Body:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def kept_by_codex(item: Body) -> Body:
    """An item as Codex sends it back: without an id."""
    kept = {key: value for key, value in item.items() if key not in ("id", "status")}
    if item["type"] == "reasoning":
        return kept | {"encrypted_content": None}
    if item["type"] == "message":
        parts = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
        return kept | {"content": parts, "phase": "commentary"}
    return kept | ({"status": "completed"} if item["type"] == "custom_tool_call" else {})


async def codex(server: Server, items: list[Body]) -> tuple[list[Body], str | None]:
    """The items of the answer as Codex sends them back, and the warning."""
    headers = {"originator": "codex_cli_rs", "session_id": "019a1b2c", "openai-beta": "responses=experimental"}
    async with server.stream(CODEX | {"input": items}, headers=headers) as stream:
        events = await stream.rest()
    assert stream.status == 200, events
    for event in events:
        ResponseEvent.model_validate(event)
        OPENAI.validate_python(event, strict=True)
    assert events[-1]["type"] == "response.completed"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    return [kept_by_codex(item) for item in done], stream.headers["cortex-warning"]


async def test_a_session_of_codex(tokenizer: Tokenizer) -> None:
    server = agent_server(tokenizer, "/v1/responses")
    items = [
        spoken("developer", "<permissions instructions>Sandboxed.</permissions instructions>"),
        spoken("user", "<environment_context>\n  <cwd>/work</cwd>\n</environment_context>"),
        spoken("user", "Write a program."),
    ]
    answers: list[tuple[str, Any]] = [
        ("I look first.\n" + call("exec_command", {"cmd": "ls"}), "Chunk ID: 1\nOutput:\n"),
        (call("apply_patch", {"input": PATCH}), "Success. Updated the following files:\nA a.py\n"),
        (call("view_image", {"path": "a.png"}), [{"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}]),
        (call("mcp__docs__find", {"q": "print"}), "Found."),
        ("Done.", None),
    ]
    calls = []
    for number, (text, result) in enumerate(answers):
        server.answers(text)
        answer, warning = await codex(server, items)
        media = "content left out: image; " if number > 2 else ""
        assert warning == f"{CODEX_WARNING}{media}without effect: text.verbosity"
        items += answer
        if result is not None:
            made = answer[-1]
            kind = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}[
                made["type"]
            ]
            items.append({"type": kind, "call_id": made["call_id"], "output": result})
            calls.append((made["type"], made["name"], made.get("namespace")))
    assert calls == [
        ("function_call", "exec_command", None),
        ("custom_tool_call", "apply_patch", None),
        ("function_call", "view_image", None),
        ("function_call", "find", "mcp__docs"),
    ]
    [patched] = [item for item in items if item["type"] == "custom_tool_call"]
    assert patched["input"] == PATCH
    prompts = [tokenizer.text(submit.tokens) for submit in server.engine.submitted]
    for before, after in pairwise(prompts):
        assert after.startswith(before), "the next turn finds this one in the cache"
    assert "[image omitted]" in prompts[-1]
    assert "start: begin_patch hunk+ end_patch" in prompts[0].replace("\\n", "\n")


async def test_a_session_that_began_with_a_hosted_model_goes_on(tokenizer: Tokenizer) -> None:
    server = agent_server(tokenizer, "/v1/responses")
    server.answers("Fine.")
    items: list[Body] = [
        spoken("user", "Look at the picture."),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "**Plan**"}], "encrypted_content": "gAAAAB"},
        {
            "type": "web_search_call",
            "status": "completed",
            "action": {"type": "search", "query": "x", "queries": ["x"]},
        },
        {
            "type": "local_shell_call",
            "call_id": "c",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"]},
        },
        {"type": "function_call_output", "call_id": "c", "output": "a.py"},
        {"type": "compaction", "encrypted_content": "gAAAAC"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is a cat."}]},
        spoken("user", "Go on."),
    ]
    items[0]["content"].append({"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "high"})
    answer, warning = await codex(server, items)
    assert answer[0]["content"][0]["text"] == "Fine."
    assert warning is not None
    assert "content left out: image; items left out: web_search_call, compaction" in warning


# Claude Code

EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}


def tool(name: str, required: list[str], **properties: Body) -> Body:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {"name": name, "description": f"The tool {name}.", "input_schema": schema}


FLAG = {"type": "boolean", "default": False}
CLAUDE: Body = {
    "model": MODEL,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli;"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": EPHEMERAL},
        {"type": "text", "text": "Be concise.", "cache_control": EPHEMERAL},
    ],
    "tools": [
        tool("Bash", ["command"], command=STRING, timeout=NUMBER, run_in_background=FLAG),
        tool("Read", ["file_path"], file_path=STRING, offset={"type": "integer", "exclusiveMinimum": 0}),
        tool("Edit", ["file_path", "old_string", "new_string"], file_path=STRING, old_string=STRING, new_string=STRING),
        tool("WebFetch", ["url", "prompt"], url=STRING | {"format": "uri"}, prompt=STRING),
        tool("TodoWrite", ["todos"], todos={"type": "array", "items": STEP, "minItems": 1}),
        tool("Task", ["prompt"], prompt=STRING, model={"type": "string", "enum": ["sonnet", "opus"]}),
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "memory_20250818", "name": "memory"},
    ],
    "metadata": {"user_id": "user_0a1b_account__session_2c3d"},
    "max_tokens": 32000,
    "thinking": {"type": "enabled", "budget_tokens": 31999},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}
CLAUDE_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "x-app": "cli",
    "x-api-key": "none",
}
CLAUDE_WARNING = "tools left out: web_search_20250305, code_execution_20250825, memory_20250818"


def added_up(events: list[Body]) -> list[Body]:
    """The blocks of a stream, added up as the SDK does."""
    blocks: list[Body] = []
    inputs: dict[int, str] = {}
    for event in events:
        MessageEvent.model_validate(event)
        if event["type"] != "ping":
            ANTHROPIC.validate_python(event)
        match event:
            case {"type": "content_block_start", "content_block": block}:
                blocks.append(dict(block))
            case {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta"} as delta}:
                inputs[index] = inputs.get(index, "") + delta["partial_json"]
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                [(key, piece)] = [(key, value) for key, value in delta.items() if key != "type"]
                blocks[index][key] = (blocks[index].get(key) or "") + piece
    for index, text in inputs.items():
        blocks[index]["input"] = orjson.loads(text)
    return blocks


async def claude(server: Server, messages: list[Body]) -> tuple[list[Body], str | None]:
    """The blocks of the answer, and the warning."""
    server.url = "/v1/messages?beta=true"
    async with server.stream(CLAUDE | {"messages": messages}, headers=CLAUDE_HEADERS) as stream:
        events = await stream.rest()
    assert stream.status == 200, events
    return added_up(events), stream.headers["cortex-warning"]


async def count(server: Server, messages: list[Body]) -> int:
    server.url = "/v1/messages/count_tokens?beta=true"
    fields = ("model", "tools", "thinking", "system")
    response = await server.post({"messages": messages} | {key: CLAUDE[key] for key in fields}, CLAUDE_HEADERS)
    body = orjson.loads(await response.get_data(as_text=False))
    assert response.status_code == 200, body
    return int(body["input_tokens"])


async def test_a_session_of_claude_code(tokenizer: Tokenizer) -> None:
    server = agent_server(tokenizer, "/v1/messages")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    reminder = {
        "type": "text",
        "text": "<system-reminder>Todos are empty.</system-reminder>",
        "cache_control": EPHEMERAL,
    }
    messages: list[Body] = [{"role": "user", "content": [reminder, {"type": "text", "text": "Read the files."}]}]
    answers: list[tuple[str, Any]] = [
        ("I look.\n" + call("Bash", {"command": "ls"}), "a.py\na.png\nb.pdf"),
        (call("Read", {"file_path": "a.png"}), [image]),
        (call("Read", {"file_path": "b.pdf"}), "PDF file read: b.pdf"),
        ("Done.", None),
    ]
    for number, (text, result) in enumerate(answers):
        server.answers(text)
        blocks, warning = await claude(server, messages)
        media = ["", "", "; content left out: image", "; content left out: image, document"][number]
        assert warning == CLAUDE_WARNING + media
        assert await count(server, messages) == len(server.engine.submitted[-1].tokens)
        messages.append({"role": "assistant", "content": blocks})
        if result is not None:
            told = {"tool_use_id": blocks[-1]["id"], "type": "tool_result", "content": result, "is_error": False}
            messages.append({"role": "user", "content": [told]})
        if number == 2:  # the pages follow their result
            source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
            messages[-1]["content"].append({"type": "document", "source": source})
    assert [block["type"] for block in messages[1]["content"]] == ["text", "tool_use"]
    prompts = [tokenizer.text(submit.tokens) for submit in server.engine.submitted]
    for before, after in pairwise(prompts):
        assert after.startswith(before), "the next turn finds this one in the cache"
    assert "[image omitted]" in prompts[-1]
    assert "[document omitted]" in prompts[-1]


@pytest.mark.parametrize("choice", [None, {"type": "tool", "name": "web_search"}])
async def test_the_web_search_of_claude_code(tokenizer: Tokenizer, choice: Body | None) -> None:
    """It is a request of its own, with the hosted tool only."""
    server = agent_server(tokenizer, "/v1/messages")
    server.answers("I cannot search.")
    search = {"type": "web_search_20250305", "name": "web_search", "allowed_domains": ["a.b"], "max_uses": 8}
    messages = [{"role": "user", "content": "Perform a web search for the query: x"}]
    fields = {"tools": [search], "messages": messages, "stream": False} | ({"tool_choice": choice} if choice else {})
    response = await server.post(CLAUDE | fields, CLAUDE_HEADERS)
    body = orjson.loads(await response.get_data(as_text=False))
    assert response.headers["cortex-warning"] == "tools left out: web_search_20250305"
    if choice is None:
        assert body["content"][0]["text"] == "I cannot search."
    else:
        assert (response.status_code, body["error"]["type"]) == (400, "invalid_request_error")
        assert "'web_search' does not exist on this server" in body["error"]["message"]
