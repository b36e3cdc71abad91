"""The contestants of a comparison: servers and the bare loop."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from bench.stats import Measures
from bench.workloads import FIRST, REPEATING, Settings, sessions

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


class ForEntry:
    """Several servers as one contestant: each entry has its own."""

    def __init__(self, name: str, by_entry: Mapping[str, Contestant]) -> None:
        self._name = name
        self._by_entry = by_entry

    @property
    def name(self) -> str:
        return self._name

    async def rest(self) -> None:
        for contestant in {id(each): each for each in self._by_entry.values()}.values():
            await contestant.rest()

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]:
        return await self._by_entry[entry.name].play(entry, rng, time_limit)


class Bare:
    """The bare loop as a contestant. Its memory is empty when a workload begins.

    If answers repeat a text, its drafts are perfect. The best number of drafts is found before the first repetition.
    """

    name = BARE

    def __init__(self, model_path: Path, threads: int, context: int) -> None:
        # Imported here because they load llama.cpp.
        from api.text.template import ChatTemplate
        from api.text.tokenizer import Tokenizer
        from bench.bare import VERIFIED_ROWS, BareLoop, Schedule
        from bench.talks import conversations

        tokenizer = Tokenizer(model_path)
        template = ChatTemplate(tokenizer.chat_template, tokenizer)
        self._conversations = partial(conversations, template=template, tokenizer=tokenizer)
        # The best in `bench ceiling`: prompts first if all requests begin together, by turns if prompts keep arriving.
        self._schedules = {"single": Schedule(prompts_first=True), "uniform": Schedule(prompts_first=True)}
        self._schedule = Schedule(by_turns=True)
        # In every case tried, lanes were as fast as one pool or up to 25% faster.
        self._loop = BareLoop(
            model_path, threads=threads, lanes=SLOTS, lane_tokens=context, verified_rows=VERIFIED_ROWS
        )
        self._drafts: dict[str, int] = {}
        """The best number of drafts in a step, by the name of the entry."""

    async def rest(self) -> None:
        await trio.lowlevel.checkpoint()

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]:
        scripts, users = sessions(entry.settings, rng)
        talks = self._conversations(scripts, rng=rng)
        schedule = self._schedules.get(entry.settings.workload, self._schedule)
        self._loop.empty()
        check = trio.from_thread.check_cancelled
        with trio.move_on_after(time_limit) as scope:
            if entry.settings.workload in REPEATING:
                if entry.name not in self._drafts:
                    rated = talks[-users:]
                    rates = await trio.to_thread.run_sync(lambda: self._loop.drafting_rates(rated, check))
                    self._drafts[entry.name] = max(rates, key=rates.__getitem__)
                schedule = replace(schedule, drafts=self._drafts[entry.name])
            cpu = time.process_time()
            records = await trio.to_thread.run_sync(lambda: self._loop.play(talks, users, schedule, check))
            cpu = time.process_time() - cpu
        if scope.cancelled_caught:
            raise BenchError(f"timeout after {time_limit:.0f} s")
        aside = [record for record in records if record.role == FIRST]
        measured = [record for record in records if record.role != FIRST]
        measures: Measures = {"drafts": float(schedule.drafts)} if schedule.drafts else {}
        return Repetition(measured, aside, measures), Usage(cpu, 0, is_ours=True)
