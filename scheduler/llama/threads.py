"""Adapts llama.cpp's number of threads while other programs use the cores.

llama.cpp's threads meet at a barrier after each operation. So all of them wait for a thread that another program keeps
from running. Fewer threads can then be faster. Neither the number of other programs nor their priority predicts this
reliably, so the controller tries a smaller number and keeps it only if it measures shorter steps.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

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
HOPELESS: Final = 1.25
"""A trial ends early if its steps take this many times as long with the smaller number."""
MIN_PAUSE: Final = 4.0
"""Seconds from a trial to the next one. Doubled after each trial that changes nothing, up to MAX_PAUSE."""
MAX_PAUSE: Final = 64.0


def waited_seconds() -> float:
    """Returns how long the threads of this process have been ready to run without a core; 0 if it is unknown."""
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            total += int((task / "schedstat").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):  # another system, or a thread that has just ended
        return 0.0
    return total / 1e9


class ThreadController:
    """Chooses the number of threads for the next step from the durations of earlier ones."""

    def __init__(
        self,
        num_threads: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[], float] = waited_seconds,
    ) -> None:
        """`num_threads`: the number to use while the cores are free.

        `clock` and `waited` return seconds: the time, and how long the threads of this process have waited for a core.
        """
        self.num_threads = num_threads
        """Threads for the next step."""
        self._full = num_threads
        self._chosen = num_threads
        """Threads outside of trials."""
        self._clock = clock
        self._waited = waited
        self._watched = (clock(), waited())
        self._pause = MIN_PAUSE
        self._next_trial = -math.inf
        self._trial: _Trial | None = None

    def observe(self, num_tokens: int, seconds: float) -> bool:
        """Record the duration of a step. Returns whether `num_threads` has changed."""
        before = self.num_threads
        if self._trial is not None:
            self._continue(self._trial, num_tokens, seconds)
        elif self._full > 1:
            self._watch()
        return self.num_threads != before

    def _watch(self) -> None:
        """Begin a trial if threads wait for cores, or if fewer threads than usual run."""
        now = self._clock()
        since, waited_before = self._watched
        if now - since < WATCH_SECONDS:
            return
        waited = self._waited()
        self._watched = (now, waited)
        waiting_cores = (waited - waited_before) / (now - since)
        is_reduced = self._chosen < self._full
        if now < self._next_trial or not (is_reduced or waiting_cores >= CROWDED_CORES):
            return
        # A program that always runs makes one thread wait half of the time.
        fewer = self._chosen if is_reduced else max(1, self._full - max(1, round(2 * waiting_cores)))
        self._trial = _Trial((self._full, fewer))
        self.num_threads = self._trial.num_threads

    def _continue(self, trial: "_Trial", num_tokens: int, seconds: float) -> None:
        trial.observe(num_tokens, seconds)
        self.num_threads = trial.num_threads
        if not trial.is_over:
            return
        full, fewer = trial.counts
        ratio = trial.ratio()
        chosen = fewer if ratio < 1 - GAIN else full
        changed = chosen != self._chosen
        self._pause = MIN_PAUSE if changed else min(2 * self._pause, MAX_PAUSE)
        if changed:
            _log.info(
                "%d threads now: with %d threads a step takes %.2f times as long as with %d", chosen, fewer, ratio, full
            )
        self._trial, self._chosen, self.num_threads = None, chosen, chosen
        now = self._clock()
        self._next_trial = now + self._pause
        self._watched = (now, self._waited())


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
        is_whole_turn = self._steps % (2 * BLOCK_STEPS) == 0
        return self._steps >= TRIAL_BLOCKS * BLOCK_STEPS or (is_whole_turn and self.ratio() > HOPELESS)

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
