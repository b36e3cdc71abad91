"""What the model alone reaches on this machine: the batch shapes of `uniform` as bare decode calls.

No HTTP, no sampling, no bookkeeping; the common prefix of the prompts is computed once and shared. With a server's
address its own runs are interleaved with the bare ones, on the same token ids: a drift of the machine hits both.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np
import trio
from rich.console import Console
from rich.table import Table

from api.template import ChatTemplate
from api.tokenizer import Tokenizer
from bench.client import Client, Target, first_model, open_http
from bench.load import closed_loop
from bench.records import BenchError
from bench.stats import summarize
from bench.workloads import Session, Settings, uniform
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig
from scheduler.llama import MAX_SEQUENCE_IDS, Context, Model
from scheduler.sizing import IDLE_SHARE, choose

CHUNKS: Final = (64, 128, 256, 512)
FILL_TOKENS: Final = 256
"""Length of the idle sequences that fill the pool before anything is measured."""
IDLE_COST_PROMPT: Final = 128
IDLE_COST_STEPS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. `url` is a server's to be measured beside the bare loop; `fill` fills both pools first."""

    model_path: Path
    settings: Settings
    url: str = ""
    repeat: int = 3
    fill: bool = True
    salt: int = 0


class BareLoop:
    """A context of the sizes that a server chooses by default, driven by hand."""

    def __init__(self, model_path: Path) -> None:
        config = EngineConfig(str(model_path))
        self._model = Model(str(model_path), config.gpu_layers)
        kv_bytes = self._model.kv_bytes_per_token(config.kv_type)
        sizes = choose(
            config,
            trained_context=self._model.trained_context,
            model_bytes=self._model.num_bytes,
            kv_bytes_per_token=kv_bytes,
            on_gpu=False,
        )
        self.kv_tokens = sizes.kv_tokens
        self.cheap_tokens = int(IDLE_SHARE * self._model.num_bytes / kv_bytes)
        self._context = Context(
            self._model,
            config,
            kv_tokens=sizes.kv_tokens,
            num_ids=MAX_SEQUENCE_IDS,
            num_outputs=MAX_SEQUENCE_IDS,
            batch_tokens=max(CHUNKS),
            threads=sizes.threads,
        )
        self._free_ids = list(range(MAX_SEQUENCE_IDS))
        self._idle: deque[tuple[int, int]] = deque()
        """Sequence ids and their tokens, oldest first."""
        self._num_free = sizes.kv_tokens

    def fill(self, num_tokens: int) -> None:
        """Add idle sequences until so many tokens of the pool are used, as a server's cache fills by and by."""
        while self.kv_tokens - self._num_free + FILL_TOKENS <= num_tokens:
            sequence_id = self._free_ids.pop()
            tokens = np.random.default_rng(sequence_id).integers(100, self._model.vocab_size - 100, FILL_TOKENS)
            self._decode([(sequence_id, 0, tokens.tolist())])
            self._idle.append((sequence_id, FILL_TOKENS))
            self._num_free -= FILL_TOKENS

    def idle_cost(self, num_seqs: int) -> dict[str, float]:
        """How much longer a decode step takes beside idle tokens: ratios to an empty pool. Leaves the pool full.

        The first row is where the default pool size would end if it need not hold two contexts.
        """
        empty = self._step_seconds(num_seqs)
        ratios = {}
        for num_tokens in (self.cheap_tokens, self.kv_tokens):
            self.fill(num_tokens)
            self._make_room(num_seqs * (IDLE_COST_PROMPT + IDLE_COST_STEPS), num_seqs)
            ratios[str(num_tokens)] = self._step_seconds(num_seqs) / empty
        return ratios

    def _step_seconds(self, num_seqs: int) -> float:
        """The median decode step of sequences with short prompts."""
        ids = self._free_ids[:num_seqs]
        for sequence_id in ids:
            self._decode([(sequence_id, 0, [1000 + sequence_id] * IDLE_COST_PROMPT)])
        times = []
        for step in range(IDLE_COST_STEPS):
            started = time.perf_counter()
            self._decode([(sequence_id, IDLE_COST_PROMPT + step, [1000]) for sequence_id in ids])
            times.append(time.perf_counter() - started)
        for sequence_id in ids:
            self._context.remove(sequence_id, 0, -1)
        return median(times)

    def seconds(self, prompts: Sequence[Sequence[int]], num_output: int, chunk: int) -> float:
        """Wall time of reading the prompts in chunks and decoding `num_output` tokens of each together.

        What was computed stays as idle sequences, and the oldest make room for it, as in a server's cache.
        """
        shared = _common_prefix([prompt[:-1] for prompt in prompts])
        lengths = [len(prompt) - shared + num_output - 1 for prompt in prompts]
        lengths[0] += shared
        self._make_room(sum(lengths) + shared, len(prompts))  # an older shared prefix may outlive its first holder
        ids = [self._free_ids.pop() for _ in prompts]
        started = time.perf_counter()
        self._prefill([(ids[0], 0, list(prompts[0][:shared]))], chunk)
        for sequence_id in ids[1:]:
            self._context.share(ids[0], sequence_id, 0, shared)
        self._prefill([(i, shared, list(prompt[shared:])) for i, prompt in zip(ids, prompts, strict=True)], chunk)
        for step in range(num_output - 1):
            self._decode([(i, len(prompt) + step, [1000 + step]) for i, prompt in zip(ids, prompts, strict=True)])
        seconds = time.perf_counter() - started
        self._idle.extend(zip(ids, lengths, strict=True))
        self._num_free -= sum(lengths)
        return seconds

    def _make_room(self, num_tokens: int, num_ids: int) -> None:
        while self._idle and (self._num_free < num_tokens or len(self._free_ids) < num_ids):
            sequence_id, length = self._idle.popleft()
            self._context.remove(sequence_id, 0, -1)
            self._free_ids.append(sequence_id)
            self._num_free += length

    def _prefill(self, rows: list[tuple[int, int, list[int]]], chunk: int) -> None:
        batch: list[tuple[int, int, list[int]]] = []
        room = chunk
        for sequence_id, first, tokens in rows:
            start = 0
            while start < len(tokens):
                piece = tokens[start : start + room]
                batch.append((sequence_id, first + start, piece))
                start += len(piece)
                room -= len(piece)
                if not room:
                    self._decode(batch)
                    batch, room = [], chunk
        if batch:
            self._decode(batch)

    def _decode(self, rows: list[tuple[int, int, list[int]]]) -> None:
        """One call: for each row a sequence id, its first position and its tokens; the last of each gives logits."""
        context, end = self._context, 0
        for sequence_id, first, tokens in rows:
            start, end = end, end + len(tokens)
            context.tokens[start:end] = tokens
            context.positions[start:end] = np.arange(first, first + len(tokens))
            context.ids[start:end] = sequence_id
            context.outputs[start:end] = 0
            context.outputs[end - 1] = 1
        context.decode(end)
        context.logits(len(rows))  # waits for a GPU


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


