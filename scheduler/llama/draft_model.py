"""Opens the draft model: a second model with the same vocabulary, whose guesses the steps of the main model verify."""

import dataclasses
import logging
from collections.abc import Sequence as Items
from concurrent.futures import Future
from threading import Thread
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvcache.tree import TOKEN_BYTES
from scheduler.config import EngineConfig
from scheduler.drafts.model import CATCH_UP_TOKENS, Guess, ModelDrafter, Piece
from scheduler.errors import ModelError, NoMemoryError
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import PoolMemory
from scheduler.llama.model import Model, num_gpu_layers
from scheduler.llama.proof import KVFacts, measure, prove, without_errors
from scheduler.llama.proven import Proven
from scheduler.llama.reader import attention_of
from scheduler.llama.trial import TrialError
from scheduler.llama.vocabulary import difference
from scheduler.llama.weights import open_model
from scheduler.machine import cores
from scheduler.plan import StepError
from scheduler.sizing import DEFAULT_CTX_LEN, GIB, available_bytes

_log = logging.getLogger("cortex.engine")

NUM_IDS: Final = 8
"""Sequences that have drafts at once. With more, a step of the main model is full without drafts."""
FIRST_CELLS: Final = 2048
"""Tokens of the KV memory at the start."""
MAX_CONTEXTS: Final = 2
"""Maximum size of the KV memory, in sequences of full length."""
RECURRENT: Final = "is recurrent, and rejected tokens cannot be removed from such a state"


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedDrafts:
    """The draft model, ready to guess."""

    drafter: ModelDrafter
    description: str
    """llama.cpp's description of the model, such as `llama 135M Q4_1`."""
    mapped_bytes: int
    """See `Model.mapped_bytes`."""


def wants_drafts(config: EngineConfig) -> bool:
    """Whether a draft model is configured."""
    return bool(config.draft_model) and config.draft != "off"


def open_draft_model(config: EngineConfig, model: Model) -> OpenedDrafts | None:
    """Opens the configured draft model for `model`; None if there is none. To be called before the main KV is opened.

    Raises ModelError with one line for the user if it cannot draft for `model`, and NoMemoryError if it does not fit.
    """
    if not wants_drafts(config):
        return None
    if not model.shares_prefixes:
        raise ModelError(f"--draft-model: {config.model_path} {RECURRENT}")
    path = config.draft_model
    own = dataclasses.replace(config, model_path=path, others_bytes=config.others_bytes + model.mapped_bytes)
    draft = open_model(own)
    try:
        drafter = _drafter(own, model, draft)
    except TrialError as error:
        draft.close()
        raise ModelError(f"--draft-model {path}: llama.cpp does not compute this model correctly: {error}") from error
    except ModelError:
        draft.close()
        raise
    _log.info("draft model: %s, up to %d sequences at once", draft.description, NUM_IDS)
    return OpenedDrafts(drafter, draft.description, draft.mapped_bytes)


def _drafter(config: EngineConfig, model: Model, draft: Model) -> ModelDrafter:
    if reason := difference(model, draft):
        raise ModelError(f"--draft-model {config.model_path}: its vocabulary is not that of the model: {reason}")
    with without_errors():
        generates = not draft.encodes and attention_of(draft, config, "mean").is_causal
    if not generates:
        raise ModelError(f"--draft-model {config.model_path}: this model does not generate text")
    if not draft.shares_prefixes:
        raise ModelError(f"--draft-model: {config.model_path} {RECURRENT}")
    facts, proven = measure(draft, config), Proven(config, repacked=draft.is_repacked)
    if proven.load("drafting") is not True:
        flaws = prove(draft, config, facts, lanes=False)
        if reason := flaws.together or flaws.sharing:
            raise ModelError(f"--draft-model {config.model_path}: this model cannot draft: {reason}")
        proven.save("drafting", True)
    ctx_len = config.ctx_len or min(DEFAULT_CTX_LEN, model.trained_context or DEFAULT_CTX_LEN)
    max_length = min(ctx_len, draft.trained_context or ctx_len)
    memory = DraftMemory(draft, config, facts, max_length)
    drafter = ModelDrafter(
        memory,
        vocab_size=min(model.vocab_size, draft.vocab_size),
        eog_tokens=model.eog_tokens | draft.eog_tokens,
    )
    try:
        drafter.warm_up()
    except StepError as error:
        memory.close()
        raise TrialError(str(error)) from error
    return drafter


