"""Drafts of a second, smaller model with the same vocabulary, which keeps KV of its own for each sequence."""

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np

from kvcache.tree import TOKEN_BYTES
from scheduler.drafts.drafter import NO_DRAFT, Draft
from scheduler.plan import StepError
from scheduler.sequence import Sequence

_log = logging.getLogger("cortex.engine")

CATCH_UP_TOKENS: Final = 256
"""Known tokens that one call computes at most, for all sequences together, because everybody waits meanwhile."""
MIN_PROBABILITY: Final = 0.4
"""A draft ends before a token to which the model gives less probability."""
STALE_CALLS: Final = 64
"""A running sequence may lose its place to another one if it was not in this many calls."""
PAUSE_SECONDS: Final = 30.0
"""How long there are no drafts after a failed step."""
SLOWER_WEIGHT: Final = 0.1
FASTER_WEIGHT: Final = 0.3
"""Weights of a step that took longer or shorter than its estimate. A shorter one is no chance."""
HALF_LIFE: Final = 30.0
"""Seconds without a step in which the estimates halve, so that a draft model that was too slow is tried again."""
MAX_SLOWDOWN: Final = 2.0
"""A step counts at most as this many times its estimate, because other programs can stretch a step a hundredfold."""
WARM_UP_STEPS: Final = 2


class Piece(NamedTuple):
    """Consecutive tokens of one sequence, which a step of the draft model computes."""

    sequence_id: int
    tokens: bytes
    """In the format of kvcache.tree."""
    start: int
    """Position of the first token."""
    guesses: bool
    """Whether to return the most likely token after the last one."""


class Guess(NamedTuple):
    token: int
    probability: float


class DraftModel(Protocol):
    """A small model, and KV memory for a few sequences."""

    num_ids: int
    max_length: int
    """Maximum tokens of a sequence."""

    @property
    def num_cells(self) -> int:
        """Tokens for which there is memory, of all sequences together."""

    def grow(self) -> bool:
        """Asks for more cells, which come later, in `settle`. Returns False if there will be no more."""

    def settle(self) -> Items[int]:
        """Takes cells that have become available into use. Returns the sequence ids that lost their KV thereby."""

    def compute(self, pieces: Items[Piece]) -> list[Guess]:
        """Returns a guess for each piece that asks for one. Raises StepError; what KV remains is then unknown."""

    def cut(self, sequence_id: int, num_tokens: int) -> bool:
        """Removes all KV from this position on. Returns False if the rest cannot be used. 0 always works."""


@dataclass(slots=True)
class _Slot:
    """A sequence id of the draft model, and what it has computed."""

    id: int
    tokens: bytearray = field(default_factory=bytearray)
    """The tokens whose KV is there, in the format of kvcache.tree."""
    owner: int | None = None
    """The request that has this slot. None if it has ended; its KV stays for requests that begin with the same."""
    salt: bytes = b""
    last_call: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES


@dataclass(slots=True)
class _Job:
    """A sequence that is being drafted for."""

    index: int
    """Its position in the call."""
    sequence: Sequence
    slot: _Slot
    limit: int
    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        return self.sequence.num_known - self.slot.num_tokens