@dataclass(slots=True)
class Rates:
    """Tokens per second, one value for each repetition."""

    bare: dict[int, list[float]]
    """By chunk size."""
    greedy: list[float]
    sampled: list[float]
    idle_cost: dict[str, float]
    """Of a decode step, by idle tokens in the pool, relative to none."""

    def summary(self) -> dict[str, Any]:
        """Medians, and the ratios that matter, each taken within a repetition.

        The ceiling is the chunk size with the best median: the best of several runs would be the luckiest.
        """
        chunk = max(self.bare, key=lambda chunk: median(self.bare[chunk]))
        summary: dict[str, Any] = {
            "bare_tokens_per_s": {str(chunk): median(rates) for chunk, rates in self.bare.items()},
            "ceiling_tokens_per_s": median(self.bare[chunk]),
            "step_beside_idle_tokens": self.idle_cost,
        }
        if self.greedy:
            summary |= {
                "served_tokens_per_s": median(self.greedy),
                "served_of_ceiling": _ratios(self.greedy, self.bare[chunk]),
                "sampled_tokens_per_s": median(self.sampled),
                "sampled_of_greedy": _ratios(self.sampled, self.greedy),
            }
        return summary


def _ratios(ones: list[float], others: list[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios)}


async def measure(plan: Plan, screen: Console) -> Rates:
    """Raises BenchError if the server fails a request."""
    tokenizer = Tokenizer(plan.model_path)
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    bare = BareLoop(plan.model_path)
    rates = Rates({chunk: [] for chunk in CHUNKS}, [], [], {})
    texts = (uniform(plan.settings, Random(f"{plan.salt}:{number}")) for number in count())
    async with open_http(None, 600.0) as http:
        if plan.fill:
            with screen.status("filling the bare pool"):
                rates.idle_cost = bare.idle_cost(plan.settings.users)
        if plan.url:
            greedy = Target(url=plan.url, model=await first_model(http, plan.url))
            sampled = replace(greedy, temperature=0.8, top_p=0.95)
            if plan.fill:
                with screen.status("filling the server's pool"):
                    await _served(Client(http, greedy), _filling(plan, bare.kv_tokens), 8)
        for number in range(plan.repeat):
            screen.print(f"repetition {number + 1} of {plan.repeat}")
            sessions = next(texts)
            prompts = [template.render_tokens(session.turns[0].messages) for session in sessions]
            total = plan.settings.output_tokens * len(prompts)
            for chunk in CHUNKS:
                rates.bare[chunk].append(total / bare.seconds(prompts, plan.settings.output_tokens, chunk))
            if plan.url:
                rates.greedy.append(await _served(Client(http, greedy), sessions, plan.settings.users))
                rates.sampled.append(await _served(Client(http, sampled), next(texts), plan.settings.users))
    return rates


