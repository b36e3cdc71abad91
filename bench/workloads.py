"""The workloads as scripts: the messages of every user, and when they are due. This module sends nothing."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

from bench import repeats
from bench.records import Ask, BenchError, Message
from bench.words import WORDS, words

# Tokens that SmolLM2's chat template adds: to a user message alone (the template adds a system message), to a system
# and a user message, and to each further pair of answer and question.
BARE_TEMPLATE, SYSTEM_TEMPLATE, TURN_TEMPLATE = 30, 14, 12
QUESTION_TOKENS = 12  # beside a long shared text
TURN_TOKENS = 60  # a question of a conversation
AGENT_TOKENS = 20  # the result of a tool, in an agent's next turn
STREAM_TOKENS = 400  # enough for a stream to outlive the long prompt beside it

SHORT = 12, 8  # words of a stranger's question and tokens of its answer (fairness)
LIST_PROMPTS = 1024  # prompts of one request (fairness)
NUM_TENANTS = 8  # with a system prompt each (tenants)

Workload = Literal[
    "single",
    "uniform",
    "shared",
    "burst",
    "interference",
    "multiturn",
    "agents",
    "structured",
    "edit",
    "rag",
    "regenerate",
    "trace",
    "fairness",
    "weights",
    "tenants",
]
REPEATING: Final[frozenset[Workload]] = frozenset({"edit", "rag", "regenerate"})
"""Workloads whose answers repeat a text, so that drafts help."""
FIRST: Final = "first"
"""The role of requests that are sent again later (regenerate)."""
Variant = Literal["flood", "list", "priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a workload. 0 means the workload's default, which `resolve` fills in.

    Token counts are approximate. `prompt_tokens` is the first prompt of a conversation, template included.
    """

    workload: Workload
    users: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    turns: int = 0  # per conversation
    settle_s: float = 1.0  # quiet time between the phases of a repetition
    seconds: float = 0.0  # of load (weights, tenants)
    variant: Variant = "flood"  # the load beside the stranger (fairness)
    trace: Path | None = None
    speed: float = 1.0
    max_context: int = 1024
    max_output: int = 64
    limit: int = 64


@dataclass(frozen=True, slots=True)
class Turn:
    """The messages that a user adds to the conversation."""

    messages: tuple[Message, ...]
    max_tokens: int
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request
    prompt: str = ""  # the prompt of a text completion, instead of messages


@dataclass(frozen=True, slots=True)
class Session:
    """One user's conversation. In an open-loop run, it begins `at` seconds after the start."""

    turns: tuple[Turn, ...]
    at: float = 0.0
    role: str = ""  # FIRST if its answers are not measured


# users, requests, tokens of the first prompt, tokens out
_DEFAULTS: dict[Workload, tuple[int, int, int, int]] = {
    "single": (1, 4, 130, 48),
    "uniform": (8, 8, 130, 48),
    "shared": (16, 48, 730, 32),
    "burst": (16, 16, 730, 24),
    "interference": (6, 7, 2530, 16),
    "multiturn": (8, 32, 174, 48),
    "agents": (8, 48, 1034, 24),
    "structured": (16, 16, 130, 64),
    "edit": (8, 48, 1930, 64),
    "rag": (8, 24, 1130, 96),
    "regenerate": (8, 8, 70, 128),
    "trace": (0, 0, 0, 0),
    "fairness": (64, 30, 90, 32),
    "weights": (64, 0, 90, 32),
    "tenants": (8, 0, 734, 32),
}
_SECONDS: dict[Workload, float] = {"weights": 60.0, "tenants": 60.0}
_TURNS: dict[Workload, int] = {"multiturn": 4, "agents": 6, "edit": 6, "rag": 3}
# Settings that a workload fixes, so the user cannot set them.
_FIXED: dict[Workload, frozenset[str]] = {
    "single": frozenset({"users"}),
    "burst": frozenset({"requests"}),
    "interference": frozenset({"requests"}),
    "structured": frozenset({"requests"}),
    "regenerate": frozenset({"requests"}),
    "trace": frozenset({"users", "requests", "prompt_tokens", "output_tokens"}),
    "weights": frozenset({"requests"}),
    "tenants": frozenset({"requests"}),
}


