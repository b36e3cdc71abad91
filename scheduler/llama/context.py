"""llama.cpp through llama-cpp-python's low-level API: a model, a context, its batch as numpy arrays, its KV memory.

Only this module handles C pointers and their lifetimes, return codes, and llama.cpp's log.
"""

import ctypes
import faulthandler
import logging
from typing import Any, Final

import llama_cpp
import llama_cpp.llama_cpp as lib
import numpy as np
from llguidance import LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab
from numpy.typing import NDArray

from kvcache.memory import Blob
from scheduler.config import EngineConfig
from scheduler.errors import ModelError
from scheduler.plan import StepError

_log = logging.getLogger("llama.cpp")

LLAMA_CPP_VERSION: Final[str] = llama_cpp.__version__
"""The version of llama-cpp-python, which includes its own llama.cpp."""
KV_TYPE_IDS: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""ggml's type numbers."""
KV_TYPE_BITS: Final = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}
"""Bits per element, scales of the quantized blocks included."""
FLASH_ATTN_IDS: Final = {"auto": -1, "off": 0, "on": 1}
MAX_SEQUENCE_IDS: Final = 256
"""llama_max_parallel_sequences."""
POOLING_IDS: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
TRIAL_SECONDS: Final = 10
"""Time limit for tokenizing some kilobytes. A valid vocabulary takes milliseconds."""
PROBE_TOKENS: Final = 32
"""Size of a context that is only opened to inspect the model. Opening it takes about 10 ms."""

_LOG_LEVELS: Final = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}


_last_errors: list[str] = []


@lib.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", errors="replace").strip()
    if level in _LOG_LEVELS and line:
        _log.log(_LOG_LEVELS[level], line)
        if level == 4:
            _last_errors.append(line)


