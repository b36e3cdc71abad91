"""KV memory that follows the load: decides its size, has another one opened in the background, and moves into it.

A llama.cpp context cannot change its size. So another one is opened while the present one goes on computing. Between
two steps the sequences move, and the old one is closed. Both take memory meanwhile. What the machine cannot give is not
taken: requests wait, and the next attempt comes later.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from kvcache.layout import Layout
from kvcache.memory import Memory
from scheduler.errors import ModelError
from scheduler.failures import describe
from scheduler.scheduler import Scheduler
from scheduler.shapes import Shape, Shapes

_log = logging.getLogger("cortex.engine")

LOOK_SECONDS: Final = 0.05
"""How often the size is compared with the demand. A look takes 0.3 us per request."""
IDLE_SECONDS: Final = 180.0
"""A size that was not needed for this long is given back."""
BUCKET_SECONDS: Final = 10.0
"""The demand of so many seconds is remembered as one."""
EXCESS: Final = 3
"""A growth also takes the size that was needed lately, unless this has more than EXCESS times the bytes of the present
size and of the size that is needed now."""
WORTHWHILE: Final = 2
"""The memory shrinks if it then takes at most 1/WORTHWHILE of its bytes."""
MEMORY_SHARE: Final = 0.9
"""Share of the available memory that another context may take."""
LOW_SHARE: Final = 0.05
"""If less than this share of the machine's memory is available, a size that is not needed now is given back at once."""
PRESSURE_SECONDS: Final = 2.0
"""How often the available memory is read for this."""
MIN_PAUSE: Final = 1.0
MAX_PAUSE: Final = 64.0
"""Seconds from a failed attempt to the next one. Doubled with each failure in a row."""
MOVED_BYTES: Final = 1 << 30
"""KV that is moved at once. It takes about 0.2 s. What is more goes to the tier before, a sequence at a time."""
POLL_SECONDS: Final = 0.02


class Place(Protocol):
    """An opened memory that is still empty."""

    @property
    def shape(self) -> Shape: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def layout(self) -> Layout: ...

    def enter(self) -> None:
        """Compute here from now on. The present memory is closed, perhaps a little later."""

    def close(self) -> None:
        """Give the memory back unused."""


class Opener(Protocol):
    """Opens memory of other sizes, as the llama.cpp side does."""

    def open(self, shape: Shape) -> Future[Place]:
        """Begin to open memory in the background. Nothing waits for it."""

    def num_bytes(self, shape: Shape) -> int:
        """Returns the bytes that memory of this shape takes."""


@dataclass(frozen=True, slots=True)
class ElasticStatistics:
    """The size of the KV memory. The counters begin at the start of the engine."""

    kv_tokens: int
    kv_max: int
    kv_bytes: int
    kv_ids: int
    """Sequence ids: the number of lanes."""
    grows: int = 0
    shrinks: int = 0
    failed_openings: int = 0
    move_seconds: float = 0.0
    """Duration of the last move, in which no step ran."""


