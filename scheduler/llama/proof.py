"""Proves on a small context that a model computes sequences side by side, shares prefixes and cuts sequences correctly.

The small context has the settings of the real one. Opening it takes about 10 ms; the real one may take seconds.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.config import EngineConfig, TierKind
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import ContextMemory, LaneMemory, PoolMemory
from scheduler.llama.model import Model
from scheduler.llama.state import StateError, StateFormat
from scheduler.llama.trial import Part, TrialError, check_alike, compute
from scheduler.machine import cores
from scheduler.plan import StepError

_llama_log = logging.getLogger("llama.cpp")

NUM_IDS: Final = 4
LANE_CELLS: Final = 256
"""llama.cpp rounds a lane up to this number of cells."""
BATCH_TOKENS: Final = 64
PROMPT_TOKENS: Final = 8
SHARED_TOKENS: Final = 5
RECORD_BYTES: Final = 12
"""Bytes of a cell's record in a saved state; see `scheduler.llama.state`."""


@dataclass(frozen=True, slots=True)
class KVFacts:
    """What a model keeps per token."""

    bytes_per_token: int
    """0 for a recurrent model, whose state has a fixed size."""
    bytes_per_id: int
    """Bytes of the recurrent state that each sequence id has; 0 for other models."""
    window: int
    """Tokens that the layers with a sliding window attend to; 0 without such layers."""
    format: StateFormat | None = None
    """The format of states that pages can be cut from; None if this is impossible."""


def measure(model: Model, config: EngineConfig) -> KVFacts:
    """Saves one token and then two. Layers may have different heads, so the model file does not say it.

    Raises ModelError if no context can be opened, TrialError if the model computes nothing.
    """
    with small_context(model, config, lanes=False) as context:
        try:
            compute(context, Part(0, [0], 0))
            before = len(context.read_state(0))
            compute(context, Part(0, [1], 1))
            state = context.read_state(0)
        except StepError as error:
            raise TrialError(str(error)) from error
        num_bytes = max(0, len(state) - before - RECORD_BYTES)
        state_bytes = 0 if model.shares_prefixes else before
        try:
            form = StateFormat(state)
        except StateError:
            return KVFacts(num_bytes, state_bytes, model.window)
        return KVFacts(num_bytes, state_bytes, 0, form)  # one cache of full size, so the file's window is not used


@dataclass(frozen=True, slots=True)
class Flaws:
    """What does not work in a layout; empty strings for what works."""

    together: str = ""
    """Why only one sequence at a time may be computed."""
    sharing: str = ""
    """Why sequences must not share prefixes."""


def prove(model: Model, config: EngineConfig, facts: KVFacts, *, lanes: bool, together: bool = True) -> Flaws:
    """Computes a prompt alone and beside another one, from a shared prefix, and after a cut, and compares the logits.

    `together` is False if the engine computes one sequence at a time anyway. Raises TrialError if not even that works.
    """
    with small_context(model, config, lanes=lanes) as context:
        window = facts.window if model.shares_prefixes else 0
        memory = LaneMemory(context, window) if lanes else PoolMemory(context, window)
        trial = _Trial(context, memory, model)
        try:
            trial.compute_alone()
        except StepError as error:
            raise TrialError(str(error)) from error
        flaws = {}
        if together:
            flaws["together"] = _reason(trial.compute_together)
        if model.shares_prefixes:
            flaws["sharing"] = _reason(trial.cut) or _reason(trial.share)
        return Flaws(**flaws)


@dataclass(frozen=True, slots=True)
class Moves:
    """Which KV can be saved and loaded, and why no smaller parts; see `ContextMemory.learn`."""

    kind: TierKind
    reason: str = ""
    format: StateFormat | None = None


def prove_moves(model: Model, config: EngineConfig, facts: KVFacts, *, lanes: bool, sharing: bool) -> Moves:
    """Tries to save KV and to load it again. `sharing`: whether sequences share prefixes, so that pages are of use."""
    with small_context(model, config, lanes=lanes) as context:
        window = facts.window if sharing else 0
        memory = LaneMemory(context, window) if lanes else PoolMemory(context, window)
        try:
            reason = memory.learn(pages=sharing)
        except TrialError as error:
            return Moves("none", str(error))
        return Moves("pages" if memory.moves_pages else "sequences", reason, memory.format)


class _Trial:
    """Sequence 0 is the original. `compute_alone` must be called first."""

    def __init__(self, context: Context, memory: ContextMemory, model: Model) -> None:
        self._context = context
        self._memory = memory
        step = model.vocab_size // (PROMPT_TOKENS + 2)
        first = model.bos_token or 0  # in some models, rounding changes a text without it more
        tokens = [first, *(step * index for index in range(1, PROMPT_TOKENS + 1))]
        self._prompt, self._next = tokens[:-1], tokens[-1]

    def compute_alone(self) -> None:
        """Computes the prompt, the next token, and two more of which the last is the next token again."""
        (first,) = compute(self._context, Part(0, self._prompt[:1], 0))
        self._memory.remove(0, 0, -1)
        (last,) = compute(self._context, Part(0, self._prompt, 0))
        if np.allclose(first, last, rtol=0.01, atol=0.01):  # as llama.cpp's graph of CogVLM does
            raise TrialError("it returns the logits of a step's first token instead of its last")
        (self._expected,) = compute(self._context, Part(0, [self._next], PROMPT_TOKENS))
        (self._other,) = compute(self._context, Part(0, [self._prompt[0], self._next], PROMPT_TOKENS + 1))
        check_alike(self._expected, self._expected, self._other, "it computes no valid logits")

    def compute_together(self) -> None:
        """Computes the prompt after a shorter one in one step, then one more token of each in another step."""
        short = self._prompt[: PROMPT_TOKENS // 2 : -1]
        compute(self._context, Part(1, short, 0), Part(2, self._prompt, 0))
        _, row = compute(self._context, Part(1, [self._prompt[1]], len(short)), Part(2, [self._next], PROMPT_TOKENS))
        check_alike(row, self._expected, self._other, "sequences that are computed together disturb each other")

    def cut(self) -> None:
        if not self._memory.remove(0, PROMPT_TOKENS, -1):
            raise TrialError("llama.cpp cannot remove the end of a sequence")
        (row,) = compute(self._context, Part(0, [self._next], PROMPT_TOKENS))
        check_alike(row, self._expected, self._other, "a sequence whose end was removed differs")

    def share(self) -> None:
        if not self._memory.share(0, 3, 0, SHARED_TOKENS):
            raise TrialError("llama.cpp does not share a prefix")
        (row,) = compute(self._context, Part(3, [*self._prompt[SHARED_TOKENS:], self._next], SHARED_TOKENS))
        check_alike(row, self._expected, self._other, "a sequence with a shared prefix differs")


def _reason(check: Callable[[], None]) -> str:
    try:
        check()
    except (StepError, TrialError) as error:
        return str(error)
    return ""


@contextmanager
def small_context(model: Model, config: EngineConfig, *, lanes: bool) -> Iterator[Context]:
    context = Context(
        model,
        config,
        kv_tokens=NUM_IDS * LANE_CELLS,
        num_ids=NUM_IDS,
        num_outputs=NUM_IDS,
        batch_tokens=BATCH_TOKENS,
        threads=config.threads or cores(),
        unified=not lanes,
    )
    try:
        with without_errors():
            yield context
    finally:
        context.close()


@contextmanager
def without_errors() -> Iterator[None]:
    """Keeps llama.cpp's complaints about a trial out of the log: the reason is logged afterwards."""
    level = _llama_log.level
    _llama_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        _llama_log.setLevel(level)
