"""Adapts llama.cpp's number of threads while other programs use the cores.

llama.cpp's threads meet at a barrier after each operation. So all of them wait for a thread that another program keeps
from running. Fewer threads can then be faster. Neither the number of other programs nor their priority predicts this
reliably, so the controller tries a smaller number and keeps it only if it measures shorter steps.
"""

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

_log = logging.getLogger("cortex.engine")

WATCH_SECONDS: Final = 0.5
"""How often the controller reads how long the threads waited for a core."""
CROWDED_CORES: Final = 0.25
"""A trial begins if the threads together waited for this share of the time. A program that always runs on one of their
cores makes them wait half of the time."""
BLOCK_STEPS: Final = 3
"""Steps of a trial with the same number of threads. The first one is not counted: it starts or ends threads."""
TRIAL_BLOCKS: Final = 8
"""Blocks of a trial. Both numbers of threads take turns, so that a change of the load affects both."""
GAIN: Final = 0.05
"""A smaller number of threads must make steps this much shorter."""
CLEAR: Final = 1.25
"""A trial ends early if steps take this many times as long with one number as with the other."""
FREE_CORES: Final = 0.5
"""If this many cores are idle, no other program takes them: all threads run again."""
MIN_PAUSE: Final = 4.0
"""Seconds from a trial to the next one. Doubled after each trial that changes nothing, up to MAX_PAUSE."""
MAX_PAUSE: Final = 64.0


class CoreUse(NamedTuple):
    """Seconds since some moment in the past."""

    waited: float
    """How long the threads of this process were ready to run without a core."""
    idle: float
    """How long the cores that this process may use had nothing to do, added up."""


def core_use() -> CoreUse:
    """Reads the system's counters. Returns zeros where they do not exist."""
    waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            waited += int(path.read_bytes().split()[1])
    idle = 0.0
    if hasattr(os, "sched_getaffinity"):
        times = psutil.cpu_times(percpu=True)
        idle = sum(times[core].idle for core in os.sched_getaffinity(0) if core < len(times))
    return CoreUse(waited / 1e9, idle)


class ThreadController:
    """Chooses the number of threads for the next step from the durations of earlier ones."""

    def __init__(
        self,
        num_threads: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        core_use: Callable[[], CoreUse] = core_use,
    ) -> None:
        """`num_threads`: the number to use while the cores are free. `clock` returns seconds."""
        self.num_threads = num_threads
        """Threads for the next step."""
        self._full = num_threads
        self._chosen = num_threads
        """Threads outside of trials."""
        self._clock = clock
        self._core_use = core_use
        self._watched = (clock(), core_use())
        self._own_work: set[object] = set()
        """One for each `paused` block that lasts."""
        self._is_watching = True
        self._pause = MIN_PAUSE
        self._next_trial = -math.inf
        self._trial: _Trial | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Compare nothing while the block lasts: another thread of this process uses a core for a short time.

        May be called from any thread.
        """
        token = object()
        self._own_work.add(token)
        try:
            yield
        finally:
            self._own_work.remove(token)

    def observe(self, num_tokens: int, seconds: float) -> bool:
        """Record the duration of a step. Returns whether `num_threads` has changed."""
        before = self.num_threads
        if self._own_work:
            self._trial, self._is_watching = None, False
            self.num_threads = self._chosen
        elif not self._is_watching:
            self._watched, self._is_watching = (self._clock(), self._core_use()), True
        elif self._trial is not None:
            self._continue(self._trial, num_tokens, seconds)
        elif self._full > 1:
            self._watch()
        return self.num_threads != before

    def _watch(self) -> None:
        """Begin a trial if threads wait for cores, or if fewer threads than usual run. End that if cores are free."""
        now = self._clock()
        since, before = self._watched
        if now - since < WATCH_SECONDS:
            return
        use = self._core_use()
        self._watched = (now, use)
        waiting, idle = ((after - earlier) / (now - since) for earlier, after in zip(before, use, strict=True))
        is_reduced = self._chosen < self._full
        if idle >= FREE_CORES:
            if is_reduced:
                self._choose(self._full, "cores are free")
        elif now >= self._next_trial and (is_reduced or waiting >= CROWDED_CORES):
            # A program that always runs makes one thread wait half of the time.
            fewer = self._chosen if is_reduced else max(1, self._full - max(1, round(2 * waiting)))
            self._trial = _Trial((self._full, fewer))
            self.num_threads = self._trial.num_threads

    def _choose(self, num_threads: int, reason: str) -> None:
        if num_threads == self._chosen:
            self._pause = min(2 * self._pause, MAX_PAUSE)
        else:
            self._pause = MIN_PAUSE
            _log.info("llama.cpp uses %d of %d threads: %s", num_threads, self._full, reason)
        self._chosen = self.num_threads = num_threads
        now = self._clock()
        self._watched = (now, self._core_use())
        self._next_trial = now + self._pause

    def _continue(self, trial: "_Trial", num_tokens: int, seconds: float) -> None:
        trial.observe(num_tokens, seconds)
        self.num_threads = trial.num_threads
        if not trial.is_over:
            return
        self._trial = None
        (full, fewer), ratio = trial.counts, trial.ratio()
        reason = f"with {fewer} threads a step takes {ratio:.2f} times as long as with {full}"
        self._choose(fewer if ratio < 1 - GAIN else full, reason)


class _Trial:
    """Compares two numbers of threads on steps of equal kinds."""

    def __init__(self, counts: tuple[int, int]) -> None:
        self.counts = counts
        self._steps = 0
        self._seconds: tuple[dict[int, list[float]], dict[int, list[float]]] = (defaultdict(list), defaultdict(list))
        """For each of both numbers: durations by kind of step, which is the logarithm of its tokens."""

    @property
    def num_threads(self) -> int:
        return self.counts[self._turn]

    @property
    def _turn(self) -> int:
        return (self._steps // BLOCK_STEPS) % 2

    @property
    def is_over(self) -> bool:
        if self._steps % (2 * BLOCK_STEPS):
            return False
        return self._steps >= TRIAL_BLOCKS * BLOCK_STEPS or not 1 / CLEAR <= self.ratio() <= CLEAR

    def observe(self, num_tokens: int, seconds: float) -> None:
        if self._steps % BLOCK_STEPS:
            self._seconds[self._turn][num_tokens.bit_length()].append(seconds)
        self._steps += 1

    def ratio(self) -> float:
        """Returns how long steps took with the second number of threads, relative to the first.

        It is the mean over the kinds of steps that both have, weighted by their time. 1 if there are none.
        """
        first, second = self._seconds
        common = first.keys() & second.keys()
        means = {kind: (_mean(first[kind]), _mean(second[kind]), len(first[kind])) for kind in common}
        total = sum(one * count for one, _, count in means.values())
        return sum(two * count for _, two, count in means.values()) / total if total else 1.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