def resolve(given: Settings) -> Settings:
    """The settings with the workload's defaults filled in. Raises BenchError if they do not fit the workload."""
    workload = given.workload
    for name in sorted(_FIXED.get(workload, ())):
        if getattr(given, name):
            raise BenchError(f"--{name.replace('_', '-')} does not apply to the workload {workload}")
    if given.seconds and workload not in _SECONDS:
        raise BenchError(f"--seconds does not apply to the workload {workload}")
    if given.variant != "flood" and workload != "fairness":
        raise BenchError(f"--variant does not apply to the workload {workload}")
    users, requests, prompt_tokens, output_tokens = _DEFAULTS[workload]
    users = given.users or users
    turns = given.turns or _TURNS.get(workload, 1)
    if workload in ("uniform", "structured", "regenerate"):
        requests = users
    elif workload in _TURNS:
        requests = users * turns
    elif workload == "trace":
        if given.trace is None:
            raise BenchError("the workload trace needs --trace FILE")
        if given.max_context - given.max_output <= BARE_TEMPLATE:
            raise BenchError("--max-context leaves no room for a prompt beside --max-output")
    return replace(
        given,
        users=users,
        requests=given.requests or requests,
        prompt_tokens=given.prompt_tokens or prompt_tokens,
        output_tokens=given.output_tokens or output_tokens,
        turns=turns,
        seconds=given.seconds or _SECONDS.get(workload, 0.0),
    )


def longest(settings: Settings) -> int:
    """The approximate number of tokens of the longest request, answer included."""
    if settings.workload == "trace":
        return settings.max_context
    further = (
        TURN_TEMPLATE + settings.output_tokens + (TURN_TOKENS if settings.workload == "multiturn" else AGENT_TOKENS)
    )
    whole = settings.prompt_tokens + settings.output_tokens + (settings.turns - 1) * further
    return max(whole, BARE_TEMPLATE + QUESTION_TOKENS + STREAM_TOKENS) if settings.workload == "interference" else whole


def sessions(settings: Settings, rng: Random) -> tuple[list[Session], int]:
    """The sessions that `bench.load` plays, and the users at a time. Raises BenchError if there is no bare loop."""
    workload = settings.workload
    if workload in ("single", "uniform"):
        return uniform(settings, rng), settings.users
    if workload == "shared":
        return shared(settings, rng, settings.requests), settings.users
    if workload == "burst":
        shared(settings, rng, 1)  # advances `rng` past the request that is sent alone
        return shared(settings, rng, settings.users), settings.users
    if workload in ("multiturn", "agents"):
        return (multiturn if workload == "multiturn" else agents)(settings, rng), settings.users
    if workload in ("edit", "rag"):
        return (edit if workload == "edit" else rag)(settings, rng), settings.users
    if workload == "regenerate":
        asked = questions(settings, rng)
        return [*(replace(session, role=FIRST) for session in asked), *asked], settings.users
    if workload == "trace":
        arrivals = trace(settings, rng)
        return arrivals, len(arrivals)
    raise BenchError(f"the workload {workload} has no bare loop")


def uniform(settings: Settings, rng: Random) -> list[Session]:
    """Prompts without a common prefix: for up to len(WORDS) requests, even the first words differ."""
    openings = rng.sample(WORDS, k=len(WORDS))
    length = settings.prompt_tokens - BARE_TEMPLATE - 1
    return [
        _single(f"{openings[i % len(openings)]} {words(length, rng)}", settings.output_tokens)
        for i in range(settings.requests)
    ]


def structured(settings: Settings, rng: Random) -> list[Session]:
    """As `uniform`, but each answer is a list of objects with its own property names, too long to end by itself."""
    sessions = []
    for session in uniform(settings, rng):
        names = rng.sample(WORDS, k=3)
        kinds = ({"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}})
        item = {
            "type": "object",
            "properties": dict(zip(names, kinds, strict=True)),
            "required": names,
            "additionalProperties": False,
        }
        schema = {"type": "array", "items": item, "minItems": settings.output_tokens}
        form = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema}}
        sessions.append(Session((replace(session.turns[0], fields={"response_format": form}),)))
    return sessions


def shared(settings: Settings, rng: Random, count: int) -> list[Session]:
    """Requests that share one new system prompt, each with its own short question."""
    system = words(settings.prompt_tokens - SYSTEM_TEMPLATE - QUESTION_TOKENS, rng)
    return [_single(words(QUESTION_TOKENS, rng), settings.output_tokens, system=system) for _ in range(count)]


def multiturn(settings: Settings, rng: Random) -> list[Session]:
    """Conversations, each with its own system prompt. `requests` may cut the last one short."""
    system_tokens = settings.prompt_tokens - SYSTEM_TEMPLATE - TURN_TOKENS
    return [
        _conversation(words(system_tokens, rng), [words(TURN_TOKENS, rng) for _ in range(n_turns)], settings)
        for n_turns in _turns(settings)
    ]


