"""The wire between the API process and its engine: one JSON object per line, named by its type.

The API sends Submit, Embed, Cancel, Inspect and Stop; the engine sends Ready or Failed once, then Step, Embedded and
Report.
A message about a request that is unknown or finished is ignored on both sides, so that a cancel may cross an end.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from scheduler.config import EngineInfo


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    The order is llama.cpp's: logit bias, penalties, DRY, top_n_sigma, top_k, typical_p, top_p, min_p, XTC, temperature.
    Mirostat stands in for all from top_k to XTC.
    """

    temperature: float = 1.0
    """0 picks the best token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    """Standard deviations of the logits below the best that a token may lie; 0 is off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens back that repeat_penalty looks; -1 for all."""
    dry_multiplier: float = 0.0
    """0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    """Tokens back that DRY looks; -1 for all."""
    dry_breakers: list[int] = field(default_factory=list)
    """Tokens that no repetition reaches across."""
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    """Version 1 or 2; 0 is off."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: list[tuple[int, float]] = field(default_factory=list)
    """Token and what is added to its logit."""
    seed: int = 0
    ignore_eos: bool = False
    min_tokens: int = 0
    """Tokens before which nothing that ends a generation is chosen."""


@dataclass(frozen=True, slots=True)
class Submit:
    request_id: int
    tokens: list[int]
    max_tokens: int
    """Tokens to generate at most; the prompt and these fit into the context."""
    params: SamplingParams = field(default_factory=SamplingParams)
    logprobs: int | None = None
    """How many of the best tokens to tell with each token, besides its own probability; None for neither."""
    score_prompt: bool = False
    """Whether to tell the probabilities of the prompt's tokens, too. These are then computed, not taken from memory."""
    grammar: str = ""
    """What the answer must match, in llguidance's words; empty for anything."""
    answer: list[int] = field(default_factory=list)
    """What an engine that is gone has generated of it; these count among `max_tokens`."""
    num_scored: int = 0
    """Probabilities of the prompt's tokens that were told by one that is gone."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Asks for the embeddings of some texts."""

    request_id: int
    texts: list[list[int]]
    """Their tokens, special ones included; each text has one at least."""


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
    missing_bytes: int = 0
    """Of memory, if it could be served with more."""


TokenLogprob = tuple[float, list[tuple[int, float]]]
"""The natural logarithm of a token's probability, and the best tokens with theirs, best first."""


@dataclass(slots=True)
class Output:
    """What one request got since the last message about it."""

    request_id: int
    tokens: list[int] = field(default_factory=list)
    """New tokens, the one that ended the generation included."""
    finish_reason: str | None = None
    """`stop`, `length`, `error`, or `refused` for what cannot be asked of this model; nothing follows it."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed for this request; set with the first token."""
    error: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of `tokens`, if asked for."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens behind those told before; its first token has none."""

    def merge(self, later: "Output") -> None:
        """Take in what came after this."""
        self.tokens.extend(later.tokens)
        self.logprobs.extend(later.logprobs)
        self.prompt_logprobs.extend(later.prompt_logprobs)
        self.cached_tokens = self.cached_tokens or later.cached_tokens
        self.finish_reason, self.error = later.finish_reason, later.error


@dataclass(frozen=True, slots=True)
class Step:
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of a request's texts, in the order of these, behind those told before."""

    request_id: int
    embeddings: list[str] = field(default_factory=list)
    """Of length 1: little-endian float32, in base64."""
    error: str | None = None
    """Why there will be no more."""


@dataclass(frozen=True, slots=True)
class Report:
    """Statistics of the scheduler, of the cache and of the embedder, as plain values."""

    scheduler: dict[str, Any]
    cache: dict[str, Any]
    embedder: dict[str, Any] = field(default_factory=dict)
    """Empty where the model makes no embeddings."""


Message = Submit | Embed | Cancel | Inspect | Stop | Ready | Failed | Step | Embedded | Report


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
    "Embed": lambda body: Embed(**body),
    "Cancel": lambda body: Cancel(**body),
    "Inspect": lambda _: Inspect(),
    "Stop": lambda _: Stop(),
    "Ready": lambda body: Ready(EngineInfo(**body["info"])),
    "Failed": lambda body: Failed(**body),
    "Step": lambda body: Step([Output(**output) for output in body["outputs"]]),
    "Embedded": lambda body: Embedded(**body),
    "Report": lambda body: Report(**body),
}
