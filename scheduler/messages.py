"""The messages between the API process and its engine: one JSON object per line, with its type and its body.

The API sends Submit, Embed, Cancel, Inspect, Watch and Stop. The engine sends Ready or Failed once, then Step, Queue,
Embedded, Report and Snapshot. Both sides ignore messages about unknown or finished requests, because a Cancel may cross
the end of its request.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from scheduler.config import EngineInfo

DEFAULT_PRIORITY: Final = 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling parameters of a request.

    They are applied in llama.cpp's order: logit bias, penalties, DRY, top_n_sigma, top_k, typical_p, top_p, min_p, XTC,
    temperature. Mirostat replaces all steps from top_k to XTC.
    """

    temperature: float = 1.0
    """0 takes the best token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    """A token's logit may be this many standard deviations below the best one; 0 is off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Number of last tokens that repeat_penalty considers; -1 for all."""
    dry_multiplier: float = 0.0
    """0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    """Number of last tokens that DRY considers; -1 for all."""
    dry_breakers: list[int] = field(default_factory=list)
    """Tokens that interrupt a repetition."""
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    """Version 1 or 2; 0 is off."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: list[tuple[int, float]] = field(default_factory=list)
    """Pairs of a token and the value to add to its logit."""
    seed: int = 0
    ignore_eos: bool = False
    min_tokens: int = 0
    """Number of tokens before which no end-of-generation token is sampled."""


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """A limit on the reasoning in an answer, and how the model marks its reasoning.

    Marks are texts. Control tokens count with their text.
    """

    budget: int
    """Maximum number of tokens of all reasoning of the answer, without the tokens that complete a mark."""
    end: list[int]
    """The tokens of the mark that is forced once the budget is used up; at least one."""
    begins: list[str] = field(default_factory=list)
    """Marks that begin reasoning."""
    ends: list[str] = field(default_factory=list)
    """Marks that end it."""
    is_open: bool = False
    """Whether the prompt ends inside reasoning."""
    anywhere: bool = False
    """Whether reasoning may begin after other text, too."""
    then: list[int] = field(default_factory=list)
    """The tokens that begin the text of the answer, without reasoning; empty if text needs no mark."""


@dataclass(frozen=True, slots=True)
class Submit:
    request_id: int
    tokens: list[int]
    max_tokens: int
    """Maximum number of tokens to generate. Prompt and answer must fit into the context."""
    params: SamplingParams = field(default_factory=SamplingParams)
    logprobs: int | None = None
    """How many of the best tokens to return with each token's log probability. None for no log probabilities."""
    score_prompt: bool = False
    """Whether to return the log probabilities of the prompt's tokens. Those tokens are then computed in any case."""
    grammar: str = ""
    """The grammar that the answer must match, in llguidance's syntax. Empty for no constraint."""
    thoughts: ThoughtLimit | None = None
    """The limit on the answer's reasoning; None for no limit."""
    answer: list[int] = field(default_factory=list)
    """Tokens of the answer that an earlier engine has generated. They count towards `max_tokens`."""
    num_scored: int = 0
    """Number of prompt log probabilities that an earlier engine has returned."""
    suspect: bool = False
    """Whether the request was in the step in which an earlier engine crashed, so that it may be the cause."""
    num_alone: int = 1
    """Number of tokens that a suspect must get in steps of its own."""
    tenant: str = ""
    """Who is charged for the sequence."""
    weight: float = 1.0
    """The tenant's share compared with the shares of others; more than 0."""
    priority: int = DEFAULT_PRIORITY
    """The sequence's class. A lower number goes first."""
    cache_salt: str = ""
    """Prefixes are shared only between sequences of the same salt."""
    prediction: list[int] = field(default_factory=list)
    """Tokens that the answer probably contains, in about this order. They are drafts, and change no answer."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Requests the embeddings of some texts."""

    request_id: int
    texts: list[list[int]]
    """The tokens of each text, special tokens included; at least one."""
    tenant: str = ""
    """As in Submit."""
    weight: float = 1.0
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Requests a Report."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Begins or ends to watch the engine. A watched engine sends Snapshots; the first one at once."""

    on: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Stops the engine at once. Running requests do not finish: the API waits for them before it sends this."""


@dataclass(frozen=True, slots=True)
class Ready:
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot serve this model. It exits after this message."""

    reason: str
    missing_bytes: int = 0
    """Bytes of memory that are missing. 0 for another reason."""


TokenLogprob = tuple[float, list[tuple[int, float]]]
"""The natural logarithm of a token's probability, and the best tokens with their logarithms, best first."""


