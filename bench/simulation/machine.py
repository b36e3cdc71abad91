"""A machine in virtual time: how long its steps take, and the scheduler that its engine would have.

The durations are those of SmolLM2 135M (Q4_1) in lanes on two cores without a GPU.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

import numpy as np

from bench.null_memory import NullMemory
from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from scheduler.fair import FairShares
from scheduler.pacing import Pacer
from scheduler.plan import Plan, Result
from scheduler.queue import FirstComeFirstServed, Policy
from scheduler.scheduler import Scheduler

MAX_SEQS: Final = 32
CTX_LEN: Final = 8192
TOKEN_BUDGET: Final = 512
MAX_MIXED_TOKENS: Final = 63
"""In the pool. In lanes, no step mixes prompts and answers."""
BYTES_PER_TOKEN: Final = 23_040
HOST_BYTES: Final = 8 << 30

ANSWER_SECONDS: Final = 0.0051, 0.0034
"""Of a step with answers only: in any case, and for each token."""
CONTEXT_SECONDS: Final = 5e-6, 7.5e-7
"""For each cell that a token attends to: of an answer, of a prompt."""
CHUNK_TOKENS: Final = 1, 16, 32, 64, 128
CHUNK_SPEEDS: Final = 108.0, 190.0, 190.0, 256.0, 260.0
"""Tokens a second of a chunk by its length. Longer chunks are not faster, lengths between are interpolated."""


def chunk_seconds(num_tokens: int) -> float:
    """Returns how long a chunk of a prompt takes, at an empty context."""
    return num_tokens / float(np.interp(num_tokens, CHUNK_TOKENS, CHUNK_SPEEDS))


def step_seconds(plan: Plan) -> float:
    """Returns how long a step takes.

    Prompts are computed in one pass if their chunks have the same length, otherwise one after the other.
    """
    seconds = 0.0
    answers, prompts = plan.chunks[: plan.num_answers], plan.chunks[plan.num_answers :]
    if answers:
        fixed, each = ANSWER_SECONDS
        seconds += fixed + each * plan.num_decode
        seconds += CONTEXT_SECONDS[0] * sum(chunk.num_tokens * (chunk.start + chunk.num_tokens) for chunk in answers)
    lengths = [chunk.num_tokens for chunk in prompts]
    seconds += chunk_seconds(sum(lengths)) if len(set(lengths)) == 1 else sum(map(chunk_seconds, lengths))
    return seconds + CONTEXT_SECONDS[1] * sum(chunk.num_tokens * (chunk.start + chunk.num_tokens) for chunk in prompts)


class VirtualRunner:
    """Computes nothing. It advances the clock by the duration of each step, and samples tokens by counting."""

    def __init__(self, seconds: Callable[[Plan], float] = step_seconds) -> None:
        self.now = 0.0
        """Virtual seconds since the start."""
        self._seconds = seconds
        self._numbers = count()

    def clock(self) -> float:
        return self.now

    def run(self, plan: Plan) -> Result:
        seconds = self._seconds(plan)
        self.now += seconds
        sampled = sum(chunk.samples for chunk in plan.chunks)
        return Result([[1 + next(self._numbers) % 1000] for _ in range(sampled)], seconds)


Clock = Callable[[], float]

POLICIES: Final[Mapping[str, Callable[[Pacer, Clock], Policy]]] = {
    "fair": lambda pacer, clock: FairShares(TOKEN_BUDGET, pacer, clock),
    "first-come": lambda pacer, clock: FirstComeFirstServed(TOKEN_BUDGET),  # noqa: ARG005
}
"""The first one is that of `cortex serve`."""


def scheduler_for(policy: str, clock: Clock, *, lanes: bool = True, max_seqs: int = MAX_SEQS) -> Scheduler:
    """Returns a scheduler as `cortex serve` makes it on this machine. Without `lanes` it has a pool of two contexts."""
    pacer = Pacer(1 / max(CHUNK_SPEEDS), 0 if lanes else MAX_MIXED_TOKENS)
    layout: Layout
    if lanes:
        layout = LaneLayout(CTX_LEN // PAGE_TOKENS, max_seqs, keeps_evicted=True)
    else:
        layout = PoolLayout(2 * CTX_LEN // PAGE_TOKENS, 4 * max_seqs)
    return Scheduler(
        KVCache(NullMemory(BYTES_PER_TOKEN), layout, PageTier(HOST_BYTES)),
        pacer,
        max_seqs=max_seqs,
        token_budget=TOKEN_BUDGET,
        ctx_len=CTX_LEN,
        max_answers=TOKEN_BUDGET if lanes else MAX_MIXED_TOKENS,
        policy=POLICIES[policy](pacer, clock),
        clock=clock,
    )
