"""The contestants of a comparison: servers and the bare loop."""

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

# A server that still computes this long after its last request was closed is restarted.
QUIET_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A workload of the comparison, such as `uniform:32`."""

    name: str
    settings: Settings


class Contestant(Protocol):
    """A server or the bare loop. `play` raises BenchError if it cannot be measured."""

    @property
    def name(self) -> str: ...
    async def rest(self) -> None:
        """Returns when it is idle, so that it does not disturb the next contestant."""

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]: ...


class ServerContestant:
    """A server as a contestant. It is restarted if its process has ended or did not become idle."""

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
            raise BenchError(server.exit_message())
        return repetition, Usage(after.cpu_s - before.cpu_s, after.memory_bytes)


class Bare:
    """The bare loop as a contestant. Its memory is empty when a workload begins."""

    name = BARE

    def __init__(self, model_path: Path, threads: int, context: int) -> None:
        # Imported here because they load llama.cpp.
        from api.text.template import ChatTemplate
        from api.text.tokenizer import Tokenizer
        from bench.bare import BareLoop, Schedule, conversations

        tokenizer = Tokenizer(model_path)
        template = ChatTemplate(tokenizer.chat_template, tokenizer)
        self._conversations = partial(conversations, template=template)
        # The best in `bench ceiling`: prompts first if all requests begin together, by turns if prompts keep arriving.
        self._schedules = {"single": Schedule(prompts_first=True), "uniform": Schedule(prompts_first=True)}
        self._schedule = Schedule(by_turns=True)
        # In every case tried, lanes were as fast as one pool or up to 25% faster.
        self._loop = BareLoop(model_path, threads=threads, lanes=SLOTS, lane_tokens=context)

    async def rest(self) -> None:
        await trio.lowlevel.checkpoint()

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]:
        scripts, users = sessions(entry.settings, rng)
        talks = self._conversations(scripts, rng=rng)
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
