"""Converts text to tokens and back. Loads only a model's vocabulary: no weights, no devices."""

import ctypes
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from llama_cpp import llama_cpp

from api.text.literals import literals

_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
_UNKNOWN = llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
_USER_DEFINED = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED

# Control tokens of gpt-oss that llama.cpp declares user-defined, so that they are printed. It then finds them in
# any text, even with parse_special off.
_PRINTED_CONTROL = frozenset({"<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"})

_GGML_LOG_LEVEL_ERROR = 4
_INT32_MIN = -(2**31)

# llama.cpp walks its list of fragments once for each control token that it finds, so the time is quadratic: 10,000
# control tokens in one call take 0.2 s, 100,000 take 20 s.
_CONTROLS_PER_CALL = 256
_SHORT = 4096

_SHORT_METADATA = 1024

_load_lock = threading.Lock()
_errors: deque[str] = deque(maxlen=8)


def _keep_error(level: int, text: bytes | None, _user_data: object) -> None:
    if level == _GGML_LOG_LEVEL_ERROR and text:
        _errors.append(text.decode(errors="replace").strip())


_log_callback = llama_cpp.llama_log_callback(_keep_error)  # llama.cpp keeps only a pointer, so this must stay alive


class ModelError(Exception):
    """A model that cannot be served. The message is the reason, in one line."""


