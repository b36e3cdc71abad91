"""The cost of a restart to a conversation: TTFT of its next turn on a new server, and of its cold first turn."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from bench.client import Client, open_http
from bench.records import Ask, BenchError, Message, Record
from bench.servers import Server
from bench.stats import Measures, ratio, ttft
from bench.workloads import Settings, multiturn, resolve

TIME_LIMIT = 120.0
"""Seconds for one request."""


@dataclass(frozen=True, slots=True)
class Turn:
    ttft_s: float
    prompt_tokens: int | None
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Restart:
    """The first turn of a conversation on a server that has just started, and the second on the next server."""

    cold: Turn
    next: Turn

    def measures(self) -> Measures:
        return {
            "cold_ttft_s": self.cold.ttft_s,
            "next_ttft_s": self.next.ttft_s,
            "ratio": ratio(self.next.ttft_s, self.cold.ttft_s),
        }


async def measure(
    server: Server, prompt_tokens: int, *, repeat: int, rng: Random, print_line: Callable[[str], object]
) -> list[Restart]:
    """A result for each repetition, with a new conversation. Each turn has a new server process.

    Stops the server at the end. Raises BenchError if the server or a request fails.
    """
    settings = resolve(Settings(workload="multiturn", users=1, turns=2, prompt_tokens=prompt_tokens))
    restarts = []
    try:
        for number in range(repeat):
            (session,) = multiturn(settings, rng)
            history: list[Message] = []
            turns = []
            for turn in session.turns:
                await server.start()
                history.extend(turn.messages)
                record = await _ask(server, Ask(tuple(history), turn.max_tokens))
                history.append({"role": "assistant", "content": record.text})
                turns.append(_turn(record))
                await server.stop()
            restarts.append(Restart(*turns))
            cold, warm = turns
            print_line(f"{number + 1} of {repeat}: first turn {cold.ttft_s:.2f} s, after a restart {warm.ttft_s:.2f} s")
    finally:
        await server.stop()
    return restarts


async def _ask(server: Server, ask: Ask) -> Record:
    async with open_http(None, TIME_LIMIT) as http:
        record = await Client(http, server.target(TIME_LIMIT)).chat(ask)
    if record.error is not None:
        raise BenchError(f"{server.spec.name}: {record.error}")
    return record


def _turn(record: Record) -> Turn:
    first = ttft(record)
    if first is None:
        raise BenchError("the answer has no text, so it has no TTFT")
    return Turn(first, record.prompt_tokens, record.cached_tokens)
