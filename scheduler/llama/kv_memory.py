"""Implements kvcache's Memory on a llama.cpp context, for both layouts.

llama.cpp saves and loads states of whole sequences. Pages are cut from these states and joined to states again
(`scheduler.llama.state`).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from kvcache.memory import Blob
from kvcache.tree import PAGE_TOKENS
from scheduler.llama.context import Context
from scheduler.llama.state import StateError, StateFormat
from scheduler.llama.trial import Part, TrialError, check_alike, compute
from scheduler.plan import StepError

_log = logging.getLogger("cortex.engine")

MOVED_TOKENS: Final = 16 * PAGE_TOKENS
"""Tokens that are saved or loaded at once. This limits the size of the state buffer."""


class ContextMemory(ABC):
    """Implements kvcache's Memory. `save` and `load` may be called only after `learn` or `take_format`."""

    def __init__(self, context: Context, window: int = 0) -> None:
        """`window`: tokens that the layers with a sliding window attend to. 0 without such layers.

        llama.cpp saves only the last window of these layers. In a pool it also reuses their cells of earlier positions,
        even with memory of full size.
        """
        self._context = context
        self._window = window
        self._loaded: dict[int, int] = {}
        """Number of tokens of each sequence id that was loaded or shares such KV. It may lack windows before them."""
        self._format: StateFormat | None = None
        """Format of the states that pages are cut from. None if only whole sequences can be moved."""
        self.num_ids = context.num_ids
        """The cache may use the sequence ids from 0 to num_ids - 1."""

    @property
    def is_stretched(self) -> bool:
        """See `Context.is_stretched`. KV of one such context is valid only in another one."""
        return self._context.is_stretched

    @property
    def moves_pages(self) -> bool:
        """Whether single pages can be saved and loaded."""
        return self._format is not None

    @property
    def format(self) -> StateFormat | None:
        """The format of states that pages are cut from; None if only whole sequences can be moved."""
        return self._format

    def take_format(self, form: StateFormat | None) -> None:
        """Move KV in the format that `learn` proved with another context of this model and layout."""
        self._format = form.with_streams(self._num_streams) if form is not None else None

    @property
    @abstractmethod
    def _num_streams(self) -> int:
        """llama.cpp's number of sets of cells."""

    def learn(self, *, pages: bool = True) -> str:
        """Prove that KV can be saved and loaded: compute some, copy it to another sequence, compare the next logits.

        Tries pages first if `pages` is true, then whole sequences. Leaves the memory empty. Returns why pages cannot be
        moved; empty if they can or if `pages` is false. Raises TrialError if neither works.
        """
        reasons: list[str] = []
        for prove in (self._prove_pages, self._prove_whole) if pages else (self._prove_whole,):
            try:
                prove()
            except (StateError, StepError, TrialError) as error:
                self._format = None
                reasons.append(str(error))
            else:
                return "; ".join(reasons)
            finally:
                self.remove(0, 0, -1)
                self.remove(1, 0, -1)
        raise TrialError(reasons[-1])

    def _prove_pages(self) -> None:
        if self._window:
            raise TrialError("a saved state contains only the last window of the layers with a sliding window")
        self._need_ids(self._num_ids_for_pages)
        compute(self._context, Part(0, self._trial_tokens(), 0))
        self._format = StateFormat(self._context.read_state(0))
        saved = self.save(0, PAGE_TOKENS, 2 * PAGE_TOKENS)
        if not saved or not self.share(0, 1, 0, PAGE_TOKENS):
            raise TrialError("llama.cpp does not save a page")
        if not self.load(1, PAGE_TOKENS, 2 * PAGE_TOKENS, saved):
            raise TrialError("llama.cpp does not load a saved page")
        again = self.save(1, PAGE_TOKENS, 2 * PAGE_TOKENS)
        if not again or (again[0] != saved[0]).any():
            raise TrialError("a loaded page differs from the saved one")
        self._compare_next_logits(2 * PAGE_TOKENS)

    def _prove_whole(self) -> None:
        self._need_ids(2)
        length = 2 * PAGE_TOKENS
        compute(self._context, Part(0, self._trial_tokens(), 0))
        saved = self.save(0, 0, length)
        if not saved or not self.load(1, 0, length, saved):
            raise TrialError("llama.cpp does not load a saved sequence")
        self._compare_next_logits(length)

    def _trial_tokens(self) -> list[int]:
        return [token % self._context.vocab_size for token in range(2 * PAGE_TOKENS)]

    def _need_ids(self, count: int) -> None:
        if self.num_ids < count:
            raise TrialError(f"the test needs {count} sequence ids")

    def _compare_next_logits(self, num_tokens: int) -> None:
        """Raises TrialError unless the copy's logits are nearly the original's."""
        (original,), (copy,) = (compute(self._context, Part(i, [0], num_tokens)) for i in (0, 1))
        (other,) = compute(self._context, Part(0, [1, 0], num_tokens + 1))
        check_alike(copy, original, other, "the logits after a loaded state differ")

    @property
    @abstractmethod
    def _num_ids_for_pages(self) -> int: ...

    def intact_from(self, sequence_id: int) -> int:
        if not self._window:
            return 0
        first = self._context.first_position(sequence_id)
        return max(self._loaded.get(sequence_id, 0), first + self._window - 1 if first > 0 else 0)

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        intact = self.intact_from(sequence_id)  # afterwards, a layer without any cells would look intact
        removed = self._context.remove(sequence_id, start, stop)
        if not start and stop < 0:
            self._loaded.pop(sequence_id, None)
            return True
        return removed and intact <= start

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        if self.intact_from(source) > stop or not self._share(source, target, start, stop):
            return False
        if source in self._loaded:
            self._loaded[target] = self._loaded[source]
        return True

    @abstractmethod
    def _share(self, source: int, target: int, start: int, stop: int) -> bool: ...

    def merge(self, source: int, target: int, start: int, stop: int) -> None:
        self._context.remove(target, start, stop)
        self._context.share(source, target, start, stop)

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        try:
            if self._format is not None:
                return self._save_pages(self._format, sequence_id, start, stop)
        except StateError as error:
            _log.error("pages were not saved: %s", error)
            return []
        assert start == 0, "only whole sequences can be moved"
        state = self._context.read_state(sequence_id).copy()
        return [state] if len(state) else []

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        if self._format is not None:
            return self._load_pages(self._format, sequence_id, start, stop, blobs)
        assert start == 0, "only whole sequences can be moved"
        (state,) = blobs
        if self._window:
            self._loaded[sequence_id] = stop
        return self._context.write_state(sequence_id, state)

    @abstractmethod
    def _save_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int) -> list[Blob]: ...

    @abstractmethod
    def _load_pages(
        self, form: StateFormat, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]
    ) -> bool: ...


