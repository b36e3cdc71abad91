"""Implements kvcache's Memory on a llama.cpp context, for both layouts.

llama.cpp saves and loads states of whole sequences. Pages are cut from these states and joined to states again
(`scheduler.llama.state`).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvcache.memory import Blob
from kvcache.tree import PAGE_TOKENS
from scheduler.llama.context import Context
from scheduler.llama.state import StateError, StateFormat
from scheduler.plan import StepError

_log = logging.getLogger("cortex.engine")

MOVED_TOKENS: Final = 16 * PAGE_TOKENS
"""Tokens that are saved or loaded at once. This limits the size of the state buffer."""


class ContextMemory(ABC):
    """Implements kvcache's Memory. `save` and `load` may be called only after `learn`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._format: StateFormat | None = None
        """Format of the states that pages are cut from. None if only whole sequences can be moved."""
        self.num_ids = context.num_ids
        """The cache may use the sequence ids from 0 to num_ids - 1."""

    @property
    def moves_pages(self) -> bool:
        """Whether single pages can be saved and loaded."""
        return self._format is not None

    def learn(self, *, pages: bool = True) -> None:
        """Prove that KV can be saved and loaded: compute some, copy it to another sequence, compare the next logits.

        Tries pages first if `pages` is true, then whole sequences. Leaves the memory empty. Raises StateError if
        neither works.
        """
        reason = ""
        for prove in (self._prove_pages, self._prove_whole) if pages else (self._prove_whole,):
            try:
                prove()
            except (StateError, StepError) as error:
                self._format = None
                reason = str(error)
                _log.debug("%s failed: %s", prove.__name__, reason)
            else:
                return
            finally:
                self.remove(0, 0, -1)
                self.remove(1, 0, -1)
        raise StateError(reason)

    def _prove_pages(self) -> None:
        self._need_ids(self._num_ids_for_pages)
        self._compute(0, range(2 * PAGE_TOKENS), 0)
        self._format = StateFormat(self._context.read_state(0))
        saved = self.save(0, PAGE_TOKENS, 2 * PAGE_TOKENS)
        self.share(0, 1, 0, PAGE_TOKENS)
        if not self.load(1, PAGE_TOKENS, 2 * PAGE_TOKENS, saved):
            raise StateError("llama.cpp does not load a saved page")
        if (self.save(1, PAGE_TOKENS, 2 * PAGE_TOKENS)[0] != saved[0]).any():
            raise StateError("a loaded page differs from the saved one")
        self._compare_next_logits(2 * PAGE_TOKENS)

    def _prove_whole(self) -> None:
        self._need_ids(2)
        length = 2 * PAGE_TOKENS
        self._compute(0, range(length), 0)
        if not self.load(1, 0, length, self.save(0, 0, length)):
            raise StateError("llama.cpp does not load a saved sequence")
        self._compare_next_logits(length)

    def _need_ids(self, count: int) -> None:
        if self.num_ids < count:
            raise StateError(f"the test needs {count} sequence ids")

    def _compare_next_logits(self, num_tokens: int) -> None:
        """Raise StateError unless the copy's logits are nearly the original's.

        The limit is half of the distance that two more tokens move the logits. There is no fixed limit, because
        rounding depends on the processor and on the model.
        """
        original, copy = (self._compute(i, [0], num_tokens) for i in (0, 1))
        self._compute(0, [1], num_tokens + 1)
        moved = self._compute(0, [0], num_tokens + 2)
        if np.linalg.norm(copy - original) > np.linalg.norm(moved - original) / 2:
            raise StateError("the logits after a loaded state differ")

    def _compute(self, sequence_id: int, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """Computes the next tokens of a sequence. Returns the logits after the last one."""
        context, length = self._context, len(tokens)
        context.tokens[:length] = tokens
        context.positions[:length] = np.arange(start, start + length)
        context.ids[:length] = sequence_id
        context.outputs[:length] = 0
        context.outputs[length - 1] = 1
        context.decode(length)
        row: NDArray[np.float32] = context.logits(1)[0].copy()
        return row

    @property
    @abstractmethod
    def _num_ids_for_pages(self) -> int: ...

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        return self._context.remove(sequence_id, start, stop)

    @abstractmethod
    def share(self, source: int, target: int, start: int, stop: int) -> None: ...

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        if self._format is not None:
            return self._save_pages(self._format, sequence_id, start, stop)
        assert start == 0, "only whole sequences can be moved"
        return [self._context.read_state(sequence_id).copy()]

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        if self._format is not None:
            return self._load_pages(self._format, sequence_id, start, stop, blobs)
        assert start == 0, "only whole sequences can be moved"
        (state,) = blobs
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

    def learn(self, *, pages: bool = True) -> None:
        super().learn(pages=pages)
        self.num_ids -= self.moves_pages

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        self._context.share(source, target, start, stop)

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
                self.remove(sequence_id, start, -1)
                return False
            context.share(scratch, sequence_id, first, end)
            context.remove(scratch, 0, -1)
        return True


class LaneMemory(ContextMemory):
    """Each sequence id has its own cells. `share` copies a state, because a state contains the used cells only."""

    _num_ids_for_pages = 2

    def learn(self, *, pages: bool = True) -> None:
        """See `ContextMemory.learn`. Also allocates the buffer for a whole lane's state.

        Otherwise the first load of a long conversation would have to wait for the memory: touching 46 MiB for the first
        time took 0.1 s on a virtual machine.
        """
        super().learn(pages=pages)
        if self._format is not None:
            self._context.state_buffer(self._format.num_bytes(self._context.num_cells // self.num_ids))[:] = 0

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """See `Memory.share`. `start` must be 0, and the target lane empty."""
        assert start == 0, "a state starts at position 0"
        state = self._context.read_state(source)
        if not len(state) or not self._context.write_state(target, state):
            raise RuntimeError("llama.cpp does not copy a lane")
        self.remove(target, stop, -1)

    def _save_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int) -> list[Blob]:
        return form.cut(self._context.read_state(sequence_id), start, stop)

    def _load_pages(self, form: StateFormat, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        """Loads the pages before `start` again too, because a state replaces the whole lane."""
        there = self.save(sequence_id, 0, start) if start else []
        state = _joined(form, self._context, [*there, *blobs], 0, stop, sequence_id)
        if state is not None and self._context.write_state(sequence_id, state):
            return True
        if there:
            state = _joined(form, self._context, there, 0, start, sequence_id)
            if state is None or not self._context.write_state(sequence_id, state):
                raise RuntimeError("llama.cpp does not restore a lane")
        return False


def _joined(
    form: StateFormat, context: Context, pages: Sequence[Blob], start: int, stop: int, sequence_id: int
) -> Blob | None:
    """Returns the state of these positions. Logs an error and returns None if the pages have a wrong size."""
    try:
        return form.join(pages, start, stop, sequence_id, context.state_buffer(form.num_bytes(stop - start)))
    except StateError as error:
        _log.error("pages of a wrong size were ignored: %s", error)
        return None
