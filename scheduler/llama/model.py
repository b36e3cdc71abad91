"""A model in llama.cpp: its weights, its vocabulary and its metadata. Also receives llama.cpp's log."""

import ctypes
import faulthandler
import logging
from typing import Any, Final

import llama_cpp
import llama_cpp.llama_cpp as lib
from llguidance import LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab

from scheduler.errors import ModelError
from scheduler.llama.repack import Repacked
from scheduler.llama.stream_file import num_bytes, opened
from scheduler.machine import anonymous_bytes

_log = logging.getLogger("llama.cpp")

LLAMA_CPP_VERSION: Final[str] = llama_cpp.__version__
"""The version of llama-cpp-python, which includes its own llama.cpp."""
LIBRARY: Final[Any] = lib._lib
"""The loaded library, for functions that llama-cpp-python does not declare."""
POOLING_IDS: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
UNUSED_TOKEN: Final[int] = lib.LLAMA_TOKEN_ATTR_UNUSED
BYTE_TOKEN: Final[int] = lib.LLAMA_TOKEN_ATTR_BYTE
TRIAL_SECONDS: Final = 10
"""Time limit for tokenizing some kilobytes. A valid vocabulary takes milliseconds."""

_LOG_LEVELS: Final = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}


_last_errors: list[str] = []


@lib.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", errors="replace").strip()
    if level in _LOG_LEVELS and line:
        _log.log(_LOG_LEVELS[level], line)
        if level == 4:
            _last_errors.append(line)


def forget_errors() -> None:
    _last_errors.clear()


def last_error() -> str:
    """Returns the last error that llama.cpp logged since `forget_errors`."""
    return _last_errors[-1] if _last_errors else "no reason given"


