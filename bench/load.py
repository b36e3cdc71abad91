"""Plays a workload against a server: closed loop, open loop, burst, or one kind of request compared with another."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import trio

from bench import fairness, workloads
from bench.records import Ask, BenchError, Chat, Message, Record
from bench.repeats import repeated_share
from bench.stats import Measures, interference_measures, ratio, summarize, wall_seconds
from bench.workloads import Session, Settings, Workload

# A stream flowed once it has received this many chunks.
FLOWING_CHUNKS = 4


@dataclass(frozen=True, slots=True)
class Repetition:
    """One run of a workload. The summary covers `records`. `aside` are requests that were measured separately."""

    records: Sequence[Record]
    aside: Sequence[Record] = ()
    measures: Measures = field(default_factory=dict)


async def play(session: Session, chat: Chat, records: list[Record]) -> None:
    """Plays one conversation. Its history holds the server's real answers. It ends at the first error."""
    history: list[Message] = []
    for turn in session.turns:
        history.extend(turn.messages)
        asked = {"messages": (), "prompts": (turn.prompt,)} if turn.prompt else {"messages": tuple(history)}
        record = await chat(Ask(**asked, max_tokens=turn.max_tokens, fields=turn.fields))
        records.append(record)
        if record.error is not None:
            return
        history.append({"role": "assistant", "content": record.text})


async def closed_loop(sessions: Sequence[Session], users: int, chat: Chat) -> list[Record]:
    """`users` users at a time. Each starts the next session when its last one has ended."""
    records: list[Record] = []
    waiting = iter(sessions)

    async def user() -> None:
        for session in waiting:
            await play(session, chat, records)

    async with trio.open_nursery() as nursery:
        for _ in range(min(users, len(sessions))):
            nursery.start_soon(user)
    return records


async def open_loop(sessions: Sequence[Session], chat: Chat) -> tuple[list[Record], float]:
    """Sessions begin when they are due, even if others still run. Also returns the greatest delay of a start (s)."""
    records: list[Record] = []
    began = trio.current_time()
    lateness = [0.0]

    async def arrive(session: Session) -> None:
        await trio.sleep_until(began + session.at)
        lateness.append(trio.current_time() - began - session.at)
        await play(session, chat, records)

    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(arrive, session)
    return records, max(lateness)