def agents(settings: Settings, rng: Random) -> list[Session]:
    """Conversations of many short turns. They share one long system prompt, the description of their tools."""
    system = words(settings.prompt_tokens - SYSTEM_TEMPLATE - AGENT_TOKENS, rng)
    return [
        _conversation(system, [words(AGENT_TOKENS, rng) for _ in range(n_turns)], settings)
        for n_turns in _turns(settings)
    ]


def edit(settings: Settings, rng: Random) -> list[Session]:
    """Each user's answers repeat a file with a new name in it, from one place after another."""
    return [_completions(repeats.edit_turns(settings.prompt_tokens, n, rng), settings) for n in _turns(settings)]


def rag(settings: Settings, rng: Random) -> list[Session]:
    """Each user's answers quote one document after another."""
    return [_completions(repeats.rag_turns(settings.prompt_tokens, n, rng), settings) for n in _turns(settings)]


def _completions(prompts: Sequence[str], settings: Settings) -> Session:
    return Session(tuple(Turn((), settings.output_tokens, prompt=prompt) for prompt in prompts))


def questions(settings: Settings, rng: Random) -> list[Session]:
    """Questions in plain language, so that the answers are."""
    length = settings.prompt_tokens - BARE_TEMPLATE
    return [_single(repeats.question(length, rng), settings.output_tokens) for _ in range(settings.requests)]


def _turns(settings: Settings) -> list[int]:
    """The number of turns of each conversation."""
    firsts = range(0, settings.requests, settings.turns)
    return [min(settings.turns, settings.requests - first) for first in firsts]


def _conversation(system: str, questions: list[str], settings: Settings) -> Session:
    first: Message = {"role": "system", "content": system}
    return Session(
        tuple(
            Turn((*(() if i else (first,)), _user(question)), settings.output_tokens)
            for i, question in enumerate(questions)
        )
    )


def trace(settings: Settings, rng: Random) -> list[Session]:
    """The first `limit` rows of a trace, with arrivals compressed in time and lengths capped."""
    assert settings.trace is not None
    sessions = []
    for at, context_tokens, generated_tokens in read_trace(settings.trace, settings.limit):
        n_out = max(1, min(generated_tokens, settings.max_output))
        n_prompt = min(context_tokens, settings.max_context - n_out)
        sessions.append(_single(words(n_prompt - BARE_TEMPLATE, rng), n_out, at=at / settings.speed))
    return sessions


def streams(settings: Settings, rng: Random) -> list[Ask]:
    return [Ask((_user(words(QUESTION_TOKENS, rng)),), STREAM_TOKENS, "stream") for _ in range(settings.users)]


def long_prompt(settings: Settings, rng: Random, role: str) -> Ask:
    return Ask((_user(words(settings.prompt_tokens - BARE_TEMPLATE, rng)),), settings.output_tokens, role)


def tenants_of(settings: Settings) -> tuple[str, ...]:
    """The names of the tenants of a workload; none if its requests name none."""
    match settings.workload:
        case "fairness":
            return "A", "B"
        case "weights":
            return "heavy", "light"
        case "tenants":
            return tuple(f"tenant{number}" for number in range(1, NUM_TENANTS + 1))
    return ()


def asks(tenant: str, n_words: int, max_tokens: int, rng: Random, system: str = "") -> Iterator[Ask]:
    """Questions of a tenant, without an end."""
    while True:
        turn = _single(words(n_words, rng), max_tokens, system=system).turns[0]
        yield Ask(turn.messages, max_tokens, tenant, tenant=tenant)


def read_trace(path: Path, limit: int) -> list[tuple[float, int, int]]:
    """The first `limit` rows, sorted by arrival: (seconds after the first, context tokens, generated tokens).

    Raises BenchError if the file cannot be read or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = sorted(
                (datetime.fromisoformat(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
                for row in islice(csv.DictReader(lines), limit)
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"cannot read the trace {path}: {type(error).__name__}: {error}") from error
    if not rows:
        raise BenchError(f"the trace {path} is empty")
    return [((at - rows[0][0]).total_seconds(), context, generated) for at, context, generated in rows]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _single(content: str, max_tokens: int, *, system: str = "", at: float = 0.0) -> Session:
    prelude: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
    return Session((Turn((*prelude, _user(content)), max_tokens),), at)