class Model:
    """The weights and the vocabulary of one GGUF file."""

    def __init__(self, path: str, gpu_layers: int) -> None:
        """Loads the file. -1 puts all layers on the GPU if there is one. Raises ModelError if it cannot be loaded."""
        lib.llama_log_set(_on_log, ctypes.c_void_p())  # the module keeps the callback alive
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        _last_errors.clear()
        self.pointer: Any = lib.llama_model_load_from_file(path.encode(), params)
        if not self.pointer:
            raise ModelError(f"llama.cpp cannot load {path}: {_last_error()}")
        self._path = path
        has_decoder = lib.llama_model_has_decoder(self.pointer)
        self.encodes: bool = lib.llama_model_has_encoder(self.pointer)
        """Whether texts are computed with llama_encode."""
        if self.encodes and has_decoder:
            raise ModelError(f"{path}: encoder-decoder models are not supported")
        vocab = lib.llama_model_get_vocab(self.pointer)
        self.vocab_size: int = lib.llama_vocab_n_tokens(vocab)
        self.eog_tokens = frozenset(t for t in range(self.vocab_size) if lib.llama_vocab_is_eog(vocab, t))
        self.trained_context: int = lib.llama_model_n_ctx_train(self.pointer)
        self.num_bytes: int = lib.llama_model_size(self.pointer)
        self.num_layers: int = lib.llama_model_n_layer(self.pointer)
        self.shares_prefixes = not (
            lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer)
        )
        """Whether sequences can share cells. A recurrent state belongs to one position of one sequence."""

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def embedding_size(self) -> int:
        """Number of components of a text's embedding."""
        return int(lib.llama_model_n_embd_out(self.pointer))

    def pooling(self, wanted: str) -> str:
        """Returns the pooling: `wanted`, or for auto the one that the model file names.

        Raises ModelError if the file names rank.
        """
        if wanted != "auto":
            return wanted
        architecture = self._metadata("general.architecture")
        named = self._metadata(f"{architecture}.pooling_type")
        pooling = next((name for name, number in POOLING_IDS.items() if named == str(number)), "none")
        if pooling == "rank":
            raise ModelError(f"{self._path}: rerankers (pooling type rank) are not supported; set another --pooling")
        return pooling

    def _metadata(self, key: str) -> str:
        """Returns a metadata value of the file; empty if the key is missing."""
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace") if length >= 0 else ""

    def kv_bytes_per_token(self, kv_type: str) -> int:
        """Returns the KV bytes per token. 0 for a recurrent model, whose state has a fixed size."""
        heads = lib.llama_model_n_head_kv(self.pointer)
        head_size = lib.llama_model_n_embd(self.pointer) // max(1, lib.llama_model_n_head(self.pointer))
        return int(2 * self.num_layers * heads * head_size * KV_TYPE_BITS[kv_type] / 8)

    def try_vocabulary(self) -> None:
        """Tokenize a text that contains every byte of UTF-8.

        With some broken vocabularies llama.cpp aborts the process or never returns. In that case this process exits
        while the model is loading. Otherwise the API process could die at the first request with such a byte.
        """
        vocab = lib.llama_model_get_vocab(self.pointer)
        text = "".join(map(chr, (*range(1, 0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000))))
        data = text.encode()
        tokens = (lib.llama_token * len(data))()
        faulthandler.dump_traceback_later(TRIAL_SECONDS, exit=True)
        lib.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
        faulthandler.cancel_dump_traceback_later()

    def grammar_tokenizer(self) -> LLTokenizer:
        """Returns the vocabulary for llguidance. This takes about a second. The result must not outlive the model."""
        vocab = lib.llama_model_get_vocab(self.pointer)
        return lltokenizer_from_vocab(vocab, eos_token=sorted(self.eog_tokens))

    def close(self) -> None:
        lib.llama_model_free(self.pointer)


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
    params.n_outputs_max = min(max(num_ids, num_outputs), batch_tokens)  # llama.cpp asserts one for each id
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
        _last_errors.clear()
        self._pointer: Any = lib.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ModelError(f"llama.cpp cannot set up {kv_tokens} tokens of KV memory: {_last_error()}")
        self._vocab_size = model.vocab_size
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
        self._embedding_size = model.embedding_size
        self.num_cells: int = lib.llama_n_ctx(self._pointer)
        self.batch_tokens: int = lib.llama_n_batch(self._pointer)
        self._allocate_batch()
        self.num_ids = num_ids
        self._state = np.empty(0, np.uint8)
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
        self._batch.n_tokens = num_tokens
        code = self._compute(self._pointer, self._batch)
        if code:
            raise StepError(f"llama_decode returned {code} for {num_tokens} tokens: {_last_error()}")

    def use_threads(self, count: int) -> None:
        lib.llama_set_n_threads(self._pointer, count, count)

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        """Returns the rows of logits of the last batch, in its order. Valid until the next decode."""
        pointer = lib.llama_get_logits(self._pointer)
        return np.ctypeslib.as_array(pointer, shape=(num_rows, self._vocab_size))

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

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        return bool(lib.llama_memory_seq_rm(self._memory, sequence_id, start, stop))

    def read_state(self, sequence_id: int, max_bytes: int = 0) -> Blob:
        """Returns a sequence's KV in llama.cpp's format, as a view of the state buffer. Empty if there is no state.

        The view is valid until the buffer is used again. Pass `max_bytes` if it is known: llama.cpp needs some time to
        measure a state in a large pool.
        """
        max_bytes = max_bytes or lib.llama_state_seq_get_size(self._pointer, sequence_id)
        buffer = self.state_buffer(max_bytes)
        size = lib.llama_state_seq_get_data(self._pointer, _pointer(buffer, ctypes.c_uint8), max_bytes, sequence_id)
        return buffer[:size]

    def write_state(self, sequence_id: int, state: Blob) -> bool:
        """Replace all KV of the sequence. Returns False, with the sequence empty, if llama.cpp rejects the state."""
        pointer = _pointer(state, ctypes.c_uint8)
        return bool(lib.llama_state_seq_set_data(self._pointer, pointer, len(state), sequence_id))

    def state_buffer(self, num_bytes: int) -> Blob:
        """Returns the buffer for states, with at least `num_bytes` bytes. `read_state` overwrites it."""
        if num_bytes > len(self._state):
            self._state = np.empty(num_bytes, np.uint8)
        return self._state

    def close(self) -> None:
        lib.llama_free(self._pointer)
        for chain in self._chains.values():
            lib.llama_sampler_free(chain)


def num_gpu_layers(requested: int, num_layers: int) -> int:
    """Returns how many layers llama.cpp puts on a GPU; 0 in a build without GPU support."""
    if not lib.llama_supports_gpu_offload():
        return 0
    return num_layers if requested < 0 else min(requested, num_layers)


def _pointer(array: NDArray[Any], item: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(item))


def _last_error() -> str:
    return _last_errors[-1] if _last_errors else "no reason given"
