"""The wire between the API process and its engine: one JSON object per line, named by its type.

The API sends Submit, Cancel, Inspect and Stop; the engine sends Ready or Failed once, then Step and Report.
A message about a request that is unknown or finished is ignored on both sides, so that a cancel may cross an end.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from scheduler.config import EngineInfo


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, in llama.cpp's order: penalties, top_k, top_p, min_p, temperature."""

    temperature: float = 1.0
    """0 picks the best token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    request_id: int
    tokens: list[int]
    max_tokens: int
    """Tokens to generate at most; the prompt and these fit into the context."""
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Asks for a Report."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks the engine to end now; whoever wants running requests to finish waits before sending this."""


@dataclass(frozen=True, slots=True)
class Ready:
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot serve this model; it ends after this message."""

    reason: str


@dataclass(slots=True)
class Output:
    """What one request got since the last message about it."""

    request_id: int
    tokens: list[int]
    """New tokens, the one that ended the generation included."""
    finish_reason: str | None = None
    """`stop`, `length` or `error`; nothing follows it."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed for this request; set with the first output."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class Report:
    """Statistics of the scheduler and of the cache, as plain values."""

    scheduler: dict[str, Any]
    cache: dict[str, Any]


Message = Submit | Cancel | Inspect | Stop | Ready | Failed | Step | Report


def encode(message: Message) -> bytes:
    """One line, newline included."""
    return orjson.dumps({"type": type(message).__name__, "body": message}, option=orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> Message:
    """The message of one line.

    Raises ValueError for a line that is none: the two sides are then not of one version.
    """
    try:
        envelope = orjson.loads(line)
        message: Message = _DECODERS[envelope["type"]](envelope["body"])
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"not a message: {line[:200]!r}") from error
    return message


def _submit(body: dict[str, Any]) -> Submit:
    return Submit(**body | {"params": SamplingParams(**body["params"])})


_DECODERS: dict[str, Any] = {
    "Submit": _submit,
    "Cancel": lambda body: Cancel(**body),
    "Inspect": lambda _: Inspect(),
    "Stop": lambda _: Stop(),
    "Ready": lambda body: Ready(EngineInfo(**body["info"])),
    "Failed": lambda body: Failed(**body),
    "Step": lambda body: Step([Output(**output) for output in body["outputs"]]),
    "Report": lambda body: Report(**body),
}
