"""llama.cpp through llama-cpp-python's low-level API: a model, a context, its batch as numpy views, its KV memory.

What is dealt with here and nowhere else: C pointers and their lifetimes, return codes, and llama.cpp's log.
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
"""llama-cpp-python's, which brings a llama.cpp of its own."""
KV_TYPE_IDS: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""ggml's type numbers."""
KV_TYPE_BITS: Final = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}
"""Bits per element, scales of the quantized blocks included."""
FLASH_ATTN_IDS: Final = {"auto": -1, "off": 0, "on": 1}
MAX_SEQUENCE_IDS: Final = 256
"""llama_max_parallel_sequences."""
POOLING_IDS: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
TRIAL_SECONDS: Final = 10
"""What making tokens of some kilobytes may take; it is milliseconds for sound vocabularies."""
PROBE_TOKENS: Final = 32
"""Of a context that only tells how a model attends, which takes some 10 ms."""

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
        """Loads the file; -1 puts all layers on the GPU if there is one. Raises ModelError."""
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
        """Whether texts are read with llama_encode."""
        if self.encodes and has_decoder:
            raise ModelError(f"{path}: models with an encoder and a decoder are not served")
        vocab = lib.llama_model_get_vocab(self.pointer)
        self.vocab_size: int = lib.llama_vocab_n_tokens(vocab)
        self.eog_tokens = frozenset(t for t in range(self.vocab_size) if lib.llama_vocab_is_eog(vocab, t))
        self.trained_context: int = lib.llama_model_n_ctx_train(self.pointer)
        self.num_bytes: int = lib.llama_model_size(self.pointer)
        self.num_layers: int = lib.llama_model_n_layer(self.pointer)
        self.shares_prefixes = not (
            lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer)
        )
        """A recurrent state belongs to one position of one sequence."""

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def embedding_size(self) -> int:
        """Components of a text's embedding."""
        return int(lib.llama_model_n_embd_out(self.pointer))

    def pooling(self, wanted: str) -> str:
        """How the embedding of a text is made, as wanted or, for auto, as the file names it. Raises ModelError."""
        if wanted != "auto":
            return wanted
        architecture = self._metadata("general.architecture")
        named = self._metadata(f"{architecture}.pooling_type")
        pooling = next((name for name, number in POOLING_IDS.items() if named == str(number)), "none")
        if pooling == "rank":
            raise ModelError(f"{self._path}: rerankers (pooling type rank) are not served; --pooling says otherwise")
        return pooling

    def _metadata(self, key: str) -> str:
        """Of the file; empty where it has none."""
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace") if length >= 0 else ""

    def kv_bytes_per_token(self, kv_type: str) -> int:
        """0 for a recurrent model, whose state does not grow."""
        heads = lib.llama_model_n_head_kv(self.pointer)
        head_size = lib.llama_model_n_embd(self.pointer) // max(1, lib.llama_model_n_head(self.pointer))
        return int(2 * self.num_layers * heads * head_size * KV_TYPE_BITS[kv_type] / 8)

    def try_vocabulary(self) -> None:
        """Make tokens of a text with every byte that UTF-8 has.

        On some broken vocabularies llama.cpp aborts the process, or never returns: then it is this process, and now,
        which ends, and not the one that serves all models, when somebody first writes such a byte.
        """
        vocab = lib.llama_model_get_vocab(self.pointer)
        text = "".join(map(chr, (*range(1, 0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000))))
        data = text.encode()
        tokens = (lib.llama_token * len(data))()
        faulthandler.dump_traceback_later(TRIAL_SECONDS, exit=True)
        lib.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
        faulthandler.cancel_dump_traceback_later()

    def grammar_tokenizer(self) -> LLTokenizer:
        """The vocabulary for llguidance, which takes about a second. It must not outlive the model."""
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
    """llama.cpp's parameters of a context: see `Context`."""
    params = lib.llama_context_default_params()
    params.n_ctx = kv_tokens
    params.n_batch = params.n_ubatch = batch_tokens
    params.n_seq_max = num_ids
    params.n_outputs_max = min(max(num_ids, num_outputs), batch_tokens)  # llama.cpp asserts one for each id
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = unified
    params.swa_full = True  # a sliding window that forgets could not be shared or trimmed
    params.flash_attn_type = FLASH_ATTN_IDS[config.flash_attn]
    params.type_k = params.type_v = KV_TYPE_IDS[config.kv_type]
    params.no_perf = True
    if pooling != "none":
        params.embeddings = True
        params.pooling_type = POOLING_IDS[pooling]
        params.n_outputs_max = batch_tokens  # every token is one
    return params