class _Model:
    """A vocabulary in llama.cpp's memory, which is freed with the last reference to this object."""

    def __init__(self, path: str) -> None:
        self._pointer: Any = None
        self._free = llama_cpp.llama_model_free
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        # Without this list llama.cpp would open every GPU to read its memory size.
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        with _load_lock:
            _errors.clear()
            llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
            self._pointer = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
            if not self._pointer:
                raise ModelError(f"llama.cpp cannot load {path}: {_why()}")
        self.vocab: Any = llama_cpp.llama_model_get_vocab(self._pointer)
        if llama_cpp.llama_vocab_type(self.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise ModelError(f"{path} has no vocabulary")  # reading its tokens would abort the process

    def __del__(self) -> None:
        if self._pointer:
            self._free(self._pointer)

    def metadata(self, key: str) -> str | None:
        return _read(lambda *to: llama_cpp.llama_model_meta_val_str(self._pointer, key.encode(), *to))

    def short_metadata(self) -> dict[str, str]:
        short = {}
        for i in range(llama_cpp.llama_model_meta_count(self._pointer)):
            key = _read(lambda *to, i=i: llama_cpp.llama_model_meta_key_by_index(self._pointer, i, *to))
            value = _read(lambda *to, i=i: llama_cpp.llama_model_meta_val_str_by_index(self._pointer, i, *to))
            if key is not None and value is not None and len(value) <= _SHORT_METADATA:
                short[key] = value
        return short


class Tokenizer:
    """A model's vocabulary. Threads may call all methods at the same time."""

    def __init__(self, model_path: str | os.PathLike[str]) -> None:
        """Raises ModelError if llama.cpp cannot load the file or it has no vocabulary."""
        model = _Model(os.fspath(model_path))
        vocab = model.vocab
        self._model: _Model | None = model
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocab)
        self._pieces: list[bytes | None] = [None] * self.vocab_size

        self.special_ids: dict[str, int] = {}
        """Ids, by text, of tokens that grammars refer to by id: control tokens and user-defined `<...>` tokens."""
        controls, unknowns = self._find_controls(vocab)
        self._controls = controls
        self.control_texts: tuple[str, ...] = tuple(t for t in dict.fromkeys([*controls.values(), *unknowns]) if t)
        """Every text that `encode` with `parse_special` converts to a control token or an unknown token."""
        self._control_text = re.compile(f"({literals(self.control_texts)})")

        ends = (text for token, text in controls.items() if llama_cpp.llama_vocab_is_eog(vocab, token))
        self.end_texts: frozenset[str] = frozenset(ends)
        """The texts of the tokens that end an answer."""

        bos, eos = llama_cpp.llama_vocab_bos(vocab), llama_cpp.llama_vocab_eos(vocab)
        self.bos_id: int | None = bos if bos >= 0 else None
        self.bos_token: str = _text(vocab, bos)
        self.eos_token: str = _text(vocab, eos)
        self.add_bos: bool = llama_cpp.llama_vocab_get_add_bos(vocab)
        self.metadata: dict[str, str] = model.short_metadata()
        """The file's metadata without arrays and without values of more than 1,024 characters."""
        self.chat_template: str | None = model.metadata("tokenizer.chat_template")
        architecture = self.metadata.get("general.architecture", "")
        length = self.metadata.get(f"{architecture}.context_length", "")
        self.trained_context: int = int(length) if length.isdecimal() else 0
        """The trained context in tokens; 0 if the file does not have it."""

        unknown = self.metadata.get("tokenizer.ggml.unknown_token_id", "")
        self._unwritten = controls.keys() - ({int(unknown)} if unknown.isdecimal() else set())
        """Control tokens without the unknown token, which stands for unknown text."""
        self._around = self._find_around()
        self.pair_marks = self._find_pair_marks()
        """The tokens before, between and after the two texts of a pair, as llama-server has them."""
        self.rerank_template: str | None = model.metadata("tokenizer.chat_template.rerank")
        """A pair with `{query}` and `{document}` in place of its texts; None for `pair_marks`."""

        # Some vocabularies put a space before the first word of every call. With this lead, the text is not at the
        # start of the call. The lead's tokens are then removed.
        self._lead: list[int] = []
        first = self._tokenize("a", parse_special=False)[:1]
        if first and self.piece(first[0]).startswith(b" "):
            self._lead = self._tokenize("\n", parse_special=False)

    def _find_controls(self, vocab: Any) -> tuple[dict[int, str], list[str]]:
        """The texts of the control tokens and of the unknown ones. Fills `special_ids`."""
        controls: dict[int, str] = {}
        unknowns: list[str] = []
        for token in range(self.vocab_size):
            attributes = llama_cpp.llama_vocab_get_attr(vocab, token)
            if attributes & llama_cpp.LLAMA_TOKEN_ATTR_NORMAL and not attributes & (_CONTROL | _UNKNOWN):
                continue  # nearly all tokens
            text = llama_cpp.llama_vocab_get_text(vocab, token).decode(errors="replace")
            if attributes & _CONTROL or text in _PRINTED_CONTROL:
                controls[token] = text
            elif attributes & _UNKNOWN:
                unknowns.append(text)
            if attributes & _CONTROL or (attributes & _USER_DEFINED and text.startswith("<") and text.endswith(">")):
                self.special_ids[text] = token
        return controls, unknowns

    def close(self) -> None:
        """Free the memory when calls in other threads have ended. Later calls raise ValueError."""
        self._model = None

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:
        """The tokens of `text`, without BOS or EOS. Lone surrogates become question marks.

        With `parse_special`, the texts of control tokens become these tokens. Without it, no control token is returned.
        `continues`: the text follows other text, so it gets no extra leading space. llama.cpp drops bytes for which the
        vocabulary has no token.
        """
        if parse_special:
            parts = self._cut(text) if len(text) > _SHORT else [text]
            tokens = self._tokenize(parts[0], parse_special=True, continues=continues)
            for part in parts[1:]:
                tokens += self._tokenize(part, parse_special=True)
            return tokens
        tokens = self._tokenize(text, parse_special=False, continues=continues)
        return tokens if self._controls.keys().isdisjoint(tokens) else self._spell(text, continues=continues)

    def encode_whole(self, text: str, limit: int | None = None) -> list[int]:
        """The tokens of a complete text, with the tokens that the vocabulary puts around a text.

        A text with more than `limit` tokens, these included, is cut at its end.

        These are BOS or CLS before it and EOS or SEP after it, if the vocabulary has them. Texts of control tokens stay
        text. Text without a token becomes the unknown token, if there is one.
        """
        before, after = self._around
        tokens = self._tokenize(text, parse_special=False)
        if not self._unwritten.isdisjoint(tokens):
            tokens = self._spell(text, continues=False)
        room = len(tokens) if limit is None else max(limit - len(before) - len(after), 0)
        return [*before, *tokens[:room], *after]

    def piece(self, token: int) -> bytes:
        """The bytes of a token, which may be a part of a character; empty for a control token.

        Raises ValueError if the id is not in the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is not in a vocabulary of {self.vocab_size}")
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def spelled(self, token: int) -> bytes:
        """Like `piece`, but a control token's text instead of empty bytes."""
        return self._controls[token].encode() if token in self._controls else self.piece(token)

    def text(self, tokens: Iterable[int]) -> str:
        """The text of tokens, including the texts of control tokens."""
        return b"".join(map(self.spelled, tokens)).decode(errors="replace")

    def tokens_with(self, text: str) -> list[int]:
        """All tokens whose text contains `text`."""
        data = text.encode(errors="replace")
        return [token for token in range(self.vocab_size) if data in self.piece(token)]

    def fill_in_the_middle(self, before: list[int], after: list[int]) -> list[int] | None:
        """The prompt for the text between these tokens; None if the vocabulary has no tokens for such prompts."""
        vocab = self._open_model().vocab
        prefix, suffix, middle = (
            llama_cpp.llama_vocab_fim_pre(vocab),
            llama_cpp.llama_vocab_fim_suf(vocab),
            llama_cpp.llama_vocab_fim_mid(vocab),
        )
        if min(prefix, suffix, middle) < 0:
            return None
        return [prefix, *before, suffix, *after, middle]

    def _find_around(self) -> tuple[list[int], list[int]]:
        """The tokens that llama.cpp puts before and after a text."""
        vocab = self._open_model().vocab
        is_wordpiece = llama_cpp.llama_vocab_type(vocab) == llama_cpp.LLAMA_VOCAB_TYPE_WPM
        if is_wordpiece and min(llama_cpp.llama_vocab_bos(vocab), llama_cpp.llama_vocab_sep(vocab)) < 0:
            return [], []  # llama.cpp would abort the process
        whole = self._tokenize("a", parse_special=False, add_special=True)
        text = self._tokenize("a", parse_special=False)
        start = next(at for at in range(len(whole) + 1) if whole[at : at + len(text)] == text)
        return whole[:start], whole[start + len(text) :]

    def _find_pair_marks(self) -> tuple[list[int], list[int], list[int]]:
        vocab = self._open_model().vocab
        bos, eos, sep = (
            llama_cpp.llama_vocab_bos(vocab),
            llama_cpp.llama_vocab_eos(vocab),
            llama_cpp.llama_vocab_sep(vocab),
        )
        before = [bos] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
        after = [eos if eos >= 0 else sep] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
        between = [*after, *([sep] if llama_cpp.llama_vocab_get_add_sep(vocab) else [])]
        return before, between, after

    def _open_model(self) -> _Model:
        if self._model is None:
            raise ValueError("the tokenizer is closed")
        return self._model

    def _cut(self, text: str) -> list[str]:
        # A control token splits the text anyway.
        starts = [match.start() for match in self._control_text.finditer(text)]
        return [text[a:b] for a, b in pairwise([0, *starts[_CONTROLS_PER_CALL::_CONTROLS_PER_CALL], len(text)])]

    def _spell(self, text: str, *, continues: bool) -> list[int]:
        """Tokenize control texts character by character, where llama.cpp would return control tokens for them."""
        tokens: list[int] = []
        for i, part in enumerate(self._control_text.split(text)):
            for characters in part if i % 2 else [part]:
                tokens += self._tokenize(characters, parse_special=False, continues=continues or bool(tokens))
        return [token for token in tokens if token not in self._controls]

    def _tokenize(
        self, text: str, *, parse_special: bool, continues: bool = False, add_special: bool = False
    ) -> list[int]:
        if not text:
            return []
        if continues and self._lead:
            tokens = self._tokenize("\n" + text, parse_special=parse_special)
            if tokens[: len(self._lead)] == self._lead:
                return tokens[len(self._lead) :]
        model = self._open_model()
        data = text.encode(errors="replace")
        room = len(data) + 16
        while True:
            buffer = _array_type(room.bit_length())()
            count = llama_cpp.llama_tokenize(
                model.vocab, data, len(data), buffer, len(buffer), add_special, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            if count == _INT32_MIN:
                raise ValueError("the text has more tokens than llama.cpp can count")
            room = -count

    def _read_piece(self, token: int) -> bytes:
        model = self._open_model()
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(model.vocab, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


@cache
def _array_type(bits: int) -> type[ctypes.Array[ctypes.c_int32]]:
    return ctypes.c_int32 * (1 << bits)


def _text(vocab: Any, token: int) -> str:
    return llama_cpp.llama_vocab_get_text(vocab, token).decode(errors="replace") if token >= 0 else ""


def _read(call: Callable[..., int]) -> str | None:
    """The string that a function writes like snprintf; None if the function returns an error."""
    room = _SHORT_METADATA
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = call(buffer, room)
        if length < 0:
            return None
        if length < room:
            return buffer.value.decode(errors="replace")
        room = length + 1


def _why() -> str:
    reasons = [re.sub(r"^\w+: ", "", line) for line in _errors]
    return "; ".join(r for r in reasons if r != "failed to load model") or "no reason given"


@dataclass(frozen=True, slots=True)
class LlamaBuild:
    """How llama.cpp was built."""

    commit: str
    """The short commit that is compiled in. It ends with `-dirty` if files differed from the commit, as in a source
    distribution. It is `unknown` if llama.cpp was built without its repository."""
    flags: dict[str, dict[str, str]]
    """By backend, then by name."""


@cache
def llama_build() -> LlamaBuild:
    commit: Any = getattr(llama_cpp._lib, "ggml_commit", None)
    if commit is not None:
        commit.restype = ctypes.c_char_p
    return LlamaBuild(commit().decode() if commit else "unknown", _flags(llama_cpp.llama_print_system_info().decode()))


def _flags(info: str) -> dict[str, dict[str, str]]:
    """The flags in a text such as `CPU : AVX = 1 | OPENMP = 1 | CUDA : ARCHS = 750,800 | `."""
    flags: dict[str, dict[str, str]] = {}
    backend = ""
    for part in info.split("|"):
        named, colon, rest = part.partition(" : ")
        if colon:
            backend = named.strip()
        name, equals, value = (rest if colon else part).partition("=")
        if equals:
            flags.setdefault(backend, {})[name.strip()] = value.strip()
    return flags
