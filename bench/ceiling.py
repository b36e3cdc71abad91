"""The throughput of the model alone on this machine: the texts of a workload as decode calls only.

With a server's URL, its runs alternate with the bare runs, on the same token ids, so that a drift of the machine
affects both. Later turns of a conversation only have the same lengths, because the server generates its own answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import trio
from rich.console import Console
from rich.table import Table

from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from bench.bare import CHUNKS, FILL_TOKENS, BareLoop, Schedule
from bench.client import Client, Target, first_model, open_http
from bench.load import closed_loop
from bench.records import BenchError, Record
from bench.stats import summarize
from bench.talks import conversations
from bench.workloads import Session, Settings, longest, resolve, sessions, uniform
from kvcache.tree import PAGE_TOKENS

SCHEDULES: Final = (
    *(Schedule(chunk, prompts_first=True) for chunk in CHUNKS),
    Schedule(128),
    Schedule(512),
    Schedule(128, by_turns=True),
    Schedule(512, by_turns=True),
)
LANE_SCHEDULES: Final = (Schedule(64, prompts_first=True), Schedule(512, prompts_first=True))
LANE_STEP: Final = 256
"""llama.cpp rounds the size of a lane up to a multiple of this many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. A server at `url` is measured in turn with the bare loop. `fill` fills both pools first."""

    model_path: Path
    settings: Settings
    url: str = ""
    repeat: int = 3
    fill: bool = True
    salt: int = 0


@dataclass(slots=True)
class Rates:
    """Tokens per second, one value for each repetition."""

    bare: dict[str, list[float]]
    """By schedule."""
    greedy: list[float]
    sampled: list[float]
    idle_cost: dict[str, float]
    """Duration of a decode step relative to an empty pool, by number of idle tokens in the pool."""

    def summary(self) -> dict[str, Any]:
        """Medians and ratios. Each ratio is taken within a repetition.

        The ceiling is the schedule with the best median. The best single run would only be the luckiest.
        """
        best = max(self.bare, key=lambda schedule: median(self.bare[schedule]))
        summary: dict[str, Any] = {
            "bare_tokens_per_s": {schedule: median(rates) for schedule, rates in self.bare.items()},
            "ceiling": best,
            "ceiling_tokens_per_s": median(self.bare[best]),
            "step_beside_idle_tokens": self.idle_cost,
        }
        if self.greedy:
            summary |= {
                "served_tokens_per_s": median(self.greedy),
                "served_of_ceiling": _ratios(self.greedy, self.bare[best]),
                "sampled_tokens_per_s": median(self.sampled),
                "sampled_of_greedy": _ratios(self.sampled, self.greedy),
            }
        return summary


def _ratios(ones: list[float], others: list[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios)}


async def measure(plan: Plan, screen: Console) -> Rates:
    """Raises BenchError if the server fails a request or lists no model."""
    tokenizer = Tokenizer(plan.model_path)
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    bare = BareLoop(plan.model_path)
    lanes = _lanes(plan)
    rates = Rates({}, [], [], {})
    numbers = count()
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
            scripts, users = _texts(plan, next(numbers))
            talks = conversations(scripts, template, tokenizer, Random(plan.salt))
            for schedule in SCHEDULES:
                rates.bare.setdefault(str(schedule), []).append(_rate(bare.play(talks, users, schedule)))
            if lanes is not None:
                for schedule in LANE_SCHEDULES:
                    rates.bare.setdefault(f"lanes, {schedule}", []).append(_rate(lanes.play(talks, users, schedule)))
            if plan.url:
                rates.greedy.append(await _served(Client(http, greedy), scripts, users))
                rates.sampled.append(await _served(Client(http, sampled), _texts(plan, next(numbers))[0], users))
    return rates


def _texts(plan: Plan, number: int) -> tuple[list[Session], int]:
    return sessions(plan.settings, Random(f"{plan.salt}:{number}"))


def _lanes(plan: Plan) -> BareLoop | None:
    """A loop with one lane for each user; None if requests share a prefix or a user has several requests."""
    if plan.settings.workload != "uniform" or plan.settings.requests > plan.settings.users:
        return None
    tokens = (longest(plan.settings) // LANE_STEP + 1) * LANE_STEP
    return BareLoop(plan.model_path, lanes=plan.settings.users, lane_tokens=tokens)


def _rate(records: list[Record]) -> float:
    rate = summarize(records).tokens_per_s
    assert rate is not None, "the bare loop generated tokens"
    return rate


def _filling(plan: Plan, kv_tokens: int) -> list[Session]:
    """Requests that together have more tokens than the pool holds."""
    requests = 2 + kv_tokens // (FILL_TOKENS - PAGE_TOKENS)
    settings = Settings(workload="uniform", requests=requests, prompt_tokens=FILL_TOKENS, output_tokens=1)
    return uniform(resolve(settings), Random(f"{plan.salt}:fill"))


async def _served(client: Client, sessions: list[Session], users: int) -> float:
    summary = summarize(await closed_loop(sessions, users, client.chat))
    if summary.errors or summary.tokens_per_s is None:
        raise BenchError(f"the server failed {summary.errors} of {summary.requests} requests")
    return summary.tokens_per_s


def run(plan: Plan, screen: Console) -> dict[str, Any]:
    rates = trio.run(measure, plan, screen)
    return {
        "workload": plan.settings.workload,
        "users": plan.settings.users,
        "fill": plan.fill,
        "summary": rates.summary(),
        "tokens_per_s": {"bare": rates.bare, "greedy": rates.greedy, "sampled": rates.sampled},
    }


def show(outcome: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{outcome['workload']}, {outcome['users']} users, tokens per second")
    table.add_column("")
    table.add_column("median", justify="right")
    for name, value in _rows(outcome["summary"]):
        table.add_row(name, value)
    console.print(table)


def _rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for schedule, rate in summary["bare_tokens_per_s"].items():
        yield f"bare loop, {schedule}", f"{rate:.1f}"
    for name, value in summary.items():
        if isinstance(value, float):
            yield name.removesuffix("_tokens_per_s"), f"{value:.1f}"
        elif name == "step_beside_idle_tokens":
            yield from (
                (f"decode step beside {tokens} idle tokens", f"x {ratio:.2f}") for tokens, ratio in value.items()
            )
        elif isinstance(value, dict) and "median" in value:
            yield name.replace("_", " "), f"{value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f})"
