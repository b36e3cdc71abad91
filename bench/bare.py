"""The bare loop: computes the token ids of a workload with decode calls only, on the best known schedule.

It has no HTTP, no sampling and no prefix lookup. The prefix that a request shares with an earlier one is found before
the clock starts. A schedule may have drafts: the tokens of the prepared answer, so none of them is rejected.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from bench.records import BenchError, Record
from bench.talks import Conversation, Talk
from scheduler.config import EngineConfig
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import LaneMemory, PoolMemory
from scheduler.llama.proof import measure
from scheduler.llama.weights import open_model
from scheduler.shapes import MAX_SEQUENCE_IDS
from scheduler.sizing import IDLE_SHARE, Machine, available_bytes, choose

CHUNKS: Final = (64, 128, 256, 512)
FILL_TOKENS: Final = 256
"""Length of each idle sequence that fills the pool before a measurement."""
IDLE_COST_PROMPT: Final = 128
IDLE_COST_STEPS: Final = 60

VERIFIED_ROWS: Final = 256
"""Rows with logits in a step of a loop with drafts."""
DRAFTS: Final = (3, 7, 15, 31, 63)
"""Numbers of drafts in a step to try."""

Rows = list[tuple[int, int, Sequence[int]]]
"""The rows of a decode call: sequence id, first position, tokens."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a step is composed: at most `chunk` tokens; prompts beside, before or in turn with the running answers."""

    chunk: int = max(CHUNKS)
    prompts_first: bool = False
    by_turns: bool = False
    drafts: int = 0
    """Drafted tokens of each answer in a step."""

    def __str__(self) -> str:
        return f"chunks of {self.chunk}{', prompts first' * self.prompts_first}{', by turns' * self.by_turns}" + (
            f", {self.drafts} drafts" if self.drafts else ""
        )