class Elastic:
    """Keeps the KV memory of a scheduler at the size that its sequences need."""

    def __init__(
        self,
        scheduler: Scheduler,
        shapes: Shapes,
        opener: Opener,
        shape: Shape,
        *,
        max_tokens: int,
        available: Callable[[], int],
        total_bytes: int,
        keeps_evicted: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shape`: the present size. `available` returns the bytes that are available on the machine.

        `keeps_evicted`: whether there is a tier, so that sequences can leave the memory before a move.
        """
        self._scheduler = scheduler
        self._shapes = shapes
        self._opener = opener
        self._shape = self._least = shape
        self._max_tokens = max_tokens
        self._available = available
        self._low_bytes = int(LOW_SHARE * total_bytes)
        self._keeps_evicted = keeps_evicted
        self._clock = clock
        self._opening: Future[Place] | None = None
        self._target = shape
        """The shape that is being opened, or was opened last."""
        self._next_look = self._next_check = -math.inf
        self._next_try = -math.inf
        self._pause = MIN_PAUSE
        self._recent: deque[tuple[float, Shape]] = deque()
        """Shapes that were needed lately: the beginning of each bucket, and the join of its shapes."""
        self._grows = self._shrinks = self._failures = 0
        self._move_seconds = 0.0

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def patience(self) -> float | None:
        """Seconds after which `step` must be called even if nothing happens. None if there is no need."""
        if self._opening is not None:
            return POLL_SECONDS
        return PRESSURE_SECONDS if self._is_grown else None

    @property
    def state(self) -> Literal["steady", "growing", "shrinking"]:
        """Whether memory of another size is being opened."""
        if self._opening is None:
            return "steady"
        is_larger = self._opener.num_bytes(self._target) >= self._opener.num_bytes(self._shape)
        return "growing" if is_larger else "shrinking"

    @property
    def _is_grown(self) -> bool:
        return self._opener.num_bytes(self._shape) > self._opener.num_bytes(self._least)

    def step(self) -> None:
        """Called between two steps. Does nothing most of the time."""
        if self._opening is not None:
            if self._opening.done():
                self._arrive(self._opening)
            return
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        wanted = self._shapes.wanted(self._scheduler.demand())
        recent = self._remember(now, wanted)
        if not self._shapes.covers(self._shape, wanted):
            if now >= self._next_try:
                self._grow(wanted, recent)
        elif self._is_grown:
            self._shrink(now, wanted, recent)

    def _remember(self, now: float, wanted: Shape) -> Shape:
        """Returns what was needed in the last IDLE_SECONDS, `wanted` included."""
        if self._recent and now - self._recent[-1][0] < BUCKET_SECONDS:
            begin, shape = self._recent.pop()
            self._recent.append((begin, self._shapes.join(shape, wanted)))
        else:
            self._recent.append((now, wanted))
        while now - self._recent[0][0] >= IDLE_SECONDS + BUCKET_SECONDS:
            self._recent.popleft()
        joined = wanted
        for _, shape in self._recent:
            joined = self._shapes.join(joined, shape)
        return joined

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _grow(self, wanted: Shape, recent: Shape) -> None:
        """Open what was needed lately if that has all that is needed now and fits; else what is needed, or a part.

        Many short sequences and one long one, a minute apart, would together need far more than each.
        """
        most = EXCESS * max(self._opener.num_bytes(wanted), self._opener.num_bytes(self._shape))
        shapes = [recent, wanted] if self._opener.num_bytes(recent) <= most else [wanted]
        for shape in map(self._shapes.enlarged, shapes):
            if self._shapes.covers(shape, wanted) and self._fits(shape):
                self._open(shape)
                return
        tokens_bytes = self._opener.num_bytes(wanted) / wanted.tokens
        part = self._shapes.smaller(wanted, int(MEMORY_SHARE * self._available() / max(tokens_bytes, 1e-9)))
        if part is not None and not self._shapes.covers(self._shape, part) and self._fits(part):
            self._open(part)
        else:
            self._failed(f"there is no memory for {wanted.tokens} tokens")

    def _shrink(self, now: float, wanted: Shape, recent: Shape) -> None:
        target = self._shapes.enlarged(recent)
        if now >= self._next_check:
            self._next_check = now + PRESSURE_SECONDS
            if self._available() < self._low_bytes:
                target = self._shapes.enlarged(wanted)
        if self._opener.num_bytes(target) * WORTHWHILE <= self._opener.num_bytes(self._shape) and now >= self._next_try:
            if self._fits(target):
                self._open(target)
            else:
                self._failed(f"there is no memory for {target.tokens} tokens while the sequences move")

    def _fits(self, shape: Shape) -> bool:
        return self._opener.num_bytes(shape) <= MEMORY_SHARE * self._available()

    def _open(self, shape: Shape) -> None:
        self._scheduler.residents.awaits_memory = not self._shapes.covers(self._shape, shape)
        self._target = shape
        self._opening = self._opener.open(shape)

    def _failed(self, reason: str) -> None:
        _log.warning("the KV memory stays at %d tokens: %s", self._shape.tokens, reason)
        self._next_try = self._clock() + self._pause
        self._pause = min(2 * self._pause, MAX_PAUSE)

    # -- the move ----------------------------------------------------------------------------------------------------

    def _arrive(self, opening: Future[Place]) -> None:
        error = opening.exception()
        if error is not None:
            self._failures += 1
            self._end_opening()
            self._failed(str(error) if isinstance(error, ModelError) else describe(error))
            return
        place = opening.result()
        wanted = self._shapes.wanted(self._scheduler.demand())
        if self._shapes.covers(self._shape, wanted) and not self._shapes.covers(place.shape, wanted):
            place.close()  # the demand has changed
            self._end_opening()
        elif self._is_light():
            self._move(place)

    def _end_opening(self) -> None:
        self._opening = None
        residents = self._scheduler.residents
        residents.awaits_memory = residents.holds = False
        self._next_look = -math.inf

    def _is_light(self) -> bool:
        """Whether the move is short enough. If not, lets a sequence leave the memory, and admits none meanwhile."""
        cache = self._scheduler.cache
        running, idle = cache.count_tokens()
        limit = MOVED_BYTES / max(self._opener.num_bytes(self._shape) / self._shape.tokens, 1e-9)
        if running + idle <= limit:
            return True
        if cache.evict_oldest():
            self._scheduler.residents.holds = True
            return False
        if self._keeps_evicted and self._scheduler.residents.preempt_victim():
            self._scheduler.residents.holds = True
            return False
        return True

    def _move(self, place: Place) -> None:
        started = time.perf_counter()
        self._scheduler.residents.move(place.memory, place.layout)
        place.enter()
        self._move_seconds = time.perf_counter() - started
        self._end_opening()
        before, self._shape = self._shape, place.shape
        if self._opener.num_bytes(place.shape) < self._opener.num_bytes(before):
            self._shrinks += 1
        else:
            self._grows += 1
        self._pause = MIN_PAUSE
        _log.info(
            "the KV memory has %d tokens now, for %d sequences, instead of %d; the move took %.3f s",
            place.shape.tokens,
            place.shape.ids,
            before.tokens,
            self._move_seconds,
        )

    def statistics(self) -> ElasticStatistics:
        return ElasticStatistics(
            kv_tokens=self._shape.tokens,
            kv_max=self._max_tokens,
            kv_bytes=self._opener.num_bytes(self._shape),
            kv_ids=self._shape.ids,
            grows=self._grows,
            shrinks=self._shrinks,
            failed_openings=self._failures,
            move_seconds=round(self._move_seconds, 6),
        )
