"""KV memory as the cache wants it, on a llama.cpp context of either layout.

Pages leave the device and come back as pieces of llama.cpp's saved states (`scheduler.state`), which are of whole
sequences.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvcache.memory import Blob
from kvcache.tree import PAGE_TOKENS
from scheduler.llama import Context
from scheduler.plan import StepError
from scheduler.state import StateError, StateFormat

_log = logging.getLogger("cortex.engine")

PROOF_TOLERANCE: Final = 0.5
"""Of a logit: where cells lie can move it a little, a wrong page by 2 and more."""
MOVED_TOKENS: Final = 16 * PAGE_TOKENS
"""Saved or loaded in one piece, which bounds the buffer that they go through."""


class ContextMemory(ABC):
    """Implements kvcache's Memory; `save` and `load` only after `learn`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._format: StateFormat | None = None
        self.num_ids = context.num_ids
        """Sequence ids for the cache to use, from 0."""

    def learn(self) -> None:
        """Prove that KV can be saved and loaded: compute some, put it into another sequence, compare what follows.

        Leaves nothing in memory. Raises StateError.
        """
        try:
            self._prove()
        except (StateError, StepError) as error:
            self._format = None
            raise StateError(str(error)) from error
        finally:
            self.remove(0, 0, -1)
            self.remove(1, 0, -1)

    def _prove(self) -> None:
        if self.num_ids < self._num_ids_needed:
            raise StateError(f"a proof takes {self._num_ids_needed} sequences")
        self._prove_round_trip()

    def _prove_round_trip(self) -> None:
        self._compute(0, range(2 * PAGE_TOKENS), 0)
        self._format = StateFormat(self._context.read_state(0))
        saved = self.save(0, PAGE_TOKENS, 2 * PAGE_TOKENS)
        self.share(0, 1, 0, PAGE_TOKENS)
        if not self.load(1, PAGE_TOKENS, 2 * PAGE_TOKENS, saved):
            raise StateError("llama.cpp takes it not back")
        if (self.save(1, PAGE_TOKENS, 2 * PAGE_TOKENS)[0] != saved[0]).any():
            raise StateError("it comes back as something else")
        self._compare_what_follows(2 * PAGE_TOKENS)

    def _compare_what_follows(self, num_tokens: int) -> None:
        one, other = (self._compute(i, [0], num_tokens) for i in (0, 1))
        if np.abs(one - other).max() > PROOF_TOLERANCE:
            raise StateError("what follows it differs")

    def _compute(self, sequence_id: int, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """The logits behind a sequence's next tokens."""
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
    def format(self) -> StateFormat:
        assert self._format is not None, "learned before"
        return self._format

    @property
    @abstractmethod
    def _num_ids_needed(self) -> int: ...

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        return self._context.remove(sequence_id, start, stop)

    @abstractmethod
    def share(self, source: int, target: int, start: int, stop: int) -> None: ...

    @abstractmethod
    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]: ...

    @abstractmethod
    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool: ...


class PoolMemory(ContextMemory):
    """One set of cells. The last sequence id is kept for what is being moved, once `learn` has succeeded."""

    _num_ids_needed = 3

    def learn(self) -> None:
        super().learn()
        self.num_ids -= 1

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        self._context.share(source, target, start, stop)

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        context, scratch = self._context, self._context.num_ids - 1
        pages = []
        for first in range(start, stop, MOVED_TOKENS):
            end = min(first + MOVED_TOKENS, stop)
            context.share(sequence_id, scratch, first, end)
            state = context.read_state(scratch, self.format.num_bytes(end - first))
            pages += self.format.cut(state, first, end)
            context.remove(scratch, 0, -1)
        return pages

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        context, scratch = self._context, self._context.num_ids - 1
        for first in range(start, stop, MOVED_TOKENS):
            end = min(first + MOVED_TOKENS, stop)
            pages = blobs[(first - start) // PAGE_TOKENS :][: MOVED_TOKENS // PAGE_TOKENS]
            state = _joined(self.format, context, pages, first, end, scratch)
            if state is None or not context.write_state(scratch, state):
                self.remove(sequence_id, start, -1)
                return False
            context.share(scratch, sequence_id, first, end)
            context.remove(scratch, 0, -1)
        return True


class WholeMemory(ContextMemory):
    """Of a model that keeps a state, not cells: what moves is a whole sequence, which nobody shares."""

    _num_ids_needed = 2

    def _prove_round_trip(self) -> None:
        length = 2 * PAGE_TOKENS
        self._compute(0, range(length), 0)
        if not self.load(1, 0, length, self.save(0, 0, length)):
            raise StateError("llama.cpp takes it not back")
        self._compare_what_follows(length)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        raise NotImplementedError("a state belongs to one sequence")

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:  # noqa: ARG002 - where the state stands
        assert start == 0, "all or nothing"
        return [self._context.read_state(sequence_id).copy()]

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:  # noqa: ARG002 - as above
        assert start == 0, "all or nothing"
        (state,) = blobs
        return self._context.write_state(sequence_id, state)


class LaneMemory(ContextMemory):
    """Cells of its own for each sequence id. To share is to copy: as a state, which takes only what is there."""

    _num_ids_needed = 2

    def learn(self) -> None:
        """Takes the memory for a whole lane's state, too: when a long conversation comes back it would be late for it.

        Touching 46 MiB for the first time took a virtual machine a tenth of a second.
        """
        super().learn()
        self._context.state_buffer(self.format.num_bytes(self._context.num_cells // self.num_ids))[:] = 0

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """From the beginning only, into a lane that is empty."""
        assert start == 0, "a state begins where its sequence does"
        state = self._context.read_state(source)
        if not len(state) or not self._context.write_state(target, state):
            raise RuntimeError("llama.cpp does not copy a lane")
        self.remove(target, stop, -1)

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        return self.format.cut(self._context.read_state(sequence_id), start, stop)

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        """A state replaces all of a lane, so what is there is loaded once more."""
        there = self.save(sequence_id, 0, start) if start else []
        state = _joined(self.format, self._context, [*there, *blobs], 0, stop, sequence_id)
        if state is not None and self._context.write_state(sequence_id, state):
            return True
        if there:
            state = _joined(self.format, self._context, there, 0, start, sequence_id)
            if state is None or not self._context.write_state(sequence_id, state):
                raise RuntimeError("llama.cpp does not take a lane back")
        return False


def _joined(
    form: StateFormat, context: Context, pages: Sequence[Blob], start: int, stop: int, sequence_id: int
) -> Blob | None:
    """The state of these positions; None, and a line in the log, if the pages are not what they should be."""
    try:
        return form.join(pages, start, stop, sequence_id, context.state_buffer(form.num_bytes(stop - start)))
    except StateError as error:
        _log.error("pages that do not fit were left out: %s", error)
        return None