class BareLoop:
    """A llama.cpp context with the default sizes of a server, to which a schedule is applied directly."""

    def __init__(
        self,
        model_path: Path,
        *,
        threads: int | None = None,
        kv_tokens: int | None = None,
        lanes: int = 0,
        lane_tokens: int = 0,
        verified_rows: int = 0,
    ) -> None:
        """With `lanes`, that many sequences each have memory for `lane_tokens` tokens; shared prefixes are copied.

        `verified_rows`: how many tokens of answers a step may have, drafts included; at least one of each answer.
        """
        config = EngineConfig(str(model_path), kv_tokens=kv_tokens, threads=threads)
        self._model = open_model(config)
        kv_bytes = measure(self._model, config).bytes_per_token
        trained, num_bytes = self._model.trained_context, self._model.num_bytes
        available = available_bytes(config)
        sizes = choose(config, Machine(trained, num_bytes, kv_bytes, on_gpu=False, available_bytes=available))
        self.kv_tokens = lanes * lane_tokens or sizes.kv_max
        self.cheap_tokens = int(IDLE_SHARE * self._model.num_bytes / kv_bytes)
        num_ids = lanes or MAX_SEQUENCE_IDS
        self._context = Context(
            self._model,
            config,
            kv_tokens=self.kv_tokens,
            num_ids=num_ids,
            num_outputs=max(num_ids, verified_rows),
            batch_tokens=max(CHUNKS),
            threads=sizes.threads,
            unified=not lanes,
        )
        self._max_rows = max(num_ids, verified_rows)
        self._memory = LaneMemory(self._context) if lanes else PoolMemory(self._context)
        self._free_ids = list(range(num_ids))
        self._idle: deque[tuple[int, int]] = deque()
        """Sequence ids and their numbers of tokens, oldest first."""
        self._held: dict[int, int] = {}
        """The sequence ids of the conversations that have begun in this run, by number."""
        self._sources: dict[int, int] = {}
        """By sequence id, the one whose cells it shares. It is kept as long, so shared tokens are counted once."""
        self._in_lanes = bool(lanes)
        self._wanted: set[int] = set()
        """Numbers of the conversations whose prefix others of this run share."""
        self._decoded_last = False
        self._num_free = self.kv_tokens

    def fill(self, num_tokens: int) -> None:
        """Add idle sequences until `num_tokens` tokens of the pool are used, like the cache of a busy server."""
        while self.kv_tokens - self._num_free + FILL_TOKENS <= num_tokens:
            sequence_id = heappop(self._free_ids)
            tokens = np.random.default_rng(sequence_id).integers(100, self._model.vocab_size - 100, FILL_TOKENS)
            self._decode([(sequence_id, 0, tokens.tolist())])
            self._idle.append((sequence_id, FILL_TOKENS))
            self._num_free -= FILL_TOKENS

    def empty(self) -> None:
        """Remove all idle sequences."""
        self._make_room(self.kv_tokens, 0)

    def idle_cost(self, num_seqs: int) -> dict[str, float]:
        """Step time with idle tokens in the pool, relative to an empty pool, by number of idle tokens.

        The first number is the default pool size without the rule that it holds two contexts. Leaves the pool full.
        """
        empty = self._step_seconds(num_seqs)
        ratios = {}
        for num_tokens in (self.cheap_tokens, self.kv_tokens):
            self.fill(num_tokens)
            self._make_room(num_seqs * (IDLE_COST_PROMPT + IDLE_COST_STEPS), num_seqs)
            ratios[str(num_tokens)] = self._step_seconds(num_seqs) / empty
        return ratios

    def _step_seconds(self, num_seqs: int) -> float:
        """The median duration of a decode step of `num_seqs` sequences with short prompts."""
        ids = sorted(self._free_ids)[:num_seqs]
        for sequence_id in ids:
            self._decode([(sequence_id, 0, [1000 + sequence_id] * IDLE_COST_PROMPT)])
        times = []
        for step in range(IDLE_COST_STEPS):
            started = time.perf_counter()
            self._decode([(sequence_id, IDLE_COST_PROMPT + step, [1000]) for sequence_id in ids])
            times.append(time.perf_counter() - started)
        for sequence_id in ids:
            self._memory.remove(sequence_id, 0, -1)
        return median(times)

    def play(
        self,
        talks: Sequence[Conversation],
        users: int,
        schedule: Schedule,
        on_step: Callable[[], object] = lambda: None,
    ) -> list[Record]:
        """Returns a record for each turn. At most `users` conversations run at the same time.

        Finished conversations stay in memory as idle sequences; the oldest are removed when memory is needed.
        Raises BenchError if a conversation is longer than the memory.
        """
        if too_long := [talk.length for talk in talks if talk.length > self.kv_tokens]:
            raise BenchError(f"the bare loop holds {self.kv_tokens} tokens, but a conversation has {max(too_long)}")
        began = time.perf_counter()
        waiting = deque(enumerate(talks))
        self._wanted = {talk.source for talk in talks if talk.source is not None}
        running: list[Talk] = []
        records: list[Record] = []
        while waiting or running:
            on_step()
            self._begin(waiting, running, users, began)
            if not running:
                time.sleep(max(0.0, began + waiting[0][1].at - time.perf_counter()))
                continue
            parts = self._compose(running, schedule)
            answering = sum(not talk.prefilling for talk, _ in parts)
            self._decode([(talk.sequence_id, talk.computed, tokens) for talk, tokens in parts], answering)
            now = time.perf_counter()
            for talk, tokens in parts:
                talk.computed += len(tokens)
                if not talk.prefilling:
                    talk.chunks.append(now)
                if talk.num_answered == len(talk.request.answer):
                    records.append(talk.record())
                    self._finish_turn(talk, running, now)
        self._held.clear()
        return records

    def _begin(self, waiting: deque[tuple[int, Conversation]], running: list[Talk], users: int, began: float) -> None:
        while waiting and len(running) < users:
            number, conversation = waiting[0]
            now = time.perf_counter()
            if now < began + conversation.at:
                return
            source = None if conversation.source is None else self._held.get(conversation.source)
            num_own = conversation.length - (conversation.shared if source is not None else 0)
            self._make_room(num_own, 1, spared=source)
            if self._num_free < num_own or not self._free_ids:
                return
            waiting.popleft()
            sequence_id = self._held[number] = heappop(self._free_ids)
            if source is not None:
                self._sources[sequence_id] = source
            self._num_free -= num_own
            start = began + conversation.at if number < users else now
            running.append(Talk(number, conversation, sequence_id, start, num_own, source))

    def _compose(self, running: list[Talk], schedule: Schedule) -> list[tuple[Talk, Sequence[int]]]:
        """The tokens to compute in this step, by conversation."""
        leaders = {talk.number: talk for talk in running}
        prefills = [talk for talk in running if talk.prefilling and self._share_prefix(talk, leaders)]
        parts: list[tuple[Talk, Sequence[int]]] = []
        skip_decoding = prefills and (schedule.prompts_first or (schedule.by_turns and self._decoded_last))
        if not skip_decoding:
            # Sorted by id: llama.cpp computes lanes together only if their ids are consecutive.
            decoding = sorted((talk for talk in running if not talk.prefilling), key=lambda talk: talk.sequence_id)
            decoding = decoding[: schedule.chunk]
            most = self._max_rows // max(1, len(decoding)) - 1
            parts = [(talk, talk.next_tokens(min(schedule.drafts, most))) for talk in decoding]
        self._decoded_last = bool(parts)
        if parts and schedule.by_turns:
            return parts
        room = max(CHUNKS) if schedule.drafts else schedule.chunk
        room -= sum(len(tokens) for _, tokens in parts)
        for talk in prefills:
            if piece := talk.request.prompt[talk.computed : talk.computed + room]:
                parts.append((talk, piece))
                room -= len(piece)
        return parts

    def _share_prefix(self, talk: Talk, leaders: Mapping[int, Talk]) -> bool:
        """Shares the prefix that another conversation has computed. Returns False while it is not computed yet."""
        shared = talk.conversation.shared
        if talk.computed or talk.source is None or talk.conversation.source is None:
            return True
        leader = leaders.get(talk.conversation.source)
        if leader is not None and leader.turn == 0 and leader.computed < shared:
            return False
        self._memory.share(talk.source, talk.sequence_id, 0, shared)
        talk.computed = talk.cached = shared
        return True

    def _finish_turn(self, talk: Talk, running: list[Talk], now: float) -> None:
        if talk.turn + 1 < len(talk.conversation.requests):
            talk.next_turn(now)
            self._memory.remove(talk.sequence_id, talk.computed, -1)
        else:
            running.remove(talk)
            self._idle.append((talk.sequence_id, talk.num_own))
            # Lanes in use must be consecutive, and idle cells of lanes cost nothing.
            if self._in_lanes and talk.number not in self._wanted:
                self._drop(talk.sequence_id)

    def _make_room(self, num_tokens: int, num_ids: int, spared: int | None = None) -> None:
        """Remove idle sequences, the oldest first. Keeps those whose cells others share."""
        while self._num_free < num_tokens or len(self._free_ids) < num_ids:
            kept = {spared, *self._sources.values()}
            oldest = next((idle for idle in self._idle if idle[0] not in kept), None)
            if oldest is None:
                return
            self._drop(oldest[0])

    def _drop(self, sequence_id: int) -> None:
        idle = next(idle for idle in self._idle if idle[0] == sequence_id)
        self._idle.remove(idle)
        self._sources.pop(sequence_id, None)
        self._memory.remove(sequence_id, 0, -1)
        heappush(self._free_ids, sequence_id)
        self._held = {number: held for number, held in self._held.items() if held != sequence_id}
        self._num_free += idle[1]

    def drafting_rates(
        self, talks: Sequence[Conversation], on_step: Callable[[], object] = lambda: None
    ) -> dict[int, float]:
        """Answer tokens per second of all these conversations together, by number of drafts in DRAFTS that fit.

        Only the first answer of each is computed. Memory must be empty, and is empty afterwards.
        """
        ids = sorted(self._free_ids)[: len(talks)]
        requests = [talk.requests[0] for talk in talks]
        for sequence_id, request in zip(ids, requests, strict=True):
            for start in range(0, len(request.prompt), max(CHUNKS)):
                on_step()
                self._decode([(sequence_id, start, request.prompt[start : start + max(CHUNKS)])])
        rates: dict[int, float] = {}
        for drafts in DRAFTS:
            if (drafts + 1) * len(talks) > self._max_rows and rates:
                break
            started, longest = time.perf_counter(), max(len(request.answer) for request in requests)
            for at in range(0, longest, drafts + 1):
                on_step()
                chunks = [request.answer[at : at + drafts + 1] for request in requests]
                places = [len(request.prompt) + at for request in requests]
                rows: Rows = [row for row in zip(ids, places, chunks, strict=True) if row[2]]
                self._decode(rows, len(rows))
            rates[drafts] = sum(len(request.answer) for request in requests) / (time.perf_counter() - started)
            for sequence_id, request in zip(ids, requests, strict=True):
                self._memory.remove(sequence_id, len(request.prompt), -1)
        for sequence_id in ids:
            self._memory.remove(sequence_id, 0, -1)
        return rates

    def _decode(self, rows: Rows, answering: int = 0) -> None:
        """One decode call, with logits for the last token of each row, and for all tokens of the first `answering`."""
        context, end, outputs = self._context, 0, 0
        for number, (sequence_id, first, tokens) in enumerate(rows):
            start, end = end, end + len(tokens)
            context.tokens[start:end] = tokens
            context.positions[start:end] = np.arange(first, first + len(tokens))
            context.ids[start:end] = sequence_id
            context.outputs[start:end] = int(number < answering)
            context.outputs[end - 1] = 1
            outputs += len(tokens) if number < answering else 1
        context.decode(end)
        context.logits(outputs)  # waits for a GPU