class ModelDrafter:
    """Implements Drafter: up to `max_tokens` greedy steps of the draft model, for all sequences together."""

    source = "model"

    def __init__(
        self,
        model: DraftModel,
        *,
        vocab_size: int,
        eog_tokens: frozenset[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`vocab_size`: number of tokens that both models have. `eog_tokens`: tokens before which a draft ends."""
        self._model = model
        self._vocab_size = vocab_size
        self._eog_tokens = eog_tokens
        self._clock = clock
        self._slots = [_Slot(i) for i in range(model.num_ids)]
        self._calls = 0
        self._paused_until = -np.inf
        self._has_failed = False
        self._step_seconds = [0.0] * model.num_ids
        """Smoothed durations of steps with 1, 2, 3, ... tokens."""
        self._learned_at = 0.0

    def warm_up(self) -> None:
        """Measures steps of one token and of one for each sequence id. Raises StepError."""
        measured = []
        counts = sorted({1, len(self._slots)})
        for count in counts:
            pieces = [Piece(slot.id, bytes(TOKEN_BYTES), 0, True) for slot in self._slots[:count]]
            times = []
            for _ in range(WARM_UP_STEPS):
                started = self._clock()
                self._model.compute(pieces)
                times.append(self._clock() - started)
                self._forget_all()
            measured.append(min(times))
        steps = np.arange(1, len(self._slots) + 1)
        self._step_seconds = np.interp(steps, counts, measured).tolist()
        self._learned_at = self._clock()

    def seconds(self, num_sequences: int, num_tokens: int) -> float:
        if not num_sequences:
            return 0.0
        fading: float = 0.5 ** ((self._clock() - self._learned_at) / HALF_LIFE)
        return num_tokens * self._step_seconds[min(num_sequences, len(self._slots)) - 1] * fading

    def ended(self, sequence: Sequence) -> None:
        if (slot := self._slot_of(sequence)) is not None:
            slot.owner = None

    def draft(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[Draft]:
        drafts = [NO_DRAFT] * len(sequences)
        if self._clock() < self._paused_until:
            return drafts
        try:
            jobs = self._guess(sequences, max_tokens)
        except StepError as error:
            self._pause(error)
            return drafts
        for job in jobs:
            if job.tokens:
                drafts[job.index] = Draft(job.tokens, job.probabilities)
        return drafts

    def _guess(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[_Job]:
        self._calls += 1
        for sequence_id in self._model.settle():
            self._slots[sequence_id].tokens.clear()
        jobs = self._jobs(sequences, max_tokens)
        pieces, guessing = self._catch_up(jobs)
        while pieces:
            guesses = self._compute(pieces)
            pieces, still_guessing = [], []
            for job, guess in zip(guessing, guesses, strict=True):
                if not self._is_likely(guess):
                    continue
                job.tokens.append(guess.token)
                job.probabilities.append(guess.probability)
                if len(job.tokens) < job.limit:
                    token = guess.token.to_bytes(TOKEN_BYTES, "little")
                    pieces.append(Piece(job.slot.id, token, job.slot.num_tokens, True))
                    still_guessing.append(job)
            guessing = still_guessing
        return jobs

    def _jobs(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[_Job]:
        """Returns the sequences that get a slot and room for all their tokens. Cuts their KV to what they know.

        Older sequences come first, so that sequences do not take each other's cells in turn.
        """
        wanted = [
            (index, sequence, min(limit, self._model.max_length - sequence.num_known), self._slot_of(sequence))
            for index, (sequence, limit) in enumerate(zip(sequences, max_tokens, strict=True))
        ]
        wanted = sorted((each for each in wanted if each[2] > 0), key=lambda each: each[1].arrival)
        waiting = [slot for *_, slot in wanted if slot is not None]
        for each in waiting:
            each.last_call = self._calls  # it is not stale
        jobs, num_reserved = [], 0
        for index, sequence, limit, mine in wanted:
            if mine is not None:
                waiting.remove(mine)
            slot = mine or self._acquire(sequence)
            if slot is None:
                continue
            slot.last_call = self._calls
            common = _num_common(slot.tokens, sequence.known)
            self._cut(slot, min(common, sequence.num_known - 1))  # the last token gives the logits of the first guess
            job = _Job(index, sequence, slot, limit)
            needed = job.num_missing + limit - 1
            if self._make_room(num_reserved + needed, waiting):
                num_reserved += needed
                jobs.append(job)
        return jobs

    def _catch_up(self, jobs: list[_Job]) -> tuple[list[Piece], list[_Job]]:
        """Returns the known tokens to compute now, and the sequences of which these are all."""
        budget = CATCH_UP_TOKENS
        pieces, guessing = [], []
        for job in sorted(jobs, key=lambda job: job.num_missing):
            start, count = job.slot.num_tokens, min(job.num_missing, budget)
            tokens = job.sequence.tokens(start, start + count)
            if not count or max(memoryview(tokens).cast("i")) >= self._vocab_size:
                continue
            budget -= count
            is_complete = count == job.num_missing
            pieces.append(Piece(job.slot.id, tokens, start, is_complete))
            if is_complete:
                guessing.append(job)
        return pieces, guessing

    def _compute(self, pieces: list[Piece]) -> list[Guess]:
        started = self._clock()
        guesses = self._model.compute(pieces)
        seconds = self._clock() - started
        for piece in pieces:
            self._slots[piece.sequence_id].tokens += piece.tokens
        num_tokens = sum(len(piece.tokens) for piece in pieces) // TOKEN_BYTES
        if num_tokens <= len(self._step_seconds):
            old = self._step_seconds[num_tokens - 1]
            change = min(seconds, MAX_SLOWDOWN * old) - old
            self._step_seconds[num_tokens - 1] += (SLOWER_WEIGHT if change > 0 else FASTER_WEIGHT) * change
            self._learned_at = started + seconds
        return guesses

    def _is_likely(self, guess: Guess) -> bool:
        """Whether to draft it. The step that verifies a draft draws one more token, so it need not contain an end."""
        return (
            guess.probability >= MIN_PROBABILITY
            and guess.token < self._vocab_size
            and guess.token not in self._eog_tokens
        )

    def _slot_of(self, sequence: Sequence) -> _Slot | None:
        return next((slot for slot in self._slots if slot.owner == sequence.request_id), None)

    def _acquire(self, sequence: Sequence) -> _Slot | None:
        """Gives the sequence a slot: one with its first tokens, or the least recently used one that nobody needs."""
        idle = [slot for slot in self._slots if slot.owner is None]
        salted = [slot for slot in idle if slot.tokens and slot.salt == sequence.cache_salt]
        best = max(salted, key=lambda slot: _num_common(slot.tokens, sequence.known), default=None)
        if best is None or 2 * _num_common(best.tokens, sequence.known) < best.num_tokens:
            best = self._least_recently_used(idle) or self._least_recently_used(self._stale())
            if best is None:
                return None
            self._cut(best, 0)  # others' KV must not be noticed in the time that a sequence takes
        best.owner, best.salt = sequence.request_id, sequence.cache_salt
        return best

    def _stale(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.owner is not None and self._calls - slot.last_call > STALE_CALLS]

    def _least_recently_used(self, slots: list[_Slot]) -> _Slot | None:
        return min(slots, key=lambda slot: (bool(slot.tokens), slot.last_call), default=None)

    def _make_room(self, num_tokens: int, waiting: list[_Slot]) -> bool:
        """Forgets sequences until this many cells are free. Returns whether they are.

        Idle sequences are forgotten first, then stale ones. If the memory cannot grow, the last of `waiting` follow.
        """
        missing = _total(self._slots) + num_tokens - self._model.num_cells
        if missing <= 0:
            return True
        victims = [slot for slot in self._slots if slot.owner is None] + self._stale()
        victims.sort(key=lambda slot: (slot.owner is not None, slot.last_call))
        if missing > _total(victims) and not self._model.grow():
            victims += reversed(waiting)
        if missing > _total(victims):
            return False
        for slot in victims:
            if missing <= 0:
                break
            missing -= slot.num_tokens
            self._cut(slot, 0)
        return True

    def _cut(self, slot: _Slot, num_tokens: int) -> None:
        if slot.num_tokens <= num_tokens:
            return
        if not self._model.cut(slot.id, num_tokens):
            self._model.cut(slot.id, 0)
            num_tokens = 0
        del slot.tokens[num_tokens * TOKEN_BYTES :]

    def _forget_all(self) -> None:
        for slot in self._slots:
            self._model.cut(slot.id, 0)
            slot.tokens.clear()

    def _pause(self, error: StepError) -> None:
        level = logging.DEBUG if self._has_failed else logging.WARNING
        _log.log(level, "the draft model pauses for %.0f s after a failed step: %s", PAUSE_SECONDS, error)
        self._has_failed = True
        self._paused_until = self._clock() + PAUSE_SECONDS
        self._forget_all()


def _total(slots: list[_Slot]) -> int:
    return sum(slot.num_tokens for slot in slots)


def _num_common(one: bytearray, other: bytearray) -> int:
    """Returns the number of tokens at the beginning that both have in common."""
    count = min(len(one), len(other)) // TOKEN_BYTES
    if not count:
        return 0
    differs = np.frombuffer(one, "<i4", count) != np.frombuffer(other, "<i4", count)
    return int(differs.argmax()) if differs.any() else count