class Context:
    """KV memory and one batch. Implements kvcache's Memory. Not for two threads at once."""

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
        """A step is one micro-batch of at most `batch_tokens`, of which `num_outputs` may give logits.

        Layout *pool* if `unified`, else lanes, where a step may be cut into several micro-batches. With a `pooling`,
        each id's tokens of a step give one embedding instead of logits.
        Raises ModelError if there is no memory for it, or if the model only reads but is not to pool.
        """
        params = _context_params(config, kv_tokens, num_ids, num_outputs, batch_tokens, threads, unified, pooling)
        _last_errors.clear()
        self._pointer: Any = lib.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ModelError(f"llama.cpp cannot set up {kv_tokens} tokens of KV memory: {_last_error()}")
        self._vocab_size = model.vocab_size
        self._memory: Any = lib.llama_get_memory(self._pointer)
        self.keeps_kv = bool(self._memory) and not model.encodes
        """Whether what was computed is there for the next step."""
        self.is_causal: bool = self.keeps_kv and lib.llama_get_causal_attn(self._pointer)
        """Whether tokens only look back, so that a text may be computed in several steps."""
        if pooling == "none" and not self.is_causal:
            lib.llama_free(self._pointer)
            raise ModelError(
                f"{config.model_path}: this model writes no text; for embeddings of texts give it a --pooling"
            )
        self._compute = lib.llama_encode if model.encodes else lib.llama_decode
        self._embedding_size = model.embedding_size
        self.num_cells: int = lib.llama_n_ctx(self._pointer)
        self.batch_tokens: int = lib.llama_n_batch(self._pointer)
        self._allocate_batch()
        self.num_ids = num_ids
        self._state = np.empty(0, np.uint8)
        self._chains: dict[int, Any] = {}
        """llama.cpp's samplers that run in the compute graph, by sequence id."""

    def _allocate_batch(self) -> None:
        self.tokens = np.zeros(self.batch_tokens, np.int32)
        """The batch, to be filled up to the number of tokens that `decode` is given; llama.cpp reads these arrays."""
        self.positions = np.zeros(self.batch_tokens, np.int32)
        self.ids = np.zeros(self.batch_tokens, np.int32)
        """The sequence id of each token."""
        self.outputs = np.zeros(self.batch_tokens, np.int8)
        """1 for each token whose logits are wanted."""
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
        """Compute the first `num_tokens` of the batch. Raises StepError; KV of it may then be left in memory."""
        self._batch.n_tokens = num_tokens
        code = self._compute(self._pointer, self._batch)
        if code:
            raise StepError(f"llama_decode returned {code} for {num_tokens} tokens: {_last_error()}")

    def use_threads(self, count: int) -> None:
        lib.llama_set_n_threads(self._pointer, count, count)

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        """The rows of the last batch's outputs, in its order; valid until the next decode."""
        pointer = lib.llama_get_logits(self._pointer)
        return np.ctypeslib.as_array(pointer, shape=(num_rows, self._vocab_size))

    def embedding(self, sequence_id: int) -> NDArray[np.float32]:
        """What the last batch's tokens of this id were pooled to; valid until the next decode."""
        pointer = lib.llama_get_embeddings_seq(self._pointer, sequence_id)
        return np.ctypeslib.as_array(pointer, shape=(self._embedding_size,))

    def attach_top_k(self, sequence_id: int, top_k: int) -> bool:
        """Let the compute graph find the best tokens behind this sequence id's outputs, of which a batch has one.

        0 stops it. Either makes the next decode set up its graph again, which takes some milliseconds. Logits are
        computed, but not copied, for a batch whose outputs are all of such ids. False if the backend cannot do it.
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
        """The tokens that the graph found behind the batch's token at this index, in no order, and their logits."""
        count = lib.llama_get_sampled_candidates_count_ith(self._pointer, index)
        tokens = np.ctypeslib.as_array(lib.llama_get_sampled_candidates_ith(self._pointer, index), shape=(count,))
        logits = np.ctypeslib.as_array(lib.llama_get_sampled_logits_ith(self._pointer, index), shape=(count,))
        return tokens.astype(np.intp), logits

    # -- KV memory: the primitives that scheduler.llama.kv_memory is made of ------------------------------------------

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Layout pool only: in lanes, llama.cpp copies whole lanes and nothing less."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, stop)

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        return bool(lib.llama_memory_seq_rm(self._memory, sequence_id, start, stop))

    def read_state(self, sequence_id: int, max_bytes: int = 0) -> Blob:
        """A sequence's KV in llama.cpp's form: a view of one buffer, valid until the next state.

        To measure it first takes a while in a large pool, so say how large it may be if you know. Empty for no state.
        """
        max_bytes = max_bytes or lib.llama_state_seq_get_size(self._pointer, sequence_id)
        buffer = self.state_buffer(max_bytes)
        size = lib.llama_state_seq_get_data(self._pointer, _pointer(buffer, ctypes.c_uint8), max_bytes, sequence_id)
        return buffer[:size]

    def write_state(self, sequence_id: int, state: Blob) -> bool:
        """Replaces all that the sequence has. False, with the sequence empty, if llama.cpp does not take it."""
        pointer = _pointer(state, ctypes.c_uint8)
        return bool(lib.llama_state_seq_set_data(self._pointer, pointer, len(state), sequence_id))

    def state_buffer(self, num_bytes: int) -> Blob:
        """What states are read into; may also be used to write one."""
        if num_bytes > len(self._state):
            self._state = np.empty(num_bytes, np.uint8)
        return self._state

    def close(self) -> None:
        lib.llama_free(self._pointer)
        for chain in self._chains.values():
            lib.llama_sampler_free(chain)


def num_gpu_layers(requested: int, num_layers: int) -> int:
    """Layers that llama.cpp puts on a GPU: none in a build without one."""
    if not lib.llama_supports_gpu_offload():
        return 0
    return num_layers if requested < 0 else min(requested, num_layers)


def _pointer(array: NDArray[Any], item: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(item))


def _last_error() -> str:
    return _last_errors[-1] if _last_errors else "no reason given"