async def uniform(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    return Repetition(await closed_loop(workloads.uniform(settings, rng), settings.users, chat))


async def agents(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    return Repetition(await closed_loop(workloads.agents(settings, rng), settings.users, chat))


async def shared(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    sessions = workloads.shared(settings, rng, settings.requests)
    return Repetition(await closed_loop(sessions, settings.users, chat))


async def multiturn(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    return Repetition(await closed_loop(workloads.multiturn(settings, rng), settings.users, chat))


async def edit(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    return await _repeating(workloads.edit(settings, rng), settings.users, chat)


async def rag(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    return await _repeating(workloads.rag(settings, rng), settings.users, chat)


async def _repeating(sessions: Sequence[Session], users: int, chat: Chat) -> Repetition:
    """Also measures which part of the answers is in their prompts."""
    shares: list[float] = []

    async def compared(
        ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record:
        record = await chat(ask, abort=abort, watch=watch)
        if (share := repeated_share("".join(ask.prompts), record.text)) is not None:
            shares.append(share)
        return record

    records = await closed_loop(sessions, users, compared)
    return Repetition(records, measures={"repeated_share": sum(shares) / len(shares) if shares else None})


async def regenerate(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    """The same questions twice. Only the second time is measured."""
    asked = workloads.questions(settings, rng)
    first = await closed_loop(asked, settings.users, chat)
    await trio.sleep(settings.settle_s)
    again = await closed_loop(asked, settings.users, chat)
    texts = {record.text for record in first}
    before, after = summarize(first), summarize(again)
    return Repetition(
        again,
        [replace(record, role=workloads.FIRST) for record in first],
        {
            "first_stream_tokens_per_s": before.stream_tokens_per_s,
            "stream_ratio": ratio(after.stream_tokens_per_s, before.stream_tokens_per_s),
            "same_answer_share": sum(record.text in texts for record in again) / len(again),
        },
    )


async def trace(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    records, late = await open_loop(workloads.trace(settings, rng), chat)
    return Repetition(records, measures={"late_max_s": late})


async def burst(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    """One request alone, then all at once. Both phases have a shared text that is new to the server."""
    alone, _ = await open_loop(workloads.shared(settings, rng, 1), chat)
    await trio.sleep(settings.settle_s)
    records, _ = await open_loop(workloads.shared(settings, rng, settings.users), chat)
    # A burst with failed requests did less work, so its time is not comparable.
    failed = any(record.error for record in (*alone, *records))
    wall, alone_wall = wall_seconds(records), wall_seconds(alone)
    return Repetition(
        records,
        [replace(record, role="alone") for record in alone],
        {"alone_wall_s": alone_wall, "wall_ratio": None if failed else ratio(wall, alone_wall)},
    )


async def structured(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    """Streams without a constraint, then as many whose answers must each match their own JSON schema."""
    free = await closed_loop(workloads.uniform(settings, rng), settings.users, chat)
    await trio.sleep(settings.settle_s)
    records = await closed_loop(workloads.structured(settings, rng), settings.users, chat)
    free_rate, rate = summarize(free).tokens_per_s, summarize(records).tokens_per_s
    return Repetition(
        records,
        [replace(record, role="free") for record in free],
        {"free_tokens_per_s": free_rate, "throughput_ratio": ratio(rate, free_rate)},
    )


async def interference(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    """A long prompt alone, then another beside running streams. The streams are closed when it ends."""
    idle = await chat(workloads.long_prompt(settings, rng, "idle"))
    await trio.sleep(settings.settle_s)
    asks = workloads.streams(settings, rng)
    flowing = [trio.Event() for _ in asks]
    closing = [trio.CancelScope() for _ in asks]
    records: list[Record] = []

    async def stream(ask: Ask, flowed: trio.Event, scope: trio.CancelScope) -> None:
        def watch(n_chunks: int) -> None:
            if n_chunks >= FLOWING_CHUNKS:
                flowed.set()

        records.append(await chat(ask, abort=scope, watch=watch))
        flowed.set()  # do not wait for a stream that ended early

    async with trio.open_nursery() as nursery:
        for parts in zip(asks, flowing, closing, strict=True):
            nursery.start_soon(stream, *parts)
        for event in flowing:
            await event.wait()
        long = await chat(workloads.long_prompt(settings, rng, "long"))
        for scope in closing:
            scope.cancel()
    await trio.sleep(settings.settle_s)
    return Repetition([*records, long], [idle], interference_measures(records, long, idle))


def _of_tenants(
    play: Callable[[Settings, Random, Chat], Awaitable[fairness.Result]],
) -> Callable[[Settings, Random, Chat], Awaitable[Repetition]]:
    async def played(settings: Settings, rng: Random, chat: Chat) -> Repetition:
        return Repetition(*await play(settings, rng, chat))

    return played


PLAYERS: Mapping[Workload, Callable[[Settings, Random, Chat], Awaitable[Repetition]]] = {
    "single": uniform,
    "uniform": uniform,
    "shared": shared,
    "burst": burst,
    "interference": interference,
    "structured": structured,
    "multiturn": multiturn,
    "edit": edit,
    "rag": rag,
    "regenerate": regenerate,
    "agents": agents,
    "trace": trace,
    "fairness": _of_tenants(fairness.fairness),
    "weights": _of_tenants(fairness.weights),
    "tenants": _of_tenants(fairness.tenants),
}


async def once(settings: Settings, rng: Random, chat: Chat) -> Repetition:
    cpu, began = time.process_time(), time.perf_counter()
    repetition = await PLAYERS[settings.workload](settings, rng, chat)
    # Near 1, this client was the bottleneck: it has one thread.
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    return replace(repetition, measures={**repetition.measures, "client_cpu_share": share})


def require_time(settings: Settings, time_limit: float) -> None:
    """Raises BenchError if the trace lasts longer than `time_limit` seconds."""
    if settings.trace is not None:
        span = workloads.read_trace(settings.trace, settings.limit)[-1][0] / settings.speed
        if span > time_limit:
            raise BenchError(f"the trace takes {span:.0f} s, more than --time-limit: raise --speed")


async def repeat(
    settings: Settings, chat: Chat, *, times: int, seed: int, salt: int, time_limit: float
) -> list[Repetition]:
    """Each repetition has new texts, and (with another salt) each run, so that none of them is cached."""
    require_time(settings, time_limit)
    return [await once(settings, Random(f"{seed}/{salt}/{index}"), chat) for index in range(times)]