class PoolMemory(ContextMemory):
    """One set of cells for all sequences. If pages can be moved, the last sequence id is reserved for moving them."""

    _num_ids_for_pages = 3

    _num_streams = 1

    def learn(self, *, pages: bool = True) -> str:
        reason = super().learn(pages=pages)
        self.num_ids -= self.moves_pages
        return reason

    def take_format(self, form: StateFormat | None) -> None:
        super().take_format(form)
        self.num_ids -= self.moves_pages

    def _share(self, source: int, target: int, start: int, stop: int) -> bool:
        self._context.share(source, target, start, stop)
        return True

    def _save_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int) -> list[Blob]:
        context, scratch = self._context, self._context.num_ids - 1
        pages = []
        for first in range(start, stop, MOVED_TOKENS):
            end = min(first + MOVED_TOKENS, stop)
            context.share(sequence_id, scratch, first, end)
            state = context.read_state(scratch, form.num_bytes(end - first))
            pages += form.cut(state, first, end)
            context.remove(scratch, 0, -1)
        return pages

    def _load_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        context, scratch = self._context, self._context.num_ids - 1
        for first in range(start, stop, MOVED_TOKENS):
            end = min(first + MOVED_TOKENS, stop)
            pages = blobs[(first - start) // PAGE_TOKENS :][: MOVED_TOKENS // PAGE_TOKENS]
            state = _joined(form, context, pages, first, end, scratch)
            if state is None or not context.write_state(scratch, state):
                return False
            context.share(scratch, sequence_id, first, end)
            context.remove(scratch, 0, -1)
        return True


class LaneMemory(ContextMemory):
    """Each sequence id has its own cells.

    `share` copies a state, because a state contains the used cells only. With sliding windows it copies all cells.
    """

    _num_ids_for_pages = 2

    @property
    def _num_streams(self) -> int:
        return self._context.num_ids

    def _share(self, source: int, target: int, start: int, stop: int) -> bool:
        """See `Memory.share`. `start` must be 0, and the target lane empty."""
        assert start == 0, "a state starts at position 0"
        if self._window:
            self._context.copy_lane(source, target)
        else:
            state = self._context.read_state(source)
            if not len(state) or not self._context.write_state(target, state):
                return False
        return self._context.remove(target, stop, -1)

    def _save_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int) -> list[Blob]:
        return form.cut(self._context.read_state(sequence_id), start, stop)

    def _load_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        """Loads the pages before `start` again too, because a state replaces the whole lane."""
        there = self.save(sequence_id, 0, start) if start else []
        if start and not there:
            return False
        state = _joined(form, self._context, [*there, *blobs], 0, stop, sequence_id)
        return state is not None and self._context.write_state(sequence_id, state)


def _joined(
    form: StateFormat, context: Context, pages: Sequence[Blob], start: int, stop: int, sequence_id: int
) -> Blob | None:
    """Returns the state of these positions. Logs an error and returns None if the pages have a wrong size."""
    try:
        return form.join(pages, start, stop, sequence_id, context.state_buffer(form.num_bytes(stop - start)))
    except StateError as error:
        _log.error("pages of a wrong size were ignored: %s", error)
        return None
