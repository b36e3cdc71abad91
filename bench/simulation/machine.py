"""A machine in virtual time: how long its steps take, and the scheduler that its engine would have.

The durations are those of SmolLM2 135M (Q4_1) on two cores without a GPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from bench.null_memory import NullMemory
from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from scheduler.fair import FairShares
from scheduler.pacing import Pacer
from scheduler.plan import Plan, Result, by_id
from scheduler.queue import FirstComeFirstServed, Policy
from scheduler.scheduler import Scheduler

MAX_SEQS: Final = 32
CTX_LEN: Final = 8192
TOKEN_BUDGET: Final = 512
BYTES_PER_TOKEN: Final = 23_040
HOST_BYTES: Final = 8 << 30
TILE_TOKENS: Final = 64
"""Tokens of one sequence in a pass from which llama.cpp computes attention in blocks."""
MICRO_BATCH: Final = 512
"""Maximum tokens of a pass."""

Part = tuple[int, int, int]
"""Tokens of one sequence in a step: the sequence id, the first position, the number of tokens."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What llama.cpp takes for a step. All times are seconds."""

    step: float = 0.002
    """Of every step: planning, filling the batch, sending the tokens."""
    weights: float = 0.005
    """Of every pass: reading the weights once."""
    row: float = 0.00375
    """Of every token."""
    answer_context: float = 5e-6
    """Of every cell that the token of an answer attends to."""
    prompt_context: tuple[float, float] = (2.5e-6, 7.5e-7)
    """Of every cell that a token of a prompt attends to: row by row, and in blocks of TILE_TOKENS rows."""
    max_mixed_tokens: int = TILE_TOKENS - 1
    """Maximum tokens of a step with prompts and answers in a pool. In lanes, no step mixes both."""

    def seconds(self, parts: list[Part], *, lanes: bool = True) -> float:
        """Returns how long a step takes whose batch holds these tokens in this order."""
        seconds = self.step
        for one in passes(parts) if lanes else [parts]:
            seconds += self.weights + sum(num_tokens for _, _, num_tokens in one) * self.row
            seconds += sum(self._attention(start, num_tokens) for _, start, num_tokens in one)
        return seconds

    def _attention(self, start: int, num_tokens: int) -> float:
        """Of these tokens of one sequence. Blocks are computed whole, however many of their rows are needed."""
        if num_tokens == 1:
            return self.answer_context * (start + 1)
        if num_tokens < TILE_TOKENS:
            return self.prompt_context[0] * num_tokens * (start + num_tokens)
        return self.prompt_context[1] * -(-num_tokens // TILE_TOKENS) * TILE_TOKENS * (start + num_tokens)


CPU: Final = Machine()
GPU: Final = Machine(0.001, 0.006, 0.00012, 2e-8, (2e-8, 2e-9), TOKEN_BUDGET)
"""A model of some billion parameters on a GPU. Its steps may mix prompts and answers."""


def passes(parts: list[Part]) -> list[list[Part]]:
    """Returns the passes over the weights that llama.cpp makes for a batch in lanes.

    In one pass are sequences with consecutive, ascending ids, each with the same number of tokens.
    """
    result = []
    while parts:
        group: list[Part] = []
        for part in parts:
            if not group or part[0] == group[-1][0] + 1:
                group.append(part)
        width = min(num_tokens for _, _, num_tokens in group)
        width = max(1, min(width, MICRO_BATCH // len(group)))
        result.append([(each, start, width) for each, start, _ in group])
        computed = {each for each, _, _ in group}
        parts = [
            (each, start + width, num_tokens - width) if each in computed else (each, start, num_tokens)
            for each, start, num_tokens in parts
            if each not in computed or num_tokens > width
        ]
    return result


def chunk_seconds(num_tokens: int) -> float:
    """Returns how long a chunk of a prompt takes, at an empty context."""
    return CPU.seconds([(0, 0, num_tokens)])


def step_seconds(plan: Plan, machine: Machine = CPU, *, lanes: bool = True) -> float:
    """Returns how long a plan takes."""
    chunks = sorted(plan.chunks, key=by_id) if plan.num_fillers else plan.chunks
    parts = [(chunk.sequence.sequence_id, chunk.start, chunk.num_tokens) for chunk in chunks]
    return machine.seconds(parts, lanes=lanes)


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


def scheduler_for(
    policy: str, clock: Clock, machine: Machine = CPU, *, lanes: bool = True, max_seqs: int = MAX_SEQS
) -> Scheduler:
    """Returns a scheduler as `cortex serve` makes it on this machine. Without `lanes` it has a pool of two contexts."""
    pacer = Pacer(machine.seconds([(0, 0, TILE_TOKENS)]) / TILE_TOKENS, 0 if lanes else machine.max_mixed_tokens)
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
        max_answers=TOKEN_BUDGET if lanes else min(TOKEN_BUDGET // 2, machine.max_mixed_tokens),
        in_lanes=lanes,
        policy=POLICIES[policy](pacer, clock),
        clock=clock,
    )
