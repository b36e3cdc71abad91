"""Answers whose text a check must choose. The browser gets them in place of the server's."""

import json
from typing import Any

from playwright.sync_api import BrowserContext

MODEL = "smollm2:135m"


def events(*data: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(each)}\n\n" for each in data)


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def stream(text: str = "", *, thoughts: str = "", calls: tuple[tuple[str, str], ...] = (), piece: int = 40) -> str:
    """The body of a streamed chat. `calls` are names and arguments; texts come in pieces of `piece` characters."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": part} for part in pieces(thoughts, piece)]
    deltas += [{"content": part} for part in pieces(text, piece)]
    for index, (name, arguments) in enumerate(calls):
        call = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [call]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in pieces(arguments, piece)
        ]
    usage = {"prompt_tokens": 10, "completion_tokens": len(deltas), "total_tokens": 10 + len(deltas)}
    usage_chunk = chunk({}) | {"choices": [], "usage": usage}
    finish = "tool_calls" if calls else "stop"
    return events(*map(chunk, deltas), chunk({}, finish), usage_chunk) + "data: [DONE]\n\n"


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def live(name: str, *, error: str | None = None) -> dict[str, Any]:
    """An event of the live feed, in which the model and every tenant have this name. `error`: of the engine."""
    percentiles = {"p50": 0.1, "p95": 0.2, "p99": 0.3}
    pages = {
        "page_tokens": 16,
        "total": 4,
        "free": 1,
        "cached": 1,
        "held": 1,
        "shared": 1,
        "host": 2,
        "disk": 3,
        "tenants": {name: {"held": 1, "shared": 1}},
        "map": [
            {"state": state, "tenant": name if state == "held" else None}
            for state in ("free", "cached", "held", "shared")
        ],
    }
    tenant = {"name": name, "running": 1, "waiting": 1, "weight": 1.0, "service": 10.0, "credit": 5.0}
    model = {
        "name": name,
        "state": "running",
        "steps": [{"seconds": 0.05, "rows": [[name, 10, 4, 2, 1]]}],
        "pages": pages,
        "queue": {"running": 1, "waiting": 1, "tenants": [tenant]},
        "memory": {"kv_tokens": 64, "kv_max": 128, "resident_bytes": 10**8, "state": "steady"},
        "error": error,
        "latency": {"ttft": percentiles, "itl": percentiles},
        "tokens_per_s": {"prompt": 10.0, "answer": 20.0},
    }
    if error is not None:
        model |= {"pages": None, "queue": None, "memory": None}
    return {"at": 1.0, "sees_all": True, "models": [model]}


def answer_chats(context: BrowserContext, *bodies: str) -> None:
    """The next chats get these answers; the last one is repeated."""
    rest = list(bodies)

    def answer(route: Any) -> None:
        body = rest.pop(0) if len(rest) > 1 else rest[0]
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    context.route("**/v1/chat/completions", answer)


def refuse_chats(context: BrowserContext, message: str, *, status: int = 400) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
    context.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=status, content_type="application/json", body=body),
    )