def _filling(plan: Plan, kv_tokens: int) -> list[Session]:
    """Requests that together leave more behind than the pool holds."""
    requests = 2 + kv_tokens // (FILL_TOKENS - PAGE_TOKENS)
    settings = replace(plan.settings, requests=requests, prompt_tokens=FILL_TOKENS, output_tokens=1)
    return uniform(settings, Random(f"{plan.salt}:fill"))


async def _served(client: Client, sessions: list[Session], users: int) -> float:
    summary = summarize(await closed_loop(sessions, users, client.chat))
    if summary.errors or summary.tokens_per_s is None:
        raise BenchError(f"the server failed {summary.errors} of {summary.requests} requests")
    return summary.tokens_per_s


def run(plan: Plan, screen: Console) -> dict[str, Any]:
    rates = trio.run(measure, plan, screen)
    raw = {"bare": {str(chunk): values for chunk, values in rates.bare.items()}} | {
        "greedy": rates.greedy,
        "sampled": rates.sampled,
    }
    return {"users": plan.settings.users, "fill": plan.fill, "summary": rates.summary(), "tokens_per_s": raw}


def show(outcome: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{outcome['users']} users, tokens per second")
    table.add_column("")
    table.add_column("median", justify="right")
    for name, value in _rows(outcome["summary"]):
        table.add_row(name, value)
    console.print(table)


def _rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for chunk, rate in summary["bare_tokens_per_s"].items():
        yield f"bare loop, chunks of {chunk}", f"{rate:.1f}"
    for name, value in summary.items():
        if isinstance(value, float):
            yield name.removesuffix("_tokens_per_s"), f"{value:.1f}"
        elif name == "step_beside_idle_tokens":
            yield from (
                (f"decode step beside {tokens} idle tokens", f"x {ratio:.2f}") for tokens, ratio in value.items()
            )
        elif "median" in value:
            yield name.replace("_", " "), f"{value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f})"