class Model:
    """The weights and the vocabulary of one GGUF file."""

    def __init__(self, path: str, gpu_layers: int, repacked: Repacked | None = None) -> None:
        """Loads the file, or its repacked weights. -1 puts all layers on the GPU if there is one.

        Raises ModelError if it cannot be loaded.
        """
        lib.llama_log_set(_on_log, ctypes.c_void_p())  # the module keeps the callback alive
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        forget_errors()
        anonymous_before = anonymous_bytes()
        self.pointer: Any
        if repacked is None:
            self.pointer = lib.llama_model_load_from_file(path.encode(), params)
        else:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # this file cannot be mapped
            with opened(repacked.weights) as file:
                self.pointer = lib.llama_model_load_from_file_ptr(file, params)
        if not self.pointer:
            raise ModelError(f"llama.cpp cannot load {path}: {last_error()}")
        self._path = path
        self.is_repacked = repacked is not None
        """Whether the weights are rewritten; see `scheduler.llama.repack`."""
        self._adapter: Any = None
        if repacked is not None:
            try:
                self._adapter = self._read_adapter(repacked)
            except BaseException:
                self.close()
                raise
        has_decoder = lib.llama_model_has_decoder(self.pointer)
        self.encodes: bool = lib.llama_model_has_encoder(self.pointer)
        """Whether texts are computed with llama_encode."""
        if self.encodes and has_decoder:
            raise ModelError(f"{path}: encoder-decoder models are not supported")
        vocab = lib.llama_model_get_vocab(self.pointer)
        self.vocab_size: int = lib.llama_vocab_n_tokens(vocab)
        self.eog_tokens = frozenset(t for t in range(self.vocab_size) if lib.llama_vocab_is_eog(vocab, t))
        bos_token: int = lib.llama_vocab_bos(vocab)
        self.bos_token = bos_token if bos_token >= 0 else None
        """The token that begins a text, if the vocabulary has one."""
        self.trained_context: int = lib.llama_model_n_ctx_train(self.pointer)
        scaling = f"{self.architecture}.rope.scaling.original_context_length"
        self.rescales = bool(self._metadata(scaling))
        """Whether the file names an original context."""
        self.original_context = int(self._metadata(scaling) or 0) or self.trained_context
        """Tokens of a context without stretched positions. Some models (Phi 3, MiniCPM 3) compute other KV in a longer
        one, even for its first tokens."""
        self.num_bytes: int = lib.llama_model_size(self.pointer) + (num_bytes(repacked.adapter) if repacked else 0)
        grown_bytes = max(0, anonymous_bytes() - anonymous_before)
        self.mapped_bytes = 0 if repacked else max(0, self.num_bytes - grown_bytes)
        """Bytes of weights that the system counts as available memory, because it can read them again from the file.
        Repacked weights are not, neither those of Cortex nor those that llama.cpp repacks, such as Q4_0 on a CPU.
        It is too small by the memory of the vocabulary: 16 MiB for 49,152 tokens, 40 MiB for 262,144."""
        self.num_layers: int = lib.llama_model_n_layer(self.pointer)
        self.shares_prefixes = not (
            lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer)
        )
        """Whether sequences can share cells. A recurrent state belongs to one position of one sequence."""
        self.window: int = lib.llama_model_n_swa(self.pointer)
        """Tokens that a layer with a sliding window attends to, the current one included. 0 if the file names none."""

    def _read_adapter(self, repacked: Repacked) -> Any:
        with opened(repacked.adapter) as file:
            adapter = lib.llama_adapter_lora_init_from_file_ptr(self.pointer, file)
        if not adapter:
            raise ModelError(f"llama.cpp cannot load their adapter: {last_error()}")
        return adapter

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp, such as `llama`."""
        return self._metadata("general.architecture")

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def embedding_size(self) -> int:
        """Number of components of a text's embedding."""
        return int(lib.llama_model_n_embd_out(self.pointer))

    @property
    def num_scores(self) -> int:
        """Number of components that the pooling `rank` returns. The first one is the score."""
        return int(lib.llama_model_n_cls_out(self.pointer))

    def pooling(self, wanted: str) -> str:
        """Returns the pooling: `wanted`, or for auto the one that the model file names. Only a file names rank."""
        if wanted != "auto":
            return wanted
        named = self._metadata(f"{self.architecture}.pooling_type")
        return next((name for name, number in POOLING_IDS.items() if named == str(number)), "none")

    def _metadata(self, key: str) -> str:
        """Returns a metadata value of the file; empty if the key is missing."""
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace") if length >= 0 else ""

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

    @property
    def vocabulary_type(self) -> int:
        """llama.cpp's number of the kind of tokenizer, such as SentencePiece or BPE."""
        return int(lib.llama_vocab_type(lib.llama_model_get_vocab(self.pointer)))

    def token_texts(self) -> list[bytes]:
        """Returns the tokens as they are in the file. The text of a byte token is its code, such as `<0x0A>`."""
        vocab, text = lib.llama_model_get_vocab(self.pointer), lib.llama_vocab_get_text
        return [text(vocab, token) for token in range(self.vocab_size)]

    def tokens_with(self, attribute: int) -> frozenset[int]:
        """Returns the tokens that have this attribute: BYTE_TOKEN or UNUSED_TOKEN."""
        vocab, attributes = lib.llama_model_get_vocab(self.pointer), lib.llama_vocab_get_attr
        return frozenset(token for token in range(self.vocab_size) if attributes(vocab, token) & attribute)

    def piece(self, token: int) -> bytes:
        """Returns the text of a token. A control token has the text by which templates name it."""
        vocab, room = lib.llama_model_get_vocab(self.pointer), 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count: int = lib.llama_token_to_piece(vocab, token, buffer, room, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def grammar_tokenizer(self) -> LLTokenizer:
        """Returns the vocabulary for llguidance. This takes about a second. The result must not outlive the model."""
        vocab = lib.llama_model_get_vocab(self.pointer)
        return lltokenizer_from_vocab(vocab, eos_token=sorted(self.eog_tokens))

    def attach_adapter(self, context: Any) -> None:
        """Let a context of this model add what repacked weights lack."""
        if self._adapter is not None:
            adapters = (ctypes.c_void_p * 1)(ctypes.cast(self._adapter, ctypes.c_void_p).value)
            pointers = ctypes.cast(adapters, ctypes.POINTER(lib.llama_adapter_lora_p_ctypes))
            lib.llama_set_adapters_lora(context, pointers, 1, (ctypes.c_float * 1)(1))

    def close(self) -> None:
        lib.llama_model_free(self.pointer)


def num_gpu_layers(requested: int, num_layers: int) -> int:
    """Returns how many layers llama.cpp puts on a GPU; 0 in a build without GPU support."""
    if not lib.llama_supports_gpu_offload():
        return 0
    return num_layers if requested < 0 else min(requested, num_layers)


def computes_groups() -> bool:
    """Whether this build of llama.cpp computes groups of rows of Q4_0 together on this processor."""
    features = {line.strip() for part in build_info().split("|") for line in part.split(":")}
    on_arm = "NEON = 1" in features and not features.isdisjoint({"DOTPROD = 1", "MATMUL_INT8 = 1"})
    return "REPACK = 1" in features and ("AVX2 = 1" in features or on_arm)


def build_info() -> str:
    """Returns llama.cpp's list of the features of this build and of the processor, separated by `|`."""
    return str(lib.llama_print_system_info().decode())
