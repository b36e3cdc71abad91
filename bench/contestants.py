"""Who is measured in a comparison: servers, and the bare loop."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import trio

from bench.client import Client, open_http
from bench.load import Repetition, once
from bench.peers import BARE, SLOTS
from bench.records import BenchError
from bench.servers import Server, Usage
from bench.workloads import Settings, sessions

# A server that still computes so long after its last request was closed is started afresh.
QUIET_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A workload of the comparison, such as `uniform:32`."""

    name: str
    settings: Settings


class Contestant(Protocol):
    """Who is measured: a server, or the bare loop. Raises BenchError for what it cannot be measured at."""

    @property
    def name(self) -> str: ...
    async def rest(self) -> None:
        """Returns when it computes nothing, so that it does not disturb who is asked next."""

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]: ...


class Asked:
    """A server as a contestant; it is started again when it has died or did not come to rest."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def name(self) -> str:
        return self._server.spec.name

    async def rest(self) -> None:
        if self._server.alive and not await self._server.quiet(QUIET_SECONDS):
            await self._server.stop()

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]:
        server = self._server
        if not (server.alive and server.model):
            await server.start()
        before = server.usage()
        async with open_http(None, time_limit) as http:
            repetition = await once(entry.settings, rng, Client(http, server.target(time_limit)).chat)
        after = server.usage()
        if not server.alive:
            raise BenchError(server.epitaph())
        return repetition, Usage(after.cpu_s - before.cpu_s, after.memory_bytes)


class Bare:
    """The bare loop as a contestant. Its pool is empty whenever a workload begins."""

    name = BARE

    def __init__(self, model_path: Path, threads: int, context: int) -> None:
        # Only now: they load llama.cpp.
        from api.text.template import ChatTemplate
        from api.text.tokenizer import Tokenizer
        from bench.bare import BareLoop, Schedule, conversations

        tokenizer = Tokenizer(model_path)
        template = ChatTemplate(tokenizer.chat_template, tokenizer)
        self._conversations = partial(conversations, template=template)
        # Best in `bench ceiling` where all begin together, and where prompts keep coming.
        self._schedules = {"single": Schedule(prompts_first=True), "uniform": Schedule(prompts_first=True)}
        self._schedule = Schedule(by_turns=True)
        # Lanes were as fast as one pool in every shape tried, or up to a quarter faster.
        self._loop = BareLoop(model_path, threads=threads, lanes=SLOTS, lane_tokens=context)

    async def rest(self) -> None:
        await trio.lowlevel.checkpoint()

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]:
        said, users = sessions(entry.settings, rng)
        talks = self._conversations(said, rng=rng)
        schedule = self._schedules.get(entry.settings.workload, self._schedule)
        self._loop.empty()
        cpu = time.process_time()
        with trio.move_on_after(time_limit) as scope:
            records = await trio.to_thread.run_sync(
                lambda: self._loop.play(talks, users, schedule, trio.from_thread.check_cancelled)
            )
        if scope.cancelled_caught:
            raise BenchError(f"timeout after {time_limit:.0f} s")
        return Repetition(records), Usage(time.process_time() - cpu, 0, is_ours=True)
