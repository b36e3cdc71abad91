"""How many sequences of one model may run and wait at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from weakref import WeakSet

import trio

from api.engine.client import EngineClient
from api.engine.drain import retry_after
from api.errors import ApiError


class Place:
    """The sequences of one request, counted from its arrival until the engine has them or the block ends."""

    def __init__(self, num_sequences: int, places: "WeakSet[Place]") -> None:
        self.num_sequences = num_sequences
        self._places = places
        places.add(self)

    def release(self) -> None:
        """Stop counting them here, because the engine client counts them now, or because they will never run."""
        self._places.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    """Refuses requests for more sequences than may run and wait."""

    def __init__(self, engine: EngineClient, *, max_waiting: int) -> None:
        """`max_waiting`: how many sequences may wait."""
        self._engine = engine
        self._max_waiting = max_waiting
        self._places: WeakSet[Place] = WeakSet()
        """Of requests whose sequences the engine client does not have yet. A dropped answer gives its place back."""
        self._num_aside = 0
        """Number of sequences that take no place from others; see `aside`."""

    @property
    def num_entering(self) -> int:
        """Number of sequences that the engine client does not have yet."""
        return sum(place.num_sequences for place in self._places)

    @property
    def is_full(self) -> bool:
        """Whether a request for one sequence would be refused now."""
        try:
            self.check()
        except ApiError:
            return True
        return False

    @contextmanager
    def aside(self, num_sequences: int) -> Iterator[None]:
        """So many more sequences may run and wait during the block: for work that takes no place from clients."""
        self._num_aside += num_sequences
        try:
            yield
        finally:
            self._num_aside -= num_sequences

    def check(self, num_sequences: int = 1, param: str | None = None) -> None:
        """Raises ApiError 503 without an engine, 429 while too many wait, 400 if so many can never wait at once."""
        max_seqs = self._engine.ready_info().max_seqs
        limit = max_seqs + self._max_waiting
        if num_sequences > max(limit, 1):
            message = (
                f"This request asks for {num_sequences} completions at once, but this model takes at most {limit}: "
                f"{max_seqs} run and {self._max_waiting} wait. Send several requests with fewer prompts or choices."
            )
            raise ApiError(400, message, param=param, code="invalid_value")
        excess = self._engine.num_active + self.num_entering + num_sequences - limit - self._num_aside
        if excess > 0:
            seconds = retry_after(self._engine.drain.seconds_until(excess, trio.current_time()))
            message = f"Too many requests: {max_seqs} run and {self._max_waiting} wait. Please try again in {seconds}s."
            raise ApiError(429, message, kind="requests", code="rate_limit_exceeded", retry_after=seconds)

    def enter(self, num_sequences: int = 1, param: str | None = None) -> Place:
        """Count the sequences of a new request. Raises the errors of `check`."""
        self.check(num_sequences, param)
        return Place(num_sequences, self._places)
