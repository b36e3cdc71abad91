"""The wire types of the events of GET /v1/live. Tenants that the caller may not see are one tenant, `others`."""

from typing import Literal

from api.protocols.types import Answer
from api.serving.state import Status

PageState = Literal["free", "cached", "held", "shared"]


class LiveStep(Answer):
    """One step of the engine."""

    seconds: float
    rows: list[tuple[str, int, int, int, int]]
    """By tenant: its name, the tokens of prompts and of answers that the step computed, and the drafted tokens that it
    verified and accepted. Tokens of answers do not include drafts.
    """


class LiveCell(Answer):
    """A part of the KV memory: a page, or an equal share of all pages if there are more pages than cells."""

    state: PageState
    """Of most pages in the cell."""
    tenant: str | None
    """Who holds most of these pages, or used them last; null if nobody did."""


class TenantPages(Answer):
    held: int
    shared: int


class LivePages(Answer):
    """The pages of KV memory: `free`, `cached`, `held` and `shared` add up to `total`."""

    page_tokens: int
    """Tokens of a page."""
    total: int
    free: int
    cached: int
    """Pages that no running sequence needs, but later ones may find."""
    held: int
    """Pages that one running sequence has or reserves."""
    shared: int
    """Pages that several running sequences have in common. In lanes each has a copy."""
    host: int
    """Pages, or whole sequences for models whose states cannot be cut, that were moved to host memory."""
    disk: int
    tenants: dict[str, TenantPages]
    """A shared page counts for each tenant that has it."""
    map: list[LiveCell]
    """At most 256 cells: in lanes in the order of the lanes, in a pool in the order of the sequences."""


class QueuedTenant(Answer):
    """A tenant that has sequences. It has one entry for each class of its requests."""

    name: str
    priority: Literal["interactive", "default", "batch"]
    """The class."""
    running: int
    waiting: int
    weight: float
    service: float
    """Cost of everything that was computed for it, in prompt tokens, divided by its weight."""
    credit: float | None
    """How much more service it may get before others of its class go first; negative if they do. Null if no sequence of
    its class waits.
    """


class LiveQueue(Answer):
    running: int
    """Sequences."""
    waiting: int
    tenants: list[QueuedTenant]


class LiveMemory(Answer):
    kv_tokens: int
    """Tokens for which the KV memory has room now."""
    kv_max: int
    """The largest size to which it may grow."""
    resident_bytes: int
    """Resident memory of the engine, weights included."""
    state: Literal["fixed", "steady", "growing", "shrinking"]
    """`growing` and `shrinking` while memory of another size is being opened."""


class Percentiles(Answer):
    """In seconds."""

    p50: float
    p95: float
    p99: float


class LiveLatency(Answer):
    """Of the last minute: of the caller's own requests, or of all requests if the caller sees all."""

    ttft: Percentiles | None
    """Time to the first token, from the arrival of the request; null without requests."""
    itl: Percentiles | None
    """Time between two outputs of a stream."""


class LiveRates(Answer):
    """Tokens per second that were computed in the last seconds, for the same requests as the latency."""

    prompt: float
    answer: float
    """Accepted drafts included."""


class LiveModel(Answer):
    name: str
    state: Status
    steps: list[LiveStep]
    """The newest steps since the previous event, at most 32, newest last."""
    pages: LivePages | None
    """Null while the model has no engine or after an error, as `queue` and `memory`."""
    queue: LiveQueue | None
    memory: LiveMemory | None
    error: str | None
    """Why the engine reports nothing; null unless it failed to. A feed that opens when no other is open tries again."""
    latency: LiveLatency
    tokens_per_s: LiveRates


class LiveEvent(Answer):
    """The state of the server."""

    at: float
    """Seconds since the epoch."""
    sees_all: bool
    """Whether the caller sees the names of all tenants. Otherwise it sees its own, and all others are one: `others`."""
    models: list[LiveModel]