@dataclass(slots=True)
class Output:
    """The new output of one request since the previous Step."""

    request_id: int
    tokens: list[int] = field(default_factory=list)
    """New tokens, including an end-of-generation token."""
    finish_reason: str | None = None
    """`stop`, `length`, `error`, or `refused` if this model cannot serve the request. No output follows it."""
    cached_tokens: int = 0
    """Prompt tokens that were found in the cache. Set with the first token."""
    error: str | None = None
    queue_seconds: float = field(default=0.0, compare=False)
    """Seconds from the submission to the first admission. Set with the first token."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log probabilities of `tokens`, if requested."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log probabilities of the next prompt tokens, if requested. The prompt's first token has none."""
    accepted_drafts: int = 0
    """Drafted tokens that became part of the answer."""
    rejected_drafts: int = 0
    """Drafted tokens that were computed in vain."""

    def merge(self, later: "Output") -> None:
        """Append a later output of the same request."""
        self.tokens.extend(later.tokens)
        self.logprobs.extend(later.logprobs)
        self.prompt_logprobs.extend(later.prompt_logprobs)
        self.cached_tokens = self.cached_tokens or later.cached_tokens
        self.queue_seconds = self.queue_seconds or later.queue_seconds
        self.accepted_drafts += later.accepted_drafts
        self.rejected_drafts += later.rejected_drafts
        self.finish_reason, self.error = later.finish_reason, later.error


@dataclass(frozen=True, slots=True)
class Step:
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class Queue:
    """The order of the waiting requests, at most once a second while requests wait."""

    request_ids: list[int]
    """The next one first."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The next embeddings of a request, in the order of its texts."""

    request_id: int
    embeddings: list[str] = field(default_factory=list)
    """Embeddings of length 1, or scores, as little-endian float32 in base64."""
    error: str | None = None
    """The reason if the request fails. No message follows it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Statistics of the scheduler, the cache and the embedder, as plain values."""

    scheduler: dict[str, Any]
    cache: dict[str, Any]
    embedder: dict[str, Any] = field(default_factory=dict)
    """Empty if the model makes no embeddings."""
    memory: dict[str, Any] = field(default_factory=dict)
    """The size of the KV memory; empty if it is fixed."""


Row = tuple[str, int, int, int, int]
"""What a step computed for one tenant: its name, tokens of prompts and of answers, drafted and accepted tokens. Drafts
are not among the tokens of answers."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a watched engine did since the previous Snapshot and what it holds, as plain values (see scheduler.live)."""

    steps: list[tuple[float, list[Row]]]
    """The seconds and the rows of the last steps, newest last."""
    tokens: dict[str, tuple[int, int]]
    """Tokens of prompts and of answers of all steps by tenant, accepted drafts included."""
    pages: dict[str, Any]
    queue: dict[str, Any]
    memory: dict[str, Any]
    error: str = ""
    """Why this is the last Snapshot and has nothing else, as a sentence for watchers; empty if all is well."""


Message = (
    Submit | Embed | Cancel | Inspect | Watch | Stop | Ready | Failed | Step | Queue | Embedded | Report | Snapshot
)


def encode(message: Message) -> bytes:
    """Returns the message as one line, newline included."""
    return orjson.dumps({"type": type(message).__name__, "body": message}, option=orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> Message:
    """Returns the message of one line.

    Raises ValueError if the line is not a message: the two sides then have different versions.
    """
    try:
        envelope = orjson.loads(line)
        message: Message = _DECODERS[envelope["type"]](envelope["body"])
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"not a message: {line[:200]!r}") from error
    return message


def _submit(body: dict[str, Any]) -> Submit:
    thoughts = body["thoughts"]
    limit = ThoughtLimit(**thoughts) if thoughts is not None else None
    return Submit(**body | {"params": SamplingParams(**body["params"]), "thoughts": limit})


_DECODERS: dict[str, Any] = {
    "Submit": _submit,
    "Embed": lambda body: Embed(**body),
    "Cancel": lambda body: Cancel(**body),
    "Inspect": lambda _: Inspect(),
    "Watch": lambda body: Watch(**body),
    "Stop": lambda _: Stop(),
    "Ready": lambda body: Ready(EngineInfo(**body["info"])),
    "Failed": lambda body: Failed(**body),
    "Step": lambda body: Step([Output(**output) for output in body["outputs"]]),
    "Queue": lambda body: Queue(**body),
    "Embedded": lambda body: Embedded(**body),
    "Report": lambda body: Report(**body),
    "Snapshot": lambda body: Snapshot(**body),
}