class DraftMemory:
    """The draft model with a context of its own, a pool. Implements scheduler.drafts.model.DraftModel.

    The pool starts small. A thread opens a larger one while the small one is in use; then the states move.
    """

    num_ids = NUM_IDS

    def __init__(self, model: Model, config: EngineConfig, facts: KVFacts, max_length: int) -> None:
        """Raises ModelError, or NoMemoryError if there is not enough memory."""
        self._model = model
        self._config = config
        self._facts = facts
        self._on_gpu = num_gpu_layers(config.gpu_layers, model.num_layers) > 0
        self.max_length = max_length
        self._max_cells = MAX_CONTEXTS * max_length
        num_cells = min(FIRST_CELLS, self._max_cells)
        kv_bytes = num_cells * facts.bytes_per_token
        if missing := self._missing_bytes(model.mapped_bytes + kv_bytes):
            needs = f"{model.num_bytes / GIB:.1f} GiB for its weights and {kv_bytes / GIB:.1f} GiB for its KV cache"
            raise NoMemoryError(
                f"--draft-model {config.model_path} does not fit into memory: it needs {needs}", missing
            )
        self._use(self._open(num_cells))
        self._opening: Future[Context] | None = None

    def _missing_bytes(self, needed: int) -> int:
        return 0 if self._on_gpu else max(0, needed - available_bytes(self._config))

    def _open(self, num_cells: int) -> Context:
        return Context(
            self._model,
            self._config,
            kv_tokens=num_cells,
            num_ids=NUM_IDS,
            num_outputs=NUM_IDS,
            batch_tokens=CATCH_UP_TOKENS,
            threads=self._config.threads or cores(),
        )

    def _use(self, context: Context) -> None:
        self._context = context
        self._memory = PoolMemory(context, self._facts.window)

    @property
    def num_cells(self) -> int:
        return self._context.num_cells

    def grow(self) -> bool:
        if self._opening is not None:
            return True
        num_cells = min(2 * self.num_cells, self._max_cells)
        if num_cells <= self.num_cells:
            return False
        if self._missing_bytes(self._model.mapped_bytes + num_cells * self._facts.bytes_per_token):
            return False
        opening: Future[Context] = Future()

        def complete() -> None:
            try:
                opening.set_result(self._open(num_cells))
            except Exception as error:
                opening.set_exception(error)

        self._opening = opening
        Thread(target=complete, name="draft-memory", daemon=True).start()
        return True

    def settle(self) -> list[int]:
        if self._opening is None or not self._opening.done():
            return []
        opening, self._opening = self._opening, None
        try:
            context = opening.result()
        except Exception as error:
            _log.warning("the draft model's KV memory does not grow: %s", error)
            self._max_cells = self.num_cells
            return []
        old, old_memory = self._context, self._memory
        self._use(context)
        lost = []
        for sequence_id in range(NUM_IDS):
            length = old.last_position(sequence_id) + 1
            if not length:
                continue
            state = old_memory.save(sequence_id, 0, length)
            if not state or not self._memory.load(sequence_id, 0, length, state):
                self.cut(sequence_id, 0)
                lost.append(sequence_id)
        old.close()
        return lost

    def compute(self, pieces: Items[Piece]) -> list[Guess]:
        context, end = self._context, 0
        for piece in pieces:
            start, end = end, end + len(piece.tokens) // TOKEN_BYTES
            context.tokens[start:end] = np.frombuffer(piece.tokens, "<i4")
            context.positions[start:end] = np.arange(piece.start, piece.start + end - start)
            context.ids[start:end] = piece.sequence_id
            context.outputs[start:end] = 0
            context.outputs[end - 1] = piece.guesses
        context.decode(end)
        num_rows = sum(piece.guesses for piece in pieces)
        return [_guess(row) for row in context.logits(num_rows)] if num_rows else []

    def cut(self, sequence_id: int, num_tokens: int) -> bool:
        return self._memory.remove(sequence_id, num_tokens, -1)

    def close(self) -> None:
        self._context.close()


def _guess(row: NDArray[np.float32]) -> Guess:
    """Returns the most likely token. Its probability is NaN if the logits are no numbers."""
    token = int(row.argmax())
    with np.errstate(invalid="ignore"):
        return Guess(token, float(1 / np.exp(row - row[token]).sum()))
