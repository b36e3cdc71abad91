"""`python -m bench.paced_engine SECONDS FD CONFIG`: an engine with a clock in place of a model.

The wire, the loop, the scheduler and the pages are the real ones; a step takes SECONDS and computes nothing.
"""

import os
import signal
import socket
import sys
import time
from itertools import count

from llguidance import LLTokenizer

from bench.null_memory import NullMemory
from kvcache.cache import KVCache
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineInfo
from scheduler.engine import Engine
from scheduler.fair import FairShares
from scheduler.grammar import GrammarCompiler
from scheduler.link import Link
from scheduler.messages import Ready
from scheduler.pacing import Pacer
from scheduler.plan import Plan, Result
from scheduler.scheduler import Scheduler

MAX_SEQS = 256
CTX_LEN = 4096
# Ordinary tokens in any vocabulary, because control tokens and bytes have lower ids.
TOKENS = range(1000, 2000)


class PacedRunner:
    """Generates one token for each sampled chunk. A step takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.perf_counter()
        self._numbers = count()

    def run(self, plan: Plan) -> Result:
        now = time.perf_counter()
        self._next = max(self._next + self._seconds, now)
        time.sleep(self._next - now)
        first = next(self._numbers)
        samples = sum(chunk.samples for chunk in plan.chunks)
        return Result([[TOKENS[(first + index) % len(TOKENS)]] for index in range(samples)], self._seconds)


def _leave_core() -> None:
    """Moves to the cores that the parent process does not use, because the parent is measured."""
    if hasattr(os, "sched_setaffinity") and (others := set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)):
        os.sched_setaffinity(0, others)


def main() -> int:
    _leave_core()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seconds, link = float(sys.argv[1]), Link(socket.socket(fileno=int(sys.argv[2])))
    num_pages = MAX_SEQS * CTX_LEN // PAGE_TOKENS
    pacer = Pacer(0.0)
    scheduler = Scheduler(
        KVCache(NullMemory(), PoolLayout(num_pages, MAX_SEQS)),
        pacer,
        max_seqs=MAX_SEQS,
        token_budget=MAX_SEQS * CTX_LEN,
        ctx_len=CTX_LEN,
        policy=FairShares(MAX_SEQS * CTX_LEN, pacer),
    )
    info = EngineInfo(
        pid=os.getpid(),
        description="a clock",
        ctx_len=CTX_LEN,
        max_seqs=MAX_SEQS,
        kv_tokens=MAX_SEQS * CTX_LEN,
        kv_bytes=0,
        kv_layout="pool",
        kv_layout_reason="without a model",
        batch_tokens=MAX_SEQS * CTX_LEN,
        threads=0,
        host_cache=0,
        disk_cache=0,
        gpu_layers=0,
        load_seconds=0.0,
    )
    link.send(Ready(info))
    Engine(scheduler, PacedRunner(seconds), GrammarCompiler(_no_vocabulary), link).run()
    link.flush(5.0)
    return 0


def _no_vocabulary() -> LLTokenizer:
    raise AssertionError("no request has a grammar")


if __name__ == "__main__":
    sys.exit(main())
