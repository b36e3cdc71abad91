"""llama.cpp through llama-cpp-python's low-level API: a context, its batch as numpy arrays, its KV memory.

Only this module and `model`, `gguf` and `gpu` beside it handle C pointers and their lifetimes, and return codes.
"""

import ctypes
from contextlib import suppress
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from kvcache.memory import Blob
from scheduler.config import EngineConfig
from scheduler.errors import ModelError
from scheduler.llama.model import POOLING_IDS, Model, forget_errors, last_error
from scheduler.plan import NoRoomError, StepError

KV_TYPE_IDS: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""ggml's type numbers."""
FLASH_ATTN_IDS: Final = {"auto": -1, "off": 0, "on": 1}
NO_ROOM: Final = 1
"""llama_decode's return code if the KV memory has no room for the batch."""
PROBE_TOKENS: Final = 32
"""Size of a context that is only opened to inspect the model. Opening it takes about 10 ms."""


def _context_params(
    config: EngineConfig,
    kv_tokens: int,
    num_ids: int,
    num_outputs: int,
    batch_tokens: int,
    threads: int,
    unified: bool,
    pooling: str,
) -> Any:
    """Returns llama.cpp's context parameters; see `Context`."""
    params = lib.llama_context_default_params()
    params.n_ctx = kv_tokens
    params.n_batch = params.n_ubatch = batch_tokens
    params.n_seq_max = num_ids
    params.n_outputs_max = max(num_ids, min(num_outputs, batch_tokens))  # llama.cpp asserts one for each id
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = unified
    params.swa_full = True  # cells outside of a sliding window must stay, to be shared and cut
    params.flash_attn_type = FLASH_ATTN_IDS[config.flash_attn]
    params.type_k = params.type_v = KV_TYPE_IDS[config.kv_type]
    params.no_perf = True
    if pooling != "none":
        params.embeddings = True
        params.pooling_type = POOLING_IDS[pooling]
        params.n_outputs_max = batch_tokens  # every token is an output
    return params


