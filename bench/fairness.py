"""Workloads of several tenants: a stranger beside a flood, tenants of different weight, tenants with own prompts."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from random import Random

import numpy as np
import trio

from bench.records import Ask, Chat, Record
from bench.shares import jain
from bench.stats import Measures, gaps, percentiles, ratio, ttft
from bench.words import words
from bench.workloads import (
    BARE_TEMPLATE,
    LIST_PROMPTS,
    QUESTION_TOKENS,
    SHORT,
    SYSTEM_TEMPLATE,
    Settings,
    asks,
    tenants_of,
)

WARM_UP_SECONDS = 10.0
"""How long a load runs before it is measured. At first its prompts are computed without answers between them."""
PATIENCE_SECONDS = 30.0
"""How long the load goes on after the last question, until all questions are answered."""
IDLE_QUESTIONS = 10
"""Questions of the stranger without other load. The first one is not counted, because nothing is cached for it."""

Load = Callable[["Phase"], Awaitable[None]]
Result = tuple[list[Record], list[Record], Measures]
"""The records of the summary, other records, and measures."""


@dataclass(slots=True)
class Phase:
    """Requests that run at the same time. When the phase ends, it closes those that still run."""

    chat: Chat
    seconds: float
    """How long it is measured, after the warm-up."""
    records: list[Record] = field(default_factory=list)
    is_over: bool = False
    _running: set[trio.CancelScope] = field(default_factory=set)

    async def play(self, *loads: Load, questions: Sequence[Ask] = ()) -> None:
        """Runs the loads. Asks a question every second after the warm-up, and waits for the answers."""
        answered = trio.Event()

        async def ask() -> None:
            await _every_second(questions, self)
            answered.set()

        async with trio.open_nursery() as nursery:
            for load in loads:
                nursery.start_soon(load, self)
            nursery.start_soon(ask)
            await trio.sleep(WARM_UP_SECONDS + self.seconds)
            with trio.move_on_after(PATIENCE_SECONDS):
                await answered.wait()
            self.is_over = True
            for scope in self._running:
                scope.cancel()

    async def ask(self, ask: Ask) -> Record | None:
        """Returns the record of the request; None if the phase was over before."""
        if self.is_over:
            return None
        scope = trio.CancelScope()
        self._running.add(scope)
        record = await self.chat(ask, abort=scope)
        self._running.discard(scope)
        self.records.append(record)
        return record

    def of(self, tenant: str) -> list[Record]:
        return [record for record in self.records if record.role == tenant]

    def tokens_per_s(self, tenant: str) -> float:
        """Tokens of answers that the tenant received after the warm-up, per second."""
        begin = min((record.start for record in self.records), default=0.0) + WARM_UP_SECONDS
        tokens = 0.0
        for record in self.of(tenant):
            inside = sum(begin <= chunk < begin + self.seconds for chunk in record.chunks)
            tokens += record.completion_tokens * inside / max(1, len(record.chunks))
        return tokens / self.seconds


# -- loads -------------------------------------------------------------------------------------------------------------


async def _flood(users: int, questions: Iterator[Ask], phase: Phase) -> None:
    """Keeps `users` requests in flight until the phase is over. A user stops after an error."""

    async def user() -> None:
        while (record := await phase.ask(next(questions))) is not None and record.error is None:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(users):
            nursery.start_soon(user)


async def _once(ask: Ask, phase: Phase) -> None:
    await phase.ask(ask)


async def _every_second(questions: Sequence[Ask], phase: Phase) -> None:
    async with trio.open_nursery() as nursery:
        began = trio.current_time() + WARM_UP_SECONDS
        for number, question in enumerate(questions):
            await trio.sleep_until(began + number)
            nursery.start_soon(phase.ask, question)


# -- workloads ---------------------------------------------------------------------------------------------------------


async def fairness(settings: Settings, rng: Random, chat: Chat) -> Result:
    """The stranger alone, the load of another tenant alone, then both together."""
    tenant, stranger = tenants_of(settings)
    questions = asks(stranger, *SHORT, rng)
    if settings.variant == "priority":
        questions = (replace(each, fields={"priority": "interactive"}) for each in questions)
    idle = []
    for question in islice(questions, IDLE_QUESTIONS):
        idle.append(await chat(question))
        await trio.sleep(settings.settle_s)
    alone, together = Phase(chat, settings.requests), Phase(chat, settings.requests)
    await alone.play(_load(settings, tenant, rng))
    await trio.sleep(settings.settle_s)
    asked = list(islice(questions, settings.requests))
    await together.play(_load(settings, tenant, rng), questions=asked)
    await trio.sleep(settings.settle_s)
    records = together.of(stranger)
    aside = [
        *(replace(record, role="idle") for record in idle),
        *(replace(record, role="alone") for record in alone.records),
        *together.of(tenant),
    ]
    return records, aside, _compared(idle[1:], records, *(each.tokens_per_s(tenant) for each in (alone, together)))


def _load(settings: Settings, tenant: str, rng: Random) -> Load:
    """See `Variant`."""
    n_words = settings.prompt_tokens - BARE_TEMPLATE
    if settings.variant == "list":
        prompts = tuple(words(n_words, rng) for _ in range(LIST_PROMPTS))
        return partial(_once, Ask((), settings.output_tokens, tenant, tenant=tenant, prompts=prompts))
    questions = asks(tenant, n_words, settings.output_tokens, rng)
    if settings.variant == "priority":
        questions = (replace(each, fields={"priority": "batch"}) for each in questions)
    return partial(_flood, settings.users, questions)


def _compared(idle: Sequence[Record], records: Sequence[Record], alone_rate: float, rate: float) -> Measures:
    """The stranger's times beside the load compared with its times without, and the load's throughput."""
    idle_ttft, _, _ = percentiles([seconds for record in idle if (seconds := ttft(record)) is not None])
    unanswered = sum(ttft(record) is None for record in records)
    p50, p95 = _p50_p95([ttft(record) or record.end - record.start for record in records])
    longest = max((gap for record in records for gap in gaps(record)), default=None)
    over = None if p95 is None or idle_ttft is None or longest is None else p95 - idle_ttft - longest
    return {
        "idle_ttft_p50_s": idle_ttft,
        "ttft_p95_s": p95,
        "ttft_p50_ratio": ratio(p50, idle_ttft),
        # These count with the time that they waited.
        "unanswered": float(unanswered),
        # A stranger's gap is at most two steps: one of answers, one of prompts.
        "longest_gap_s": longest,
        "ttft_p95_over_gap_s": over,
        "load_alone_tokens_per_s": alone_rate,
        "load_tokens_per_s": rate,
        "load_throughput_ratio": ratio(rate, alone_rate),
    }


async def weights(settings: Settings, rng: Random, chat: Chat) -> Result:
    """Two tenants flood at the same time. The server knows their weights by their keys."""
    names = tenants_of(settings)
    phase = Phase(chat, settings.seconds)
    length = settings.prompt_tokens - BARE_TEMPLATE
    loads = [partial(_flood, settings.users, asks(name, length, settings.output_tokens, rng)) for name in names]
    await phase.play(*loads)
    heavy, light = map(phase.tokens_per_s, names)
    return (
        phase.records,
        [],
        {"heavy_tokens_per_s": heavy, "light_tokens_per_s": light, "tokens_ratio": ratio(heavy, light)},
    )


async def tenants(settings: Settings, rng: Random, chat: Chat) -> Result:
    """Each tenant has a long system prompt of its own, and keeps `users` requests in flight.

    Before that, each asks one question, so that its system prompt is in the cache.
    """
    phase = Phase(chat, settings.seconds)
    length = settings.prompt_tokens - SYSTEM_TEMPLATE - QUESTION_TOKENS
    names, question = tenants_of(settings), (QUESTION_TOKENS, settings.output_tokens)
    questions = [asks(name, *question, rng, system=words(length, rng)) for name in names]
    first = [replace(await chat(next(each)), role="first") for each in questions]
    await trio.sleep(settings.settle_s)
    await phase.play(*(partial(_flood, settings.users, each) for each in questions))
    rates = [phase.tokens_per_s(name) for name in names]
    return (
        phase.records,
        first,
        {
            "all_tokens_per_s": sum(rates),
            "smallest_tokens_per_s": min(rates),
            "largest_tokens_per_s": max(rates),
            "jain_index": jain(rates),
        },
    )


def _p50_p95(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    p50, p95 = np.percentile(values, (50, 95))
    return float(p50), float(p95)
