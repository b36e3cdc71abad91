"""A vocabulary for tests of chat templates, made of the template's own marks."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

TAG: Final = re.compile(r"</?[\w:]{1,30}>")
CONTROL_LIKE: Final = re.compile(
    r"<\|[^<>|\s{}'\"]{1,40}\|>|<\uff5c[^<>\uff5c\s{}]{1,40}\uff5c>|\[/?[A-Z][A-Z_]{2,}\]|</?(?:start|end)_of_(?:turn|text|role)>"
    r"|<\|[a-z_]{3,}>|<[a-z_]{3,}\|>|<\|\"\|>|\]<\]minimax\[>\["
)
_PIECES: Final = re.compile(rf"{CONTROL_LIKE.pattern}|{TAG.pattern}| ?\w+|\n+|[^\S\n]+|[^\w\s]")
PRINTED: Final = frozenset({"<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"})
"""Control tokens of gpt-oss that llama.cpp prints like text."""


def bos_and_eos(source: str) -> tuple[str, str]:
    """Plausible texts of BOS and EOS."""
    for mark, around in (
        ("begin▁of▁sentence", ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>")),
        ("start_header_id", ("<|begin_of_text|>", "<|eot_id|>")),
        ("<start_of_turn>", ("<bos>", "<eos>")),
        ("<|turn>", ("<bos>", "<eos>")),
        ("<|im_start|>", ("<|startoftext|>", "<|im_end|>")),
        ("<|START_OF_TURN_TOKEN|>", ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>")),
        ("<|start|>", ("<|startoftext|>", "<|return|>")),
    ):
        if mark in source:
            return around
    return "<s>", "</s>"


class StubTokenizer:
    """A vocabulary that grows: words, marks and spaces become tokens when they are first used.

    It stands for an `api.text.tokenizer.Tokenizer`. What looks like a control token in the template, and BOS and EOS,
    are in `control_texts`, so that clients' text is kept apart from them. They print as text, unless they are among the
    `controls`.
    """

    def __init__(self, source: str, controls: Iterable[str] = (), user_defined: Iterable[str] = ()) -> None:
        """`source`: a chat template. `controls`: texts of control tokens, which print as nothing.

        `user_defined`: texts of tokens that grammars must name by their ids too, but which print as text.
        """
        self.chat_template: str | None = source
        self.bos_id: int | None = None
        self.bos_token, self.eos_token = bos_and_eos(source)
        self.add_bos = False
        self.metadata: dict[str, str] = {}
        self.trained_context = 0
        self.vocab_size = 1 << 20
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._controls = {self.id_of(text): text for text in controls}
        self.end_texts: frozenset[str] = frozenset()
        self.special_ids: dict[str, int] = {
            text: self.id_of(text) for text in [*self._controls.values(), *user_defined]
        }
        found = [*CONTROL_LIKE.findall(source), self.bos_token, self.eos_token, *self._controls.values()]
        self.control_texts: tuple[str, ...] = tuple(dict.fromkeys(found))
        marks = sorted(self.special_ids, key=len, reverse=True)
        self._pieces = re.compile("|".join([*map(re.escape, marks), _PIECES.pattern]))
        self._marks = re.compile("|".join(map(re.escape, marks)))

    def id_of(self, text: str) -> int:
        """The id of the token with this text, which is made if it is new."""
        if text not in self._ids:
            self._ids[text] = len(self._texts)
            self._texts.append(text)
        return self._ids[text]

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:
        """As in the real one, no control token is returned without `parse_special`."""
        tokens: list[int] = []
        for piece in self._pieces.findall(text):
            is_spelled = not parse_special and self._ids.get(piece) in self._controls
            tokens += map(self.id_of, piece if is_spelled else [piece])
        return tokens

    def piece(self, token: int) -> bytes:
        return b"" if token in self._controls else self._texts[token].encode()

    def spelled(self, token: int) -> bytes:
        return self._texts[token].encode()

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self._texts[token] for token in tokens)

    def tokens_with(self, text: str) -> list[int]:
        return [token for token, each in enumerate(self._texts) if text in each and token not in self._controls]

    def cut(self, text: str, size: int) -> list[int]:
        """Tokens of `size` characters, 0 for as long as possible. Tokens with a special id stay whole."""
        tokens: list[int] = []
        at = 0
        found = [match.span() for match in self._marks.finditer(text)] if self.special_ids else []
        for start, end in [*found, (len(text), len(text))]:
            step = size or max(start - at, 1)
            tokens += [self.id_of(text[i : min(i + step, start)]) for i in range(at, start, step)]
            tokens += [self.id_of(text[start:end])] if end > start else []
            at = end
        return tokens