class Context:
    """A llama.cpp context: KV memory and one batch. Not thread-safe."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        *,
        kv_tokens: int,
        num_ids: int,
        num_outputs: int,
        batch_tokens: int,
        threads: int,
        unified: bool = True,
        pooling: str = "none",
    ) -> None:
        """A step has at most `batch_tokens` tokens, of which `num_outputs` may give logits.

        `unified` is the layout pool, where a step is one micro-batch. The other layout is lanes, where llama.cpp may
        divide a step into several micro-batches. With a `pooling`, a step gives one embedding per sequence id instead
        of logits. Raises ModelError if there is not enough memory, or if an encoder is opened without a pooling.
        """
        params = _context_params(config, kv_tokens, num_ids, num_outputs, batch_tokens, threads, unified, pooling)
        forget_errors()
        self._pointer: Any = lib.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ModelError(f"llama.cpp cannot set up {kv_tokens} tokens of KV memory: {last_error()}")
        model.attach_adapter(self._pointer)
        self.vocab_size = model.vocab_size
        self._memory: Any = lib.llama_get_memory(self._pointer)
        self.keeps_kv = bool(self._memory) and not model.encodes
        """Whether computed tokens stay in memory for the next step."""
        self.is_causal: bool = self.keeps_kv and lib.llama_get_causal_attn(self._pointer)
        """Whether tokens attend to earlier tokens only, so that a text may be computed in several steps."""
        if pooling == "none" and not self.is_causal:
            lib.llama_free(self._pointer)
            raise ModelError(
                f"{config.model_path}: this model does not generate text; set --pooling to use it for embeddings"
            )
        self._compute = lib.llama_encode if model.encodes else lib.llama_decode
        self._embedding_size = model.num_scores if pooling == "rank" else model.embedding_size
        self.num_cells: int = lib.llama_n_ctx(self._pointer)
        self.is_stretched: bool = lib.llama_n_ctx_seq(self._pointer) > model.original_context
        """Whether one sequence may be longer than `Model.original_context`."""
        self.batch_tokens: int = lib.llama_n_batch(self._pointer)
        self._allocate_batch()
        self.num_ids = num_ids
        self._state = np.empty(0, np.uint8)
        self._logits = np.empty((0, self.vocab_size), np.float32)
        self._logits_place = (0, 0)
        """The address and the number of rows of `_logits`."""
        self._copied: set[int] = set()
        """Sequence ids of lanes that the next `decode` copies, and of the copies."""
        self._chains: dict[int, Any] = {}
        """llama.cpp's samplers in the compute graph, by sequence id."""

    def _allocate_batch(self) -> None:
        self.tokens = np.zeros(self.batch_tokens, np.int32)
        """The token ids of the batch. llama.cpp reads this and the following arrays in `decode`."""
        self.positions = np.zeros(self.batch_tokens, np.int32)
        self.ids = np.zeros(self.batch_tokens, np.int32)
        """The sequence id of each token."""
        self.outputs = np.zeros(self.batch_tokens, np.int8)
        """1 for each token that gives logits."""
        self._num_ids = np.ones(self.batch_tokens, np.int32)
        self._id_pointers = self.ids.ctypes.data + np.arange(self.batch_tokens, dtype=np.uintp) * self.ids.itemsize
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self.tokens, lib.llama_token),
            pos=_pointer(self.positions, lib.llama_pos),
            n_seq_id=_pointer(self._num_ids, ctypes.c_int32),
            seq_id=_pointer(self._id_pointers, ctypes.POINTER(lib.llama_seq_id)),
            logits=_pointer(self.outputs, ctypes.c_int8),
        )

    def decode(self, num_tokens: int) -> None:
        """Compute the first `num_tokens` tokens of the batch. Raises StepError; some of their KV may then remain."""
        forget_errors()
        self._batch.n_tokens = num_tokens
        self._copied.clear()
        code = self._compute(self._pointer, self._batch)
        if code:
            failure = NoRoomError if code == NO_ROOM else StepError
            raise failure(f"llama_decode returned {code} for {num_tokens} tokens: {last_error()}")

    def use_threads(self, count: int) -> None:
        lib.llama_set_n_threads(self._pointer, count, count)

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        """Returns the rows of logits of the last batch, in its order. Valid until the next decode."""
        pointer = lib.llama_get_logits(self._pointer)
        place = ctypes.addressof(pointer.contents), num_rows
        if place != self._logits_place:  # a new view takes as long as many a sampler
            self._logits_place = place
            self._logits = np.ctypeslib.as_array(pointer, shape=(num_rows, self.vocab_size))
        return self._logits

    def embedding(self, sequence_id: int) -> NDArray[np.float32]:
        """Returns the pooled embedding of the sequence id's tokens in the last batch. Valid until the next decode."""
        pointer = lib.llama_get_embeddings_seq(self._pointer, sequence_id)
        return np.ctypeslib.as_array(pointer, shape=(self._embedding_size,))

    def attach_top_k(self, sequence_id: int, top_k: int) -> bool:
        """Let the compute graph find the `top_k` best next tokens of this sequence id; 0 detaches it.

        A batch may then have one output only of this id. A batch whose outputs all belong to such ids does not copy
        logits to the host. Either change makes the next decode build its graph again, which takes some milliseconds.
        Returns False if the backend does not support it.
        """
        if (old := self._chains.pop(sequence_id, None)) is not None:
            lib.llama_set_sampler(self._pointer, sequence_id, None)
            lib.llama_sampler_free(old)
        if not top_k:
            return True
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(top_k))
        if not lib.llama_set_sampler(self._pointer, sequence_id, chain):
            lib.llama_sampler_free(chain)
            return False
        self._chains[sequence_id] = chain
        return True

    def best(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Returns the best next tokens after the batch's token at `index`, unordered, and their logits."""
        count = lib.llama_get_sampled_candidates_count_ith(self._pointer, index)
        tokens = np.ctypeslib.as_array(lib.llama_get_sampled_candidates_ith(self._pointer, index), shape=(count,))
        logits = np.ctypeslib.as_array(lib.llama_get_sampled_logits_ith(self._pointer, index), shape=(count,))
        return tokens.astype(np.intp), logits

    # -- KV memory: the primitives for scheduler.llama.kv_memory ------------------------------------------------------

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """See `Memory.share`. For the layout pool only: in lanes, llama.cpp can only copy whole lanes."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, stop)

    def copy_lane(self, source: int, target: int) -> None:
        """Copy all cells of a lane, of sliding windows too. llama.cpp does so when it decodes next.

        States cannot do this, because a state contains only the last window of a layer with a sliding window.
        """
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._copied |= {source, target}

    def _finish_copies(self, sequence_id: int) -> None:
        """If the lane takes part in a copy that llama.cpp has not made yet, make llama.cpp copy now.

        It does so before it decodes. So this decodes a token after the lane's last one and removes it.
        """
        if sequence_id not in self._copied:
            return
        position = self.last_position(sequence_id) + 1
        self.tokens[0], self.positions[0], self.ids[0], self.outputs[0] = 0, position, sequence_id, 0
        with suppress(StepError):
            self.decode(1)
        self.remove(sequence_id, position, -1)

    def first_position(self, sequence_id: int) -> int:
        """Returns the smallest position from which on all of the sequence's KV is there; -1 without any."""
        return int(lib.llama_memory_seq_pos_min(self._memory, sequence_id))

    def last_position(self, sequence_id: int) -> int:
        """Returns the last position of the sequence; -1 without any."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence_id))

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        return bool(lib.llama_memory_seq_rm(self._memory, sequence_id, start, stop))

    def read_state(self, sequence_id: int, max_bytes: int = 0) -> Blob:
        """Returns a sequence's KV in llama.cpp's format, as a view of the state buffer. Empty if there is no state.

        The view is valid until the buffer is used again. Pass `max_bytes` if it is known: llama.cpp needs some time to
        measure a state in a large pool.
        """
        self._finish_copies(sequence_id)
        max_bytes = max_bytes or lib.llama_state_seq_get_size(self._pointer, sequence_id)
        buffer = self.state_buffer(max_bytes)
        size = lib.llama_state_seq_get_data(self._pointer, _pointer(buffer, ctypes.c_uint8), max_bytes, sequence_id)
        return buffer[:size]

    def write_state(self, sequence_id: int, state: Blob) -> bool:
        """Replace all KV of the sequence. Returns False, with the sequence empty, if llama.cpp rejects the state."""
        self._finish_copies(sequence_id)
        pointer = _pointer(state, ctypes.c_uint8)
        return bool(lib.llama_state_seq_set_data(self._pointer, pointer, len(state), sequence_id))

    def state_buffer(self, num_bytes: int) -> Blob:
        """Returns the buffer for states, with at least `num_bytes` bytes. `read_state` overwrites it.

        It grows by doubling: the first use of new memory takes longer than a state.
        """
        if num_bytes > len(self._state):
            self._state = np.empty(max(num_bytes, 2 * len(self._state)), np.uint8)
        return self._state

    def close(self) -> None:
        lib.llama_free(self._pointer)
        for chain in self._chains.values():
            lib.llama_sampler_free(chain)


def _pointer(array: NDArray[Any], item: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(item))
