"""The cost of plan, commit, pages, lookups and fan-out at 16, 64 and 256 sequences."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from api.engine.mailbox import Mailbox
from bench.null_memory import NullMemory
from kvcache.cache import KVCache
from kvcache.pool import PoolLayout
from kvcache.tree import TOKEN_BYTES, KVHandle
from scheduler.fair import FairShares
from scheduler.messages import Output, SamplingParams, Step, Submit, decode, encode
from scheduler.pacing import Pacer
from scheduler.plan import Plan, Result
from scheduler.scheduler import Scheduler

SIZES = pytest.mark.parametrize("num_seqs", [16, 64, 256])
PROMPT_TOKENS = 96
ROUNDS = 200


def as_bytes(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in tokens)


def prompt(request: int, length: int = PROMPT_TOKENS) -> list[int]:
    """The first 24 tokens are the same for all requests, like those of a chat template."""
    return [*range(24), *range(1000 * (request + 1), 1000 * (request + 1) + length - 24)]


def decoding(num_seqs: int, num_tenants: int = 1) -> Scheduler:
    """A scheduler whose sequences have all finished their prefill."""
    cache = KVCache(NullMemory(), PoolLayout(num_pages=num_seqs * 64, num_ids=num_seqs))
    pacer = Pacer(0.004)
    scheduler = Scheduler(
        cache,
        pacer,
        max_seqs=num_seqs,
        token_budget=4096,
        ctx_len=4096,
        eog_tokens=frozenset({2}),
        policy=FairShares(4096, pacer),
    )
    for request in range(num_seqs):
        params, tenant = SamplingParams(temperature=0.0), str(request % num_tenants)
        scheduler.submit(Submit(request, prompt(request), 1500, params, tenant=tenant))
    plan = scheduler.plan()
    while plan.num_decode < num_seqs:
        scheduler.commit(plan, result(plan))
        plan = scheduler.plan()
    return scheduler


def result(plan: Plan) -> Result:
    return Result([[7]] * sum(chunk.samples for chunk in plan.chunks), 0.01)


@SIZES
def test_plan_and_commit(benchmark: BenchmarkFixture, num_seqs: int) -> None:
    """One whole step of the scheduler, stop checks and built events included."""
    scheduler = decoding(num_seqs)

    def step() -> list[Output]:
        plan = scheduler.plan()
        return scheduler.commit(plan, Result([[7]] * num_seqs, 0.01))

    outputs = benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=5)
    assert len(outputs) == num_seqs


@SIZES
def test_plan_with_followers_waiting(benchmark: BenchmarkFixture, num_seqs: int) -> None:
    """A burst: all requests but the first wait for its prefix, and every plan looks each of them up."""
    cache = KVCache(NullMemory(), PoolLayout(num_pages=num_seqs * 64, num_ids=256))
    scheduler = Scheduler(cache, Pacer(0.004), max_seqs=num_seqs, token_budget=64, ctx_len=4096)
    for request in range(num_seqs):
        scheduler.submit(Submit(request, [*range(1000), request], 8))
    scheduler.commit(plan := scheduler.plan(), result(plan))
    plan = benchmark.pedantic(scheduler.plan, rounds=ROUNDS, warmup_rounds=5)
    assert len(plan.chunks) == 1


@SIZES
def test_allocate_and_release(benchmark: BenchmarkFixture, num_seqs: int) -> None:
    """Acquire, fill and release a sequence in a full cache, which evicts as many pages as it allocates."""
    cache = KVCache(NullMemory(), PoolLayout(num_pages=num_seqs * 4, num_ids=256))
    requests = iter(range(10**9))

    def sequence() -> KVHandle:
        tokens = as_bytes(prompt(next(requests)))
        handle = cache.acquire(tokens)
        assert handle is not None
        cache.commit(handle, tokens[handle.num_tokens * TOKEN_BYTES :])
        cache.release(handle)
        return handle

    for _ in range(num_seqs * 2):
        sequence()
    benchmark.pedantic(sequence, rounds=ROUNDS, warmup_rounds=5)
    cache.check_integrity()


@SIZES
@pytest.mark.parametrize("length", [96, 2048])
def test_lookup(benchmark: BenchmarkFixture, num_seqs: int, length: int) -> None:
    """Find the longest prefix among `num_seqs` cached sequences of `length` tokens."""
    cache = KVCache(NullMemory(), PoolLayout(num_pages=num_seqs * 65, num_ids=256))
    for request in range(num_seqs):
        handle = cache.acquire(tokens := as_bytes(prompt(request, length)))
        assert handle is not None
        cache.commit(handle, tokens[handle.num_tokens * TOKEN_BYTES :])
        cache.release(handle)
    wanted = as_bytes([*prompt(num_seqs // 2, length), 5])
    hit = benchmark.pedantic(cache.lookup, args=(wanted,), rounds=ROUNDS, warmup_rounds=5)
    assert hit.num_tokens == length


@SIZES
def test_fan_out(benchmark: BenchmarkFixture, num_seqs: int) -> None:
    """Encode and decode a step's outputs, and put each into its stream's mailbox."""
    mailboxes = {request: Mailbox() for request in range(num_seqs)}

    def fan_out() -> None:
        message: Any = decode(encode(Step([Output(request, [7]) for request in range(num_seqs)])))
        for output in message.outputs:
            mailboxes[output.request_id].put(output)

    _in_trio(lambda: benchmark.pedantic(fan_out, rounds=ROUNDS, warmup_rounds=5))


def _in_trio(function: Callable[[], None]) -> None:
    """Runs the function in trio, whose clock the mailboxes read."""
    import trio

    async def main() -> None:
        function()

    trio.run(main)
